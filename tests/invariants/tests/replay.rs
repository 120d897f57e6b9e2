//! Every input the fuzzer has left: the corpora and what once crashed.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use samport_invariants::TARGETS;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// The corpus of a target, an input on each line; each with where it stands.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let file = folder().join("corpus").join(format!("{target}.hex"));
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let inputs = text.lines().zip(1..).map(|(line, number)| {
        let place = format!("{}:{number}", file.display());
        let bytes = hex::decode(line).unwrap_or_else(|e| panic!("{place}: {e}"));
        (place, bytes)
    });
    inputs.collect()
}

/// What once broke something; none if the folder is not there.
fn crashes(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder().join("crashes").join(target)).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| (path.display().to_string(), fs::read(path).unwrap())).collect()
}

/// Case 6: whatever the fuzzer has come up with, lying lengths and truncated headers among it.
#[test]
fn inputs_that_the_fuzzer_has_kept_break_nothing() {
    let mut broken = Vec::new();
    for (target, check) in TARGETS {
        let corpus = corpus(target);
        assert!(!corpus.is_empty(), "no input for {target}");
        for (place, bytes) in corpus.into_iter().chain(crashes(target)) {
            if panic::catch_unwind(|| check(&bytes)).is_err() {
                broken.push(place);
            }
        }
    }
    // What each has said stands above.
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_target_has_its_program() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let programs: Vec<_> =
        manifest.lines().filter(|line| line.starts_with("path = \"fuzz_targets/")).collect();
    let expected = TARGETS.map(|(target, _)| format!("path = \"fuzz_targets/{target}.rs\""));
    assert_eq!(programs, expected);
}
