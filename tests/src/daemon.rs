//! samport as a child process in the lab's host.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use samport::lab::{BackendsFile, Lab, Line, Namespace, Watched, output_of};
use tempfile::TempDir;

use crate::profile_folder;

/// How long samport may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// The binary: `SAMPORT_BIN`, or the one of the test's own profile, or of the other one.
#[must_use]
pub fn samport_binary() -> PathBuf {
    if let Some(path) = env::var_os("SAMPORT_BIN") {
        return path.into();
    }
    let profile = profile_folder();
    let mut places = vec![profile.clone()];
    places.extend(["debug", "release"].map(|other| profile.with_file_name(other)));
    let found = places.iter().map(|folder| folder.join("samport")).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no samport binary in {places:?}: `cargo build` makes it"))
}

/// A samport command in a namespace, to be started.
#[must_use]
pub fn samport_command(namespace: &Namespace, args: &[&str]) -> Command {
    let mut command = namespace.command(samport_binary());
    command.args(args);
    command
}

/// Runs a samport command in a namespace to its end, whatever that is.
#[must_use]
pub fn samport(namespace: &Namespace, args: &[&str]) -> Output {
    let mut command = samport_command(namespace, args);
    command.stdin(Stdio::null()).output().expect("start samport")
}

/// A running `samport run`. Dropped, it gets SIGTERM; after SIGKILL `samport clean` runs too.
pub struct Daemon {
    process: Watched,
    /// `samport clean` in the daemon's namespace, made while that is at hand.
    clean: Command,
    killed: bool,
}

impl Daemon {
    /// Starts `samport run ARGS…` in the lab's host and waits until it is ready.
    #[must_use]
    pub fn start(lab: &Lab, args: &[&str]) -> Self {
        Self::start_in(lab.host(), args)
    }

    /// Starts `samport run ARGS…` in a namespace and waits until it is ready.
    #[must_use]
    pub fn start_in(namespace: &Namespace, args: &[&str]) -> Self {
        let daemon = Self::launch(namespace, args);
        daemon.wait_for_line("ready: ", READY);
        daemon
    }

    /// The same with variables in its environment.
    #[must_use]
    pub fn start_with(namespace: &Namespace, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let daemon = Self::launch_with(namespace, args, environment);
        daemon.wait_for_line("ready: ", READY);
        daemon
    }

    /// Starts `samport run ARGS…` and waits for nothing.
    #[must_use]
    pub fn launch(namespace: &Namespace, args: &[&str]) -> Self {
        Self::launch_with(namespace, args, &[])
    }

    /// The same with another build of it.
    #[must_use]
    pub fn start_binary(binary: &Path, namespace: &Namespace, args: &[&str]) -> Self {
        let binary = [binary.to_str().expect("a path in UTF-8"), "run"];
        Self::start_command(namespace, &[&binary, args].concat(), &[])
    }

    /// Starts `WRAPPER… samport run ARGS…`, like `setpriv --no-new-privs samport run …`, and waits until it is
    /// ready.
    #[must_use]
    pub fn start_through(
        namespace: &Namespace,
        wrapper: &[&str],
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let binary = samport_binary();
        let binary = [binary.to_str().expect("a path in UTF-8"), "run"];
        Self::start_command(namespace, &[wrapper, &binary, args].concat(), environment)
    }

    /// Starts a command that becomes a `samport run`, and waits until it is ready.
    #[must_use]
    pub fn start_command(
        namespace: &Namespace,
        words: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = namespace.command(words[0]);
        command.args(&words[1..]).envs(environment.iter().copied());
        let daemon = Self::spawn(namespace, command);
        daemon.wait_for_line("ready: ", READY);
        daemon
    }

    fn launch_with(namespace: &Namespace, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = samport_command(namespace, &["run"]);
        command.args(args).envs(environment.iter().copied());
        Self::spawn(namespace, command)
    }

