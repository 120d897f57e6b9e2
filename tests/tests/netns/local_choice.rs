//! Which backend gets a connection from the host itself.

use std::io::ErrorKind;
use std::net::SocketAddr;

use samport_tests::Lab;
use samport_tests::load::get;
use samport_tests::served::{LISTEN, Served, TARGET};

use crate::failover::{requests, trusting};
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

/// Case 65: the host is refused itself by a backend that refuses, each time it is its turn, until a client
/// from outside has come upon it: then the host avoids it too.
#[test]
fn the_host_avoids_a_backend_that_has_refused_a_client_from_outside() {
    let lab = lab(3);
    let _servers = [0, 1].map(|index| lab.backends()[index].serve(TARGET).unwrap());
    let (_daemon, _file) = trusting(&lab, &["--balance", "round-robin"]);
    for (address, front) in [(LOCALHOST, lab.front(LISTEN)), (LOCALHOST_V6, lab.front_v6(LISTEN))] {
        let before = outcomes(&lab, address, 6);
        assert_eq!(before.iter().filter(|one| one.is_none()).count(), 2, "{address}: {before:?}");
        let (tally, _) = requests(&lab, front, 3);
        assert_eq!(tally.total(), 3, "{tally}");
        let after = answers(&lab, address, 60);
        for name in ["web-1", "web-2"] {
            assert!(after.iter().any(|one| one == name), "{address}: {after:?}");
        }
    }
}
