//! An operator steers a running samport: whoever returns from an order can rely on it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use samport_tests::daemon::samport_command;
use samport_tests::load::{Connection, Load, Tally, ask};
use samport_tests::served::Served;
use samport_tests::stats::{chi_square, chi_square_limit};
use samport_tests::{Namespace, TIMEOUT, eventually};

use crate::lab;

/// A connection to a backend through the first front, with an answer on it.
fn hold(served: &Served, name: &str) -> Connection {
    hold_from(served.lab.client(), served.fronts()[0], name)
}

fn hold_from(client: &Namespace, front: SocketAddr, name: &str) -> Connection {
    client.run(|| {
        let open = |_| {
            let mut connection = Connection::open(front).unwrap();
            (connection.get("/").unwrap().backend == name).then_some(connection)
        };
        (0..100).find_map(open).unwrap_or_else(|| panic!("{name} has answered none of 100"))
    })
}

/// Who answers new connections through both fronts.
fn answers(served: &Served) -> [Tally; 2] {
    served.fronts().map(|front| ask(&served.lab, front, 60))
}

/// Panics if a backend has answered.
fn assert_not(tallies: &[Tally], name: &str) {
    for tally in tallies {
        assert_eq!(tally.of(name), 0, "{tally}");
    }
}

/// A command that goes on while the test does.
fn start(served: &Served, args: &[&str]) -> Child {
    let mut command = samport_command(served.lab.host(), args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start samport")
}

/// Waits until a command has ended; panics unless it has done what it should.
fn wait_for(mut command: Child) {
    let status = eventually("the command ends", || command.try_wait().expect("wait"));
    assert!(status.success(), "{status}");
}

/// Case 54: `samport drain` returns when no new flow goes there; the old ones go on. `undrain` ends it.
#[test]
fn a_drained_backend_gets_no_new_flow_keeps_its_old_ones_and_comes_back() {
    let served = Served::start(lab(3), &["--drain", "100"]);
    let mut held = hold(&served, "web-2");
    let load = Load::start(served.lab.client(), served.fronts()[1], 1);
    let printed = served.order(&["drain", "web-2"]);
    assert_not(&answers(&served), "web-2");
    assert!(printed.contains("web-2 172.30.0.11:9090 on 80/tcp: draining"), "{printed}");
    assert_eq!(held.get("/").unwrap().backend, "web-2");
    assert!(served.states_of("web-2").contains(&"draining".to_owned()));

    served.order(&["undrain", "web-2"]);
    for tally in answers(&served) {
        assert!(tally.of("web-2") > 0, "{tally}");
    }
    assert_eq!(held.get("/").unwrap().backend, "web-2");
    load.stop().assert_no_failure();
}

/// An address names its backend, with the other addresses it has.
#[test]
fn a_backend_is_drained_by_its_address_too() {
    let served = Served::start(lab(2), &["--drain", "100"]);
    served.order(&["drain", &served.addresses_of("web-2")[1].to_string()]);
    assert_not(&answers(&served), "web-2");
}

/// Case 55, by command: the last one goes on serving until another is there.
#[test]
fn when_all_are_drained_clients_are_served_until_one_is_back() {
    let served = Served::start(lab(2), &["--drain", "0"]);
    served.order(&["drain", "web-1"]);
    served.order(&["drain", "web-2"]);
    for tally in answers(&served) {
        assert_eq!(tally.of("web-2"), 60, "{tally}");
    }
    let table = served.order(&["backends"]);
    assert!(table.contains("draining (last)"), "{table}");
    served.order(&["undrain", "web-1"]);
    assert_not(&answers(&served), "web-2");
    eventually("web-2 has had its time", || {
        served.states_of("web-2").iter().all(|state| state == "down").then_some(())
    });
}

/// Cases 54 and 56: when its time is over, its connections are refused, and it stays down.
#[test]
fn a_backend_whose_time_to_drain_is_over_is_down_and_its_connections_end() {
    let served = Served::start(lab(2), &["--drain", "1"]);
    let mut held = hold(&served, "web-2");
    served.order(&["drain", "web-2", "--wait"]);
    assert_eq!(served.states_of("web-2"), ["down", "down"]);
    assert_eq!(held.get("/").unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_not(&answers(&served), "web-2");
    served.order(&["undrain", "web-2"]);
    assert_eq!(served.states_of("web-2"), ["active", "active"]);
    for tally in answers(&served) {
        assert!(tally.of("web-2") > 0, "{tally}");
    }
}

/// Case 54: `drain --wait` returns when the last connection is closed, long before the time is over, and
/// not before, whether its client is outside or on this machine.
#[test]
fn who_waits_for_a_drain_goes_on_when_the_last_connection_is_closed() {
    let served = Served::start(lab(2), &["--drain", "1000"]);
    let outside = hold(&served, "web-2");
    let inside = hold_from(served.lab.host(), "127.0.0.1:80".parse().unwrap(), "web-1");
    for (mut connection, name) in [(outside, "web-2"), (inside, "web-1")] {
        let mut waiting = start(&served, &["drain", name, "--wait"]);
        eventually("it drains", || {
            served.states_of(name).contains(&"draining".to_owned()).then_some(())
        });
        // Its other address has no connection: that one is down soon, and it alone.
        eventually("an address is down", || {
            served.states_of(name).contains(&"down".to_owned()).then_some(())
        });
        assert_eq!(connection.get("/").unwrap().backend, name);
        assert!(waiting.try_wait().unwrap().is_none(), "it has not waited");
        drop(connection);
        wait_for(waiting);
        assert_eq!(served.states_of(name), ["down", "down"]);
        served.order(&["undrain", name]);
    }
}

/// Case 50, by command: weight 0 gets no new flows, and the old ones go on.
#[test]
fn weight_0_takes_no_new_flows_until_it_has_another() {
    let served = Served::start(lab(2), &["--drain", "100"]);
    let mut held = hold(&served, "web-1");
    served.order(&["weight", "web-1", "0"]);
    assert_not(&answers(&served), "web-1");
    assert_eq!(held.get("/").unwrap().backend, "web-1");
    served.order(&["weight", "web-1", "1"]);
    for tally in answers(&served) {
        assert!(tally.of("web-1") > 0, "{tally}");
    }
    assert_eq!(held.get("/").unwrap().backend, "web-1");
}

/// A weight moves the shares at once, under load, and stays when the file says something else.
#[test]
fn an_ordered_weight_moves_the_shares() {
    let mut served = Served::start(lab(2), &[]);
    let load = Load::start(served.lab.client(), served.fronts()[1], 1);
    served.order(&["weight", "web-1", "4"]);
    served.change(("~", "web-2", "weight 2"), |file| file.set_weight("web-2", 2));
    served.file.set_weight("web-1", 1);
    // Fair shares look unfair once in a thousand times, so they may do so once.
    let tallies = [(); 2].map(|()| ask(&served.lab, served.fronts()[0], 300));
    let is_fair = |tally: &Tally| chi_square(&tally.counts(), &[4.0, 2.0]) < chi_square_limit(1);
    assert!(tallies.iter().any(is_fair), "{}\n{}", tallies[0], tallies[1]);
    load.stop().assert_no_failure();
}

/// `wait --healthy` returns as soon as that many serve.
#[test]
fn who_waits_for_healthy_backends_goes_on_when_they_serve() {
    let mut served = Served::start(lab(2), &[]);
    served.order(&["wait", "--healthy", "2"]);
    let waiting = start(&served, &["wait", "--healthy", "3", "80"]);
    let (name, addresses) = served.add_backend();
    served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    wait_for(waiting);
}

/// Services choose in another way from the next connection on, without a restart.
#[test]
fn a_service_is_told_to_choose_in_another_way() {
    let served = Served::start(lab(2), &[]);
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    for mode in ["source-hash", "random"] {
        assert_eq!(served.order(&["balance", mode]), format!("80/tcp {mode}\n"));
        assert!(load.wait_for_more(50, TIMEOUT), "{}", load.so_far());
    }
    load.stop().assert_no_failure();
}
