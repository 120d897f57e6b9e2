//! What instances of samport have in the kernel and on disk, and whether it is gone afterwards.
//! Other tests run instances at the same time: everything here is about one network namespace.

use std::fs::File;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use samport::dataplane::objects::{self, Kind};
use samport::lab::{Namespace, Traces, objects_of, output_of};

use crate::{TIMEOUT, eventually};

/// Pins and records of a namespace's instances, and the programs, filters and qdiscs on its devices.
#[must_use]
pub fn traces(namespace: &Namespace) -> Traces {
    namespace.traces().unwrap_or_else(|e| panic!("{e:#}"))
}

/// Panics unless the traces become what they were. The kernel takes a moment to free things.
pub fn assert_traces(namespace: &Namespace, before: &Traces) {
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

/// BPF objects of a namespace's instances.
#[derive(Debug)]
pub struct Objects(objects::Objects);

impl Objects {
    /// What is there now.
    #[must_use]
    pub fn of(namespace: &Namespace) -> Self {
        Self(objects_of(namespace).unwrap_or_else(|e| panic!("{e:#}")))
    }

    /// How many of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.0.count(kind)
    }

    /// Panics unless the kernel has freed all of them.
    pub fn assert_gone(&self) {
        let begin = Instant::now();
        loop {
            let left = self.0.left().unwrap_or_else(|e| panic!("{e:#}"));
            if left.is_empty() {
                return;
            }
            assert!(begin.elapsed() < TIMEOUT, "not freed: {:#?}", left.described());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Keeps others from running `samport clean` without a name, which removes the leftovers of every namespace, for as
/// long as it lives: held by tests that kill an instance, as many at a time as there are.
#[must_use]
pub fn undisturbed() -> File {
    let (file, path) = lock_file();
    file.lock_shared().unwrap_or_else(|e| panic!("lock {path}: {e}"));
    file
}

/// Keeps others from killing instances, for as long as it lives: held by tests that run `samport clean` without a
/// name, one at a time.
#[must_use]
pub fn alone() -> File {
    let (file, path) = lock_file();
    file.lock().unwrap_or_else(|e| panic!("lock {path}: {e}"));
    file
}

fn lock_file() -> (File, String) {
    let path = std::env::temp_dir().join("samport-tests-clean.lock");
    let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (file, path.display().to_string())
}

/// Runs `tc` in a namespace.
pub fn tc(namespace: &Namespace, args: &[&str]) -> String {
    output_of(Command::new("tc").args(["-n", namespace.name()]).args(args))
        .unwrap_or_else(|e| panic!("{e:#}"))
}
