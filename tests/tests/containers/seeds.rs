//! The seeds' experiment, on real Docker.

use samport_tests::stats::within_three_sigma;
use samport_tests::traces::{assert_traces, traces};

use crate::{ask_front, engine_of, firewall, names, serve};

/// Cases 53, 73 and 85: 300 requests to one port of the host, answered by two containers that
/// publish none, past Docker's own rules, which drop what is forwarded and stay as they are.
#[test]
fn two_containers_share_a_port_past_dockers_firewall_and_nothing_stays() {
    let docker = engine_of(&["foo", "bar"]);
    let (rules, before) = (firewall(&docker), traces(docker.lab().host()));
    assert!(rules.lines().any(|line| line == ":FORWARD DROP"), "{rules}");
    // Which chains Docker makes differs between its versions; all of them judge what is forwarded there.
    let is_dockers = |line: &str| line.starts_with("-A FORWARD ") && line.contains("-j DOCKER");
    assert!(rules.lines().any(is_dockers), "{rules}");

    let samport = serve(&docker, &["foo", "bar"]);
    // A fair share is outside of three standard deviations once in 370 times, so it may be once.
    let shares = [(); 2].map(|()| ask_front(&docker, 300));
    let [first, second] = &shares;
    println!("{first}\n\n{second}");
    assert_eq!(names(first), ["bar", "foo"]);
    let is_half = |tally: &samport_tests::load::Tally| {
        tally.total() == 300 && within_three_sigma(tally.of("foo"), 300, 0.5)
    };
    assert!(shares.iter().any(is_half), "{first}\n\n{second}");
    assert_eq!(firewall(&docker), rules);

    samport.stop();
    assert_traces(docker.lab().host(), &before);
    assert_eq!(firewall(&docker), rules);
}
