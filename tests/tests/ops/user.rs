//! `samport run --user`: started by root, it goes on as another user, and everything works.
//!
//! Folders for all instances are given to that user, so these tests have a /run and a bpffs of their own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use samport::lab::Watched;
use samport::system::privileges::USES;
use samport_tests::daemon::{Backends, Daemon, samport_binary};
use samport_tests::load::{Connection, ask};
use samport_tests::served::TARGET;
use samport_tests::{Lab, TIMEOUT};
use serde_json::Value;

use crate::lab;

/// A user that every Debian has, and its number.
const USER: &str = "daemon";
const UID: u32 = 1;

/// The capabilities that it keeps with a file to read.
const KEPT: [&str; 3] = ["CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN"];

/// A /run and a bpffs, the latter as systemd mounts it, as long as this is there.
struct Mounts(Watched);

impl Mounts {
    fn new() -> Self {
        let script = "mount -t tmpfs -o mode=0755 none /run && mount -t bpf -o mode=0700 none /sys/fs/bpf && echo mounted >&2 \
                      && exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]);
        let keeper = Watched::spawn(command, None).unwrap();
        keeper.wait_for_line("mounted", TIMEOUT).unwrap();
        Self(keeper)
    }

    /// Starts samport there.
    fn start(&self, lab: &Lab, args: &[&str]) -> Daemon {
        let (pid, binary) = (self.0.pid().to_string(), samport_binary());
        let words = ["nsenter", "-t", &pid, "-m", binary.to_str().unwrap(), "run"];
        Daemon::start_command(lab.host(), &[&words[..], args].concat(), &[])
    }

    /// Runs a command of samport there.
    fn samport(&self, lab: &Lab, args: &[&str]) -> Output {
        let mut command = lab.host().command("nsenter");
        command.args(["-t", &self.0.pid().to_string(), "-m"]).arg(samport_binary()).args(args);
        command.output().unwrap()
    }

    /// What `samport status` says of privileges.
    fn privileges(&self, lab: &Lab) -> Value {
        let output = self.samport(lab, &["status", "-o", "json"]);
        assert!(output.status.success(), "{output:?}");
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["instances"][0]["privileges"].clone()
    }

    /// Owners and modes of a folder and of what is in it.
    fn owners(&self, folder: &str) -> BTreeSet<(u32, u32)> {
        let folder = PathBuf::from(format!("/proc/{}/root{folder}", self.0.pid()));
        let entries = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
        let metadata = entries.chain([folder]).map(|path| fs::symlink_metadata(path).unwrap());
        metadata.map(|one| (one.uid(), one.mode() & 0o777)).collect()
    }
}

/// What /proc says of every thread.
fn of_threads(pid: u32, field: &str) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let values = statuses.filter_map(|status| {
        status.lines().find_map(|line| line.strip_prefix(field)).map(str::trim).map(str::to_owned)
    });
    values.collect()
}

