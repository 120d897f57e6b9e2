//! A network namespace with a name, gone when dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::panic;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps the names.
pub const NETNS_DIR: &str = "/run/netns";

/// Labs and single namespaces made by this process: their number is part of the name.
static MADE: AtomicU32 = AtomicU32::new(0);

/// What the names of all namespaces of this process begin with: no name that is there when the first one is made
/// begins with it. A process that was killed may have left some and have had the same id.
static OWN: LazyLock<String> =
    LazyLock::new(|| free_prefix(process::id(), &names().unwrap_or_default()));

fn free_prefix(pid: u32, names: &[String]) -> String {
    let is_free = |prefix: &String| !names.iter().any(|name| name.starts_with(prefix));
    let more = (2..).map(|number| format!("sp{pid}x{number}-"));
    std::iter::once(format!("sp{pid}-")).chain(more).find(is_free).unwrap_or_default()
}

/// A named network namespace of this process's own. Dropping it takes the name away; the kernel
/// takes the rest when the last process and thread in it have ended.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Makes an empty namespace with `lo` up. The name is `sp<pid>-<number>-<role>`.
    pub fn new(role: &str) -> Result<Self> {
        Self::with_prefix(&new_prefix(), role)
    }

    /// Makes an empty namespace with `lo` up; its name is the two together.
    pub(super) fn with_prefix(prefix: &str, role: &str) -> Result<Self> {
        let name = format!("{prefix}{role}");
        let mut add = Command::new("ip");
        add.args(["netns", "add", &name]);
        output_of(&mut add)?;
        let path = format!("{NETNS_DIR}/{name}");
        let file = match File::open(&path) {
            Ok(file) => Arc::new(file),
            Err(error) => {
                remove(&name);
                return Err(error).with_context(|| format!("open {path}"));
            }
        };
        let namespace = Self { name, file };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name `ip netns` knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure in a thread that is in the namespace. A panic goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter(self.file.as_fd()).unwrap_or_else(|e| panic!("enter {}: {e}", self.name));
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Starts a thread that stays in the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (file, name) = (Arc::clone(&self.file), self.name.clone());
        thread::spawn(move || {
            enter(file.as_fd()).unwrap_or_else(|e| panic!("enter {name}: {e}"));
            // A thread holds its namespace anyway; the descriptor is no longer needed for that.
            drop(file);
            work()
        })
    }

    /// A command that will run in the namespace. Unlike `ip netns exec` it leaves `/sys` as it is,
    /// which would hide bpffs.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: the hook makes one system call on a descriptor it owns, and allocates nothing.
        unsafe { command.pre_exec(move || Ok(enter(file.as_fd())?)) };
        command
    }

    /// Runs `ip -n NAME ARGS…`; its output, or an error with the command and what it said.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        output_of(Command::new("ip").args(["-n", &self.name]).args(args))
    }

    /// Runs many `ip` commands, one a line, in one process.
    pub fn batch(&self, script: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip -batch")?;
        let mut stdin = child.stdin.take().context("ip -batch has no stdin")?;
        // A broken pipe means that ip has given up: its own words, below, say why.
        let _ = stdin.write_all(script.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().context("wait for ip -batch")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip -n {} -batch: {said}\n{script}", self.name);
        Ok(())
    }

    /// Writes a file under `/proc/sys` as seen from the namespace: `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("write {value} to {path} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// What the names of everything in one lab begin with, `sp<pid>-<number>-`: nothing else on the machine is called so.
pub(super) fn new_prefix() -> String {
    format!("{}{}-", *OWN, MADE.fetch_add(1, Ordering::Relaxed))
}

/// Names of all network namespaces that have one.
pub(super) fn names() -> Result<Vec<String>> {
    if !Path::new(NETNS_DIR).exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(NETNS_DIR).with_context(|| format!("list {NETNS_DIR}"))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn remove(name: &str) {
    if let Err(error) = output_of(Command::new("ip").args(["netns", "del", name])) {
        eprintln!("{error:#}");
    }
}

fn enter(namespace: BorrowedFd<'_>) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
}

/// Runs a command to its end; its standard output, or an error with the command line and what it
/// said on standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{line}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
#[must_use]
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::free_prefix;

    #[test]
    fn names_that_a_killed_process_has_left_are_not_used_again() {
        let left = ["sp7-0-host", "sp7x2-0-client", "sp70-0-host"].map(str::to_owned);
        assert_eq!(free_prefix(7, &left[2..]), "sp7-");
        assert_eq!(free_prefix(7, &left[..1]), "sp7x2-");
        assert_eq!(free_prefix(7, &left), "sp7x3-");
    }
}
