//! `samport demo`: the article's experiment, in a lab of network namespaces.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::dataplane::{Inventory, inventory};
use crate::lab::{BackendsFile, Footprint, HOST_V4, Lab, Load, Server, Tally, Watched, stats};

/// Port clients dial, and the servers' own.
const PORTS: (u16, u16) = (80, 9090);
/// How long samport may take for anything it is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon Ctrl-C is noticed.
const MOMENT: Duration = Duration::from_millis(200);
/// Requests to see after each change under load.
const REQUESTS_PER_PHASE: u32 = 500;
/// The kernel frees BPF objects and namespaces a moment after their last user has gone.
const SETTLE: Duration = Duration::from_secs(5);

/// Options of `samport demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Web servers to begin with.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=100))]
    backends: u8,
    /// Requests to spread over them.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
}

/// Runs the demo; an error if the shares are not fair, a request fails or something is left behind.
pub async fn run(args: Args) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and loads BPF programs: run it as root (sudo samport demo)"
    );
    let interrupted = Interrupt::default();
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // The end of the terminal.
    let mut hangup = signal(SignalKind::hangup())?;
    let work = {
        let interrupted = interrupted.clone();
        tokio::task::spawn_blocking(move || demonstrate(&args, &interrupted))
    };
    tokio::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        _ = int.recv() => { interrupted.set(); work.await }
        _ = term.recv() => { interrupted.set(); work.await }
        _ = hangup.recv() => { interrupted.set(); work.await }
    };
    done.context("the demo has panicked")?
}

/// Set by Ctrl-C. The work looks at it between its steps and then cleans up like after any error.
#[derive(Clone, Default)]
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}

fn demonstrate(args: &Args, interrupt: &Interrupt) -> Result<()> {
    let before = Machine::look()?;
    say(&format!("Before: {}.", before.footprint.summary()));
    let shown = Demo::build(args, interrupt).and_then(|mut demo| demo.show(args, interrupt));
    // Whatever has happened, the lab is gone by now; an error of the demo comes first, and Ctrl-C before
    // whatever it has brought about: a terminal sends it to samport and the servers too.
    let clean = before.compare();
    interrupt.check()?;
    shown?;
    clean?;
    println!("nothing left behind");
    Ok(())
}

/// What is on the machine: BPF objects, and what `ip`, `tc` and bpffs show.
struct Machine {
    bpf: Inventory,
    footprint: Footprint,
}

impl Machine {
    fn look() -> Result<Self> {
        Ok(Self { bpf: inventory()?, footprint: Footprint::take()? })
    }

