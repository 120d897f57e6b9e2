//! The machine: what it is, how busy others keep it, and its limits.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use samport_tests::Namespace;
use serde_json::{Value, json};

use crate::traffic::contenders::measured_binary;

/// What the kernel counts CPU time in for user space: USER_HZ, which is 100 everywhere.
pub const TICKS_PER_SECOND: f64 = 100.0;
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// Room for four times the connections of a measurement. A namespace's table begins empty.
const CONNTRACK_ROOM: u64 = 262_144;
/// How long the CPUs are watched before a measurement.
const WATCH: Duration = Duration::from_millis(100);
/// Longest wait for the kernel to take namespaces apart.
const TEARDOWN: Duration = Duration::from_secs(10);

/// What figures are worth little without.
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub commit: String,
    pub date: String,
    /// Of the programs samport is measured beside.
    pub versions: Vec<(&'static str, String)>,
    /// What follows `cargo xtask bench --`.
    pub command: String,
    pub binary: String,
}

impl Machine {
    pub fn look() -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let commit = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned(),
            cpus: thread::available_parallelism().context("count the CPUs")?.get(),
            commit: said_by(Command::new("git").args(commit)),
            date: said_by(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
            versions: versions(),
            command: env::args()
                .skip(1)
                .filter(|word| word != "--bench")
                .collect::<Vec<_>>()
                .join(" "),
            binary: measured_binary().display().to_string(),
        })
    }

    /// The machine in a line.
    pub fn heading(&self) -> String {
        let Self { kernel, cpu, cpus, commit, .. } = self;
        format!("Linux {kernel}, {cpus} CPUs ({cpu}), commit {commit}")
    }

    pub fn json(&self) -> Value {
        json!({
            "kernel": self.kernel, "cpu": self.cpu, "cpus": self.cpus, "commit": self.commit,
            "date": self.date, "binary": self.binary, "command": format!("cargo xtask bench -- {}", self.command),
            "versions": self.versions.iter().cloned().collect::<BTreeMap<_, _>>(),
        })
    }
}

/// Makes the connection table large enough for a contender that needs it. A namespace has the
/// whole machine's limit; it is put back when this is dropped.
pub struct ConntrackRoom {
    before: Option<String>,
}

impl ConntrackRoom {
    pub fn make() -> Result<Self> {
        // Without the file there is no conntrack yet; its own default is no lower than this on
        // machines with more than 4 GiB.
        let Ok(limit) = fs::read_to_string(CONNTRACK_MAX) else { return Ok(Self { before: None }) };
        if limit.trim().parse().is_ok_and(|limit: u64| limit >= CONNTRACK_ROOM) {
            return Ok(Self { before: None });
        }
        fs::write(CONNTRACK_MAX, CONNTRACK_ROOM.to_string())
            .with_context(|| format!("raise {CONNTRACK_MAX} to {CONNTRACK_ROOM}"))?;
        Ok(Self { before: Some(limit) })
    }
}

impl Drop for ConntrackRoom {
    fn drop(&mut self) {
        if let Some(limit) = &self.before
            && let Err(error) = fs::write(CONNTRACK_MAX, limit.trim())
        {
            eprintln!("put {CONNTRACK_MAX} back to {}: {error}", limit.trim());
        }
    }
}

/// Share of the CPUs' time that is used, watched for a moment: by others, before a measurement.
pub fn busy_share() -> Result<f64> {
    let (busy_before, all_before) = cpu_ticks()?;
    thread::sleep(WATCH);
    let (busy, all) = cpu_ticks()?;
    Ok((busy - busy_before) / (all - all_before).max(1.0))
}

/// Ticks of all CPUs that were used, and all ticks.
fn cpu_ticks() -> Result<(f64, f64)> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq steal; what follows is counted in user already.
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).take(8).map_while(|word| word.parse().ok()).collect();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let all: f64 = ticks.iter().sum();
    Ok((all - idle, all))
}

/// CPU time in ticks of 1/100 s that this process has used, those that are given with their children, and the
/// kernel's threads that take over what these leave undone of the packets. Work on packets is otherwise counted to
/// the thread it interrupts; nearly always that is the one that has sent them.
pub fn cpu_ticks_of(pids: &[u32]) -> Result<u64> {
    let is_counted = |path: &Path| {
        // Gone in between: it was none of those.
        let text = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let Some((start, fields)) = text.rsplit_once(") ") else { return false };
        let parent = fields.split(' ').nth(1).and_then(|pid| pid.parse().ok());
        let pid = start.split(' ').next().and_then(|pid| pid.parse().ok());
        start.contains("(ksoftirqd/")
            || [pid, parent].into_iter().flatten().any(|pid: u32| pids.contains(&pid))
    };
    let processes = fs::read_dir("/proc").context("list /proc")?.flatten();
    let counted = processes.map(|entry| entry.path()).filter(|path| is_counted(path));
    counted.chain([PathBuf::from("/proc/self")]).map(|path| used_ticks(&path)).sum()
}

fn used_ticks(process: &Path) -> Result<u64> {
    let stat = read(process.join("stat"))?;
    // The name, in parentheses, may contain anything; utime and stime are the 12th and 13th after.
    let (_, fields) = stat.rsplit_once(") ").context("no name in a stat file")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    ticks.sum::<Result<u64, _>>().with_context(|| format!("read {}/stat", process.display()))
}

/// Waits until the kernel has taken apart the namespaces of the last measurement: thousands of
/// sockets in TIME_WAIT and conntrack entries, which would cost the next contender CPU time.
pub fn wait_for_teardown() -> Result<()> {
    let begin = Instant::now();
    let mut quiet = 0;
    while quiet < 3 && begin.elapsed() < TEARDOWN {
        thread::sleep(Duration::from_millis(20));
        quiet = if is_tearing_down()? { 0 } else { quiet + 1 };
    }
    Ok(())
}

/// Whether a worker of the kernel's queue `netns` is at it: its name then has a `+`.
fn is_tearing_down() -> Result<bool> {
    let processes = fs::read_dir("/proc").context("list /proc")?.flatten();
    let names = processes.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    Ok(names.into_iter().any(|name| name.starts_with("kworker/") && name.contains("+netns")))
}

/// How often TCP's retransmission timer has gone off in a namespace. A SYN that is lost costs the
/// connection a second, any other segment a fifth of one. Probes after a few milliseconds do not
/// count: a busy machine is late often enough.
pub fn tcp_timeouts(namespace: &Namespace) -> Result<u64> {
    // /proc/net is that of the process's first thread.
    let counters = namespace.run(|| read("/proc/thread-self/net/netstat"))?;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt: "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let value = pairs.find(|(name, _)| *name == "TCPTimeouts").and_then(|(_, v)| v.parse().ok());
    value.context("no TCPTimeouts in /proc/net/netstat")
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn versions() -> Vec<(&'static str, String)> {
    let programs = [("iptables", "-V"), ("nft", "-v"), ("haproxy", "-v"), ("nginx", "-v")];
    programs.map(|(program, flag)| (program, said_by(Command::new(program).arg(flag)))).into()
}

/// A command's answer in one line, for information.
fn said_by(command: &mut Command) -> String {
    match command.output() {
        Ok(output) if output.status.success() => {
            // nginx says its version on standard error.
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            said.lines().next().unwrap_or_default().trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
