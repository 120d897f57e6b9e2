//! Storms of events, at full size: routes that change, veths that come and go, and an engine that never stops talking.
//! `cargo build -p samport && cargo run -p samport-tests --example events`, as root.
//!
//! For each storm it prints what samport's memory and its CPU time grow by, and how long a container waits that is
//! started in the middle of it. It fails if memory grows by more than [`GROWTH`], and asserts no time.
//!
//! `SAMPORT_EVENTS_ROUTES` (1,000,000 changes), `SAMPORT_EVENTS_VETHS` (1,000), `SAMPORT_EVENTS_ENGINE` (300,000 events)
//! and `SAMPORT_EVENTS_RATE` (10,000 a second) are how many; 0 leaves a storm out.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use samport::lab::output_of;
use samport_tests::daemon::Daemon;
use samport_tests::engine::{Container, Engine};
use samport_tests::load::ask;
use samport_tests::served::TARGET;
use samport_tests::{Backend, Lab, Namespace, Server, TIMEOUT, require_root};

/// Bytes that samport's memory may grow by in all storms together.
const GROWTH: u64 = 64 << 20;
/// Routes of one batch, which come or go.
const BATCH: u64 = 20_000;
/// Batches of routes at work at a time.
const WORKERS: u64 = 4;
/// Events that are sent at a time.
const CHUNK: u64 = 100;
/// The group of the veths.
const GROUP: u32 = 7;
/// What is left after a storm has a while to be worked off, before memory is read.
const CALM: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    require_root();
    let [routes, veths] =
        [("ROUTES", 1_000_000), ("VETHS", 1_000)].map(|(of, usual)| number(of, usual));
    let [events, rate] =
        [("ENGINE", 300_000), ("RATE", 10_000)].map(|(of, usual)| number(of, usual));
    let (routes, veths, events, rate) = (routes?, veths?, events?, rate?.max(CHUNK));
    let mut fixture = Fixture::start()?;
    let begin = fixture.usage()?;
    println!(
        "{:<40} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "storm", "wall", "CPU", "memory", "peak", "new one in"
    );
    if routes > 0 {
        fixture.storm(&format!("{routes} route changes"), |host, _| change_routes(host, routes))?;
    }
    if veths > 0 {
        let what = format!("{veths} veths come and go");
        fixture.storm(&what, |host, _| come_and_go(host, veths))?;
    }
    if events > 0 {
        let what = format!("{events} events, {rate} a second");
        fixture.storm(&what, |_, engine| {
            talk(engine, events, rate);
            Ok(())
        })?;
    }
    let grown = fixture.usage()?.peak.saturating_sub(begin.memory);
    ensure!(grown < GROWTH, "samport has grown by {grown} bytes; {GROWTH} are allowed");
    let tally = ask(&fixture.lab, fixture.lab.front(80), 100);
    ensure!(tally.total() == 100, "not all are served after the storms: {tally}");
    fixture.end();
    Ok(())
}

/// What the environment says, or the usual number.
fn number(name: &str, usual: u64) -> Result<u64> {
    let name = format!("SAMPORT_EVENTS_{name}");
    match env::var(&name) {
        Ok(text) => {
            text.parse().with_context(|| format!("invalid {name} {text:?}: expected a number"))
        }
        Err(_) => Ok(usual),
    }
}

/// What a process has used.
struct Usage {
    /// Bytes of memory, now and at most so far.
    memory: u64,
    peak: u64,
    /// CPU time of all its threads.
    cpu: Duration,
}

/// Namespaces with servers, which an engine says are containers when they start. Fields are dropped in their order.
struct Fixture {
    daemon: Daemon,
    engine: Engine,
    /// Those that are yet to start, the last one next.
    waiting: Vec<Container>,
    inhabitants: Vec<Child>,
    _servers: Vec<Server>,
    lab: Lab,
}

impl Fixture {
    /// The first container runs, and one waits for each storm.
    fn start() -> Result<Self> {
        let lab = Lab::builder().backends(4).build()?;
        let servers = lab.serve(TARGET)?;
        let inhabitants: Vec<_> = lab.backends().iter().map(inhabitant).collect::<Result<_>>()?;
        let containers = lab.backends().iter().zip(&inhabitants).map(|(backend, inhabitant)| {
            let addr = backend.v4(0).ip();
            Ok(Container::new(backend.name(), inhabitant.id(), addr, &mac_of(backend)?))
        });
        let mut waiting: Vec<_> = containers.rev().collect::<Result<_>>()?;
        let engine = Engine::start()?;
        engine.has(waiting.pop());
        lab.host().batch(
            "link add name feed0 type veth peer name feed1\nlink set feed0 up\nlink set feed1 up\n",
        )?;
        let args = ["-i", "eth0", "-p", "80:9090", "--endpoint", &engine.url(), "--drain", "1"];
        let daemon = Daemon::start(&lab, &args);
        daemon.wait_for_line("+ web-1", TIMEOUT);
        Ok(Self { daemon, engine, waiting, inhabitants, _servers: servers, lab })
    }

