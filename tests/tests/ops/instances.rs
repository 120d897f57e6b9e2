//! Several instances on one host.

use std::net::SocketAddr;

use samport::lab::Bridge;
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{Load, ask, get};
use samport_tests::served::{Served, Status, TARGET, fronts_of_second, second_client, text};
use samport_tests::traces::{assert_traces, traces};

use samport_tests::{TIMEOUT, eventually};

use crate::{ended, lab};

/// Another instance for the backends of `served`, whose lab has to outlive it.
fn second(served: &Served, args: &[&str]) -> Daemon {
    Daemon::start(&served.lab, &[&["--file", served.file.path()], args].concat())
}

/// Two instances on different ports side by side; each ends for itself.
fn assert_side_by_side(options: &[&str]) {
    let lab = lab(2);
    let before = traces(lab.host());
    let served = Served::start(lab, options);
    let only_first = traces(served.lab.host());
    let args = ["-i", "eth0", "-p", "81:9090"];
    let other = second(&served, &[&args[..], options].concat());
    let answers = |front| ask(&served.lab, front, 20).total();
    for front in served.fronts().into_iter().chain([served.lab.front(81), served.lab.front_v6(81)])
    {
        assert_eq!(answers(front), 20, "{front}");
    }
    assert_eq!(Status::all_in(served.lab.host()).len(), 2);
    other.stop();
    assert_traces(served.lab.host(), &only_first);
    assert_eq!(answers(served.fronts()[0]), 20);
    assert!(served.lab.get(served.lab.front(81), "/").is_err());

    // And the first one before the second.
    let other = second(&served, &[&args[..], options].concat());
    let Served { daemon, lab, servers: _servers, .. } = served;
    daemon.stop();
    assert_eq!(ask(&lab, lab.front(81), 20).total(), 20);
    assert!(lab.get(lab.front(80), "/").is_err());
    other.stop();
    assert_traces(lab.host(), &before);
}

/// Case 86.
#[test]
fn two_instances_serve_two_ports_of_one_interface() {
    assert_side_by_side(&[]);
}

/// Case 86.
#[test]
fn two_instances_serve_two_ports_of_one_interface_by_filters() {
    assert_side_by_side(&["--hook", "tc"]);
}

/// Case 86.
#[test]
fn two_instances_serve_two_ports_of_one_interface_through_the_stack() {
    assert_side_by_side(&["--forward", "stack"]);
}

