//! Limits: whoever does not fit is left out by name, everybody else is served, and it joins when there is room.

use std::fmt::Write as _;
use std::net::SocketAddr;

use samport_tests::daemon::{Daemon, samport};
use samport_tests::fake_engine::{Container, FakeEngine};
use samport_tests::load::{ask, get};
use samport_tests::{CLIENT_V4, Lab, Server, TIMEOUT, eventually};

use crate::lab;

/// What the containers' programs listen on.
pub(crate) const TARGET: u16 = 9_090;

/// A lab whose backends are containers of an engine that is none.
pub(crate) struct Fixture {
    pub(crate) engine: FakeEngine,
    pub(crate) daemon: Daemon,
    pub(crate) lab: Lab,
    args: Vec<String>,
    _servers: Vec<Server>,
}

impl Fixture {
    /// Nothing runs yet.
    pub(crate) fn start(backends: u8, options: &[&str]) -> Self {
        Self::start_tuned(backends, options, |_| {})
    }

    /// The same with something done to the lab before.
    pub(crate) fn start_tuned(backends: u8, options: &[&str], tune: impl FnOnce(&Lab)) -> Self {
        let lab = lab(backends);
        tune(&lab);
        let servers = lab.serve(TARGET).unwrap();
        let engine = FakeEngine::start();
        let endpoint = engine.url();
        let args = [&["-i", "eth0", "--endpoint", &endpoint], options].concat();
        let daemon = Daemon::start(&lab, &args);
        let args = args.into_iter().map(str::to_owned).collect();
        Self { engine, daemon, lab, args, _servers: servers }
    }

    /// samport is killed, and the next one goes on.
    pub(crate) fn restart_killed(&mut self) {
        self.daemon.kill9();
        let args: Vec<_> = self.args.iter().map(String::as_str).collect();
        let next = Daemon::start(&self.lab, &args);
        std::mem::replace(&mut self.daemon, next).adopted();
    }

    /// A container that serves a port at once, at the address of one of the lab's backends.
    pub(crate) fn container(
        &self,
        name: &str,
        at: usize,
        port: u16,
        labels: &[(&str, &str)],
    ) -> Container {
        let ports = format!("{port}:{TARGET}");
        let own = [("samport.ports", ports.as_str()), ("samport.health", "none")];
        let address = self.lab.backends()[at].v4(TARGET).ip();
        Container::new(name, address, &[&own, labels].concat())
    }

    /// Waits until a port is answered by so many backends.
    pub(crate) fn wait_for(&self, port: u16, backends: usize) {
        eventually(&format!("port {port} has {backends} backends"), || {
            let tally = self.answers(port, 20 * u32::try_from(backends).unwrap())?;
            (tally == backends).then_some(())
        });
    }

    fn answers(&self, port: u16, requests: u32) -> Option<usize> {
        let front = self.lab.front(port);
        let is_served = |front: SocketAddr| self.lab.client().run(|| get(front, "/").is_ok());
        if !is_served(front) {
            return None;
        }
        let tally = ask(&self.lab, front, requests);
        Some(self.lab.backends().iter().filter(|one| tally.of(one.name()) > 0).count())
    }

    /// Whether a port is answered at all.
    pub(crate) fn is_served(&self, port: u16) -> bool {
        let front = self.lab.front(port);
        self.lab.client().run(|| get(front, "/").is_ok())
    }

    /// Waits for a line that has all of these words.
    pub(crate) fn wait_for_words(&self, words: &[&str]) -> String {
        eventually(&format!("a line with {words:?}"), || {
            let lines = self.daemon.lines();
            let mut of = lines.iter().map(|line| &line.text);
            of.find(|text| words.iter().all(|word| text.contains(word))).cloned()
        })
    }
}

/// So many networks, from the n-th on.
fn networks(first: usize, count: usize) -> String {
    let mut list = String::new();
    for n in first..first + count {
        let comma = if list.is_empty() { "" } else { "," };
        write!(list, "{comma}10.{}.{}.0/24", n / 256, n % 256).unwrap();
    }
    list
}

/// Case 87: what one container asks for beyond its limits keeps nobody else from coming and going.
#[test]
fn a_container_beyond_its_limits_is_named_and_keeps_nobody_from_coming_and_going() {
    let fixture = Fixture::start(3, &[]);
    fixture.engine.runs(fixture.container("web-1", 0, 80, &[]));
    fixture.wait_for(80, 1);
    let ports: Vec<_> = (1_000..1_065).map(|port| port.to_string()).collect();
    for (name, label, value, limit) in [
        ("hog-0", "samport.allow", networks(0, 20_000), "65536 at most"),
        ("hog-1", "samport.allow", networks(0, 1_025), "1024 at most"),
        ("hog-2", "samport.ports", ports.join(","), "64 ports"),
        ("hog-3", "samport.weight", "4294967295".to_owned(), "65535"),
        ("hog-4", "samport.service", "x".repeat(1_000), "128 at most"),
        ("hog-5", "samport.network", "x".repeat(100_000), "65536 at most"),
    ] {
        let address = fixture.lab.backends()[2].v4(TARGET).ip();
        fixture.engine.runs(Container::new(
            name,
            address,
            &[("samport.port", "80"), (label, &value)],
        ));
        let line = fixture.wait_for_words(&[name, "is not served", label, limit]);
        assert!(line.len() < 1_000, "{line}");
    }
    fixture.engine.runs(fixture.container("web-2", 1, 80, &[]));
    fixture.wait_for(80, 2);
    fixture.engine.ends("web-1");
    fixture.daemon.wait_for_line("- web-1", TIMEOUT);
    fixture.wait_for(80, 1);
}

