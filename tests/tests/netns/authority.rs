//! What the operator says is a bound that labels do not widen, and a port that labels claim is one application's.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use samport_tests::daemon::samport;
use samport_tests::served::second_client;
use samport_tests::{CLIENT_V4, Namespace, TIMEOUT, eventually};

use crate::limits::Fixture;

/// How long a client waits that is not served: its packets are dropped.
const SILENCE: Duration = Duration::from_millis(300);

/// Whether a client gets a connection; the other outcome is silence.
fn connects(fixture: &Fixture, from: &Namespace, port: u16) -> bool {
    let front = fixture.lab.front(port);
    match from.run(|| TcpStream::connect_timeout(&front, SILENCE)) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            false
        }
    }
}

/// Two clients, the second of whom is in another network, and who of them is served.
fn served(fixture: &Fixture, second: &Namespace, port: u16) -> [bool; 2] {
    [fixture.lab.client(), second].map(|from| connects(fixture, from, port))
}

fn start(options: &[&str]) -> (Fixture, Namespace) {
    let mut second = None;
    let fixture = Fixture::start_tuned(3, &[&["-i", "eth1"], options].concat(), |lab| {
        second = Some(second_client(lab));
    });
    (fixture, second.unwrap())
}

/// Case 82: a label says who may use a port within `--allow`, and nobody beyond.
#[test]
fn a_label_narrows_the_operators_allow_list_and_never_widens_it() {
    let (fixture, second) = start(&["--allow", "192.0.2.0/24"]);
    let open = [("samport.allow", "0.0.0.0/0")];
    fixture.engine.runs(fixture.container("open", 0, 80, &open));
    fixture.wait_for(80, 1);
    assert_eq!(served(&fixture, &second, 80), [true, false]);
    fixture.wait_for_words(&["warning", "open names 0.0.0.0/0", "only narrows --allow"]);
    let other = [("samport.allow", "192.0.2.77")];
    fixture.engine.runs(fixture.container("narrow", 1, 81, &other));
    fixture.daemon.wait_for_line("+ narrow", TIMEOUT);
    assert_eq!(served(&fixture, &second, 81), [false, false]);
    let beyond = [("samport.allow", "203.0.113.0/24")];
    fixture.engine.runs(fixture.container("beyond", 2, 82, &beyond));
    fixture
        .wait_for_words(&["beyond is left out on port 82", "names no network that --allow covers"]);
}

/// Case 82: the restriction of a port outlives the one container that carried it, a samport that is killed too, and
/// ends when the operator says so or the service has gone.
#[test]
fn a_restriction_by_a_label_does_not_vanish_with_the_container_that_carried_it() {
    let (mut fixture, second) = start(&[]);
    let allow = CLIENT_V4.to_string();
    fixture.engine.runs(fixture.container("plain", 0, 80, &[]));
    fixture.wait_for(80, 1);
    assert_eq!(served(&fixture, &second, 80), [true, true]);
    fixture.engine.runs(fixture.container("strict", 1, 80, &[("samport.allow", &allow)]));
    fixture.wait_for(80, 2);
    assert_eq!(served(&fixture, &second, 80), [true, false]);
    let gone = |fixture: &Fixture, name: &str| {
        let mark = fixture.daemon.mark();
        fixture.engine.ends(name);
        fixture.daemon.wait_for_line_after(mark, &format!("- {name}"), TIMEOUT);
    };
    gone(&fixture, "strict");
    assert_eq!(served(&fixture, &second, 80), [true, false]);
    fixture.restart_killed();
    assert_eq!(served(&fixture, &second, 80), [true, false]);
    // The operator lifts it.
    let reset = samport(fixture.lab.host(), &["allow", "80", "--reset"]);
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    assert_eq!(served(&fixture, &second, 80), [true, true]);
    // Or its service goes.
    fixture.engine.runs(fixture.container("strict-2", 1, 80, &[("samport.allow", &allow)]));
    fixture.wait_for(80, 2);
    assert_eq!(served(&fixture, &second, 80), [true, false]);
    gone(&fixture, "strict-2");
    gone(&fixture, "plain");
    fixture.engine.runs(fixture.container("plain-2", 0, 80, &[]));
    fixture.wait_for(80, 1);
    assert_eq!(served(&fixture, &second, 80), [true, true]);
}

