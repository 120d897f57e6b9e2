//! Which backend gets a connection from the host itself.

use std::io::ErrorKind;
use std::net::SocketAddr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use samport_tests::load::get;
use samport_tests::served::{Served, TARGET};
use samport_tests::{Lab, TIMEOUT, eventually};

use crate::evidence::{AVOIDED, lab_of_clients, let_clients_fail};
use crate::failover::silence;
use crate::lab;
use crate::local::{LOCALHOST, LOCALHOST_V6};

/// Who answers so many requests of the host, one after the other; `None` where it was refused.
fn outcomes(lab: &Lab, address: SocketAddr, requests: usize) -> Vec<Option<String>> {
    let ask = || match get(address, "/") {
        Ok(answer) => Some(answer.backend),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
        Err(error) => panic!("{address}: {error}"),
    };
    lab.host().run(|| std::iter::repeat_with(ask).take(requests).collect())
}

fn answers(lab: &Lab, address: SocketAddr, requests: usize) -> Vec<String> {
    let refused = || panic!("{address} has refused");
    outcomes(lab, address, requests).into_iter().map(|one| one.unwrap_or_else(refused)).collect()
}

/// Cases 45 and 65: turns are exact for the host too, by 127.0.0.1 and by ::1.
#[test]
fn round_robin_gives_everybody_its_turn_with_the_host() {
    let served = Served::start(lab(3), &["--balance", "round-robin"]);
    for address in [LOCALHOST, LOCALHOST_V6] {
        let answers = answers(&served.lab, address, 30);
        for round in answers.chunks(3) {
            assert_eq!(round, &answers[..3], "{address}: {answers:?}");
        }
        let mut names = answers[..3].to_vec();
        names.sort();
        assert_eq!(names, ["web-1", "web-2", "web-3"]);
    }
}

/// By address the host is one client, also to a samport that knows nothing of it.
#[test]
fn a_source_hash_leads_the_host_to_the_same_backend_always() {
    let options = ["--balance", "source-hash"];
    let mut served = Served::start(lab(4), &options);
    let each = |lab: &Lab| [LOCALHOST, LOCALHOST_V6].map(|address| answers(lab, address, 20));
    let first = each(&served.lab);
    for answers in &first {
        assert!(answers.iter().all(|one| *one == answers[0]), "{answers:?}");
    }
    served = served.restart(&options);
    assert_eq!(each(&served.lab), first);
}

/// Case 65: a backend that clients from outside have failed at, and that a check has confirmed to fail, is avoided by
/// the host too, which has not come upon it yet.
#[test]
fn the_host_avoids_a_backend_that_is_confirmed_to_fail() {
    let options = ["--balance", "round-robin", "--connect-failover", "on"];
    let mut served = Served::start(lab_of_clients(3), &options);
    drop(served.servers.pop());
    let_clients_fail(&served.lab, "web-3", "refused");
    served.daemon.wait_for_line(AVOIDED, TIMEOUT);
    let after = answers(&served.lab, LOCALHOST, 60);
    for name in ["web-1", "web-2"] {
        assert!(after.iter().any(|one| one == name), "{after:?}");
    }
}

/// How many of sixty requests of the host are refused that would get three backends in turn.
fn refused(served: &Served, address: SocketAddr) -> usize {
    outcomes(&served.lab, address, 60).iter().filter(|one| one.is_none()).count()
}

/// Case 63: for the host, the connection that is refused cannot be moved, but the next ones go elsewhere. One that comes
/// upon it again after 10 s is one more; without this, twenty are.
#[test]
fn the_host_avoids_a_backend_that_has_refused_it() {
    let options = ["--balance", "round-robin", "--health", "none"];
    let mut served = Served::start(lab(3), &options);
    drop(served.servers.pop());
    for address in [LOCALHOST, LOCALHOST_V6] {
        let refused = refused(&served, address);
        assert!((1..6).contains(&refused), "{refused} refused by {address}");
    }
    let counted = served.status().sum("refused");
    assert!((2..12).contains(&counted), "{counted} counted");
    // The host is one client: others need more than its word.
    let confirmed = served.daemon.lines().iter().any(|line| line.text.contains(AVOIDED));
    assert!(!confirmed, "{:?}", served.daemon.lines());
}

/// Where connections are not to fail over, the host's do not either.
#[test]
fn without_failover_the_host_takes_every_turn() {
    let options = ["--balance", "round-robin", "--health", "none", "--connect-failover", "off"];
    let mut served = Served::start(lab(3), &options);
    drop(served.servers.pop());
    assert_eq!(refused(&served, LOCALHOST), 20);
}

/// A backend that has refused the host is better than none, and is what it was once it has taken a connection.
#[test]
fn a_backend_alone_is_tried_again_after_each_refusal() {
    let mut served = Served::start(lab(1), &["--health", "none"]);
    served.servers.clear();
    assert_eq!(outcomes(&served.lab, LOCALHOST, 3), [None, None, None]);
    let _server = served.lab.backends()[0].serve(TARGET).unwrap();
    assert_eq!(answers(&served.lab, LOCALHOST, 3), ["web-1"; 3]);
}

/// Case 63: for the host, a backend that is silent is avoided from the first retransmission on.
#[test]
fn the_host_avoids_a_backend_that_does_not_answer_it() {
    let served = Served::start(lab(2), &["--balance", "round-robin", "--health", "none"]);
    silence(&served.lab, 1);
    let host = served.lab.host();
    // One for each.
    let waiting: Vec<_> = host.run(|| {
        let begin = |_| {
            let stream =
                socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None);
            let stream = stream.unwrap();
            assert_eq!(connect(&stream, &LOCALHOST), Err(Errno::INPROGRESS));
            stream
        };
        (0..2).map(begin).collect()
    });
    eventually("the silence is counted", || (served.status().sum("silent") == 1).then_some(()));
    assert_eq!(answers(&served.lab, LOCALHOST, 20), ["web-1"; 20]);
    drop(waiting);
}

/// Case 51: the host is one client, and stays with its backend as long as that takes its connections.
#[test]
fn affinity_keeps_the_host_with_its_backend() {
    let options = ["--affinity", "1h", "--health", "none"];
    let mut served = Served::start(lab(4), &options);
    for address in [LOCALHOST, LOCALHOST_V6] {
        let first = answers(&served.lab, address, 20);
        assert!(first.iter().all(|one| *one == first[0]), "{address}: {first:?}");
    }
    let kept = answers(&served.lab, LOCALHOST, 1).remove(0);
    let own = SocketAddr::new(LOCALHOST.ip(), 20_000).to_string();
    let told = served.order(&["explain", &own, &LOCALHOST.to_string()]);
    assert!(told.contains("affinity") && told.contains(&kept), "{told}");
    let at = served.servers.iter().position(|server| server.name() == kept);
    drop(served.servers.remove(at.expect("the server of a backend")));
    let mut after = outcomes(&served.lab, LOCALHOST, 20);
    assert_eq!(after.remove(0), None, "it was sent to {kept} once more");
    assert!(after.iter().all(|one| one.is_some() && *one == after[0]), "{after:?}");
}
