//! From a container's event to the connections of clients.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use samport_tests::daemon::Daemon;
use samport_tests::engine::{Container, Engine};
use samport_tests::speed::{Better, Figure, Report};
use samport_tests::{Backend, Lab};

use super::prober::Prober;
use super::{ms_between, real};
use crate::{Args, interrupt};

/// How long anything may take before it is a failure.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Nobody who is silent for so long answers any more.
const SILENCE: Duration = Duration::from_millis(150);
/// Clients at a time, where two backends share them.
const CLIENTS: usize = 2;
/// Connections that show that nobody is there.
const REFUSED: u64 = 20;
/// Answers that show that a backend has its share.
const ENOUGH: usize = 5;

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let title =
        "From the engine's start event of the only container to the first connection it answers";
    let mut start = Figure::new("control.start", title, "ms", Better::Less);
    let title = "From the engine's event of a container that ends to its last new connection";
    let mut kill = Figure::new("control.kill", title, "ms", Better::Less);
    fake(args, &mut start, &mut kill).context("with an engine that runs nothing")?;
    if args.quick {
        report.skip("events of real containers: too slow for --quick".to_owned());
    } else {
        real::measure(args, &mut start, &mut kill, report).context("with a real engine")?;
    }
    report.add(start);
    report.add(kill);
    Ok(())
}

/// A process in a backend's namespace: by it samport finds the container's veth. Killed when dropped.
pub struct NamespaceProcess(Child);

impl NamespaceProcess {
    pub fn of(backend: &Backend) -> Result<Self> {
        let mut command: Command = backend.namespace().command("sleep");
        let child = command.arg("infinity").stdin(Stdio::null()).spawn();
        Ok(Self(child.context("start sleep")?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for NamespaceProcess {
    fn drop(&mut self) {
        // It ends in either case: nothing else holds it.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The MAC of a backend's interface.
pub fn mac_of(backend: &Backend) -> Result<String> {
    let said = backend.namespace().ip(&["-o", "link", "show", "dev", "eth0"])?;
    let mut words = said.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).map(str::to_owned).context("eth0 has no MAC")
}

fn container(backend: &Backend, process: &NamespaceProcess) -> Result<Container> {
    let (name, pid, address) = (backend.name(), process.pid(), backend.v4(0).ip());
    Ok(Container::new(name, pid, address, &mac_of(backend)?))
}

fn fake(args: &Args, start: &mut Figure, kill: &mut Figure) -> Result<()> {
    let lab = Lab::builder().backends(2).build()?;
    let _servers = lab.serve(9090)?;
    let inhabitants =
        lab.backends().iter().map(NamespaceProcess::of).collect::<Result<Vec<_>>>()?;
    let containers = lab.backends().iter().zip(&inhabitants);
    let containers = containers.map(|(backend, one)| container(backend, one));
    let containers = containers.collect::<Result<Vec<_>>>()?;
    let engine = Engine::start()?;
    let url = engine.url();
    let _daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80:9090", "--endpoint", &url]);
    let front = lab.front(80);

    let client = Prober::start(lab.client(), front);
    for _ in 0..args.rounds() {
        interrupt::go_on()?;
        until_silent(&client, &containers[0].name)?;
        client.wait_for_more(REFUSED);
        let at = engine.starts(&containers[0]);
        let first = first_after(&client, at)?;
        start.series("samport").samples.push(ms_between(at, first));
        engine.ends(&containers[0].name);
    }
    until_silent(&client, &containers[0].name)?;
    drop(client);

    engine.starts(&containers[0]);
    let clients: Vec<_> = (0..CLIENTS).map(|_| Prober::start(lab.client(), front)).collect();
    let leaving = &containers[1];
    for _ in 0..args.rounds() {
        for (series, is_kill) in [("samport", true), ("die", false)] {
            interrupt::go_on()?;
            let begin = engine.starts(leaving);
            until_shared(&clients, &leaving.name, begin)?;
            let at = if is_kill { engine.kills(&leaving.name) } else { engine.ends(&leaving.name) };
            let last = last_of(&clients, &leaving.name)?;
            kill.series(series).samples.push(ms_between(at, last));
            if is_kill {
                engine.ends(&leaving.name);
                thread::sleep(SILENCE);
            }
        }
    }
    Ok(())
}

/// When the first connection was begun, from a moment on, that was answered.
fn first_after(client: &Prober, at: Instant) -> Result<Instant> {
    ensure!(client.wait_for(|one| one.begun >= at, TIMEOUT), "nobody answers after the start");
    let answered = client.answered();
    let first = answered.iter().find(|one| one.begun >= at).context("nobody answers")?;
    Ok(first.begun)
}

/// Waits until a backend has its share of the connections.
pub fn until_shared(clients: &[Prober], name: &str, since: Instant) -> Result<()> {
    let begin = Instant::now();
    let is_shared = |client: &Prober| {
        let answered = client.answered();
        answered.iter().filter(|one| one.begun >= since && one.backend == name).count() >= ENOUGH
    };
    while !clients.iter().all(is_shared) {
        ensure!(begin.elapsed() < TIMEOUT, "{name} does not get its share");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// When the last connection was begun that a backend has answered, after it has fallen silent.
pub fn last_of(clients: &[Prober], name: &str) -> Result<Instant> {
    for client in clients {
        until_silent(client, name)?;
    }
    let of = clients.iter().flat_map(Prober::answered).filter(|one| one.backend == name);
    of.map(|one| one.begun).max().with_context(|| format!("{name} has never answered"))
}

/// Waits until a backend answers no more.
pub fn until_silent(client: &Prober, name: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let last = client.answered().iter().rev().find(|one| one.backend == name).map(|a| a.begun);
        if last.unwrap_or(begin).max(begin).elapsed() >= SILENCE {
            return Ok(());
        }
        ensure!(begin.elapsed() < TIMEOUT, "{name} still answers");
        thread::sleep(Duration::from_millis(5));
    }
}
