//! A Docker daemon of one's own, in a lab's host, invisible to any other.

mod compose;
mod image;
mod leftovers;

use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use samport::lab::{Lab, Watched, output_of};
use tempfile::TempDir;

pub use compose::Compose;
pub use image::{SERVER_IMAGE, server_image};
pub use leftovers::{mounts_below, processes_below};

/// How long a daemon may take to answer; it takes 0.3 s on an idle machine.
const READY: Duration = Duration::from_secs(20);

/// How the daemon is started.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// Containers go on while the daemon is down.
    pub live_restore: bool,
    /// More options, as typed.
    pub more: Vec<String>,
}

/// A running dockerd. Dropped, its containers are killed, the daemon ends, and all it has mounted
/// and written goes, also when it was killed before.
pub struct Dockerd {
    process: Watched,
    options: Options,
    cgroup: String,
    lab: Lab,
    folder: TempDir,
    /// Once it was asked for.
    compose: OnceLock<Compose>,
}

impl Dockerd {
    /// Starts a daemon in the host of a new lab without backends, and waits until it answers.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let lab = Lab::builder().backends(0).build().unwrap_or_else(|e| panic!("{e:#}"));
        Self::start_in(lab, options)
    }

    /// Starts a daemon in the host of a lab.
    #[must_use]
    pub fn start_in(lab: Lab, options: Options) -> Self {
        // A Unix socket's path has 107 bytes at most: not below Cargo's target folder.
        let folder = tempfile::Builder::new().prefix("samport-docker-").tempdir_in("/tmp");
        let folder = folder.expect("make a folder in /tmp");
        fs::write(folder.path().join("daemon.json"), "{}").expect("write daemon.json");
        // Control groups are the machine's, process ids those of a namespace: only the folder's name is nobody else's.
        let cgroup = folder.path().file_name().expect("a name").to_string_lossy();
        let cgroup = format!("/{cgroup}");
        let process = launch(&lab, folder.path(), &cgroup, &options);
        let docker = Self { process, options, cgroup, lab, folder, compose: OnceLock::new() };
        docker.wait_until_ready();
        docker
    }

    /// The lab: its host is the machine Docker runs on, its client is outside.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where the daemon keeps everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The daemon's socket, as `DOCKER_HOST` and `--endpoint` take it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("unix://{}", self.folder.path().join("d.sock").display())
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Runs `docker ARGS…`; its output, or an error with what it said.
    pub fn try_cli(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command(docker_program());
        output_of(command.args(args)).map(|said| said.trim_end().to_owned())
    }

    /// Runs `docker ARGS…`; panics if it fails.
    pub fn cli(&self, args: &[&str]) -> String {
        self.try_cli(args).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Everything a container has said.
    pub fn logs(&self, container: &str) -> String {
        let output = self.command(docker_program()).args(["logs", container]).output();
        let output = output.expect("start docker");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Runs `docker compose ARGS…`, or what this machine has for it, in a folder that holds a `docker-compose.yml`.
    pub fn compose(&self, folder: &Path, args: &[&str]) -> String {
        let (compose, client) = (self.compose_version(), docker_program());
        let mut command = self.command(compose.program(&client));
        command.args(compose.words()).current_dir(folder).args(args);
        output_of(&mut command).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// The Compose that [`Self::compose`] runs, which knows how containers are named.
    pub fn compose_version(&self) -> &Compose {
        self.compose.get_or_init(|| {
            let found = Compose::find(&docker_program(), |program| self.command(program));
            found.unwrap_or_else(|e| panic!("{e:#}"))
        })
    }

    /// Makes the image of the lab's server; returns its name.
    pub fn import_server_image(&self) -> &'static str {
        let tar = server_image().unwrap_or_else(|e| panic!("{e:#}"));
        let tar = tar.to_str().expect("a path in UTF-8");
        self.cli(&["import", "--change", "CMD [\"/server\"]", tar, SERVER_IMAGE]);
        SERVER_IMAGE
    }

    /// Starts a container of the lab's server under a name, with more options of `docker run`.
    pub fn run_server(&self, name: &str, options: &[&str]) {
        self.make_server(&["run", "-d"], name, options);
    }

    /// Makes such a container without starting it.
    pub fn create_server(&self, name: &str, options: &[&str]) {
        self.make_server(&["create"], name, options);
    }

    fn make_server(&self, verb: &[&str], name: &str, options: &[&str]) {
        let instance = format!("INSTANCE={name}");
        let own = ["--name", name, "--hostname", name, "-e", &instance];
        self.cli(&[verb, &own, options, &[SERVER_IMAGE]].concat());
    }

    /// Where a container with one network answers.
    #[must_use]
    pub fn address(&self, container: &str, port: u16) -> SocketAddr {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = self.cli(&["inspect", "-f", format, container]);
        let address: Result<IpAddr, _> = address.parse();
        SocketAddr::new(address.unwrap_or_else(|e| panic!("address of {container}: {e}")), port)
    }

    /// Does something in the network namespace of a running container.
    pub fn inside<T: Send>(&self, container: &str, work: impl FnOnce() -> T + Send) -> T {
        let pid = self.cli(&["inspect", "-f", "{{.State.Pid}}", container]);
        in_network_of(&pid, work)
    }

    /// Kills the daemon; with `live_restore` its containers go on.
    pub fn kill9_daemon(&mut self) {
        self.process.kill9().unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Stops the daemon as a service manager would; with `live_restore` its containers go on.
    pub fn stop_daemon(&mut self) {
        self.process.stop().unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Starts the daemon again, after stopping it if it runs.
    pub fn restart_daemon(&mut self) {
        self.stop_daemon();
        leftovers::forget_dead_containerd(self.folder.path());
        self.process = launch(&self.lab, self.folder.path(), &self.cgroup, &self.options);
        self.wait_until_ready();
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", self.url()).env("DOCKER_CONFIG", self.folder.path());
        for variable in ["DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"] {
            command.env_remove(variable);
        }
        command
    }

    fn wait_until_ready(&self) {
        let (begin, socket) = (Instant::now(), self.folder.path().join("d.sock"));
        while let Err(error) = ping(&socket) {
            assert!(begin.elapsed() < READY, "dockerd does not answer: {error:#}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn clean_up(&mut self) -> Result<()> {
        if self.process.is_running() {
            let containers = self.try_cli(&["ps", "-q"])?;
            if !containers.is_empty() {
                let kill = ["kill"].into_iter().chain(containers.lines()).collect::<Vec<_>>();
                // One that ends by itself in between makes the command fail and harms nothing.
                let _ = self.try_cli(&kill);
            }
            self.process.stop()?;
        }
        leftovers::remove(self.folder.path(), &self.cgroup)
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("dockerd has said:\n{}", self.process.said());
        }
        if let Err(error) = self.clean_up() {
            eprintln!("{error:#}");
            let _ = self.process.kill9();
            if let Err(error) = leftovers::remove(self.folder.path(), &self.cgroup) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn launch(lab: &Lab, folder: &Path, cgroup: &str, options: &Options) -> Watched {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut command = lab.host().command("dockerd");
    command
        .args(["--config-file", &path("daemon.json"), "--data-root", &path("data")])
        .args(["--exec-root", &path("exec"), "--pidfile", &path("d.pid")])
        .args(["-H", &format!("unix://{}", path("d.sock"))])
        .args(["--log-level=warn", "--storage-driver=overlay2", "--bip", "10.250.0.1/24"])
        // The same with and without systemd, and the control groups can be found again.
        .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", cgroup])
        .args(&options.more);
    if options.live_restore {
        command.arg("--live-restore");
    }
    Watched::spawn(command, None).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Does something in the network namespace of a process.
pub fn in_network_of<T: Send>(pid: &str, work: impl FnOnce() -> T + Send) -> T {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = fs::File::open(&path).unwrap_or_else(|e| panic!("open {path}: {e}"));
    let task = || {
        // A thread's namespace is its own, and it ends with the thread.
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap_or_else(|e| panic!("enter {path}: {e}"));
        work()
    };
    let done = thread::scope(|scope| scope.spawn(task).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ping(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connect")?;
    stream.set_read_timeout(Some(READY))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.contains(" 200 ") {
        bail!("{answer}");
    }
    Ok(())
}

/// The distribution's client before another in PATH: it fits the distribution's daemon.
fn docker_program() -> PathBuf {
    let distribution = Path::new("/usr/bin/docker");
    if distribution.exists() { distribution.to_owned() } else { PathBuf::from("docker") }
}

/// Whether a program is in PATH: for cases that need one that not every machine has.
#[must_use]
pub fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).exists())
}
