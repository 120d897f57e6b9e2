//! `docs/cases.md`.

use std::fmt::Write as _;

use super::list::{self, Case, GROUPS};
use super::{Cover, Found};

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
            let Case { number, kind, sentence, .. } = case;
            let tests = tests(case, cover.get(number).map_or(&[], Vec::as_slice));
            let _ = writeln!(page, "| {number} | {kind:?} | {sentence} | {tests} |");
        }
    }
    page
}

/// The tests of one case, one a line of the table's cell.
fn tests(case: &Case, found: &[Found]) -> String {
    if found.is_empty() {
        let reason = case.absence.map(|reason| format!(": {reason}")).unwrap_or_default();
        return format!("no test yet{reason}");
    }
    let link = |Found { name, file }: &Found| format!("[`{name}`](../{file})");
    found.iter().map(link).collect::<Vec<_>>().join("<br>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_shows_its_tests_or_why_there_is_none() {
        let case = Case { absence: Some("not built"), ..*list::all().next().unwrap() };
        let found = |name: &str| Found { name: name.to_owned(), file: "tests/a.rs".to_owned() };
        assert_eq!(tests(&case, &[]), "no test yet: not built");
        assert_eq!(tests(&Case { absence: None, ..case }, &[]), "no test yet");
        let both = "[`one`](../tests/a.rs)<br>[`two`](../tests/a.rs)";
        assert_eq!(tests(&case, &[found("one"), found("two")]), both);
    }

    #[test]
    fn no_text_breaks_the_table() {
        for case in list::all() {
            let text = [case.sentence, case.absence.unwrap_or_default()].concat();
            assert!(!text.contains(['|', '\n']), "{text}");
        }
    }
}
