//! `docs/cases.md`.

use std::fmt::Write as _;

use super::list::{self, Case, GROUPS, Gap};
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
    let link = |Found { name, file }: &Found| format!("[`{name}`](../{file})");
    let mut lines: Vec<_> = found.iter().map(link).collect();
    match case.gap {
        Some(Gap::Untested(reason)) => lines.push(format!("no test yet: {reason}")),
        Some(Gap::Partly(missing)) => lines.push(format!("not yet: {missing}")),
        None if lines.is_empty() => lines.push("no test yet".to_owned()),
        None => {}
    }
    lines.join("<br>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_shows_its_tests_or_why_there_is_none() {
        let case = |gap| Case { gap, ..*list::all().next().unwrap() };
        let found = |name: &str| Found { name: name.to_owned(), file: "tests/a.rs".to_owned() };
        assert_eq!(tests(&case(None), &[]), "no test yet");
        let untested = case(Some(Gap::Untested("not built")));
        assert_eq!(tests(&untested, &[]), "no test yet: not built");
        let one = "[`one`](../tests/a.rs)";
        let both = format!("{one}<br>[`two`](../tests/a.rs)");
        assert_eq!(tests(&case(None), &[found("one"), found("two")]), both);
        let partly = case(Some(Gap::Partly("IPv6")));
        assert_eq!(tests(&partly, &[found("one")]), format!("{one}<br>not yet: IPv6"));
    }

    #[test]
    fn no_text_breaks_the_table() {
        for case in list::all() {
            let cell = tests(case, &[]);
            assert!(!case.sentence.contains(['|', '\n']) && !cell.contains(['|', '\n']), "{cell}");
        }
    }
}