/// Case 87: labels claim the ports they may claim.
#[test]
fn labels_open_only_ports_that_the_operator_lets_them() {
    let fixture = Fixture::start(2, &["--label-ports", "80,8000-8999"]);
    fixture.engine.runs(fixture.container("web", 0, 8_080, &[]));
    fixture.wait_for(8_080, 1);
    fixture.engine.runs(fixture.container("ssh", 1, 22, &[]));
    let words = ["\"ssh\" is not served", "claim port 22", "--label-ports", "80,8000-8999"];
    fixture.wait_for_words(&words);
    assert!(!fixture.is_served(22));
}

const PROJECT: &str = "com.docker.compose.project";

/// Case 81: two Compose projects that claim one port: named, and the first one keeps it until it goes.
#[test]
fn two_projects_that_claim_one_port_are_named_and_do_not_share_it() {
    let fixture = Fixture::start(3, &[]);
    fixture.engine.runs(fixture.container("shop-web-1", 0, 80, &[(PROJECT, "shop")]));
    fixture.wait_for(80, 1);
    fixture.engine.runs(fixture.container("blog-web-1", 1, 80, &[(PROJECT, "blog")]));
    let words =
        ["blog-web-1 is left out on port 80", "project \"blog\"", "project \"shop\"", "shop-web-1"];
    fixture.wait_for_words(&words);
    // Its own replica joins.
    fixture.engine.runs(fixture.container("shop-web-2", 2, 80, &[(PROJECT, "shop")]));
    fixture.wait_for(80, 2);
    let mark = fixture.daemon.mark();
    for name in ["shop-web-1", "shop-web-2"] {
        fixture.engine.ends(name);
    }
    fixture.daemon.wait_for_line_after(mark, "+ blog-web-1", TIMEOUT);
    fixture.wait_for(80, 1);
}

/// Case 81: they share it if the operator says so, or they say they are one service.
#[test]
fn two_projects_share_a_port_when_they_or_the_operator_say_so() {
    let fixture = Fixture::start(2, &["--service-conflict", "merge"]);
    fixture.engine.runs(fixture.container("shop-1", 0, 80, &[(PROJECT, "shop")]));
    fixture.engine.runs(fixture.container("blog-1", 1, 80, &[(PROJECT, "blog")]));
    fixture.wait_for(80, 2);
    fixture.wait_for_words(&["warning", "port 80 is shared by", "shop-1", "blog-1"]);
    drop(fixture);

    let fixture = Fixture::start(2, &[]);
    let web = ("samport.service", "web");
    fixture.engine.runs(fixture.container("blue-1", 0, 80, &[(PROJECT, "blue"), web]));
    fixture.engine.runs(fixture.container("green-1", 1, 80, &[(PROJECT, "green"), web]));
    fixture.wait_for(80, 2);
    assert!(fixture.daemon.lines().iter().all(|line| !line.text.contains("shared")));
}

/// Case 81: plain containers of one image share a port without a word, and others with one.
#[test]
fn plain_containers_share_a_port() {
    let fixture = Fixture::start(3, &[]);
    fixture.engine.runs(fixture.container("web-1", 0, 80, &[]));
    fixture.engine.runs(fixture.container("web-2", 1, 80, &[]).of_image("app:2"));
    fixture.wait_for(80, 2);
    assert!(fixture.daemon.lines().iter().all(|line| !line.text.contains("shared")));
    fixture.engine.runs(fixture.container("test", 2, 80, &[]).of_image("nginx"));
    fixture.wait_for(80, 3);
    let words = ["warning", "shared by web-1", "\"app\"", "test", "\"nginx\""];
    eventually("a warning", || {
        let lines = fixture.daemon.lines();
        lines.iter().any(|line| words.iter().all(|word| line.text.contains(word))).then_some(())
    });
}