/// Case 80: backends: the one too many is named, and joins when another has gone.
#[test]
fn a_backend_there_is_no_room_for_is_named_and_joins_when_there_is() {
    let fixture = Fixture::start(3, &["--max-backends", "2"]);
    fixture.engine.runs(fixture.container("b", 0, 80, &[]));
    fixture.engine.runs(fixture.container("c", 1, 80, &[]));
    fixture.wait_for(80, 2);
    // First by its name, and last to come: those that serve stay.
    fixture.engine.runs(fixture.container("a", 2, 80, &[]));
    fixture.wait_for_words(&[
        "warning",
        "a is left out on port 80",
        "room for 2 backends",
        "--max-backends",
    ]);
    let status_says = |sentence: &str| {
        let output = samport(fixture.lab.host(), &["status"]);
        String::from_utf8(output.stdout).unwrap().contains(sentence)
    };
    let sentence = "warning: a is left out on port 80";
    eventually("status says so", || status_says(sentence).then_some(()));
    let mark = fixture.daemon.mark();
    fixture.engine.ends("b");
    fixture.daemon.wait_for_line_after(mark, "+ a ", TIMEOUT);
    fixture.wait_for(80, 2);
    assert!(!status_says(sentence));
    // All of them are exchanged in one step, with no room for one more.
    let mark = fixture.daemon.mark();
    for name in ["a", "c"] {
        fixture.engine.loses(name);
    }
    fixture.engine.has([fixture.container("x", 0, 80, &[]), fixture.container("y", 1, 80, &[])]);
    fixture.engine.end_events();
    fixture.daemon.wait_for_line_after(mark, "+ x ", TIMEOUT);
    fixture.daemon.wait_for_line_after(mark, "+ y ", TIMEOUT);
    fixture.wait_for(80, 2);
}

/// Networks: full of them, others still come and go, and whoever brought one too many joins when there is room.
#[test]
fn a_full_allow_list_leaves_out_one_port_by_name_and_serves_all_others() {
    let fixture = Fixture::start(3, &[]);
    for n in 0..16 {
        let allow = networks(1_024 * n, 1_024);
        let port = 1_000 + u16::try_from(n).unwrap();
        let ports = port.to_string();
        let labels =
            [("samport.allow", &*allow), ("samport.ports", &ports), ("samport.health", "none")];
        let address = fixture.lab.backends()[0].v4(TARGET).ip();
        fixture.engine.runs(Container::new(&format!("full-{n:02}"), address, &labels));
    }
    fixture.daemon.wait_for_line("+ full-15", TIMEOUT);
    let allow = CLIENT_V4.to_string();
    fixture.engine.runs(fixture.container("more", 1, 80, &[("samport.allow", &allow)]));
    fixture.wait_for_words(&["more is left out on port 80", "16384", "samport.allow"]);
    assert!(!fixture.is_served(80));
    fixture.engine.runs(fixture.container("web", 2, 81, &[]));
    fixture.wait_for(81, 1);
    fixture.engine.ends("full-03");
    fixture.daemon.wait_for_line("+ more", TIMEOUT);
    fixture.wait_for(80, 1);
}

/// Frontends: labels that open more ports than there is room for.
#[test]
fn ports_there_is_no_room_for_are_named_and_served_when_there_is() {
    // 4,096 places, of 64 addresses of the interface for each port.
    let fixture = Fixture::start_tuned(2, &[], |lab| {
        let more = (1..64).map(|n| format!("addr add 198.51.100.{n}/32 dev eth0\n"));
        lab.host().batch(&more.collect::<String>()).unwrap();
    });
    let address = fixture.lab.backends()[0].v4(TARGET).ip();
    let hog = |name: &str, ports: std::ops::Range<u16>, last: &str| {
        // No more than four ports lead to one of a container's.
        let ports: Vec<_> = ports.map(|port| port.to_string()).chain([last.to_owned()]).collect();
        let ports = ports.join(",");
        Container::new(name, address, &[("samport.ports", &ports), ("samport.health", "none")])
    };
    fixture.engine.runs(hog("full", 10_000..10_063, "10063"));
    fixture.daemon.wait_for_line("+ full ", TIMEOUT);
    fixture.engine.runs(hog("hog", 11_000..11_009, &format!("11009:{TARGET}")));
    fixture.wait_for_words(&["hog is left out on ports 11000, 11001, 11002 and 7 more", "4096"]);
    fixture.engine.runs(fixture.container("web", 1, 10_000, &[]));
    fixture.wait_for(10_000, 1);
    assert!(!fixture.is_served(11_009));
    fixture.engine.ends("full");
    eventually("the last port is served", || fixture.is_served(11_009).then_some(()));
}
