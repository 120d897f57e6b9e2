//! `samport demo`: the article's experiment, in a lab of network namespaces.

mod nodes;

use std::io::{Write as _, stdout};
use std::net::SocketAddr;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinError;

use super::sigpipe::end_if_reader_has_gone;
use crate::lab::{
    BackendsFile, Echo, Footprint, HOST_V4, Lab, Load, Namespace, Server, Tally, Watched, get,
    stats,
};

/// Port clients dial, and the servers' own.
const PORTS: (u16, u16) = (80, 9090);
/// How long samport may take for anything it is waited for: on a busy machine the kernel alone looks at the programs
/// for half a minute.
const TIMEOUT: Duration = Duration::from_mins(1);
/// How soon Ctrl-C is noticed.
const MOMENT: Duration = Duration::from_millis(200);
/// Requests to see after each change under load.
const REQUESTS_PER_PHASE: u32 = 500;

/// Options of `samport demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Show several hosts: N of them, each with its own servers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: Option<u8>,
    /// Start N web servers; default: 3, with --nodes 2 on each host
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=100))]
    backends: Option<u8>,
    /// Send N requests
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
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
        tokio::task::spawn_blocking(move || match args.nodes {
            Some(nodes) => nodes::demonstrate(nodes, &args, &interrupted),
            None => demonstrate(&args, &interrupted),
        })
    };
    tokio::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        _ = int.recv() => { interrupted.set(); work.await }
        _ = term.recv() => { interrupted.set(); work.await }
        _ = hangup.recv() => { interrupted.set(); work.await }
    };
    match done.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => {
            end_if_reader_has_gone(&*panic);
            panic::resume_unwind(panic)
        }
        Err(Err(error)) => Err(error.into()),
    }
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
    say("Each server is in its own network namespace, as a container is.");
    let lab = Lab::builder().backends(args.backends.unwrap_or(3)).docker_like_firewall();
    let mut footprint = Footprint::of(&lab);
    let shown = lab.build().and_then(|mut lab| in_lab(&mut lab, &mut footprint, args, interrupt));
    // Whatever has happened, the lab is gone by now; an error of the demo comes first, and Ctrl-C before
    // whatever it has brought about: a terminal sends it to samport and the servers too.
    let clean = footprint.wait_for_lab();
    interrupt.check()?;
    shown?;
    clean?;
    println!("nothing left behind: {footprint} have gone, and the lab");
    Ok(())
}

/// The demo from samport's start to its end; an error also if samport leaves something behind.
fn in_lab(
    lab: &mut Lab,
    footprint: &mut Footprint,
    args: &Args,
    interrupt: &Interrupt,
) -> Result<()> {
    footprint.look_before(lab.host())?;
    let shown =
        Demo::start(lab, footprint, interrupt).and_then(|mut demo| demo.show(args, interrupt));
    let clean = footprint.wait_for_samport(lab.host());
    match (shown, clean) {
        (Err(why), Err(left)) if interrupt.check().is_ok() => bail!("{why:#}\n{left:#}"),
        (shown, clean) => shown.and(clean),
    }
}

/// What runs in the lab. Fields are dropped in their order: samport first.
struct Demo<'a> {
    samport: Watched,
    servers: Vec<Server>,
    file: BackendsFile,
    _folder: Folder,
    lab: &'a mut Lab,
    footprint: &'a mut Footprint,
}

impl<'a> Demo<'a> {
    fn start(
        lab: &'a mut Lab,
        footprint: &'a mut Footprint,
        interrupt: &Interrupt,
    ) -> Result<Self> {
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
        let samport = start_samport(lab, &file)?;
        footprint.look(lab.host())?;
        Ok(Self { samport, servers, file, _folder: folder, lab, footprint })
    }

    fn show(&mut self, args: &Args, interrupt: &Interrupt) -> Result<()> {
        self.spread(args.requests, interrupt)?;
        self.replace(interrupt)?;
        println!();
        type_in(&format!("kill -TERM {}", self.samport.pid()));
        self.footprint.look(self.lab.host())?;
        let status = self.samport.stop()?;
        ensure!(status.success(), "samport ended with {status}");
        Ok(())
    }

    /// The article's loop: each request a new connection, then `sort | uniq -c`.
    fn spread(&self, requests: u32, interrupt: &Interrupt) -> Result<()> {
        say(&format!("{HOST_V4} is the external interface of the host."));
        let front = self.lab.front(PORTS.0);
        let names: Vec<_> = self.servers.iter().map(Server::name).collect();
        ask(self.lab.client(), front, requests, &names, interrupt)
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
        self.samport.wait_for_line(&format!("- {gone}"), TIMEOUT)?;
        leaving.stop();
        self.footprint.look(self.lab.host())?;
        let without = phase(&load, interrupt)?;

        let backend = self.lab.add_backend()?;
        let come = backend.name().to_owned();
        self.servers.push(backend.serve(PORTS.1)?);
        self.file.add(&come, backend.v4(PORTS.1))?;
        self.samport.wait_for_line(&format!("+ {come}"), TIMEOUT)?;
        self.footprint.look(self.lab.host())?;
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

/// The article's loop: each request a new connection, then `sort | uniq -c`. An error unless each server saw the client's
/// own address, and has a share as near to equal as chance keeps it 15,999 times of 16,000.
fn ask(
    client: &Namespace,
    front: SocketAddr,
    requests: u32,
    servers: &[&str],
    interrupt: &Interrupt,
) -> Result<()> {
    type_in(&format!(
        "for i in {{1..{requests}}}; do curl -s {} 2>&1; done | sort | uniq -c",
        front.ip()
    ));
    let mut tally = Tally::default();
    for number in 1..=requests {
        interrupt.check()?;
        let response = client
            .run(|| get(front, "/"))
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
    let share = 1.0 / f64::from(u32::try_from(servers.len())?);
    let (expected, margin) = (f64::from(requests) * share, stats::four_sigma(requests, share));
    for server in servers {
        let count = tally.of(server);
        ensure!(
            stats::within_four_sigma(count, requests, share),
            "{server} got {count} requests, not within 4 σ of equal: {expected:.0} ± {margin:.0}"
        );
    }
    println!("each share is within 4 σ of equal: {expected:.0} ± {margin:.0}");
    println!("every server saw the client's own address and port");
    Ok(())
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
        ensure!(begin.elapsed() < TIMEOUT, "the load stands still: {}", load.so_far());
    }
}

fn start_samport(lab: &Lab, file: &BackendsFile) -> Result<Watched> {
    let ports = format!("{}:{}", PORTS.0, PORTS.1);
    let options = ["run", "-i", "eth0", "-p", &ports, "--provider", "file", "--file"];
    let path = file.path().display();
    type_in(&format!("samport {} {path}", options.join(" ")));
    let mut command = lab.host().command("/proc/self/exe");
    command.args(options).arg(file.path());
    // The machine's own is not made for a demo.
    command.env("SAMPORT_HASH_SEED_FILE", file.path().with_file_name("hash-seed"));
    let indented: Echo = Arc::new(|line| echo(&format!("    {line}")));
    let samport = Watched::spawn(command, Some(&indented))?;
    samport.wait_for_line("ready: ", TIMEOUT)?;
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

/// Prints a line of a child's. A reader that has gone is found by the thread that cleans up.
fn echo(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}

fn say(text: &str) {
    println!("# {text}");
}

fn type_in(text: &str) {
    println!("$ {text}");
}
