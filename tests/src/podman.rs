//! A rootful Podman of one's own, in a lab's host: its service, which speaks Docker's API.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::Result;
use samport::lab::{Lab, Watched, output_of};
use tempfile::TempDir;

use crate::docker::{SERVER_IMAGE, in_network_of, mounts_below, server_image};
use crate::eventually;

/// A running service. Dropped, its containers are removed, it ends, and its folder goes.
pub struct Podman {
    process: Watched,
    folder: TempDir,
}

impl Podman {
    /// Starts a service in the host of a lab, and waits until it answers.
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        let folder = tempfile::Builder::new().prefix("samport-podman-").tempdir_in("/tmp");
        let folder = folder.expect("make a folder in /tmp");
        let path = |name: &str| folder.path().join(name).display().to_string();
        // No daemon raises the limits here, and crun refuses the hybrid hierarchy of control groups.
        let config = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n\
             [engine]\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n\
             lock_type = \"file\"\n\
             runtime = \"runc\"\n\
             [network]\n\
             network_backend = \"netavark\"\n\
             network_config_dir = \"{}\"\n",
            path("networks")
        );
        fs::write(path("containers.conf"), config).expect("write containers.conf");
        let mut command = lab.host().command("podman");
        command.env("CONTAINERS_CONF", path("containers.conf")).env_remove("CONTAINER_HOST");
        command.args([
            "--root",
            &path("root"),
            "--runroot",
            &path("run"),
            "--tmpdir",
            &path("tmp"),
        ]);
        command.args(["system", "service", "--time=0", &format!("unix://{}", path("p.sock"))]);
        let process = Watched::spawn(command, None).unwrap_or_else(|e| panic!("{e:#}"));
        let podman = Self { process, folder };
        eventually("podman answers", || podman.try_cli(&["version"]).ok());
        podman
    }

    /// Its socket, as `CONTAINER_HOST` and `--endpoint` take it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("unix://{}", self.folder.path().join("p.sock").display())
    }

    /// Runs `podman ARGS…`; its output, or an error with what it said.
    pub fn try_cli(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("podman");
        command.env("CONTAINER_HOST", self.url()).arg("--remote").args(args);
        output_of(&mut command).map(|said| said.trim_end().to_owned())
    }

    /// Runs `podman ARGS…`; panics if it fails.
    pub fn cli(&self, args: &[&str]) -> String {
        self.try_cli(args).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Makes the image of the lab's server.
    pub fn import_server_image(&self) {
        let tar = server_image().unwrap_or_else(|e| panic!("{e:#}"));
        let tar = tar.to_str().expect("a path in UTF-8");
        self.cli(&["import", "--change", "CMD [\"/server\"]", tar, SERVER_IMAGE]);
    }

    /// Starts a container of the lab's server under a name, with more options of `podman run`.
    pub fn run_server(&self, name: &str, options: &[&str]) {
        let instance = format!("INSTANCE={name}");
        let begin = ["run", "-d", "--name", name, "-e", &instance];
        self.cli(&[&begin[..], options, &[SERVER_IMAGE]].concat());
    }

    /// Does something in the network namespace of a running container.
    pub fn inside<T: Send>(&self, container: &str, work: impl FnOnce() -> T + Send) -> T {
        let pid = self.cli(&["inspect", "-f", "{{.State.Pid}}", container]);
        in_network_of(&pid, work)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("podman has said:\n{}", self.process.said());
        }
        if let Err(error) = self.try_cli(&["rm", "-a", "-f", "-t", "0"]) {
            eprintln!("{error:#}");
        }
        if let Err(error) = self.process.stop() {
            eprintln!("{error:#}");
        }
        unmount_all(self.folder.path());
    }
}

fn unmount_all(folder: &Path) {
    let mounts = mounts_below(folder).unwrap_or_default();
    for mount in mounts.iter().rev() {
        if let Err(error) = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("unmount {}: {error}", mount.display());
        }
    }
}
