//! Texts that users see, compared with what they were: `samport/snapshots`. A change of them is accepted by
//! `INSTA_UPDATE=always cargo test -p samport --lib` (CONTRIBUTING.md).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

/// Where the snapshots are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots");

/// All of them: one file each, with everything of its kind.
const ALL: [&str; 16] = [
    "backends",
    "check",
    "clean",
    "cluster",
    "config",
    "documents",
    "errors",
    "explain",
    "flows",
    "help",
    "labels",
    "manual",
    "metrics",
    "status",
    "top",
    "trace",
];

/// A snapshot as it grows: what is typed or asked, and what comes of it.
#[derive(Default)]
pub(crate) struct Pages(String);

impl Pages {
    /// Adds a page under its head.
    pub(crate) fn add(&mut self, head: &str, text: &str) {
        // Blank lines of clap's have blanks in them. Writing to a String cannot fail.
        let _ = writeln!(self.0, "=== {head}");
        for line in text.trim_end().lines() {
            let _ = writeln!(self.0, "{}", line.trim_end());
        }
        self.0.push('\n');
    }

    /// Adds a document as `-o json` prints it.
    pub(crate) fn add_json(&mut self, head: &str, document: &impl serde::Serialize) {
        self.add(head, &format!("{:#}", serde_json::to_value(document).unwrap()));
    }

    /// Panics, with the difference, unless the snapshot of this name is there and says the same.
    pub(crate) fn assert(&self, name: &str) {
        assert!(ALL.contains(&name), "{name} belongs into the list of snapshots");
        let mut settings = insta::Settings::new();
        settings.set_snapshot_path(FOLDER);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, self.0));
    }
}

/// A snapshot that no test compares is a text that is no longer printed.
#[test]
fn each_snapshot_is_in_the_list_and_has_a_file() {
    let files = fs::read_dir(FOLDER).unwrap().map(|file| file.unwrap().file_name());
    let files: BTreeSet<String> =
        files.filter_map(|name| Some(name.to_str()?.strip_suffix(".snap")?.to_owned())).collect();
    assert_eq!(files, ALL.map(str::to_owned).into());
}
