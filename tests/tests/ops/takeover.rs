//! Taking over: a samport that is killed goes on in the kernel, and the next one goes on from there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use samport::dataplane::pins;
use samport::system::instance;
use samport_common::layout::Slots;
use samport_tests::bpf::Map;
use samport_tests::daemon::{Daemon, clean, samport, samport_binary};
use samport_tests::load::{Connection, Load, ask};
use samport_tests::served::{Served, inode, text};
use samport_tests::traces::{Objects, assert_traces, traces, undisturbed};
use samport_tests::{TIMEOUT, eventually};
use serde_json::Value;

use crate::lab;

/// Connections of both families that are kept, and the backend each of them has.
pub struct OpenConnections(Vec<(Connection, String)>);

impl OpenConnections {
    pub fn open(served: &Served, of_each: usize) -> Self {
        let fronts = served.fronts().into_iter();
        let open = || {
            let all = fronts.flat_map(|front| std::iter::repeat_n(front, of_each));
            all.map(|front| {
                let mut one = Connection::open(front).expect("connect");
                let backend = one.get("/").expect("an answer").backend;
                (one, backend)
            })
            .collect()
        };
        Self(served.lab.client().run(open))
    }

    /// All of them are there, and where they were.
    pub fn assert_answered(&mut self, when: &str) {
        for (one, backend) in &mut self.0 {
            let answer =
                one.get("/").unwrap_or_else(|e| panic!("{when}: a connection is lost: {e}"));
            assert_eq!(answer.backend, *backend, "{when}");
        }
    }
}

/// Kills samport, and starts another one in its place.
pub fn taken_over(mut served: Served, binary: &Path, options: &[&str]) -> Served {
    served.daemon.kill9();
    let Served { daemon: killed, file, servers, lab } = served;
    let port = format!("{}:{}", samport_tests::served::LISTEN, samport_tests::served::TARGET);
    let usual = ["-i", "eth0", "-p", &port, "--file", file.path()];
    let daemon = Daemon::start_binary(binary, lab.host(), &[&usual[..], options].concat());
    killed.adopted();
    Served { daemon, file, servers, lab }
}

/// A build with another version number: the one `SAMPORT_OTHER_BUILD` names, or the same program, which says
/// that it is of another version.
fn of_another_version(folder: &Path) -> PathBuf {
    if let Some(path) = std::env::var_os("SAMPORT_OTHER_BUILD") {
        return path.into();
    }
    let (before, after) = (env!("CARGO_PKG_VERSION"), "9.9.9");
    assert_eq!(before.len(), after.len(), "so that nothing else moves");
    let mut bytes = fs::read(samport_binary()).expect("read samport");
    let mut at = 0;
    while let Some(next) = find(&bytes[at..], before.as_bytes()) {
        bytes[at + next..][..after.len()].copy_from_slice(after.as_bytes());
        at += next + after.len();
    }
    let path = folder.join("samport");
    fs::write(&path, bytes).expect("write another samport");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    path
}

/// The version a program says it is of.
fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output().expect("start samport");
    let said = String::from_utf8(output.stdout).expect("text");
    said.split_whitespace().nth(1).expect("a version").to_owned()
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// The instance that is in the lab's host, or was.
pub fn instance_of(served: &Served) -> String {
    let suffix = format!("@{}", inode(served.lab.host()));
    let name = instance::known().into_iter().find(|name| name.ends_with(&suffix));
    name.expect("an instance is there")
}

fn record_of(served: &Served) -> PathBuf {
    Path::new("/run/samport").join(format!("{}.json", instance_of(served)))
}

/// Kills and takes over again and again under load, by turns as another version; then nothing is left of any.
fn assert_taken_over(rounds: usize, options: &[&str]) {
    let _undisturbed = undisturbed();
    let folder = tempfile::tempdir().unwrap();
    let programs = [of_another_version(folder.path()), samport_binary()];
    let versions = programs.each_ref().map(|program| version_of(program));
    assert_ne!(versions[0], versions[1]);
    let lab = lab(3);
    let before = traces(lab.host());
    let mut served = Served::start(lab, options);
    let mut kept = OpenConnections::open(&served, 10);
    let objects = Objects::of(served.lab.host());
    let loads = served.fronts().map(|front| Load::start(served.lab.client(), front, 2));
    for round in 1..=rounds {
        let program = &programs[round % 2];
        served = taken_over(served, program, options);
        let line = served.daemon.wait_for_line("taking over from samport ", TIMEOUT);
        assert!(line.text.contains("6 backends"), "{}", line.text);
        kept.assert_answered(&format!("round {round}"));
        assert_eq!(text(&served.status().0, "version"), versions[round % 2]);
    }
    for load in loads {
        assert!(load.wait_for_more(20, TIMEOUT));
        load.stop().assert_no_failure();
    }
    kept.assert_answered("at the end");
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
    objects.assert_gone();
}

