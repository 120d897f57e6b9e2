//! The configuration file: who counts before whom, what is refused, and what happens when it changes.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use samport_tests::daemon::{Daemon, samport, samport_binary};
use samport_tests::load::{Connection, Load, ask};
use samport_tests::served::{LISTEN, Served, Status, TARGET, text as text_of};
use samport_tests::traces::{assert_traces, traces};
use samport_tests::{Lab, Server, TIMEOUT};
use serde_json::Value;

use crate::text_file::TextFile;
use crate::{ended, lab};

/// A configuration file.
fn file(text: &str) -> TextFile {
    TextFile::new("samport.toml", text)
}

/// A lab with servers, and samport running by a file.
struct Configured {
    daemon: Daemon,
    file: TextFile,
    _servers: Vec<Server>,
    lab: Lab,
}

/// Everything that is needed to run, and `more` before its backends.
fn text(lab: &Lab, backends: &[&str], more: &str) -> String {
    let table = |name: &&str| {
        let backend = lab.backends().iter().find(|one| one.name() == *name).unwrap();
        format!("[[backend]]\nname = \"{name}\"\naddress = \"{}\"\n", backend.v4(TARGET))
    };
    let tables: String = backends.iter().map(table).collect();
    format!("iface = \"eth0\"\nport = [\"{LISTEN}:{TARGET}\"]\n{more}\n{tables}")
}

impl Configured {
    fn start(backends: &[&str], more: &str) -> Self {
        let lab = lab(2);
        let servers = lab.serve(TARGET).unwrap();
        let file = file(&text(&lab, backends, more));
        let daemon = Daemon::start(&lab, &["--config", file.path()]);
        Self { daemon, file, _servers: servers, lab }
    }

    fn front(&self) -> SocketAddr {
        self.lab.front(LISTEN)
    }

    /// Changes the file, and waits for what samport says of it.
    fn change(&self, backends: &[&str], more: &str, expected: &str) {
        let mark = self.daemon.mark();
        self.file.write(&text(&self.lab, backends, more));
        self.daemon.wait_for_line_after(mark, expected, TIMEOUT);
    }

    /// What `samport status -o json` says of it.
    fn status(&self) -> Value {
        Status::only_in(self.lab.host()).0
    }

    fn hang_up(&self, expected: &str) {
        let mark = self.daemon.mark();
        self.daemon.signal(Signal::HUP);
        self.daemon.wait_for_line_after(mark, expected, TIMEOUT);
    }
}

