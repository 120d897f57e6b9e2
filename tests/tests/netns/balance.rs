//! The ways to choose, end to end.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{Connection, ask, get};
use samport_tests::served::{LISTEN, Served, Status, TARGET};
use samport_tests::socket::{ask_on, connect_between, connect_from};
use samport_tests::{Lab, eventually};

use crate::choice::weighted;
use crate::lab;

/// Who answers so many requests, one after the other.
fn answers(lab: &Lab, front: SocketAddr, requests: usize) -> Vec<String> {
    let ask = || get(front, "/").unwrap().backend;
    lab.client().run(|| std::iter::repeat_with(ask).take(requests).collect())
}

/// Case 45: round-robin is exact, and nobody's turn comes twice before all have had theirs.
#[test]
fn round_robin_gives_everybody_its_turn() {
    let served = Served::start(lab(3), &["--balance", "round-robin"]);
    for front in served.fronts() {
        let answers = answers(&served.lab, front, 30);
        for round in answers.chunks(3) {
            assert_eq!(round, &answers[..3], "{answers:?}");
        }
        let mut names = answers[..3].to_vec();
        names.sort();
        assert_eq!(names, ["web-1", "web-2", "web-3"]);
    }
}

/// Cases 45 and 46: with weights it is exact too.
#[test]
fn round_robin_gives_turns_by_weight() {
    let lab = lab(2);
    let _servers = lab.serve(TARGET).unwrap();
    let _daemon = weighted(&lab, &[3, 1], &["--balance", "round-robin"]);
    let tally = ask(&lab, lab.front(LISTEN), 40);
    assert_eq!((tally.of("web-1"), tally.of("web-2")), (30, 10), "{tally}");
}

/// Case 48: a client's address decides, for all its ports and also for a samport that knows nothing of it; a
/// backend that goes takes no more than a few of the others' clients with it.
#[test]
fn a_source_hash_leads_a_client_to_the_same_backend_always() {
    let lab = lab(4);
    let clients: Vec<IpAddr> = (100..132).map(|last| [192, 0, 2, last].into()).collect();
    let addresses: Vec<_> =
        clients.iter().map(|client| format!("addr add {client}/24 dev eth0\n")).collect();
    lab.client().batch(&addresses.concat()).unwrap();
    let mut served = Served::start(lab, &["--balance", "source-hash"]);
    let by_client = |lab: &Lab| -> Vec<String> {
        let ask = |client: &IpAddr| {
            let stream = connect_between(SocketAddr::new(*client, 0), lab.front(LISTEN)).unwrap();
            ask_on(&stream, "/").unwrap().backend
        };
        lab.client().run(|| clients.iter().map(ask).collect())
    };
    let first = by_client(&served.lab);
    for name in ["web-1", "web-2", "web-3", "web-4"] {
        assert!(first.iter().any(|one| one == name), "{first:?}");
    }
    assert_eq!(by_client(&served.lab), first, "from other ports");
    served = served.restart(&["--balance", "source-hash"]);
    assert_eq!(by_client(&served.lab), first, "after a restart");
    served.change(("-", "web-2", "draining"), |file| file.remove("web-2"));
    let second = by_client(&served.lab);
    assert!(second.iter().all(|one| one != "web-2"), "{second:?}");
    let moved = |(before, after): &(&String, &String)| *before != "web-2" && before != after;
    assert!(first.iter().zip(&second).filter(moved).count() <= 1, "{first:?} {second:?}");
}

/// A connection's address and port decide, and the ports of one client are spread.
#[test]
fn maglev_leads_a_connection_to_the_same_backend_always() {
    let served = Served::start(lab(4), &["--balance", "maglev"]);
    let front = served.fronts()[0];
    let by_port = |lab: &Lab| -> Vec<String> {
        let answer = |port| {
            let stream = connect_from(port, front).unwrap();
            ask_on(&stream, "/").unwrap().backend
        };
        lab.client().run(|| (20_000..20_040).map(answer).collect())
    };
    let first = by_port(&served.lab);
    let mut names = first.clone();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 4, "{first:?}");
    let served = served.restart(&["--balance", "maglev"]);
    assert_eq!(by_port(&served.lab), first);
}

/// Case 51: source affinity holds, expires and fails over: to a backend that takes new flows.
#[test]
fn a_client_stays_until_its_time_is_over_or_its_backend_leaves() {
    let mut served = Served::start(lab(4), &["--affinity", "1h"]);
    let [front, _] = served.fronts();
    let first = answers(&served.lab, front, 20);
    assert!(first.iter().all(|one| *one == first[0]), "{first:?}");
    let weight = ("~", first[0].as_str(), "weight 0");
    served.change(weight, |file| file.set_weight(&first[0], 0));
    let second = answers(&served.lab, front, 20);
    assert!(second.iter().all(|one| *one == second[0] && *one != first[0]), "{second:?}");

    let served = served.restart(&["--affinity", "1s"]);
    let now = answers(&served.lab, front, 1);
    // Longer than a second without a connection, again and again: one time it is somebody else.
    let moved = || {
        std::thread::sleep(Duration::from_secs(3));
        answers(&served.lab, front, 1) != now
    };
    assert!((0..12).any(|_| moved()), "the affinity does not expire");
}

/// Case 52: least-conn avoids the backend with more open connections: only every fourth draw names it
/// twice.
#[test]
fn least_conn_gives_the_loaded_backend_less() {
    let served = Served::start(lab(2), &["--balance", "least-conn"]);
    let [front, _] = served.fronts();
    let held: Vec<_> = served.lab.client().run(|| {
        let connect = || Connection::open(front).unwrap();
        let mut all: Vec<_> = std::iter::repeat_with(connect).take(40).collect();
        all.retain_mut(|one| one.get("/").unwrap().backend == "web-1");
        all
    });
    assert!(held.len() > 10, "{} of 40", held.len());
    let to_loaded = || {
        let tally = ask(&served.lab, front, 100);
        assert_eq!(tally.total(), 100, "{tally}");
        tally.of("web-1")
    };
    // 25 expected, and 50 without it; σ is 4.3. What was closed is counted as closed a moment later.
    eventually("the loaded backend gets less", || (to_loaded() < 38).then_some(()));
    drop(held);
}

/// An order changes the table too: from hashes to turns.
#[test]
fn the_way_to_choose_changes_while_it_runs() {
    let served = Served::start(lab(2), &["--balance", "source-hash"]);
    let [front, _] = served.fronts();
    let one = answers(&served.lab, front, 10);
    assert!(one.iter().all(|name| *name == one[0]), "{one:?}");
    served.order(&["balance", "round-robin", "80"]);
    for turns in answers(&served.lab, front, 10).chunks(2) {
        assert_ne!(turns[0], turns[1]);
    }
}

/// Case 59: without a backend clients are dropped by choice.
#[test]
fn without_a_backend_clients_get_no_answer_if_so_chosen() {
    let lab = lab(0);
    let none = Backends::none();
    let args = ["-i", "eth0", "-p", "80", "--file", none.path(), "--no-backend", "drop"];
    let _daemon = Daemon::start(&lab, &args);
    for front in [lab.front(LISTEN), lab.front_v6(LISTEN)] {
        let patience = Duration::from_millis(500);
        let error = lab.client().run(|| TcpStream::connect_timeout(&front, patience)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{front}: {error}");
    }
    let [status] = &Status::all_in(lab.host())[..] else { panic!("one instance runs") };
    assert!(status.verdict("no-backend-drop") >= 2, "{status:?}");
    assert_eq!(status.verdict("no-backend"), 0);
}
