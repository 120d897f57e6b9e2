//! Connections while backends come and go.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

use samport::lab::output_of;
use samport_tests::eventually;
use samport_tests::load::{Load, ask};
use samport_tests::open_connections::{OpenConnection, Requests};
use samport_tests::served::Served;
use samport_tests::socket::{read_answer, send_question};

use crate::lab;

/// Connections held through each front.
const KEPT: usize = 20;

/// Some connections through either front.
fn open(served: &Served) -> Vec<OpenConnection> {
    OpenConnection::open(served.lab.client(), &served.fronts(), KEPT)
}

/// Weights change, a backend comes, one drains and comes back.
fn churn(served: &mut Served) {
    served.change(("~", "web-1", "weight 5"), |file| file.set_weight("web-1", 5));
    let (name, addresses) = served.add_backend();
    served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    served.change(("-", "web-2", "draining"), |file| file.remove("web-2"));
    let addresses = served.addresses_of("web-2");
    served.change(("+", "web-2", "back"), |file| file.add_all("web-2", addresses));
    served.change(("~", "web-3", "weight 0"), |file| file.set_weight("web-3", 0));
    served.change(("-", "web-1", "draining"), |file| file.remove("web-1"));
}

/// Case 26: Data and FIN stay put while backends come and go.
#[test]
fn connections_stay_with_their_backends_while_others_come_and_go() {
    let mut served = Served::start(lab(3), &["--drain", "100"]);
    let asking = Requests::start(open(&served));
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    churn(&mut served);
    load.stop().assert_no_failure();
    asking.stop().iter_mut().for_each(OpenConnection::check);
    // web-1 drains and web-3 has weight 0: what is new goes to the others.
    for front in served.fronts() {
        let tally = ask(&served.lab, front, 50);
        assert_eq!((tally.of("web-1"), tally.of("web-3")), (0, 0), "{tally}");
    }
}

/// Case 26: the client's FIN reaches a draining backend, and its answer the client.
#[test]
fn a_half_closed_connection_is_answered_by_its_backend_while_that_drains() {
    let mut served = Served::start(lab(3), &["--drain", "100"]);
    let kept = open(&served);
    for OpenConnection { connection, .. } in &kept {
        send_question(connection.stream(), "/slow/500").unwrap();
        connection.stream().shutdown(Shutdown::Write).unwrap();
    }
    churn(&mut served);
    for OpenConnection { connection, backend } in &kept {
        assert_eq!(read_answer(connection.stream()).unwrap().backend, *backend);
    }
}

/// Case 26: nothing is left half-open at any backend, also at one that drains.
#[test]
fn backends_learn_that_their_connections_are_closed_while_they_drain() {
    let mut served = Served::start(lab(3), &["--drain", "100"]);
    let kept = open(&served);
    churn(&mut served);
    drop(kept);
    for backend in served.lab.backends() {
        eventually(&format!("no connection is open at {}", backend.name()), || {
            let mut list = backend.namespace().command("ss");
            let open = output_of(list.args(["-Htn", "state", "connected"])).unwrap();
            // What is closed stays listed as TIME-WAIT for a minute.
            open.lines().all(|line| line.starts_with("TIME-WAIT")).then_some(())
        });
    }
}

/// Case 54: Draining: old flows go on, no new ones. Case 56: after that, RST at the next packet.
#[test]
fn a_drained_backends_connections_are_reset_and_never_moved() {
    let mut served = Served::start(lab(2), &["--drain", "1"]);
    let kept = open(&served);
    served.change(("-", "web-2", "draining"), |file| file.remove("web-2"));
    served.change(("-", "web-2", "gone"), |_| ());
    for OpenConnection { mut connection, backend } in kept {
        match connection.get("/") {
            Ok(answer) => assert_eq!((&*answer.backend, &*backend), ("web-1", "web-1")),
            Err(error) => {
                assert_eq!((error.kind(), &*backend), (ErrorKind::ConnectionReset, "web-2"));
            }
        }
    }
    assert!(served.status().verdict("gone-reset") > 0);
}

/// Case 54, under load: no request fails when a server stops after its backend has drained.
#[test]
fn replacing_every_backend_under_load_fails_no_request() {
    let mut served = Served::start(lab(2), &["--drain", "100"]);
    let loads: Vec<_> = served
        .fronts()
        .into_iter()
        .map(|front| Load::start(served.lab.client(), front, 1))
        .collect();
    for old in ["web-1", "web-2"] {
        let (new, addresses) = served.add_backend();
        served.change(("+", &new, ""), |file| file.add_all(&new, addresses));
        served.change(("-", old, "draining"), |file| file.remove(old));
        let index = served.servers.iter().position(|server| server.name() == old).unwrap();
        served.servers.remove(index).stop();
        for load in &loads {
            assert!(load.wait_for_more(100, Duration::from_secs(20)), "{}", load.so_far());
        }
    }
    for load in loads {
        load.stop().assert_no_failure();
    }
}