/// Case 86: Two instances on different interfaces side by side, for the same port and backends.
#[test]
fn two_instances_serve_one_port_of_two_interfaces() {
    let lab = lab(2);
    let client = second_client(&lab);
    let before = traces(lab.host());
    let served = Served::start(lab, &[]);
    let other = second(&served, &["-i", "eth1", "-p", "80:9090"]);
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    for front in fronts_of_second() {
        for _ in 0..30 {
            let answer = client.run(|| get(front, "/")).unwrap();
            assert_eq!(answer.client, answer.local_addr);
        }
    }
    other.stop();
    for front in fronts_of_second() {
        assert!(client.run(|| get(front, "/")).is_err());
    }
    load.stop().assert_no_failure();
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Case 86: of two instances on different interfaces with one port the first has the addresses inside of
/// the machine, until it ends, and each has those of its own interface, for clients inside too.
#[test]
fn addresses_inside_are_served_by_the_first_of_two_instances() {
    let mut lab = lab(2);
    lab.add_container(Bridge::Other).unwrap();
    let _client = second_client(&lab);
    let _servers = lab.serve(TARGET).unwrap();
    let start = |interface: &str, backend: usize| {
        let backend = &lab.backends()[backend];
        let [v4, v6] = [backend.v4(TARGET), backend.v6(TARGET)].map(|at| at.to_string());
        let args = ["-i", interface, "-p", "80", "--backend", &v4, "--backend", &v6];
        Daemon::start(&lab, &args)
    };
    let first = start("eth0", 0);
    let second = start("eth1", 1);
    let from_host = |front: SocketAddr| lab.host().run(|| get(front, "/")).unwrap().backend;
    let from_container =
        |front| lab.containers()[0].namespace().run(|| get(front, "/")).unwrap().backend;
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
    second.wait_for_line(
        "port 80 on this machine's other addresses (loopback, bridges) stays",
        TIMEOUT,
    );
    let inside = ["127.0.0.1", "::1", "172.31.0.1", "2001:db8:4::1"].map(at);
    for front in inside.into_iter().chain([lab.front(80), lab.front_v6(80)]) {
        assert_eq!(from_host(front), "web-1", "{front}");
    }
    for front in [inside[2], inside[3], lab.front(80), lab.front_v6(80)] {
        assert_eq!(from_container(front), "web-1", "{front}");
    }
    for front in fronts_of_second() {
        // The first one has to notice that there is another.
        eventually(&format!("{front} is the second's inside too"), || {
            (from_host(front) == "web-2" && from_container(front) == "web-2").then_some(())
        });
    }
    first.stop();
    second.wait_for_line("port 80 on this machine's other addresses is ours now", TIMEOUT);
    for front in inside {
        eventually(&format!("{front} is the second's"), || {
            let answer = lab.host().run(|| get(front, "/")).ok()?;
            (answer.backend == "web-2").then_some(())
        });
    }
}

/// Case 86: one address of a port and the port everywhere overlap on one interface; two addresses do not.
#[test]
fn an_address_that_another_instance_serves_is_refused_by_name() {
    let lab = lab(1);
    let client = second_client(&lab);
    let _servers = lab.serve(TARGET).unwrap();
    let file = Backends::dual(&lab, TARGET);
    let args = ["-i", "eth0", "-p", "192.0.2.1:80", "-p", "81", "--file", file.path()];
    let daemon = Daemon::start(&lab, &args);
    let pid = daemon.pid().to_string();
    let overlaps: [(&[&str], &[&str]); 4] = [
        (&["-i", "eth0", "-p", "192.0.2.1:80"], &["port 192.0.2.1:80 "]),
        (&["-i", "eth0", "-p", "80"], &["port 80 ", "with 192.0.2.1:80"]),
        (&["-i", "eth0", "-p", "192.0.2.9:81"], &["port 192.0.2.9:81 ", "with 81"]),
        (&["-i", "eth1", "-p", "192.0.2.1:80"], &["port 192.0.2.1:80 "]),
    ];
    for (overlap, words) in overlaps {
        let args = [&["run", "--backend", "172.30.0.10"], overlap].concat();
        ended(lab.host(), &args).assert(6, &[words, &[&pid]].concat());
    }
    let args = ["-i", "eth0", "-p", "127.0.0.1:80:9090", "--file", file.path()];
    let other = Daemon::start(&lab, &args);
    let local = SocketAddr::new([127, 0, 0, 1].into(), 80);
    assert_eq!(lab.host().run(|| get(local, "/")).unwrap().backend, "web-1");
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    other.stop();
    drop(client);
}

/// Case 86: the same port is refused by name, with exit 6, whatever else is asked for.
#[test]
fn the_same_port_of_the_same_interface_is_refused_by_name() {
    let lab = lab(1);
    let client = second_client(&lab);
    let served = Served::start(lab, &[]);
    let before = traces(served.lab.host());
    let status = served.status();
    let (name, pid) = (text(&status.0, "name"), served.daemon.pid().to_string());
    let overlaps: [&[&str]; 4] = [
        &["-i", "eth0", "-p", "80"],
        &["-i", "eth0", "-p", "80:9090"],
        &["-i", "eth0", "-p", "79", "-p", "80"],
        &["-i", "eth1", "-i", "eth0", "-p", "80"],
    ];
    for overlap in overlaps {
        let args = [&["run", "--backend", "172.30.0.10"], overlap].concat();
        ended(served.lab.host(), &args).assert(6, &["80", name, &pid]);
        assert_traces(served.lab.host(), &before);
    }
    assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
    drop(client);
}

/// Case 86: another network namespace has ports and interfaces of its own.
#[test]
fn the_same_port_and_interface_of_another_namespace_is_another() {
    let first = Served::start(lab(1), &[]);
    let second = Served::start(lab(1), &[]);
    for served in [&first, &second] {
        assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
    }
}

/// Case 86: a port is free again as soon as its instance has ended.
#[test]
fn a_port_can_be_served_again_at_once() {
    let lab = lab(1);
    let _servers = lab.serve(TARGET).unwrap();
    let file = Backends::dual(&lab, TARGET);
    for _ in 0..5 {
        let args = ["-i", "eth0", "-p", "80", "--file", file.path()];
        let daemon = Daemon::start(&lab, &args);
        assert_eq!(ask(&lab, lab.front(80), 5).total(), 5);
        daemon.stop();
    }
}
