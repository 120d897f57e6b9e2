//! Backends that refuse connections or swallow them: their clients do not notice.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use samport::lab::output_of;
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{Connection, Tally};
use samport_tests::served::{LISTEN, Served, TARGET};
use samport_tests::{Lab, Namespace, TIMEOUT};

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

/// Makes a backend swallow what it is sent.
pub fn silence(lab: &Lab, index: usize) {
    swallow(lab.backends()[index].namespace());
}

/// The same by the backend's namespace.
pub fn swallow(backend: &Namespace) {
    for program in ["iptables", "ip6tables"] {
        let port = TARGET.to_string();
        let rule = ["-w", "-A", "INPUT", "-p", "tcp", "--dport", &port, "-j", "DROP"];
        output_of(backend.command(program).args(rule)).unwrap();
    }
}

/// Case 63: connect failover: with a backend that refuses and one that is silent, every request
/// succeeds. All are of one client, which makes nobody avoid a backend: the active health check does, which is made
/// at once.
#[test]
fn two_thousand_requests_over_a_closed_port_a_silent_backend_and_three_good_ones() {
    let mut served = Served::start(lab(5), &["--health", "tcp", "--health-interval", "1h"]);
    drop(served.servers.remove(0));
    silence(&served.lab, 1);
    for front in served.fronts() {
        let (tally, slowest) = requests(&served.lab, front, 1_000);
        println!("{front}: the slowest of 1,000 took {} ms; {tally}", slowest.as_millis());
        assert_eq!(tally.total(), 1_000);
        let counts: Vec<_> = ["web-3", "web-4", "web-5"].map(|name| tally.of(name)).into();
        assert_eq!(counts.iter().sum::<u32>(), 1_000, "{tally}");
        // The share of the bad ones is shared by the good ones alike: 5 σ.
        for count in counts {
            assert!(count > 333 - 75, "{tally}");
        }
    }
    served.daemon.wait_for_line("unhealthy: connection refused (3 times)", TIMEOUT);
    served.daemon.wait_for_line("unhealthy: no answer within 2s (3 times)", TIMEOUT);
}

/// Case 63: the same without any check: each connection that fails goes to another backend, and to none that has
/// failed its client before.
#[test]
fn without_health_checks_no_request_fails_over_a_closed_port_and_a_silent_backend() {
    let lab = lab(5);
    let _servers: Vec<_> =
        lab.backends()[2..].iter().map(|one| one.serve(TARGET).unwrap()).collect();
    silence(&lab, 1);
    let (_daemon, _file) = trusting(&lab, &[]);
    for front in fronts(&lab) {
        thread::scope(|scope| {
            let asking: Vec<_> =
                (0..50).map(|_| scope.spawn(|| requests(&lab, front, 4).0.total())).collect();
            let answered: u32 = asking.into_iter().map(|one| one.join().unwrap()).sum();
            assert_eq!(answered, 200);
        });
    }
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
