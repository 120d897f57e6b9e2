//! The Debian package on this machine: installed, started by its unit's own command line, upgraded while it runs,
//! removed and purged.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use samport_tests::daemon::{Daemon, HASH_SEED_FILE, samport_binary};
use samport_tests::load::ask;
use samport_tests::served::TARGET;
use samport_tests::traces::{assert_traces, traces};
use samport_tests::{Lab, eventually, own_mounts};

use crate::lab;
use crate::service::{as_the_unit, unit};

const CONFIGURATION: &str = "/etc/samport/samport.toml";
const STATE: &str = "/var/lib/samport";
const UNIT: &str = "/usr/lib/systemd/system/samport.service";

/// The package as it is installed; purged when dropped, whatever has happened.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        if version().is_some() {
            dpkg(&["--purge", "samport"]);
        }
    }
}

/// The version that is installed, or whose configuration has stayed.
fn version() -> Option<String> {
    let mut query = Command::new("dpkg-query");
    let output =
        query.args(["-W", "-f=${Version} ${db:Status-Abbrev}", "samport"]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// Runs dpkg, once nobody else does; what it has said.
fn dpkg(args: &[&str]) -> String {
    let output = eventually(&format!("dpkg {args:?}"), || {
        let output = Command::new("dpkg").args(args).output().unwrap();
        let is_locked = words(&output).contains("locked by another process");
        (!is_locked).then_some(output)
    });
    assert!(output.status.success(), "dpkg {args:?}: {}", words(&output));
    words(&output)
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Makes a package of the debug build with a revision.
fn make(folder: &Path, revision: u32) -> PathBuf {
    let xtask = samport_binary().with_file_name("xtask");
    let mut package = Command::new(&xtask);
    package.args(["package", "--debug", "--revision", &revision.to_string(), "--output"]);
    let output = package.arg(folder).output();
    let output =
        output.unwrap_or_else(|e| panic!("{}: {e}; `cargo build` makes it", xtask.display()));
    assert!(output.status.success(), "{}", words(&output));
    let made = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let suffix = format!("-{revision}_");
    let is_meant = |path: &PathBuf| path.to_string_lossy().contains(&suffix);
    made.into_iter().find(is_meant).unwrap_or_else(|| panic!("no package: {}", words(&output)))
}

/// Everything whose name has to do with samport, where packages put things.
fn ours() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders: Vec<PathBuf> = ["/etc", "/usr", "/var/lib"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // Of who has run samport here without the package; it goes with that.
            if path == Path::new(STATE) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains("samport") {
                found.insert(path);
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            }
        }
    }
    found
}

/// The number of a user of this machine.
fn uid_of(name: &str) -> Option<u32> {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let mut fields = users.lines().map(|line| line.split(':'));
    let mut found = fields.find(|fields| fields.clone().next() == Some(name))?;
    found.nth(2)?.parse().ok()
}

/// The unit's own command line, with its own capabilities.
fn start(lab: &Lab) -> Daemon {
    let wrapper = as_the_unit();
    let mut command: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    // The machine's own seed, as the unit has it.
    command.extend(["env", "-u", HASH_SEED_FILE]);
    let line = unit()["ExecStart"].clone();
    command.extend(line.split(' '));
    Daemon::start_command(lab.host(), &command, &[])
}

/// Case 85.
#[test]
fn the_package_works_from_its_installation_to_its_purge_and_nothing_stays() {
    // Its user has the folders that all instances of a machine share; and removing the package cleans up after killed ones.
    own_mounts::run(works_until_nothing_stays);
}

fn works_until_nothing_stays() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [1, 2].map(|revision| make(folder.path(), revision));
    assert_eq!(version(), None, "samport is installed on this machine: the test would remove it");
    let lab = lab(1);
    let _servers = lab.serve(TARGET).unwrap();
    let (before, files) = (traces(lab.host()), ours());
    // As systemd mounts it.
    fs::set_permissions("/sys/fs/bpf", fs::Permissions::from_mode(0o700)).unwrap();

    let installed = Installed;
    let said = dpkg(&["--install", first.to_str().unwrap()]);
    assert!(said.contains("samport check") && said.contains("enable --now"), "{said}");
    let list = dpkg(&["--listfiles", "samport"]);
    for path in [
        "/usr/bin/samport",
        UNIT,
        CONFIGURATION,
        "/usr/lib/sysusers.d/samport.conf",
        "/usr/share/man/man1/samport.1.gz",
        "/usr/share/man/man1/samport-run.1.gz",
        "/usr/share/bash-completion/completions/samport",
        "/usr/share/zsh/vendor-completions/_samport",
        "/usr/share/fish/vendor_completions.d/samport.fish",
        "/usr/share/doc/samport/copyright",
        "/usr/share/doc/samport/docs/reference.md",
        "/usr/share/samport/grafana/samport.json",
    ] {
        assert!(list.lines().any(|line| line == path), "no {path} in\n{list}");
        assert!(Path::new(path).exists(), "{path}");
    }
    let mut verify = Command::new("systemd-analyze");
    let verify = verify.args(["verify", "--man=no", UNIT]).output().unwrap();
    assert!(verify.status.success(), "{}", words(&verify));

    let backend = lab.backends()[0].v4(TARGET);
    let mine = format!(
        "user = \"samport\"\niface = [\"eth0\"]\nport = [\"80:9090\"]\nprovider = [\"static\"]\n\n[[backend]]\naddress = \"{backend}\"\n"
    );
    fs::write(CONFIGURATION, &mine).unwrap();
    let daemon = start(&lab);
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    let process = fs::metadata(format!("/proc/{}", daemon.pid())).unwrap();
    assert_eq!(uid_of("samport"), Some(process.uid()), "the package's user");
    dpkg(&["--install", second.to_str().unwrap()]);
    assert!(version().unwrap().contains("-2 "), "{:?}", version());
    assert_eq!(fs::read_to_string(CONFIGURATION).unwrap(), mine);
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    daemon.stop();
    assert_traces(lab.host(), &before);
    let daemon = start(&lab);
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    daemon.stop();

    let seed = Path::new(STATE).join("hash-seed");
    assert_eq!(fs::metadata(&seed).unwrap().mode() & 0o777, 0o600);
    dpkg(&["--remove", "samport"]);
    assert!(seed.exists(), "as the configuration");
    assert!(Path::new(CONFIGURATION).exists() && !Path::new(UNIT).exists());
    dpkg(&["--purge", "samport"]);
    assert_eq!(version(), None);
    drop(installed);
    assert!(!Path::new(STATE).exists());
    assert_eq!(uid_of("samport"), None, "the package's user");
    let bpffs = fs::metadata("/sys/fs/bpf").unwrap();
    assert_eq!((bpffs.mode() & 0o777, bpffs.gid()), (0o700, 0));
    assert_eq!(ours(), files);
    assert_traces(lab.host(), &before);
}
