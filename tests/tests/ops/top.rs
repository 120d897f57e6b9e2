//! `samport top` on a real terminal.

use std::process::Stdio;

use samport_tests::daemon::{Daemon, samport_binary, samport_command};
use samport_tests::load::{Load, ask};
use samport_tests::screen::Screen;
use samport_tests::served::{Served, text};
use samport_tests::traces::undisturbed;
use samport_tests::{TIMEOUT, eventually};
use serde_json::Value;

use crate::lab;

const USUAL: (u16, u16) = (120, 30);
/// What every colour begins with.
const COLOUR: &str = "\x1b[38;5;";

/// A screen with `samport top` on it, as soon as that shows a backend.
fn top(served: &Served, size: (u16, u16)) -> Screen {
    let screen = Screen::open(served.lab.host(), size);
    start(&screen, "");
    screen
}

fn start(screen: &Screen, before: &str) {
    screen.enter(&format!("{before}{} top --interval 100ms", samport_binary().display()));
    screen.wait_for("q quit");
}

/// The line of a backend's IPv4 address.
fn line<'a>(shown: &'a str, name: &str) -> &'a str {
    let found = shown.lines().find(|line| line.contains(name) && line.contains("172.30.0."));
    found.unwrap_or_else(|| panic!("no {name} in\n{shown}"))
}

/// The weights of a backend's addresses, by the control socket.
fn weights(served: &Served, name: &str) -> Vec<u64> {
    let document: Value =
        serde_json::from_str(&served.order(&["backends", "-o", "json"])).expect("JSON");
    let all = document["backends"].as_array().expect("backends").iter();
    let ours = all.filter(|one| text(one, "name") == name);
    ours.map(|one| one["weight"].as_u64().expect("a weight")).collect()
}

#[test]
fn top_shows_what_goes_on_and_leaves_the_terminal_as_it_was() {
    let served = Served::start(lab(3), &[]);
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    assert!(load.wait_for_more(100, TIMEOUT));
    let screen = top(&served, USUAL);
    let rate = |shown: &str| -> Option<f64> {
        let service =
            shown.lines().find(|line| line.contains(" random ") && line.contains("3/3"))?;
        service.split_whitespace().nth(5)?.parse().ok()
    };
    let shown = screen.wait_until("a rate", |shown| rate(shown).is_some_and(|rate| rate > 0.0));
    assert!(shown.contains(text(&served.status().0, "name")), "{shown}");
    for name in ["web-1", "web-2", "web-3"] {
        let line = line(&shown, name);
        for part in ["active", "33.3/", " % ", "µs"] {
            assert!(line.contains(part), "no {part:?} in {line:?}\n{shown}");
        }
    }
    for part in ["forward-peer", "reply", "conn/s", "0 drops", "? help"] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    // Green for active.
    assert!(screen.coloured().contains(&format!("{COLOUR}2m")), "{}", screen.coloured());
    load.stop().assert_no_failure();

    screen.press("?");
    screen.wait_for("quit; samport keeps running");
    screen.press("x");
    screen.wait_until("no help", |shown| !shown.contains("quit; samport keeps running"));
    screen.press("q");
    screen.assert_usable();
    assert!(!screen.text().contains("q quit"), "{}", screen.text());
    assert_eq!(ask(&served.lab, served.fronts()[0], 5).total(), 5);
}

