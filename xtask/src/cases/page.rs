//! `docs/internals/cases.md`.

use std::fmt::Write as _;

use super::list::{self, Case, GROUPS};
use super::{Cover, FoundTest};

const INTRODUCTION: &str = "\
# Cases

<!-- Written by `cargo xtask cases` from xtask/src/cases/list.rs and the doc comments of the tests. -->

What samport has to do, and the tests that show it. **P**: exact bytes, through a loaded program or on
the host. **N**: network namespaces with real sockets. **C**: real containers. **H**: a unit or property
test on the host.
";

/// The whole page.
pub fn text(cover: &Cover) -> String {
    let mut page = INTRODUCTION.to_owned();
    let tested = list::all().filter(|case| cover.contains_key(&case.number)).count();
    let _ = writeln!(page, "\n{tested} of {} cases have a test.", list::all().count());
    for group in GROUPS {
        let _ = writeln!(
            page,
            "\n## {}\n\n| | | case | tests |\n| --- | --- | --- | --- |",
            group.name
        );
        for case in group.cases {
            let Case { number, kind, sentence } = case;
            let tests = tests(cover.get(number).map_or(&[], Vec::as_slice));
            let _ = writeln!(page, "| {number} | {kind:?} | {sentence} | {tests} |");
        }
    }
    page
}

/// The tests of one case, one a line of the table's cell.
fn tests(found: &[FoundTest]) -> String {
    let link = |FoundTest { name, file }: &FoundTest| format!("[`{name}`](../../{file})");
    if found.is_empty() {
        return "no test yet".to_owned();
    }
    found.iter().map(link).collect::<Vec<_>>().join("<br>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_shows_its_tests_or_that_there_is_none() {
        let found = |name: &str| FoundTest { name: name.to_owned(), file: "tests/a.rs".to_owned() };
        assert_eq!(tests(&[]), "no test yet");
        let one = "[`one`](../../tests/a.rs)";
        let both = format!("{one}<br>[`two`](../../tests/a.rs)");
        assert_eq!(tests(&[found("one"), found("two")]), both);
    }

    #[test]
    fn no_text_breaks_the_table() {
        for case in list::all() {
            assert!(!case.sentence.contains(['|', '\n']), "{}", case.sentence);
        }
    }
}