    /// Lets a storm blow, has a container start in the middle of it, and prints a line.
    fn storm(
        &mut self,
        what: &str,
        blow: impl FnOnce(&Namespace, &Engine) -> Result<()> + Send,
    ) -> Result<()> {
        let before = self.usage()?;
        let begin = Instant::now();
        let newcomer = self.waiting.pop().context("no container is left")?;
        let (lab, engine, daemon) = (&self.lab, &self.engine, &self.daemon);
        let waited = thread::scope(|scope| {
            let storm = scope.spawn(|| blow(lab.host(), engine));
            thread::sleep(Duration::from_millis(500));
            let started = engine.starts(&newcomer);
            let line = daemon.wait_for_line(&format!("+ {}", newcomer.name()), TIMEOUT);
            storm.join().expect("a storm without a panic")?;
            anyhow::Ok(line.at.saturating_duration_since(started))
        })?;
        let wall = begin.elapsed();
        thread::sleep(CALM);
        let after = self.usage()?;
        println!(
            "{what:<40} {wall:>9.2?} {:>9.2?} {:>6.1} MB {:>6.1} MB {waited:>12.2?}",
            after.cpu.saturating_sub(before.cpu),
            megabytes(after.memory),
            megabytes(after.peak),
        );
        Ok(())
    }

    fn usage(&self) -> Result<Usage> {
        let pid = self.daemon.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kilobytes =
                line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            anyhow::Ok(kilobytes.with_context(|| format!("no {key} of samport"))? << 10)
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<_> =
            stat.rsplit_once(") ").context("a line of stat")?.1.split_whitespace().collect();
        // utime and stime, the 14th and 15th of proc(5), in hundredths of a second.
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let cpu = Duration::from_millis(10 * ticks);
        Ok(Usage { memory: bytes("VmRSS:")?, peak: bytes("VmHWM:")?, cpu })
    }

    fn end(mut self) {
        for inhabitant in &mut self.inhabitants {
            let _ = inhabitant.kill();
            let _ = inhabitant.wait();
        }
        self.daemon.stop();
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A process by which samport finds a container's veth.
fn inhabitant(backend: &Backend) -> Result<Child> {
    let mut command = backend.namespace().command("sleep");
    command.arg("infinity").stdin(Stdio::null()).spawn().context("start sleep")
}

fn mac_of(backend: &Backend) -> Result<String> {
    let link = backend.namespace().ip(&["-o", "link", "show", "eth0"])?;
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).map(str::to_owned).context("no MAC")
}

/// Routes come and go by several workers, until there were so many changes.
fn change_routes(host: &Namespace, changes: u64) -> Result<()> {
    let batches = changes.div_ceil(BATCH);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let own = batches / WORKERS + u64::from(worker < batches % WORKERS);
                scope.spawn(move || {
                    let scripts = ["add", "del"].map(|verb| routes(verb, 10 + worker));
                    (0..own).try_for_each(|batch| run(host, &scripts[usize::from(batch % 2 == 1)]))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|one| one.join().expect("a worker without a panic"))
    })
}

fn routes(verb: &str, net: u64) -> String {
    (0..BATCH).fold(String::new(), |mut text, number| {
        let [.., b, c, d] = (number << 2).to_be_bytes();
        let _ = writeln!(text, "route {verb} {net}.{b}.{c}.{d}/30 dev feed0");
        text
    })
}

/// Veths come one by one, and go all under one lock: the kernel tells of that faster than anybody can read.
fn come_and_go(host: &Namespace, veths: u64) -> Result<()> {
    let come = (0..veths).fold(String::new(), |mut text, number| {
        let _ = writeln!(
            text,
            "link add name {number}feed group {GROUP} type veth peer name {number}peer"
        );
        text
    });
    run(host, &come)?;
    run(host, &format!("link del group {GROUP}\n"))
}

/// Runs a batch of `ip` from a file: as much of it as there is.
fn run(host: &Namespace, script: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), script)?;
    let mut command: Command = host.command("ip");
    output_of(command.arg("-batch").arg(file.path())).map(drop)
}

/// The engine tells of changes of the first container, evenly.
fn talk(engine: &Engine, events: u64, rate: u64) {
    let begin = Instant::now();
    for chunk in 0..events / CHUNK {
        let due = begin + Duration::from_micros(chunk * CHUNK * 1_000_000 / rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        engine.changes("web-1", usize::try_from(CHUNK).unwrap_or_default());
    }
}