/// What `samport config show -o json` says with these variables and arguments.
fn shown(environment: &[(&str, &str)], args: &[&str]) -> Value {
    let mut command = Command::new(samport_binary());
    command.args(["config", "show", "-o", "json"]).args(args).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A flag counts before the environment, that before the file, and that before the default; labels, which
/// count before all of them: `containers::labels`.
#[test]
fn flag_environment_file_and_default_count_in_this_order() {
    let file = file("iface = 'eth0'\n\ndrain = '3s'\nport = [80, 81]\n");
    let config = ["--config", file.path()];
    let flag = [&config[..], &["--drain", "1s", "--iface", "eth1"]].concat();
    let variable = [("SAMPORT_DRAIN", "2s")];
    let at = format!("{}:3", file.path());
    for (environment, args, [value, source, at]) in [
        (&variable[..], &flag[..], ["1s", "flag", "--drain"]),
        (&variable, &config, ["2s", "environment", "SAMPORT_DRAIN"]),
        (&[], &config, ["3s", "file", &at]),
        (&[], &["-i", "eth0"], ["30s", "default", ""]),
    ] {
        let document = shown(environment, args);
        assert_eq!(document["schema"], 1);
        let drain = &document["settings"]["drain"];
        let said = [&drain["value"], &drain["source"], &drain["at"]];
        assert_eq!(said.map(|one| one.as_str().unwrap_or_default()), [value, source, at]);
    }
    let document = shown(&[("SAMPORT_CONFIG", file.path())], &["-p", "90"]);
    assert_eq!(document["settings"]["port"]["value"], serde_json::json!(["90"]));
    assert_eq!(document["settings"]["iface"]["source"], "file");
}

#[test]
fn what_config_show_prints_is_a_configuration() {
    let args = ["config", "show", "-i", "eth0", "-p", "80:81", "--allow=10.0.0.0/8", "--keep"];
    let args = [&args[..], &["--backend", "web=10.0.0.2@3"]].concat();
    let printed = |args: &[&str]| {
        let output = Command::new(samport_binary()).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let first = printed(&args);
    let file = file(&first);
    let second = printed(&["config", "show", "--config", file.path()]);
    let values = |text: &str| {
        let lines = text.lines().map(|line| line.split("  # ").next().unwrap().trim().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(values(&first), values(&second));
    for word in ["port = [\"80:81\"]", "# --port", "web=10.0.0.2@3", "# default", "# metrics ="] {
        assert!(first.contains(word), "{first}");
    }
}

/// Case 87: line, column, the line itself, and the way out.
#[test]
fn config_check_names_line_and_column_and_the_way_out() {
    let lab = lab(0);
    let file = file("");
    let check = ["config", "check", file.path()];
    for (text, place, words) in [
        (
            "iface = 'eth0'\nprot = 80\n",
            ":2:1:",
            ["unknown key \"prot\"", "did you mean \"port\"?"],
        ),
        ("port = ['80:x']\n", ":1:9:", ["\"80:x\"", "^^^^^^"]),
        ("port = [80\n", ":1:11:", ["TOML", "port = [80"]),
        ("port = [80, 80]\n", "", ["port 80/tcp", "twice"]),
        ("iface = 'x'\nprovider = 'docker'\nbackend = ['::1']\n", "", ["--backend", "static"]),
    ] {
        file.write(text);
        let ended = ended(lab.host(), &check);
        ended.assert(2, &words);
        assert!(ended.said.contains(&format!("{}{place}", file.path())) || place.is_empty());
    }
    file.write("drain = '5s'\n");
    ended(lab.host(), &check).assert(0, &[]);
    ended(lab.host(), &["config", "check", "/nowhere"]).assert(2, &["/nowhere", "No such file"]);
    ended(lab.host(), &["run", "-p", "80"]).assert(2, &["--iface", "SAMPORT_IFACE"]);
}

/// Case 87: an unknown key in the configuration at the start: refused, and nothing is attached.
#[test]
fn a_bad_configuration_is_refused_before_anything_is_touched() {
    let lab = lab(1);
    let file = file(&text(&lab, &["web-1"], "ifaces = 'eth1'"));
    let before = traces(lab.host());
    let refused = ended(lab.host(), &["run", "--config", file.path()]);
    refused.assert(2, &[&format!("{}:3:1:", file.path()), "ifaces", "did you mean \"iface\"?"]);
    assert_traces(lab.host(), &before);
}

/// Case 88: good applied, bad refused with line and column, old kept, under load and without a failure.
#[test]
fn a_good_change_is_applied_and_a_bad_one_refused_under_load() {
    let set = Configured::start(&["web-1"], "drain = '60s'");
    let load = Load::start(set.lab.client(), set.front(), 2);
    assert!(load.wait_for_more(50, TIMEOUT));
    let mut old = set.lab.client().run(|| Connection::open(set.front()).unwrap());
    assert_eq!(old.get("/").unwrap().backend, "web-1");

    set.change(&["web-1", "web-2"], "drain = '60s'", "+ web-2");
    set.change(&["web-2"], "drain = '60s'\nbalance = 'maglev'", "- web-1");
    assert_eq!(ask(&set.lab, set.front(), 40).of("web-2"), 40);
    assert_eq!(old.get("/").unwrap().backend, "web-1", "who is taken out finishes what it has");

    for (more, words) in [
        ("drain = '60s'\n\nbalence = 'random'", ":5:1: unknown key \"balence\""),
        ("drain = 'soon'", ":3:9: drain: invalid time \"soon\""),
        ("allow = ['10.0.0.0/8'", "no TOML"),
    ] {
        set.change(&["web-1"], more, words);
        set.hang_up("the configuration stays as it was");
        assert_eq!(ask(&set.lab, set.front(), 20).of("web-2"), 20);
    }
    // Back to something good, which counts at once.
    set.change(&["web-1"], "drain = '60s'", "web-1");
    assert_eq!(ask(&set.lab, set.front(), 20).of("web-1"), 20);
    for _ in 0..20 {
        set.hang_up("nothing has changed");
    }
    load.stop().assert_no_failure();
}

/// Case 88: what cannot be changed while it runs is named, and the rest is applied.
#[test]
fn what_waits_for_the_next_start_is_named_and_the_rest_applied() {
    let set = Configured::start(&["web-1", "web-2"], "");
    // `status` shows the whole machine: another samport, whose name is before this one's.
    let elsewhere = lab(0);
    let _other = Daemon::start(&elsewhere, &["-i", "eth0", "-p", "1", "--backend", "192.0.2.77"]);
    let more = "allow = ['203.0.113.0/24']\ndrain = '7s'\nflows = 2048\nhook = 'tc'";
    set.change(&["web-1", "web-2"], more, "hook, flows: takes effect at the next start");
    set.daemon.wait_for_line("configuration applied: allow, drain", TIMEOUT);
    // What is shown is what is in force.
    let limits = &set.status()["limits"];
    assert_eq!((&limits["drain_seconds"], &limits["flows"]), (&7.into(), &131_072.into()));
    // Whom --allow leaves out gets no answer at all.
    let refused = set.lab.client().run(|| Connection::open(set.front()).is_err());
    assert!(refused, "a client that is not allowed is served");
    // Said again as long as it waits; no longer, when it is as it was.
    set.change(&["web-1", "web-2"], "hook = 'tc'", "hook: takes effect at the next start");
    set.change(&["web-1", "web-2"], "", "nothing has changed");
    assert_eq!(ask(&set.lab, set.front(), 20).total(), 20);
}

/// The names of backends, in order.
fn names(backends: &Value) -> Vec<&str> {
    let active = backends.as_array().unwrap().iter().filter(|one| one["state"] == "active");
    let mut names: Vec<_> = active.map(|one| text_of(one, "name")).collect();
    names.sort_unstable();
    names
}

/// Whoever reads that a change is applied sees it wherever it is shown.
#[test]
fn what_is_said_to_be_applied_is_what_everybody_sees() {
    let set = Configured::start(&["web-1"], "");
    let listens = |port: u16| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        set.lab.host().run(|| std::net::TcpStream::connect(address).is_ok())
    };
    for round in 0..6 {
        let even = round % 2 == 0;
        let (backends, balance, drain) = if even {
            (&["web-1", "web-2"][..], "maglev", 7)
        } else {
            (&["web-1"][..], "random", 8)
        };
        let (metrics, before) = if even { (9464, 9465) } else { (9465, 9464) };
        let more =
            format!("balance = '{balance}'\ndrain = '{drain}s'\nmetrics = '127.0.0.1:{metrics}'");
        set.change(backends, &more, "configuration applied: backend, ");
        let backends_now = samport(set.lab.host(), &["backends", "-o", "json"]);
        let backends_now: Value = serde_json::from_slice(&backends_now.stdout).unwrap();
        assert_eq!(names(&backends_now["backends"]), backends, "{round}");
        let status = set.status();
        assert_eq!(names(&status["backends"]), backends, "{round}: {status:#}");
        assert_eq!(status["services"][0]["balance"], balance, "{round}");
        assert_eq!(status["limits"]["drain_seconds"], drain, "{round}");
        assert!(listens(metrics) && !listens(before), "{round}");
    }
}

/// A line about a backend comes after everything that shows it: while the record cannot be written there is
/// none, though the kernel has it.
#[test]
fn what_is_said_of_a_backend_is_what_everybody_sees() {
    let mut served = Served::start(lab(2), &[]);
    let name = text_of(&served.status().0, "name").to_owned();
    let in_the_way = PathBuf::from(format!("/run/samport/{name}.new"));
    fs::create_dir(&in_the_way).unwrap();
    let mark = served.daemon.mark();
    served.file.remove("web-2");
    served.daemon.wait_for_line_after(mark, "trying again", TIMEOUT);
    let said = served.daemon.lines()[mark..].iter().any(|line| line.text.contains("- web-2"));
    fs::remove_dir(&in_the_way).unwrap();
    assert!(!said, "it is said before it is written down");
    served.daemon.wait_for_line_after(mark, "- web-2", TIMEOUT);
    assert_eq!(names(&served.status().0["backends"]), ["web-1", "web-1"]);
}

/// What depends on more than the file is tried before anything is changed.
#[test]
fn a_change_that_cannot_be_made_changes_nothing() {
    let set = Configured::start(&["web-1"], "");
    let taken = set.lab.host().run(|| std::net::TcpListener::bind("127.0.0.1:9464").unwrap());
    let more = "metrics = '127.0.0.1:9464'";
    set.change(&["web-2"], more, "another program listens there");
    set.daemon.wait_for_line("the configuration stays as it was", TIMEOUT);
    assert_eq!(ask(&set.lab, set.front(), 20).of("web-1"), 20);
    drop(taken);
    set.hang_up("configuration applied: backend, metrics");
    set.daemon.wait_for_line("- web-1", TIMEOUT);
    set.change(&["web-2", "web-2"], more, "given twice");
    assert_eq!(ask(&set.lab, set.front(), 20).of("web-2"), 20);
}

/// Without a file there is nothing to read again, and SIGHUP is no end.
#[test]
fn sighup_without_a_file_says_so_and_changes_nothing() {
    let lab = lab(1);
    let _servers = lab.serve(TARGET).unwrap();
    let file = file("");
    let backend = lab.backends()[0].v4(TARGET).to_string();
    let daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80", "--backend", &backend]);
    let set = Configured { daemon, file, _servers: Vec::new(), lab };
    set.hang_up("nothing to reload");
    assert_eq!(ask(&set.lab, set.front(), 10).total(), 10);
    set.daemon.stop();
}