    /// Compares with now, giving the kernel time to finish; an error names the differences.
    fn compare(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = Self::look()?;
            let mut differences = now.footprint.changes_since(&self.footprint);
            if now.bpf != self.bpf {
                differences.push(format!("BPF before: {}", self.bpf));
                differences.push(format!("BPF now:    {}", now.bpf));
            }
            if differences.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > SETTLE {
                bail!("the machine is not as it was before:\n  {}", differences.join("\n  "));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The lab and what runs in it. Fields are dropped in their order: samport before the lab.
struct Demo {
    samport: Watched,
    servers: Vec<Server>,
    file: BackendsFile,
    _folder: Folder,
    lab: Lab,
}

impl Demo {
    fn build(args: &Args, interrupt: &Interrupt) -> Result<Self> {
        say("Each server is in a network namespace of its own, as a container is.");
        let lab = Lab::builder().backends(args.backends).docker_like_firewall().build()?;
        let folder = Folder::new()?;
        let mut file = BackendsFile::create(folder.0.join("backends.toml"))?;
        for backend in lab.backends() {
            let address = backend.v4(PORTS.1);
            file.add(backend.name(), address)?;
            println!("{} listens on {address}", backend.name());
        }
        let servers = lab.serve(PORTS.1)?;
        interrupt.check()?;

        println!();
        let samport = start_samport(&lab, &file)?;
        Ok(Self { samport, servers, file, _folder: folder, lab })
    }

    fn show(&mut self, args: &Args, interrupt: &Interrupt) -> Result<()> {
        self.spread(args.requests, interrupt)?;
        self.replace(interrupt)?;
        println!();
        type_in(&format!("kill -TERM {}", self.samport.pid()));
        let status = self.samport.stop()?;
        ensure!(status.success(), "samport ended with {status}");
        Ok(())
    }

    /// The article's loop: each request a new connection, then `sort | uniq -c`.
    fn spread(&self, requests: u32, interrupt: &Interrupt) -> Result<()> {
        say(&format!("{HOST_V4} is the external interface of the host."));
        type_in(&format!(
            "for i in {{1..{requests}}}; do curl -s {HOST_V4} 2>&1; done | sort | uniq -c"
        ));
        let front = self.lab.front(PORTS.0);
        let mut tally = Tally::default();
        for number in 1..=requests {
            interrupt.check()?;
            let response = self
                .lab
                .get(front, "/")
                .with_context(|| format!("request {number} of {requests} to {front}"))?;
            ensure!(
                response.client == response.local_addr,
                "{} saw {} instead of the client's own {}",
                response.backend,
                response.client,
                response.local_addr
            );
            tally.add(&response.backend);
        }
        println!("{tally}\n");
        self.judge(&tally, requests)?;
        println!("every server saw the client's own address and port");
        Ok(())
    }

    /// Whether each share is as near to equal as chance keeps it 99.7 times of 100.
    fn judge(&self, tally: &Tally, requests: u32) -> Result<()> {
        let share = 1.0 / f64::from(u32::try_from(self.servers.len())?);
        let (expected, margin) = (f64::from(requests) * share, stats::three_sigma(requests, share));
        for server in &self.servers {
            let count = tally.of(server.name());
            ensure!(
                stats::within_three_sigma(count, requests, share),
                "{} got {count} requests, not within 3 σ of equal: {expected:.0} ± {margin:.0}",
                server.name()
            );
        }
        println!("each share is within 3 σ of equal: {expected:.0} ± {margin:.0}");
        Ok(())
    }

    /// Takes one server away and brings another, under load; no request may fail.
    fn replace(&mut self, interrupt: &Interrupt) -> Result<()> {
        println!();
        say("The same under load, while one server goes and another comes.");
        let load = Load::start(self.lab.client(), self.lab.front(PORTS.0), 2);
        let before = phase(&load, interrupt)?;

        let leaving = self.servers.swap_remove(1);
        let gone = leaving.name().to_owned();
        self.file.remove(&gone)?;
        self.samport.wait_for_line(&format!("- {gone}"), PATIENCE)?;
        leaving.stop();
        let without = phase(&load, interrupt)?;

        let backend = self.lab.add_backend()?;
        let come = backend.name().to_owned();
        self.servers.push(backend.serve(PORTS.1)?);
        self.file.add(&come, backend.v4(PORTS.1))?;
        self.samport.wait_for_line(&format!("+ {come}"), PATIENCE)?;
        let after = phase(&load, interrupt)?;

        let report = load.stop();
        println!("with {gone}:\n{before}\nwithout {gone}:\n{without}\nwith {come}:\n{after}\n");
        ensure!(report.failures.is_empty(), "{report}");
        ensure!(without.of(&gone) == 0, "{gone} answered after it had been taken away");
        ensure!(after.of(&come) > 0, "{come} has not answered");
        println!("{report}");
        Ok(())
    }
}

/// Answers of the next requests.
fn phase(load: &Load, interrupt: &Interrupt) -> Result<Tally> {
    // Requests that were under way before do not count: the first few are let pass.
    wait_for_more(load, 10, interrupt)?;
    let begin = load.so_far().tally;
    wait_for_more(load, REQUESTS_PER_PHASE, interrupt)?;
    Ok(load.so_far().tally.since(&begin))
}

/// Waits for that many more answers.
fn wait_for_more(load: &Load, requests: u32, interrupt: &Interrupt) -> Result<()> {
    let (begin, goal) = (Instant::now(), load.so_far().tally.total() + requests);
    loop {
        interrupt.check()?;
        let missing = goal.saturating_sub(load.so_far().tally.total());
        if missing == 0 || load.wait_for_more(missing, MOMENT) {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the load stands still: {}", load.so_far());
    }
}

fn start_samport(lab: &Lab, file: &BackendsFile) -> Result<Watched> {
    let ports = format!("{}:{}", PORTS.0, PORTS.1);
    let options = ["run", "-i", "eth0", "-p", &ports, "--provider", "file", "--file"];
    let path = file.path().display();
    type_in(&format!("samport {} {path}", options.join(" ")));
    let mut command = lab.host().command("/proc/self/exe");
    command.args(options).arg(file.path());
    let samport = Watched::spawn(command, Some(|line| println!("    {line}")))?;
    samport.wait_for_line("ready: ", PATIENCE)?;
    println!();
    Ok(samport)
}

/// A folder for the backends file, removed when dropped.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("samport-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

fn say(text: &str) {
    println!("# {text}");
}

fn type_in(text: &str) {
    println!("$ {text}");
}