#[test]
fn as_another_user_it_serves_follows_files_and_obeys_root() {
    let (lab, mounts) = (lab(2), Mounts::new());
    let _servers = lab.serve(TARGET).unwrap();
    let mut file = Backends::none();
    file.add("web-1", lab.backends()[0].v4(TARGET));
    // Root's alone, and so is its folder.
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let args = ["-i", "eth0", "-p", "80:9090", "--file", file.path(), "--user", USER];
    let daemon = mounts.start(&lab, &args);
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    let pid = daemon.pid();
    let everywhere = BTreeSet::from([[UID; 4].map(|uid| uid.to_string()).join("\t")]);
    assert_eq!(of_threads(pid, "Uid:"), everywhere);
    assert_eq!(of_threads(pid, "Gid:"), everywhere);
    assert_eq!(of_threads(pid, "Groups:"), BTreeSet::from([UID.to_string()]));
    assert_eq!(of_threads(pid, "Seccomp:"), BTreeSet::from(["2".to_owned()]));
    let mask = USES.iter().filter(|one| KEPT.contains(&&*one.capability.to_string()));
    let mask = mask.fold(0, |mask, one| mask | one.capability.bitmask());
    assert_eq!(of_threads(pid, "CapPrm:"), BTreeSet::from([format!("{mask:016x}")]));
    assert_eq!(of_threads(pid, "CapBnd:"), BTreeSet::from([format!("{mask:016x}")]));
    let told = mounts.privileges(&lab);
    assert_eq!((&told["user"], &told["capabilities"]), (&USER.into(), &serde_json::json!(KEPT)));
    assert_eq!(mounts.owners("/run/samport"), BTreeSet::from([(UID, 0o600), (UID, 0o700)]));
    file.add("web-2", lab.backends()[1].v4(TARGET));
    daemon.wait_for_line("+ web-2", TIMEOUT);
    let output = mounts.samport(&lab, &["drain", "web-1"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(ask(&lab, lab.front(80), 10).of("web-2"), 10);
    let lines = daemon.lines();
    assert!(lines.iter().all(|line| !line.text.contains("warning")), "{lines:?}");
    daemon.stop();
    // Its folders stay, empty: the folders above them are root's.
    assert_eq!(mounts.owners("/run/samport"), BTreeSet::from([(UID, 0o700)]));
    assert_eq!(mounts.owners("/sys/fs/bpf/samport"), BTreeSet::from([(UID, 0o700)]));
}

/// What root's has left, as one of an older version, is taken over, and given back.
#[test]
fn users_take_over_from_each_other_without_losing_a_connection() {
    let (lab, mounts) = (lab(1), Mounts::new());
    let _servers = lab.serve(TARGET).unwrap();
    let backend = lab.backends()[0].v4(TARGET).to_string();
    let run = ["-i", "eth0", "-p", "80:9090", "--backend", &backend];
    let mut killed = mounts.start(&lab, &run);
    let mut kept = lab.client().run(|| Connection::open(lab.front(80))).unwrap();
    for user in [USER, "root", USER] {
        kept.get("/").unwrap();
        killed.kill9();
        let user_flag: &[&str] = if user == "root" { &[] } else { &["--user", user] };
        let next = mounts.start(&lab, &[&run[..], user_flag].concat());
        killed.adopted();
        next.wait_for_line("taking over from samport ", TIMEOUT);
        assert_eq!(mounts.privileges(&lab)["user"], user);
        kept.get("/").unwrap();
        assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
        killed = next;
    }
    // Beside it nobody of another user.
    let other = ["run", "-i", "eth0", "-p", "81:9090", "--backend", &backend];
    let refused = mounts.samport(&lab, &other);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(6), "{said}");
    assert!(said.contains("run all of them as the same --user"), "{said}");
    kept.get("/").unwrap();
    killed.stop();
}

#[test]
fn a_user_that_is_none_is_named() {
    let lab = lab(1);
    let args = ["run", "-i", "eth0", "-p", "80", "--backend", "172.30.0.10", "--user", "no-such"];
    crate::ended(lab.host(), &args).assert(2, &["\"no-such\"", "adduser", "--user"]);
}

/// An engine whose socket is root's alone, as Podman's: said at the start, and nothing is attached.
#[test]
fn a_socket_that_the_user_may_not_open_is_named_with_the_ways_out() {
    let (lab, mounts) = (lab(1), Mounts::new());
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("podman.sock");
    let _engine = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).unwrap();
    let endpoint = format!("unix://{}", socket.display());
    let args = ["run", "-i", "eth0", "-p", "80", "--provider", "podman", "--endpoint", &endpoint];
    let refused = mounts.samport(&lab, &[&args[..], &["--user", USER]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{said}");
    let named = socket.display().to_string();
    for word in [&named, "user daemon", "SocketGroup=", "--user"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    assert_eq!(mounts.owners("/sys/fs/bpf/samport"), BTreeSet::from([(UID, 0o700)]), "a pin");
}
