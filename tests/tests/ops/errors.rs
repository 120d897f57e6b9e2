//! docs/reference/errors.md: what is said there of command lines is what samport says.

use std::fs;

use samport_tests::traces::{assert_traces, traces};

use crate::{ended, lab};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/errors.md");
/// The part of the page whose rows can be tried as they stand.
const PART: &str = "\n## Command line\n";

/// A row of the table: what is typed, what is said and how it ends.
#[derive(PartialEq, Eq, Debug)]
struct Row<'a> {
    args: Vec<&'a str>,
    /// In this order, with anything in between.
    words: Vec<&'a str>,
    code: i32,
}

fn row(line: &str) -> Option<Row<'_>> {
    let mut cells = line.strip_prefix("| `samport ")?.split(" | ");
    let args = cells.next()?.strip_suffix('`')?.split(' ').collect();
    let words = cells.next()?.strip_prefix('`')?.strip_suffix('`')?.split('…');
    let code = cells.next()?.trim_end_matches([' ', '|']).parse().ok()?;
    Some(Row { args, words: words.map(str::trim).filter(|word| !word.is_empty()).collect(), code })
}

/// Case 87: each row is tried, ends as it says, with those words, and leaves nothing.
#[test]
fn what_the_page_of_errors_says_of_command_lines_is_so() {
    let page = fs::read_to_string(PAGE).unwrap();
    let (_, part) = page.split_once(PART).expect("the part with command lines");
    let part = part.split("\n## ").next().unwrap_or_default();
    let lines: Vec<&str> = part.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(lines.len() > 20, "only {} rows are found", lines.len());
    let lab = lab(1);
    let before = traces(lab.host());
    for line in lines {
        let Row { args, words, code } = row(line).unwrap_or_else(|| panic!("no row: {line}"));
        let ended = ended(lab.host(), &args);
        ended.assert(code, &words);
        let found = words.iter().try_fold(ended.said.as_str(), |rest, word| {
            rest.split_once(word).map(|(_, rest)| rest)
        });
        assert!(found.is_some(), "not in this order: {words:?} in {}", ended.said);
    }
    assert_traces(lab.host(), &before);
}

#[test]
fn rows_are_read_with_gaps() {
    let line = "| `samport run -p 0` | `invalid port \"0\": … 1-65535` | 2 |";
    let expected = Row {
        args: vec!["run", "-p", "0"],
        words: vec!["invalid port \"0\":", "1-65535"],
        code: 2,
    };
    assert_eq!(row(line), Some(expected));
    assert_eq!(row("| --- | --- | --- |"), None);
}
