//! An engine that tells too little, or too much. It runs nothing: containers are the lab's namespaces.

use std::fs;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use samport_tests::daemon::Daemon;
use samport_tests::engine::{Container, Engine};
use samport_tests::load::ask;
use samport_tests::served::{Status, TARGET};
use samport_tests::{Backend, Lab, Server, TIMEOUT, eventually};

use crate::lab;

/// More than samport may grow by, in kB, whatever an engine sends.
const GROWTH: u64 = 64 * 1024;

/// Namespaces with servers, some of which an engine says are containers. Fields are dropped in their order.
struct Fixture {
    daemon: Daemon,
    engine: Engine,
    containers: Vec<Container>,
    inhabitants: Vec<Child>,
    _servers: Vec<Server>,
    lab: Lab,
}

impl Fixture {
    /// Of three containers the first runs.
    fn start(options: &[&str]) -> Self {
        let lab = lab(3);
        let servers = lab.serve(TARGET).unwrap();
        let inhabitants: Vec<_> = lab.backends().iter().map(inhabitant).collect();
        let containers: Vec<_> = lab
            .backends()
            .iter()
            .zip(&inhabitants)
            .map(|(backend, inhabitant)| {
                let mac = mac_of(backend);
                Container::new(backend.name(), inhabitant.id(), backend.v4(0).ip(), &mac)
            })
            .collect();
        let engine = Engine::start().unwrap();
        engine.has([containers[0].clone()]);
        let url = engine.url();
        let usual = ["-i", "eth0", "-p", "80:9090", "--endpoint", &url, "--drain", "1"];
        let daemon = Daemon::start(&lab, &[&usual[..], options].concat());
        daemon.wait_for_line("+ web-1", TIMEOUT);
        Self { daemon, engine, containers, inhabitants, _servers: servers, lab }
    }

    fn resyncs(&self, cause: &str) -> u64 {
        let status = Status::only_in(self.lab.host()).0;
        status["control_loop"]["resyncs"][cause].as_u64().unwrap()
    }

    fn assert_served_by(&self, name: &str) {
        let tally = ask(&self.lab, self.lab.front(80), 20);
        assert_eq!(tally.of(name), 20, "{tally}");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for inhabitant in &mut self.inhabitants {
            let _ = inhabitant.kill();
            let _ = inhabitant.wait();
        }
    }
}

/// A process by which samport finds a container's veth.
fn inhabitant(backend: &Backend) -> Child {
    let mut command = backend.namespace().command("sleep");
    command.arg("infinity").stdin(Stdio::null()).spawn().unwrap()
}

fn mac_of(backend: &Backend) -> String {
    let link = backend.namespace().ip(&["-o", "link", "show", "eth0"]).unwrap();
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap().to_owned()
}

/// The most memory a process has had so far, in kB.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Row D2 of the field faults: the engine drops what nobody reads.
#[test]
fn what_happened_while_samport_was_stopped_is_known_when_it_goes_on() {
    let fixture = Fixture::start(&[]);
    fixture.assert_served_by("web-1");
    fixture.daemon.signal(Signal::STOP);
    fixture.engine.loses("web-1");
    fixture.engine.has([fixture.containers[1].clone()]);
    // No event comes; how long it is stopped is what it has to notice.
    thread::sleep(Duration::from_secs(6));
    let mark = fixture.daemon.mark();
    let begin = Instant::now();
    fixture.daemon.signal(Signal::CONT);
    fixture.daemon.wait_for_line_after(mark, "+ web-2", TIMEOUT);
    eprintln!("web-2 served {:?} after SIGCONT", begin.elapsed());
    fixture.daemon.wait_for_line_after(mark, "- web-1", TIMEOUT);
    eventually("web-1 is gone", || {
        (ask(&fixture.lab, fixture.lab.front(80), 5).of("web-2") == 5).then_some(())
    });
    fixture.assert_served_by("web-2");
    assert!(fixture.resyncs("pause") > 0);
}

/// Row D2: whatever the reason is that nothing was heard.
#[test]
fn what_the_engine_does_not_tell_is_found_by_the_next_list() {
    let fixture = Fixture::start(&[]);
    let [_, lists] = fixture.engine.questions();
    let mark = fixture.daemon.mark();
    fixture.engine.loses("web-1");
    fixture.engine.has([fixture.containers[1].clone()]);
    fixture.daemon.wait_for_line_after(mark, "+ web-2", TIMEOUT);
    fixture.daemon.wait_for_line_after(mark, "- web-1", TIMEOUT);
    fixture.assert_served_by("web-2");
    assert_eq!((fixture.resyncs("pause"), fixture.resyncs("engine")), (0, 0));
    // A list of containers of which nothing is new asks about none of them.
    let [inspections, _] = fixture.engine.questions();
    eventually("containers are listed again", || {
        (fixture.engine.questions()[1] > lists + 1).then_some(())
    });
    assert_eq!(fixture.engine.questions()[0], inspections);
}

/// Row E3 of the field faults.
#[test]
fn three_hundred_thousand_events_cost_no_memory_and_hold_nobody_up() {
    const EVENTS: usize = 300_000;
    let fixture = Fixture::start(&[]);
    let before = peak_memory(fixture.daemon.pid());
    let begin = Instant::now();
    thread::scope(|scope| {
        let storm = scope.spawn(|| fixture.engine.changes("web-1", EVENTS));
        // Others come meanwhile.
        fixture.engine.starts(&fixture.containers[1]);
        let started = Instant::now();
        fixture.daemon.wait_for_line("+ web-2", TIMEOUT);
        eprintln!("web-2 served after {:?}", started.elapsed());
        storm.join().unwrap();
    });
    eprintln!("{EVENTS} events read in {:?}", begin.elapsed());
    let started = Instant::now();
    fixture.engine.starts(&fixture.containers[2]);
    fixture.daemon.wait_for_line("+ web-3", TIMEOUT);
    eprintln!("web-3 served after {:?}", started.elapsed());
    let [inspections, lists] = fixture.engine.questions();
    let overruns = fixture.resyncs("engine");
    let grown = peak_memory(fixture.daemon.pid()) - before;
    eprintln!("{inspections} inspections, {lists} lists, {overruns} overruns, grown by {grown} kB");
    assert!(grown < GROWTH, "samport has grown by {grown} kB");
    assert!(inspections < EVENTS as u64 / 2, "{inspections} inspections");
    let tally = ask(&fixture.lab, fixture.lab.front(80), 60);
    assert!(["web-1", "web-2", "web-3"].iter().all(|name| tally.of(name) > 0), "{tally}");
}

/// Row D5 of the field faults: it was sent its stop signal, and goes on.
#[test]
fn a_container_that_ignores_its_stop_signal_serves_again() {
    let fixture = Fixture::start(&[]);
    fixture.engine.starts(&fixture.containers[1]);
    fixture.daemon.wait_for_line("+ web-2", TIMEOUT);
    let mark = fixture.daemon.mark();
    fixture.engine.kills("web-1");
    fixture.daemon.wait_for_line_after(mark, "- web-1", TIMEOUT);
    fixture.daemon.wait_for_line_after(
        mark,
        "web-1 was sent its stop signal and still runs",
        TIMEOUT,
    );
    fixture.daemon.wait_for_line_after(mark, "+ web-1", TIMEOUT);
    eventually("web-1 serves again", || {
        (ask(&fixture.lab, fixture.lab.front(80), 20).of("web-1") > 0).then_some(())
    });
}