    fn spawn(namespace: &Namespace, command: Command) -> Self {
        let process = Watched::spawn(command, None).unwrap_or_else(|e| panic!("{e:#}"));
        Self { process, clean: samport_command(namespace, &["clean"]), killed: false }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it has said so far, with times.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.process.lines()
    }

    /// The first line that contains a text, as soon as there is one; panics with all lines if there
    /// is none in time.
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Line {
        self.wait_for_line_after(0, text, timeout)
    }

    /// How many lines there are: what [`Self::wait_for_line_after`] starts from.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.process.mark()
    }

    /// The same as [`Self::wait_for_line`], not counting lines that were there at the mark.
    pub fn wait_for_line_after(&self, mark: usize, text: &str, timeout: Duration) -> Line {
        let line = self.process.wait_for_line_after(mark, text, timeout);
        line.unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Stops it with SIGTERM; panics unless it ends with 0.
    pub fn stop(mut self) {
        let status = self.process.stop().unwrap_or_else(|e| panic!("{e:#}"));
        assert!(status.success(), "samport ended with {status}:\n{}", self.process.said());
    }

    /// Kills it. What it has left in the kernel stays until [`Daemon`] is dropped.
    pub fn kill9(&mut self) {
        self.process.kill9().unwrap_or_else(|e| panic!("{e:#}"));
        self.killed = true;
    }

    /// Forgets that it was killed: another daemon has adopted what it left.
    pub fn adopted(mut self) {
        self.killed = false;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("samport has said:\n{}", self.process.said());
        }
        if let Err(error) = self.process.stop() {
            eprintln!("{error:#}; killing it");
            let _ = self.process.kill9();
            self.killed = true;
        }
        if self.killed
            && let Err(error) = output_of(&mut self.clean)
        {
            eprintln!("{error:#}");
        }
    }
}

/// A backends file in a folder of its own, removed when dropped. Changes panic when they fail.
#[derive(Debug)]
pub struct Backends {
    file: BackendsFile,
    _folder: TempDir,
}

impl Backends {
    /// A file without backends.
    #[must_use]
    pub fn none() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let file = BackendsFile::create(folder.path().join("backends.toml"));
        Self { file: file.unwrap_or_else(|e| panic!("{e:#}")), _folder: folder }
    }

    /// A file with all backends of a lab, by their IPv4 addresses.
    #[must_use]
    pub fn of(lab: &Lab, port: u16) -> Self {
        let mut backends = Self::none();
        for backend in lab.backends() {
            backends.add(backend.name(), backend.v4(port));
        }
        backends
    }

    /// A file with all backends of a lab, each by its IPv4 and its IPv6 address.
    #[must_use]
    pub fn dual(lab: &Lab, port: u16) -> Self {
        let mut backends = Self::of(lab, port);
        for backend in lab.backends() {
            backends.add(backend.name(), backend.v6(port));
        }
        backends
    }

    /// What goes after `--file`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.file.path().to_str().expect("a path in UTF-8")
    }

    /// Adds a backend of weight 1.
    pub fn add(&mut self, name: &str, address: SocketAddr) {
        self.file.add(name, address).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Adds a backend of weight 1 with each of its addresses.
    pub fn add_all(&mut self, name: &str, addresses: [SocketAddr; 2]) {
        for address in addresses {
            self.add(name, address);
        }
    }

    /// Adds a backend.
    pub fn add_weighted(&mut self, name: &str, address: SocketAddr, weight: u32) {
        self.file.add_weighted(name, address, weight).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Gives a backend another weight.
    pub fn set_weight(&mut self, name: &str, weight: u32) {
        self.file.set_weight(name, weight).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Takes a backend out.
    pub fn remove(&mut self, name: &str) {
        self.file.remove(name).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Puts any text in the file's place.
    pub fn write_text(&self, text: &str) {
        self.file.write_text(text).unwrap_or_else(|e| panic!("{e:#}"));
    }
}
