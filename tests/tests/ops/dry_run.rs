//! Looking before anything is done, and colours.

use std::net::TcpListener;

use samport_tests::daemon::{Backends, samport};
use samport_tests::traces::{assert_traces, traces};

use crate::{ended, lab};

/// A dry run says whom it would serve, and touches nothing; what would refuse the run refuses it too.
#[test]
fn a_dry_run_says_what_would_be_served_and_touches_nothing() {
    let lab = lab(2);
    let before = traces(lab.host());
    let file = Backends::dual(&lab, 9090);
    let args =
        ["run", "--dry-run", "-i", "eth0", "-p", "80:9090", "--drain", "5s", "--file", file.path()];
    let output = samport(lab.host(), &args);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for word in
        ["eth0: ", "web-1", "web-2", "172.30.0.10:9090", "80/tcp", "peer", "nothing was touched"]
    {
        assert!(said.contains(word), "nothing about {word:?} in: {said}");
    }
    assert_eq!(said.lines().filter(|line| line.contains("web-")).count(), 4, "{said}");
    assert_traces(lab.host(), &before);
    let taken = lab.host().run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    ended(lab.host(), &args).assert(6, &["port 80"]);
    drop(taken);
    ended(lab.host(), &["run", "--dry-run", "-i", "eth9", "-p", "80", "--file", file.path()])
        .assert(1, &["eth9", "eth0"]);
    assert_traces(lab.host(), &before);
}

/// Nobody's file gets codes for colours, unless they are asked for.
#[test]
fn colours_are_for_terminals_and_for_who_asks() {
    let lab = lab(1);
    let wrong = ["run", "-i", "eth9", "-p", "80", "--backend", "172.30.0.10"];
    for (color, coloured) in [("auto", false), ("never", false), ("always", true)] {
        let ended = ended(lab.host(), &[&["--color", color], &wrong[..]].concat());
        ended.assert(1, &["eth9"]);
        assert_eq!(ended.said.contains("\x1b["), coloured, "--color {color}: {:?}", ended.said);
        let output = samport(lab.host(), &["check", "-i", "eth9", "--color", color]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("eth9"), "{said}");
        assert_eq!(said.contains("\x1b["), coloured, "--color {color}: {said:?}");
    }
}