#[test]
fn orders_are_given_with_a_yes_and_not_with_a_no() {
    let served = Served::start(lab(3), &["--drain", "100"]);
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    let screen = top(&served, USUAL);
    for no in ["n", "Escape"] {
        screen.press("d");
        screen.wait_for("drain web-1: no new connections for it? y/n");
        screen.press(no);
        screen.wait_for("left as it was");
        assert_eq!(served.states_of("web-1"), ["active", "active"]);
    }
    screen.press("d");
    screen.wait_for("? y/n");
    screen.press("y");
    let drains = || {
        let states = served.states_of("web-1");
        states.iter().all(|state| state == "draining" || state == "down").then_some(())
    };
    eventually("it drains", drains);
    screen.wait_until("that it drains", |shown| {
        let state = line(shown, "web-1");
        state.contains("draining") || state.contains("down")
    });
    screen.press("u");
    screen.wait_for("undrain web-1");
    screen.press("y");
    eventually("it serves", || (served.states_of("web-1") == ["active", "active"]).then_some(()));

    // The next one: each has two addresses.
    screen.press("j");
    screen.press("j");
    screen.press("w");
    screen.wait_for("weight of web-2: _");
    screen.press("3");
    screen.press("Enter");
    screen.wait_for("weight of web-2: 3 rather than 1? y/n");
    screen.press("y");
    eventually("it has weight 3", || (weights(&served, "web-2") == [3, 3]).then_some(()));
    // What came of an order is said when it has.
    screen.wait_for("web-2: active, weight 3");
    screen.wait_for("60.0/");
    screen.press("-");
    screen.wait_for("weight of web-2: 2 rather than 3? y/n");
    screen.press("n");
    screen.wait_for("left as it was");
    assert_eq!(weights(&served, "web-2"), [3, 3]);
    screen.press("C-c");
    screen.assert_usable();
    load.stop().assert_no_failure();
}

#[test]
fn small_and_growing_terminals_stay_usable() {
    let served = Served::start(lab(2), &[]);
    let screen = top(&served, (80, 24));
    let is_there = |shown: &str| shown.contains("web-1") && shown.contains("web-2");
    screen.wait_until("both", is_there);
    for size in [(60, 12), (40, 6), (200, 50)] {
        screen.resize(size);
        let (width, height) = (usize::from(size.0), usize::from(size.1));
        screen.wait_until("both at another size", |shown| {
            // Drawn anew: the keys stand in its last line.
            is_there(shown)
                && shown.lines().nth(height - 1).is_some_and(|line| line.contains("help"))
        });
        assert!(screen.text().lines().all(|line| line.chars().count() <= width));
    }
    screen.press("q");
    screen.assert_usable();
}

#[test]
fn top_waits_for_a_samport_that_is_started_anew() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(2), &[]);
    let screen = top(&served, USUAL);
    screen.wait_for("active");
    served.daemon.kill9();
    let shown = screen.wait_for("no answer, trying again");
    assert!(shown.contains("web-1"), "{shown}");
    let Served { daemon: killed, file, servers, lab } = served;
    let args = ["-i", "eth0", "-p", "80:9090", "--file", file.path()];
    let daemon = Daemon::start(&lab, &args);
    killed.adopted();
    screen.wait_until("numbers again", |shown| !shown.contains("no answer"));
    screen.wait_for("samport was restarted");
    screen.wait_for(&format!("pid {}", daemon.pid()));
    screen.press("q");
    screen.assert_usable();
    drop(servers);
}

#[test]
fn without_colours_there_are_none() {
    let served = Served::start(lab(1), &[]);
    let screen = Screen::open(served.lab.host(), USUAL);
    start(&screen, "NO_COLOR=1 ");
    screen.wait_for("active");
    let coloured = screen.coloured();
    assert!(!coloured.contains(COLOUR), "{coloured}");
    screen.press("q");
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let served = Served::start(lab(1), &[]);
    let screen = top(&served, USUAL);
    // By its name, only in the screen's own processes.
    let shell = screen.pid();
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
    let top: i32 = children.split_whitespace().next().expect("top runs").parse().unwrap();
    let pid = rustix::process::Pid::from_raw(top).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    screen.wait_until("the shell", |shown| !shown.contains("q quit"));
    screen.assert_usable();
}

#[test]
fn without_a_samport_or_a_terminal_it_says_so() {
    let lab = lab(0);
    let screen = Screen::open(lab.host(), USUAL);
    screen.enter(&format!("{} top; echo ended-$?", samport_binary().display()));
    let shown = screen.wait_for("ended-3");
    assert!(shown.contains("samport does not run"), "{shown}");
    screen.assert_usable();
    let mut command = samport_command(lab.host(), &["top"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("terminal") && said.contains("samport backends"), "{said}");
    for interval in ["10ms", "soon"] {
        crate::ended(lab.host(), &["top", "--interval", interval]).assert(2, &[interval]);
    }
}
