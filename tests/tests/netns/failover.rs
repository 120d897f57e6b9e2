//! Backends that refuse connections or swallow them: their clients do not notice.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use samport_tests::PATIENCE;
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{Connection, Tally};
use samport_tests::served::{LISTEN, TARGET};
use samport_tests::{Lab, eventually};

use crate::lab;

/// `samport run` that takes its backends for good whatever they do.
pub fn trusting(lab: &Lab, options: &[&str]) -> (Daemon, Backends) {
    let file = Backends::dual(lab, TARGET);
    let port = format!("{LISTEN}:{TARGET}");
    let usual = ["-i", "eth0", "-p", &port, "--file", file.path(), "--health", "none"];
    (Daemon::start(lab, &[&usual[..], options].concat()), file)
}

fn fronts(lab: &Lab) -> [SocketAddr; 2] {
    [lab.front(LISTEN), lab.front_v6(LISTEN)]
}

/// Requests, each on a new connection, all answered; who has, and the slowest.
pub fn requests(lab: &Lab, front: SocketAddr, count: u32) -> (Tally, Duration) {
    lab.client().run(|| {
        let (mut tally, mut slowest) = (Tally::default(), Duration::ZERO);
        for number in 0..count {
            let begin = Instant::now();
            let answer = samport::lab::get(front, "/")
                .unwrap_or_else(|error| panic!("request {number} to {front}: {error}"));
            slowest = slowest.max(begin.elapsed());
            tally.add(&answer.backend);
        }
        (tally, slowest)
    })
}

/// Makes a backend swallow what it is sent: it takes packets in, and knows no way back.
fn silence(lab: &Lab, index: usize) {
    let backend = lab.backends()[index].namespace();
    for family in ["-4", "-6"] {
        backend.ip(&[family, "route", "del", "default"]).unwrap();
        backend.ip(&[family, "route", "add", "blackhole", "default"]).unwrap();
    }
}

/// Case 63: connect failover: with a backend that refuses and one that is silent, every request
/// succeeds.
#[test]
fn two_thousand_requests_over_a_closed_port_a_silent_backend_and_three_good_ones() {
    let lab = lab(5);
    let servers: Vec<_> =
        lab.backends()[2..].iter().map(|one| one.serve(TARGET).unwrap()).collect();
    silence(&lab, 1);
    let (daemon, _file) = trusting(&lab, &[]);
    for front in fronts(&lab) {
        let (tally, slowest) = requests(&lab, front, 1_000);
        println!("{front}: the slowest of 1,000 took {} ms; {tally}", slowest.as_millis());
        assert_eq!(tally.total(), 1_000);
        let counts: Vec<_> = servers.iter().map(|one| tally.of(one.name())).collect();
        assert_eq!(counts.iter().sum::<u32>(), 1_000, "{tally}");
        // The share of the bad ones is shared by the good ones alike: 5 σ.
        for count in counts {
            assert!(count > 333 - 75, "{tally}");
        }
    }
    daemon.wait_for_line("web-1", PATIENCE);
    let said = |about: &str, what: &str| {
        daemon.lines().iter().any(|line| line.text.contains(about) && line.text.contains(what))
    };
    assert!(said("! web-1", "refuses connections"), "{:?}", daemon.lines());
    assert!(said("! web-2", "does not answer"), "{:?}", daemon.lines());
}

#[test]
fn when_every_backend_refuses_the_client_is_told() {
    let lab = lab(2);
    let (_daemon, _file) = trusting(&lab, &[]);
    for front in fronts(&lab) {
        let error = lab.client().run(|| Connection::open(front)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{front}: {error}");
    }
}

/// A backend that is back is used again when its time as a suspect is over, or its next answer comes.
#[test]
fn a_suspect_that_answers_is_none_any_more() {
    let lab = lab(2);
    let _good = lab.backends()[0].serve(TARGET).unwrap();
    let (daemon, _file) = trusting(&lab, &[]);
    let front = lab.front(LISTEN);
    let (tally, _) = requests(&lab, front, 100);
    assert_eq!(tally.of("web-1"), 100);
    daemon.wait_for_line("! web-2", PATIENCE);
    let _late = lab.backends()[1].serve(TARGET).unwrap();
    // It is avoided for ten seconds, then tried, and then fair again.
    eventually("web-2 gets a request", || {
        (requests(&lab, front, 20).0.of("web-2") > 0).then_some(())
    });
    let (tally, _) = requests(&lab, front, 400);
    // Half of them, less 6 σ.
    assert!(tally.of("web-2") > 140, "{tally}");
}
