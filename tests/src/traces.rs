//! What instances of samport have in the kernel and on disk, and whether it is gone afterwards.
//! Other tests run instances at the same time: everything here is about one network namespace.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use samport::lab::{Namespace, output_of};
use serde_json::Value;

use crate::bpf::{Hook, Kind, all_ids, id_of_pin, maps_of_program, programs_on};
use crate::served::inode;
use crate::{PATIENCE, eventually};

const PINS: &str = "/sys/fs/bpf/samport";
const RUN: &str = "/run/samport";

/// Pins and records of a namespace's instances, and the programs, filters and qdiscs on its devices.
#[must_use]
pub fn traces(namespace: &Namespace) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let suffix = format!("@{}", inode(namespace));
    for folder in [PINS, RUN] {
        let names = list(Path::new(folder)).into_iter().filter(|name| name.contains(&suffix));
        found.extend(names.map(|name| format!("{folder}/{name}")));
    }
    for device in devices(namespace) {
        for (hook, name) in [(Hook::Ingress, "ingress"), (Hook::Egress, "egress")] {
            let programs = programs_on(namespace, &device, hook);
            found.extend(programs.iter().map(|id| format!("tcx {name} of {device}: {id}")));
            let filters = tc(namespace, &["filter", "show", "dev", &device, name]);
            found.extend(filters.lines().map(|line| format!("tc {name} of {device}: {line}")));
        }
    }
    let qdiscs = tc(namespace, &["qdisc", "show"]);
    found.extend(qdiscs.lines().filter(|line| line.contains("clsact")).map(str::to_owned));
    found
}

/// Panics unless the traces become what they were. The kernel takes a moment to free things.
pub fn assert_traces(namespace: &Namespace, before: &BTreeSet<String>) {
    let what = format!("the namespace is as it was before\nbefore: {before:#?}");
    eventually(&what, || {
        let now = traces(namespace);
        let same = now == *before;
        if !same {
            eprintln!("now: {now:#?}");
        }
        same.then_some(())
    });
}

/// Ids of the BPF objects of a namespace's instances.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Objects {
    /// Programs that use one of the maps.
    pub programs: BTreeSet<u32>,
    /// Pinned maps.
    pub maps: BTreeSet<u32>,
    /// Pinned links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// What is there now.
    #[must_use]
    pub fn of(namespace: &Namespace) -> Self {
        let mut objects = Self::default();
        let suffix = format!("@{}", inode(namespace));
        for instance in list(Path::new(PINS)).into_iter().filter(|name| name.ends_with(&suffix)) {
            objects.add_pins(&Path::new(PINS).join(instance));
        }
        let maps = &objects.maps;
        let uses_ours = |program: &u32| !maps_of_program(*program).is_disjoint(maps);
        objects.programs = all_ids(Kind::Program).into_iter().filter(uses_ours).collect();
        objects
    }

    fn add_pins(&mut self, folder: &Path) {
        for pin in list(folder) {
            let path = folder.join(&pin);
            let id = id_of_pin(&path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
            match pin.split_once('_') {
                Some(("map", _)) => self.maps.insert(id),
                Some(("link", _)) => self.links.insert(id),
                _ => panic!("a pin with a strange name: {}", path.display()),
            };
        }
    }

    /// Panics unless the kernel has freed all of them.
    pub fn assert_gone(&self) {
        let begin = Instant::now();
        loop {
            let left = Self {
                programs: &self.programs & &all_ids(Kind::Program),
                maps: &self.maps & &all_ids(Kind::Map),
                links: &self.links & &all_ids(Kind::Link),
            };
            if left == Self::default() {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "not freed: {left:?} of {self:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Keeps others from running `samport clean`, which removes the leftovers of every namespace, for as
/// long as it lives: held by tests that kill an instance and by those that clean.
#[must_use]
pub fn undisturbed() -> File {
    let path = std::env::temp_dir().join("samport-tests-clean.lock");
    let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.lock().unwrap_or_else(|e| panic!("lock {}: {e}", path.display()));
    file
}

/// Runs `tc` in a namespace.
pub fn tc(namespace: &Namespace, args: &[&str]) -> String {
    output_of(Command::new("tc").args(["-n", namespace.name()]).args(args))
        .unwrap_or_else(|e| panic!("{e:#}"))
}

fn devices(namespace: &Namespace) -> Vec<String> {
    let links = namespace.ip(&["-j", "link", "show"]).unwrap_or_else(|e| panic!("{e:#}"));
    let links: Value = serde_json::from_str(&links).expect("JSON");
    let links = links.as_array().cloned().unwrap_or_default();
    links.iter().filter_map(|link| Some(link["ifname"].as_str()?.to_owned())).collect()
}

/// Names in a folder; none if it is not there.
fn list(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
