//! The systemd unit: its own command line with its own capabilities, and what samport tells a service manager.
//! No systemd runs here; `systemd-analyze` reads the unit in the test of the package.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use samport::system::privileges::needed;
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::ask;
use samport_tests::served::TARGET;
use samport_tests::traces::{assert_traces, traces};
use samport_tests::{TIMEOUT, eventually, own_mounts};

use crate::lab;

/// The unit's settings; one that is said twice has its last value.
pub fn unit() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/samport.service");
    let text = fs::read_to_string(path).unwrap();
    let settings = text.lines().filter(|line| !line.starts_with('#'));
    let settings = settings.filter_map(|line| line.split_once('='));
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What starts a program with the capabilities the unit gives.
pub fn as_the_unit() -> [String; 4] {
    let names = unit()["CapabilityBoundingSet"].to_lowercase();
    let set = names.split(' ').map(|name| format!(",+{}", name.trim_start_matches("cap_")));
    let set = set.collect::<String>();
    [
        "setpriv".to_owned(),
        "--no-new-privs".to_owned(),
        format!("--bounding-set=-all{set}"),
        format!("--inh-caps=-all{set}"),
    ]
}

/// Runs the unit's `ExecReload` with its capabilities, as systemd would.
fn reload(daemon: &Daemon) {
    let wrapper = as_the_unit();
    let mut command = Command::new(&wrapper[0]);
    // Nothing is found by its name: a program called kill is not in every system.
    command.args(&wrapper[1..]).args(["env", "-i", "PATH=/nonexistent"]);
    command.arg(format!("MAINPID={}", daemon.pid())).args(command_line(&unit()["ExecReload"]));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The words of a command line of a unit: systemd.service(5), of which quotes are all that is used. A variable in
/// a word would be replaced by systemd if it were the whole word or had braces.
fn command_line(line: &str) -> Vec<String> {
    assert!(!line.contains(['\\', '%', '{']), "more than quotes in {line:?}");
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        let word = words.last_mut().unwrap();
        match (quote, character) {
            (None, ' ') => words.push(String::new()),
            (None, '"' | '\'') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            _ => word.push(character),
        }
    }
    assert!(words.iter().all(|word| !word.starts_with('$')), "a variable alone in {line:?}");
    words
}

/// What the unit starts is there on every system: a shell, and the package's own program.
#[test]
fn the_unit_starts_what_every_system_has() {
    for (setting, line) in unit().iter().filter(|(name, _)| name.starts_with("Exec")) {
        let program = &command_line(line)[0];
        assert!(
            ["/bin/sh", "/usr/bin/samport"].contains(&program.as_str()),
            "{setting} starts {program}: which essential package has it?"
        );
    }
}

#[test]
fn the_unit_gives_the_capabilities_of_the_list() {
    assert_eq!(unit()["AmbientCapabilities"], needed());
    let to_become_another = "CAP_CHOWN CAP_SETGID CAP_SETUID";
    assert_eq!(unit()["CapabilityBoundingSet"], format!("{} {to_become_another}", needed()));
}

/// A place for a service manager's socket, and what has been said there.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { socket, folder }
    }

    /// The next thing that is said.
    fn hear(&self) -> String {
        let mut bytes = [0; 512];
        let length = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap().trim_end().to_owned()
    }

    /// Hears until this is said, if only as the first of several lines.
    fn wait_for(&self, what: &str) {
        let is_said = || self.hear().lines().next() == Some(what);
        eventually(&format!("samport says {what:?}"), || is_said().then_some(()));
    }
}

/// Ready is said when it is ready, signs of life are given for as long as it lives, and a reload and the end are
/// announced.
#[test]
fn a_service_manager_is_told_how_it_is() {
    let lab = lab(2);
    let before = traces(lab.host());
    let _servers = lab.serve(TARGET).unwrap();
    let mut file = Backends::none();
    file.add("web-1", lab.backends()[0].v4(TARGET));
    let manager = Manager::new();
    let socket = manager.folder.path().join("notify");
    let config = manager.folder.path().join("samport.toml");
    fs::write(&config, "iface = [\"eth0\"]\nport = [\"80:9090\"]\n").unwrap();
    let command = &unit()["ExecStart"];
    assert_eq!(command, "/usr/bin/samport run --config /etc/samport/samport.toml");
    let wrapper = as_the_unit();
    let daemon = Daemon::start_through(
        lab.host(),
        &wrapper.each_ref().map(String::as_str),
        &["--config", config.to_str().unwrap(), "--file", file.path()],
        &[("NOTIFY_SOCKET", socket.to_str().unwrap()), ("WATCHDOG_USEC", "600000")],
    );
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=1 backend, 1 active");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    file.add("web-2", lab.backends()[1].v4(TARGET));
    manager.wait_for("STATUS=2 backends, 2 active");
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    reload(&daemon);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    daemon.stop();
    manager.wait_for("STOPPING=1");
    assert_traces(lab.host(), &before);
}

/// Rounds that fail are tried again, and samport is alive: a new start would fail for the same reason. The manager is
/// told why.
#[test]
fn signs_of_life_go_on_while_rounds_fail_and_the_status_says_why() {
    own_mounts::run(|| {
        let lab = lab(2);
        let before = traces(lab.host());
        let _servers = lab.serve(TARGET).unwrap();
        let mut file = Backends::none();
        file.add("web-1", lab.backends()[0].v4(TARGET));
        let manager = Manager::new();
        let socket = manager.folder.path().join("notify");
        let daemon = Daemon::start_with(
            lab.host(),
            &["-i", "eth0", "-p", "80:9090", "--file", file.path()],
            &[("NOTIFY_SOCKET", socket.to_str().unwrap()), ("WATCHDOG_USEC", "600000")],
        );
        manager.wait_for("STATUS=1 backend, 1 active");
        own_mounts::fill();
        file.add("web-2", lab.backends()[1].v4(TARGET));
        eventually("the manager is told what is wrong", || {
            let said = manager.hear();
            (said.starts_with("STATUS=") && said.contains("No space left")).then_some(())
        });
        for _ in 0..5 {
            manager.wait_for("WATCHDOG=1");
        }
        assert_eq!(ask(&lab, lab.front(80), 10).of("web-1"), 10);
        own_mounts::empty();
        manager.wait_for("STATUS=2 backends, 2 active");
        daemon.stop();
        assert_traces(lab.host(), &before);
    });
}
