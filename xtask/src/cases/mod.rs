//! `cargo xtask cases`.

mod list;
mod mention;
mod page;
mod ranges;
mod scan;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use walkdir::{DirEntry, WalkDir};

use self::ranges::Ranges;
use crate::sh;

/// The cases that must have a test; a unit test of this program holds us to it.
const REQUIRED: &str = "1-89";

/// Write docs/internals/cases.md: the acceptance cases and the tests that cover them
///
/// A test covers the cases its doc comment names: `Case N: …` or `Cases N and M: …`.
#[derive(clap::Args)]
pub struct Args {
    /// Cases that must have a test, for example 1-43,89
    #[arg(long, value_name = "RANGES", default_value = REQUIRED)]
    require: Ranges,
}

/// The tests of each case that has any.
type Cover = BTreeMap<u8, Vec<FoundTest>>;

/// A test and where it is.
struct FoundTest {
    name: String,
    /// From the root of the checkout.
    file: String,
}

/// What the tests say about cases.
#[derive(Default)]
struct CaseScan {
    cover: Cover,
    problems: Vec<String>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    let CaseScan { cover, mut problems } = scan_tests()?;
    let path = path();
    fs::write(&path, page::text(&cover)).with_context(|| format!("write {}", path.display()))?;
    println!("{}: {} of {} cases have a test", path.display(), cover.len(), list::all().count());

    problems.extend(missing(&cover, &args.require));
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn path() -> PathBuf {
    sh::root().join("docs/internals/cases.md")
}

/// Looks through every Rust file of the checkout.
fn scan_tests() -> Result<CaseScan> {
    let mut scan_tests = CaseScan::default();
    let files = WalkDir::new(sh::root()).sort_by_file_name().into_iter();
    for entry in files.filter_entry(is_ours) {
        let entry = entry.context("list the checkout's files")?;
        if entry.path().extension() == Some(OsStr::new("rs")) {
            scan_tests.file(entry.path())?;
        }
    }
    Ok(scan_tests)
}

/// Whether a folder or file is neither hidden nor of a build.
fn is_ours(entry: &DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy();
    entry.depth() == 0 || !(name == "target" || name.starts_with('.'))
}

impl CaseScan {
    fn file(&mut self, path: &Path) -> Result<()> {
        let file = path.strip_prefix(sh::root()).unwrap_or(path).display().to_string();
        let source = fs::read_to_string(path).with_context(|| format!("read {file}"))?;
        let scan = scan::scan(&source).with_context(|| format!("scan {file}"))?;
        for (line, problem) in scan.problems {
            self.problems.push(format!("{file}:{line}: {problem}"));
        }
        for test in scan.tests {
            for case in test.cases {
                let known = list::all().find(|known| u16::from(known.number) == case);
                let Some(known) = known else {
                    self.problems.push(format!("{file}:{}: there is no case {case}", test.line));
                    continue;
                };
                let found = FoundTest { name: test.name.clone(), file: file.clone() };
                self.cover.entry(known.number).or_default().push(found);
            }
        }
        Ok(())
    }
}

/// The required cases without a test, a sentence each.
fn missing(cover: &Cover, required: &Ranges) -> impl Iterator<Item = String> {
    let missing =
        |case: &&list::Case| required.contains(case.number) && !cover.contains_key(&case.number);
    list::all().filter(missing).map(|case| {
        format!("case {} ({:?}) has no test: {}", case.number, case.kind, case.sentence)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_name_cases_that_exist_and_in_the_right_form() {
        let problems = scan_tests().unwrap().problems;
        assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    }

    #[test]
    fn every_required_case_has_a_test() {
        let scan_tests = scan_tests().unwrap();
        let missing: Vec<_> = missing(&scan_tests.cover, &REQUIRED.parse().unwrap()).collect();
        assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
    }

    #[test]
    fn the_page_is_as_the_tests_are() {
        let written = fs::read_to_string(path()).unwrap_or_default();
        let fresh = page::text(&scan_tests().unwrap().cover);
        // No diff of the whole: what it says is nothing to act on.
        assert!(
            written == fresh,
            "docs/internals/cases.md is out of date: run `cargo xtask cases`"
        );
    }

    #[test]
    fn a_required_case_without_a_test_is_named() {
        let missing: Vec<_> = missing(&Cover::new(), &"88-89".parse().unwrap()).collect();
        assert_eq!(missing.len(), 2);
        assert!(missing[1].starts_with("case 89 (N) has no test: IPv6"), "{missing:?}");
    }
}
