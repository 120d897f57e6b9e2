//! Looking before anything is done, and colours.

use std::net::TcpListener;

use samport_tests::daemon::{Backends, Daemon, samport};
use samport_tests::fake_engine::{Container, FakeEngine};
use samport_tests::served::Status;
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

/// Who would be left out, and why, is said by a dry run and by `check`, as a run says it.
#[test]
fn who_would_be_left_out_is_said_by_a_dry_run_and_by_check() {
    let lab = lab(2);
    let before = traces(lab.host());
    let engine = FakeEngine::start();
    let container = |name: &str, at: usize, port: &str, application: &str| {
        let labels =
            [("samport.ports", port), ("samport.service", application), ("samport.health", "none")];
        Container::new(name, lab.backends()[at].v4(0).ip(), &labels)
    };
    engine.has([
        container("first", 0, "80:9090", "shop"),
        container("second", 1, "80:9090", "blog"),
        container("third", 1, "7000:9090", "blog"),
    ]);
    let url = engine.url();
    let usual = ["-i", "eth0", "--endpoint", &url, "--label-ports", "80"];
    let run = samport(lab.host(), &[&["run", "--dry-run"], &usual[..]].concat());
    assert!(run.status.success(), "{run:?}");
    // Its findings on this machine are none of this test.
    let check = samport(lab.host(), &[&["check"], &usual[..]].concat());
    let daemon = Daemon::start(&lab, &usual);
    let status = Status::only_in(lab.host()).0;
    daemon.stop();
    let left_out = &status["left_out"].as_array().unwrap()[..];
    let [second] = left_out else { panic!("not one is left out: {left_out:?}") };
    let second = second.as_str().unwrap();
    assert!(second.starts_with("second is left out on port 80: "), "{second}");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let shown = said(&run.stdout);
    assert!(shown.contains(second), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.contains("80/tcp")).count(), 1, "{shown}");
    // `check` tells the way out on the same line, behind an arrow.
    let what = second.split(';').next().unwrap();
    assert!(said(&check.stdout).contains(what), "{check:?}");
    for (verb, text) in [("run", said(&run.stderr)), ("check", said(&check.stdout))] {
        assert!(text.contains("third") && text.contains("7000"), "{verb}: {text}");
    }
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