/// Cases 76 and 77.
#[test]
fn no_connection_is_lost_in_50_kills_and_upgrades_under_load() {
    assert_taken_over(50, &[]);
}

/// Cases 76 and 77.
#[test]
fn no_connection_is_lost_when_filters_are_taken_over() {
    assert_taken_over(4, &["--hook", "tc"]);
}

/// Case 76.
#[test]
fn no_connection_is_lost_when_xdp_is_taken_over() {
    assert_taken_over(4, &["--hook", "xdp", "--xdp-mode", "generic"]);
}

/// Case 76.
#[test]
fn no_connection_is_lost_when_the_way_through_the_stack_is_taken_over() {
    assert_taken_over(4, &["--forward", "stack"]);
}

/// Other limits: what the maps hold is carried over into others.
#[test]
fn flows_are_carried_over_into_tables_of_another_size() {
    let _undisturbed = undisturbed();
    let lab = lab(2);
    let before = traces(lab.host());
    let mut served = Served::start(lab, &["--flows", "4096", "--max-backends", "32"]);
    let mut kept = OpenConnections::open(&served, 100);
    for (flows, backends) in [("16384", "64"), ("8192", "8")] {
        let sizes = ["--flows", flows, "--flows6", "2048", "--max-backends", backends];
        served = taken_over(served, &samport_binary(), &sizes);
        kept.assert_answered(&format!("with {flows} flows"));
        let status = served.status().0;
        assert_eq!(status["flow_table"]["capacity"].to_string(), flows);
        assert_eq!(status["flow_table"]["capacity6"], 2_048);
        for front in served.fronts() {
            assert_eq!(ask(&served.lab, front, 20).total(), 20);
        }
        kept.assert_answered("after others");
    }
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// From links to filters and back, with a program at XDP in between: whatever is not wanted any more goes.
#[test]
fn another_hook_takes_the_place_of_the_one_before() {
    let _undisturbed = undisturbed();
    let lab = lab(2);
    let before = traces(lab.host());
    let mut served = Served::start(lab, &[]);
    let mut kept = OpenConnections::open(&served, 5);
    let ways: [&[&str]; 5] = [
        &["--hook", "tc"],
        &["--hook", "xdp", "--xdp-mode", "generic"],
        &["--hook", "tc", "--no-local"],
        &["--hook", "tcx"],
        &[],
    ];
    for options in ways {
        served = taken_over(served, &samport_binary(), options);
        kept.assert_answered(&format!("{options:?}"));
        let found = traces(served.lab.host());
        assert_eq!(
            served.status().0["hook"].as_str().unwrap().starts_with("tcx"),
            !options.contains(&"tc"),
            "{options:?}: {found:?}"
        );
        for front in served.fronts() {
            assert_eq!(ask(&served.lab, front, 20).total(), 20);
        }
    }
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// What has happened while nobody was there is made up for.
#[test]
fn backends_that_went_and_came_meanwhile_are_noticed() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(3), &["--allow", "0.0.0.0/0,::/0"]);
    let mut kept = OpenConnections::open(&served, 10);
    served.daemon.kill9();
    let gone = served.addresses_of("web-1");
    served.file.remove("web-1");
    let served = taken_over(served, &samport_binary(), &[]);
    for address in gone {
        served.daemon.wait_for_line(&format!("- web-1 {address}"), TIMEOUT);
    }
    kept.0.retain(|(_, backend)| backend != "web-1");
    kept.assert_answered("without web-1");
    for front in served.fronts() {
        let tally = ask(&served.lab, front, 40);
        assert_eq!((tally.of("web-1"), tally.total()), (0, 40), "{tally}");
    }
}

/// Values of frontends that do not say which key they are of, as versions before wrote them, work, and the first plan
/// writes them again.
#[test]
fn frontends_of_versions_before_are_completed() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(3), &[]);
    let instance = instance_of(&served);
    let maps = ["SERVICES4", "SERVICES6"].map(|map| pins::map_of(&instance, map));
    let maps = maps.map(|pin| Map::open(&pin).expect("open a map of frontends"));
    let slots_of = |value: &[u8]| {
        let (bits, _) = value.split_first_chunk().expect("a word");
        Slots::from_bits(u64::from_ne_bytes(*bits))
    };
    let folds = || {
        let values = maps.iter().flat_map(|map| map.values().expect("read the frontends"));
        values.map(|value| slots_of(&value).key_fold).collect::<Vec<_>>()
    };
    let before = folds();
    assert!(before.len() > 1 && !before.contains(&0), "{before:?}");
    served.daemon.kill9();
    for map in &maps {
        let forget = |value: &mut [u8]| {
            let slots = Slots { key_fold: 0, ..slots_of(value) };
            value[..8].copy_from_slice(&slots.to_bits().to_ne_bytes());
        };
        map.change(forget).expect("write the frontends");
    }
    assert!(folds().iter().all(|fold| *fold == 0), "not forgotten");
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 20).total(), 20, "without a key");
    }
    let served = taken_over(served, &samport_binary(), &[]);
    eventually("the first plan writes them again", || (folds() == before).then_some(()));
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 20).total(), 20, "with a key");
    }
}

