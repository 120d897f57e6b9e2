//! What others have written: names, labels and answers of engines neither control the terminal nor look like lines of
//! samport's own.

use std::net::{SocketAddr, TcpStream};

use samport_tests::daemon::samport;
use samport_tests::fake_engine::{Behavior, Container};
use samport_tests::{TIMEOUT, http};

use crate::limits::{Fixture, TARGET};

/// Colours, a title, a new line that looks like ours, CSI in one character, and text from right to left.
const EVIL: &str = "a\u{1b}[31m\u{1b}]0;x\u{7}\r\nerror: forged\u{9b}2J\u{202e}";

fn assert_fit(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} says nothing");
    let unfit = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(unfit), "{what}: {text:?}");
    let forged = text.lines().find(|line| line.starts_with("error: forged"));
    assert_eq!(forged, None, "{what}");
}

/// Everything foreign is escaped wherever it is shown.
#[test]
fn foreign_names_and_answers_are_escaped_wherever_they_are_shown() {
    const METRICS: &str = "127.0.0.1:9101";
    let fixture = Fixture::start(2, &["--metrics", METRICS, "-v"]);
    let labels = [
        ("com.docker.compose.project", EVIL),
        ("com.docker.compose.service", EVIL),
        ("samport.a\nerror: forged\u{1b}[1m", EVIL),
    ];
    fixture.engine.runs(fixture.container(&format!("web{EVIL}"), 0, 80, &labels));
    fixture.daemon.wait_for_line("+ web", TIMEOUT);
    // What is refused, and what cannot be inspected.
    let address = fixture.lab.backends()[1].v4(TARGET).ip();
    fixture.engine.runs(Container::new("bad", address, &[("samport.port", EVIL)]));
    fixture.wait_for_words(&["\"bad\" is not served"]);
    fixture.engine.answer(Behavior::Fail);
    fixture.engine.runs(Container::new("burns", address, &[("samport.port", "80")]));
    fixture.wait_for_words(&["cannot be inspected", "burns"]);

    let host = fixture.lab.host();
    let open = fixture.lab.client().run(|| TcpStream::connect(fixture.lab.front(80))).unwrap();
    let client = "192.0.2.2:5555";
    let front = fixture.lab.front(80).to_string();
    for args in [
        &["status"][..],
        &["status", "-o", "wide"],
        &["status", "-o", "json"],
        &["backends"],
        &["backends", "-o", "wide"],
        &["backends", "-o", "json"],
        &["flows", "-o", "wide"],
        &["explain", client, &front],
        &["explain", client, &front, "-o", "json"],
        &["drain", "no\u{1b}[31msuch"],
        &["weight", &address_of(fixture.lab.backends()[0].v4(TARGET)), "3"],
        &["config", "check", "/nowhere/\u{1b}[31m\nerror: forged"],
    ] {
        let output = samport(host, args);
        let both = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert_fit(&format!("{args:?}"), &both.concat());
    }
    let flows = samport(host, &["flows"]);
    assert!(String::from_utf8_lossy(&flows.stdout).contains("weba"), "{flows:?}");
    drop(open);
    let metrics = host.run(|| http::get(METRICS.parse().unwrap(), "/metrics")).unwrap();
    assert!(metrics.body.contains("forged"), "{}", metrics.body);
    assert_fit("metrics", &metrics.body);
    let said: Vec<_> = fixture.daemon.lines().into_iter().map(|line| line.text).collect();
    assert_fit("the log", &said.join("\n"));
    assert!(said.iter().any(|line| line.contains("samport.a\\nerror: forged")), "{said:?}");
}

fn address_of(address: SocketAddr) -> String {
    address.to_string()
}
