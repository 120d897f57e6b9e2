//! samport as a child process in the lab's host.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use samport::dataplane::pins;
use samport::lab::{BackendsFile, Lab, Line, Namespace, Watched, output_of};
use samport::system::instance;
use tempfile::TempDir;

use crate::profile_folder;
use crate::served::inode;

/// How long samport may take to be ready: nothing is measured by it, and on 2 cores with a load of 20 the
/// verifier alone took more than 20 s.
const READY: Duration = Duration::from_mins(3);

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

/// Variable that names the file of the hash seed.
pub const HASH_SEED_FILE: &str = "SAMPORT_HASH_SEED_FILE";

/// A seed that all tests have in common, so that they choose the same every time and the machine's own is left alone.
#[must_use]
pub fn hash_seed_file() -> &'static Path {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = env::temp_dir().join("samport-tests-hash-seed");
        // Of one's own name first: others make it too.
        let draft = path.with_extension(std::process::id().to_string());
        let _ = fs::remove_file(&draft);
        let made = File::options().write(true).create_new(true).mode(0o600).open(&draft);
        made.and_then(|mut file| file.write_all(b"73616d706f727473206f776e20746573\n"))
            .and_then(|()| fs::rename(&draft, &path))
            .unwrap_or_else(|e| panic!("make {}: {e}", path.display()));
        path
    });
    &FILE
}

/// A samport command in a namespace, to be started.
#[must_use]
pub fn samport_command(namespace: &Namespace, args: &[&str]) -> Command {
    let mut command = namespace.command(samport_binary());
    command.args(args).env(HASH_SEED_FILE, hash_seed_file());
    command
}

/// Runs a samport command in a namespace to its end, whatever that is.
#[must_use]
pub fn samport(namespace: &Namespace, args: &[&str]) -> Output {
    let mut command = samport_command(namespace, args);
    command.stdin(Stdio::null()).output().expect("start samport")
}

/// Removes what killed instances in a namespace have left, and nothing of others; panics unless that succeeds. What
/// it has printed.
pub fn clean(namespace: &Namespace, args: &[&str]) -> String {
    let instances = instances_in(inode(namespace));
    // Without a name it would remove what others have left, too.
    assert!(!instances.is_empty(), "nothing to clean in {}", namespace.name());
    let mut command = samport_command(namespace, &["clean"]);
    command.args(args).args(instances);
    output_of(&mut command).unwrap_or_else(|e| panic!("{e:#}"))
}

/// `--instance NAME` for each that runs or has left something, by the inode of its namespace.
fn instances_in(inode: u64) -> Vec<String> {
    let suffix = format!("@{inode}");
    let names: BTreeSet<_> = pins::instances().into_iter().chain(instance::known()).collect();
    let ours = names.into_iter().filter(|name| name.ends_with(&suffix));
    ours.flat_map(|name| ["--instance".to_owned(), name]).collect()
}

/// A running `samport run`. Dropped, it gets SIGTERM; after SIGKILL `samport clean` removes what is left in its
/// namespace too.
pub struct Daemon {
    process: Watched,
    /// `samport clean` in the daemon's namespace, made while that is at hand, and the namespace's inode.
    clean: (Command, u64),
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
        daemon.wait_until_ready();
        daemon
    }

    /// The same with variables in its environment.
    #[must_use]
    pub fn start_with(namespace: &Namespace, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let daemon = Self::launch_with(namespace, args, environment);
        daemon.wait_until_ready();
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
        command.args(&words[1..]).env(HASH_SEED_FILE, hash_seed_file());
        command.envs(environment.iter().copied());
        let daemon = Self::spawn(namespace, command);
        daemon.wait_until_ready();
        daemon
    }

    fn launch_with(namespace: &Namespace, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = samport_command(namespace, &["run"]);
        command.args(args).envs(environment.iter().copied());
        Self::spawn(namespace, command)
    }

    fn spawn(namespace: &Namespace, command: Command) -> Self {
        let process = Watched::spawn(command, None).unwrap_or_else(|e| panic!("{e:#}"));
        let clean = (samport_command(namespace, &["clean"]), inode(namespace));
        Self { process, clean, killed: false }
    }

    /// Waits until it is ready; for one that was only launched.
    pub fn wait_until_ready(&self) {
        self.wait_for_line("ready: ", READY);
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("send {signal:?} to samport: {e}"));
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
        if !self.killed {
            return;
        }
        let (clean, inode) = &mut self.clean;
        let instances = instances_in(*inode);
        if !instances.is_empty()
            && let Err(error) = output_of(clean.args(instances))
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
