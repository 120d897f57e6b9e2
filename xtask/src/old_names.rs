//! Names that are gone. Other words of the field have taken their places, as docs/internals/style.md has it, and they do not come back.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::sh;

/// Words that occur nowhere.
const WORDS: &[&str] = &[
    // The kernel programs and the core.
    "ClientWay",
    "Crowded",
    "DRAFT",
    "FIB_LOOKUP",
    "FRAGMENTED",
    "ForNone",
    "ForSeveral",
    "GO_ON",
    "GoOn",
    "GoingOn",
    "Lane",
    "MAX_OWNERS",
    "OWNERS",
    "Owner",
    "Pressure",
    "SCRATCH",
    "SHORTCUTS",
    "Seat",
    "Shortcut",
    "Stands",
    "addr_difference",
    "asked_at",
    "find_at_once",
    "flow_at_once",
    "follow_on",
    "follow_to",
    "hand_over_end",
    "handed_over",
    "parse_apart",
    "run_apart",
    "run_wide",
    "samport_inside",
    "settle_device_sum",
    "step_aside",
    "thorough",
    "throw",
    "untold",
    "way_of",
    // The loader.
    "Carried",
    "Carry",
    "Census",
    "Desk",
    "Followed",
    "Job",
    "Ledger",
    "Office",
    "PATIENCE",
    "Pulse",
    "Refusal",
    "Reins",
    "RemoveOwners",
    "Roll",
    "Seated",
    "SetOwners",
    "Shields",
    "Shortcuts",
    "Siblings",
    "Site",
    "Standing",
    "Stray",
    "Terms",
    "Wishes",
    "World",
    "cede",
    "census",
    "find_shortcuts",
    "life_of",
    "seat",
    "siblings",
    "standing",
    "wire_forms",
    // The tests and xtask.
    "Inhabitant",
    "Knocking",
    "Manner",
    "Opinion",
    "Scene",
    "Survey",
    "knocking",
    "papers",
    "survey",
];

/// Words that occur in these files only, or below these folders: as other words of the language, or where a name of an
/// older layout of the maps is needed.
const WORDS_BUT: &[(&str, &[&str])] = &[
    ("COLLECTED", LAYOUT_3),
    ("CONDITIONS", LAYOUT_3),
    ("CURSORS", LAYOUT_3),
    ("INSIDE", &["xtask/src/pristine/layout.rs"]),
    ("LOST", LAYOUT_3),
    ("Life", &["docs/internals/cases.md", "xtask/src/cases/list.rs"]),
    ("OWNERS4", LAYOUT_3),
    ("OWNERS6", LAYOUT_3),
    ("PRESSURE", LAYOUT_3),
    ("TRACE_DRAFT", LAYOUT_3),
    ("TRACE_KEPT", LAYOUT_3),
    ("Trouble", &["docs/reference/errors.md"]),
    ("UNUSUAL", LAYOUT_3),
    ("beat", &["docs/internals/design/0006-backend-selection.md"]),
    ("hand_over", &["tests/tests/netns/moves.rs"]),
    ("keeper", &["tests/tests/ops/user.rs"]),
    ("roll", &["docs/guides/canary.md"]),
];
const LAYOUT_3: &[&str] = &["samport/src/dataplane/migrate/layout3"];

/// Names of source files and folders, without `.rs`, that are gone everywhere.
const FILES: &[&str] = &[
    "apply",
    "bytes",
    "carry",
    "census",
    "deliver",
    "gather",
    "judge",
    "kept",
    "keeper",
    "knocking",
    "listening",
    "look",
    "orders",
    "papers",
    "patience",
    "roll",
    "seat",
    "rooms",
    "shortcuts",
    "siblings",
    "site",
    "standing",
    "steer",
    "suspects",
    "wire_forms",
    "words",
    "world",
];

/// Where old names are told of, or are those of a release.
const ELSEWHERE: &[&str] =
    &["CHANGELOG.md", "docs/internals/style.md", "tests/released", "xtask/src/old_names.rs"];

/// What is wrong in the checkout.
pub fn check() -> Result<()> {
    let mut git = Command::new("git");
    let listed = git.current_dir(sh::root()).args(["ls-files", "*.rs", "*.md", "*.toml"]).output();
    let listed = listed.context("run git ls-files")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).context("git ls-files")?;
    // One that is deleted and not committed yet is listed still.
    let files = listed.lines().filter_map(|path| {
        let text = fs::read_to_string(sh::root().join(path)).ok()?;
        Some((path, text))
    });
    let found: Vec<_> = files.flat_map(|(path, text)| old_names(path, &text)).collect();
    ensure!(found.is_empty(), "old names, see docs/internals/style.md:\n{}", found.join("\n"));
    Ok(())
}

/// The old names in a file's path and text, each with its place.
fn old_names(path: &str, text: &str) -> Vec<String> {
    let is_in = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    if is_in(ELSEWHERE) {
        return Vec::new();
    }
    let is_gone = |word: &str| {
        WORDS.contains(&word)
            || WORDS_BUT.iter().any(|(one, places)| *one == word && !is_in(places))
    };
    let is_source = Path::new(path).extension().is_some_and(|extension| extension == "rs");
    let parts = path.split('/').map(|part| part.strip_suffix(".rs").unwrap_or(part));
    let mut found: Vec<_> = parts
        .filter(|part| is_source && FILES.contains(part))
        .map(|part| format!("{path}: a file or folder {part}"))
        .collect();
    for (line, number) in text.lines().zip(1..) {
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        found.extend(
            words.filter(|word| is_gone(word)).map(|word| format!("{path}:{number}: {word}")),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_old_name_has_come_back() {
        check().unwrap();
    }

    #[test]
    fn a_planted_name_is_found() {
        let text = "let x = 1;\nstruct Seat(Lane); // `OWNERS4`\n";
        assert_eq!(
            old_names("samport/src/model.rs", text),
            [
                "samport/src/model.rs:2: Seat",
                "samport/src/model.rs:2: Lane",
                "samport/src/model.rs:2: OWNERS4"
            ]
        );
        let of_layout_3 = "samport/src/dataplane/migrate/layout3.rs";
        assert_eq!(old_names(of_layout_3, "(\"OWNERS4\", \"REV_NAT4\")"), Vec::<String>::new());
        assert_eq!(old_names(of_layout_3, "Seat"), [format!("{of_layout_3}:1: Seat")]);
        assert_eq!(old_names("docs/internals/style.md", "Seat"), Vec::<String>::new());
    }

    #[test]
    fn parts_of_words_are_other_words() {
        let text = "Seats, reseat, SHORTCUTS_LEN, Owners, samport_inside_out";
        assert_eq!(old_names("README.md", text), Vec::<String>::new());
    }

    #[test]
    fn files_and_folders_are_found_by_their_names() {
        let expected = ["samport/src/seat.rs: a file or folder seat"];
        assert_eq!(old_names("samport/src/seat.rs", ""), expected);
        let expected = ["samport/src/carry/copy.rs: a file or folder carry"];
        assert_eq!(old_names("samport/src/carry/copy.rs", ""), expected);
        assert_eq!(old_names("docs/internals/words.md", ""), Vec::<String>::new());
    }
}
