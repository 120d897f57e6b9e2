//! Every input the fuzzer has left: the corpora and what once crashed.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use samport_invariants::TARGETS;

/// The inputs below `corpus` or `crashes` for a target; none if the folder is not there.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let entries = fs::read_dir(fuzz.join(kind).join(target)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Case 6: whatever the fuzzer has come up with, lying lengths and truncated headers among it.
#[test]
fn inputs_that_the_fuzzer_has_kept_break_nothing() {
    let mut broken = Vec::new();
    for (target, check) in TARGETS {
        let corpus = inputs("corpus", target);
        assert!(!corpus.is_empty(), "no input for {target}");
        for file in corpus.into_iter().chain(inputs("crashes", target)) {
            let bytes = fs::read(&file).unwrap();
            if panic::catch_unwind(|| check(&bytes)).is_err() {
                broken.push(file);
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