/// What the operator has ordered outlives the samport that was told.
#[test]
fn orders_are_kept() {
    let _undisturbed = undisturbed();
    let served = Served::start(lab(3), &["--drain", "10m"]);
    let mut kept = OpenConnections::open(&served, 10);
    served.order(&["drain", "web-1"]);
    served.order(&["weight", "web-2", "7"]);
    served.order(&["balance", "round-robin"]);
    let served = taken_over(served, &samport_binary(), &["--drain", "10m"]);
    assert_eq!(served.states_of("web-1"), ["draining", "draining"]);
    kept.assert_answered("drained or not");
    let tally = ask(&served.lab, served.fronts()[0], 40);
    assert_eq!((tally.of("web-1"), tally.of("web-2"), tally.of("web-3")), (0, 35, 5));
    served.order(&["undrain", "web-1"]);
    assert_eq!(served.states_of("web-1"), ["active", "active"]);
}

/// `--keep` leaves on purpose what SIGKILL leaves by accident.
#[test]
fn what_is_kept_on_purpose_is_taken_over_too() {
    let _undisturbed = undisturbed();
    let lab = lab(2);
    let before = traces(lab.host());
    let served = Served::start(lab, &["--keep"]);
    let mut kept = OpenConnections::open(&served, 10);
    let Served { daemon, file, servers, lab } = served;
    daemon.stop();
    let daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80:9090", "--file", file.path()]);
    daemon.wait_for_line("taking over", TIMEOUT);
    kept.assert_answered("after --keep");
    daemon.stop();
    assert_traces(lab.host(), &before);
    drop(servers);
}

/// A killed samport, its record changed by `change`, and what the next one with these options says of it:
/// it must leave everything as it was.
fn refused(change: impl FnOnce(&Path), options: &[&str]) -> (Served, Output) {
    let mut served = Served::start(lab(2), &[]);
    let mut kept = OpenConnections::open(&served, 5);
    let record = record_of(&served);
    served.daemon.kill9();
    change(&record);
    let output = refusal(&served, options);
    kept.assert_answered("nobody has taken over");
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 10).total(), 10);
    }
    (served, output)
}

/// What the next samport says that cannot take over: it must leave every trace as it was.
pub fn refusal(served: &Served, options: &[&str]) -> Output {
    // A socket nobody listens on any more is none of it.
    let traces = || -> BTreeSet<String> {
        let is_socket = |trace: &String| Path::new(trace).extension().is_some_and(|e| e == "sock");
        let all = traces(served.lab.host());
        all.into_iter().filter(|trace| !is_socket(trace)).collect()
    };
    let found = traces();
    let usual = ["run", "-i", "eth0", "-p", "80:9090", "--file", served.file.path()];
    let output = samport(served.lab.host(), &[&usual[..], options].concat());
    assert_eq!(traces(), found);
    output
}

pub fn assert_said(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "nothing about {word:?} in: {said}");
    }
}

fn with_layout(layout: u32) -> impl FnOnce(&Path) {
    move |record| {
        let text = fs::read_to_string(record).unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["layout"] = layout.into();
        fs::write(record, document.to_string()).unwrap();
    }
}

/// Case 78.
#[test]
fn maps_of_another_layout_are_refused_with_words_and_work_on() {
    let _undisturbed = undisturbed();
    for (layout, words) in [(99, "or a later one"), (2, "takes over from layouts 3 to")] {
        let (served, output) = refused(with_layout(layout), &[]);
        assert_said(&output, 1, &[&format!("layout {layout}"), words, "samport clean"]);
        clean(served.lab.host(), &[]);
    }
}

#[test]
fn a_record_that_cannot_be_read_is_refused_with_words() {
    let _undisturbed = undisturbed();
    let (served, output) = refused(|record| fs::write(record, "{").unwrap(), &[]);
    assert_said(&output, 1, &["cannot be read", "samport clean"]);
    clean(served.lab.host(), &[]);
    assert_traces(served.lab.host(), &BTreeSet::new());
}

#[test]
fn limits_too_small_for_what_is_in_use_are_refused() {
    let _undisturbed = undisturbed();
    let (_served, output) = refused(|_| {}, &["--max-backends", "1"]);
    assert_said(&output, 2, &["--max-backends 1", "number 4"]);
}
