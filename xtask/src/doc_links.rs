//! Whether the documents point at things that exist: files, headings, and tests by their name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::prose::words_in;
use crate::sh;

/// A link of a document that leads into the checkout.
#[derive(PartialEq, Eq, Debug)]
struct Link {
    /// What is shown: `[text](target)`.
    text: String,
    target: String,
}

/// All Markdown files of the checkout that people read.
fn documents() -> Vec<PathBuf> {
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
    let top = top.map(|name| sh::root().join(name));
    let docs = WalkDir::new(sh::root().join("docs")).sort_by_file_name().into_iter().flatten();
    let docs = docs.map(walkdir::DirEntry::into_path);
    top.into_iter().chain(docs.filter(|path| path.extension().is_some_and(|e| e == "md"))).collect()
}

/// Lines outside of fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_fenced = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    })
}

/// The relative links of a text.
fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for line in prose(text) {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("](") {
            let target = after.split(')').next().unwrap_or_default();
            let text = before.rsplit('[').next().unwrap_or_default();
            if !target.contains("://") {
                found.push(Link { text: text.to_owned(), target: target.to_owned() });
            }
            rest = after;
        }
    }
    found
}

/// What a heading is called in a link: lower case, spaces as hyphens, other signs left out.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// What is wrong with a link of the document at `from`.
fn trouble(from: &Path, link: &Link) -> Option<String> {
    let (file, heading) = link.target.split_once('#').unwrap_or((&link.target, ""));
    let path = if file.is_empty() { from.to_owned() } else { from.with_file_name(file) };
    if !path.exists() {
        return Some("there is no such file".to_owned());
    }
    let text = || fs::read_to_string(&path).unwrap_or_default();
    if !heading.is_empty() && !anchors(&text()).contains(heading) {
        return Some("it has no such heading".to_owned());
    }
    // `name` of a Rust file is a function of it: the test that shows what the page says.
    let name = link.text.strip_prefix('`').and_then(|text| text.strip_suffix('`'))?;
    let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let is_rust = path.extension().is_some_and(|e| e == "rs");
    let is_missing = is_rust && is_name && !text().contains(&format!("fn {name}("));
    is_missing.then(|| format!("there is no test {name} in it"))
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut troubles = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text) {
            if let Some(trouble) = trouble(&path, &link) {
                let path = path.strip_prefix(sh::root()).unwrap_or(&path).display();
                troubles.push(format!("{path}: [{}]({}): {trouble}", link.text, link.target));
            }
        }
    }
    assert!(troubles.is_empty(), "\n{}\n", troubles.join("\n"));
}

/// Every page is found from the README; the design records by their folder.
#[test]
fn every_page_of_the_documentation_is_linked_from_the_readme() {
    let readme = fs::read_to_string(sh::root().join("README.md")).unwrap();
    let linked: BTreeSet<PathBuf> =
        links(&readme).into_iter().map(|link| sh::root().join(link.target)).collect();
    let docs = sh::root().join("docs");
    let pages = documents().into_iter().filter(|path| path.starts_with(&docs));
    let is_linked =
        |path: &PathBuf| linked.contains(path) || linked.contains(path.parent().unwrap());
    let missing: Vec<_> = pages.filter(|path| !is_linked(path)).collect();
    assert!(missing.is_empty(), "README.md does not link {missing:?}");
}

/// Pages that may have them: the one that lists them, and what is generated from help or quotes messages.
const WITH_HABITS: [&str; 3] =
    ["docs/internals/style.md", "docs/reference/commands.md", "docs/reference/errors.md"];

/// The habits in a text's prose, each with its line.
fn habits(text: &str) -> Vec<(&'static str, &str)> {
    let found = prose(text).flat_map(|line| {
        let letters: Vec<_> = line.chars().map(|c| (c, 0)).collect();
        words_in(&letters).into_iter().map(move |(_, habit)| (habit, line))
    });
    found.collect()
}

#[test]
fn no_page_has_words_that_are_only_habits() {
    let mut wrong = Vec::new();
    for path in documents() {
        let name = path.strip_prefix(sh::root()).unwrap().display().to_string();
        if !WITH_HABITS.contains(&name.as_str()) {
            let text = fs::read_to_string(&path).unwrap();
            wrong.extend(
                habits(&text).iter().map(|(habit, line)| format!("{name}: {habit}: {line}")),
            );
        }
    }
    assert!(wrong.is_empty(), "see docs/internals/style.md\n{}\n", wrong.join("\n"));
}

#[test]
fn habits_are_found_as_words_and_outside_of_blocks() {
    let found =
        |text: &'static str| habits(text).into_iter().map(|(habit, _)| habit).collect::<Vec<_>>();
    assert_eq!(found("read anew, and at once"), ["anew", "at once"]);
    assert!(found("renewed `nobody_is_locked_out`\n```\nanew\n```").is_empty());
}

/// What is missing of a design record's form.
fn missing_in_record(number: &str, text: &str) -> Vec<String> {
    let mut wanted = vec![format!("# {}. ", number.trim_start_matches('0'))];
    let parts =
        ["Status: ", " Date: 20", "## Context", "## Decision", "## Consequences", "## Measured"];
    wanted.extend(parts.map(str::to_owned));
    wanted.retain(|part| !text.contains(part.as_str()));
    wanted
}

#[test]
fn every_design_record_has_number_status_date_and_sections() {
    let folder = sh::root().join("docs/internals/design");
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in documents().into_iter().filter(|path| path.starts_with(&folder)) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let missing = missing_in_record(&name[..4], &fs::read_to_string(&path).unwrap());
        wrong.extend((!missing.is_empty()).then(|| format!("{name}: no {missing:?}")));
        count += 1;
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(count >= 19, "only {count} records are found");
}

#[test]
fn what_a_design_record_lacks_is_named() {
    let whole = "# 7. Title\n\nStatus: accepted. Date: 2026-11-21.\n\n## Context\n## Decision\n## Consequences\n## Measured\n";
    assert!(missing_in_record("0007", whole).is_empty());
    assert_eq!(missing_in_record("0008", whole), ["# 8. "]);
    assert_eq!(missing_in_record("0007", &whole.replace("## Measured", "")), ["## Measured"]);
}

#[test]
fn links_are_found_with_their_texts() {
    let text = "a [b](c.md#d), [`e`](../f.rs) ![g](h.svg)\n```\n[no](link)\n```\n[x](https://y)";
    let link = |text: &str, target: &str| Link { text: text.into(), target: target.into() };
    let expected = [link("b", "c.md#d"), link("`e`", "../f.rs"), link("g", "h.svg")];
    assert_eq!(links(text), expected);
}

#[test]
fn headings_are_found_by_what_links_call_them() {
    let text = "# What it *does*, `now`\n```\n# no heading\n```\n## kill -9";
    assert_eq!(anchors(text), ["kill--9", "what-it-does-now"].map(str::to_owned).into());
}

#[test]
fn what_is_not_there_is_named() {
    let of = |text: &str, target: &str| {
        let link = Link { text: text.into(), target: target.into() };
        trouble(&sh::root().join("docs/internals/cases.md"), &link)
    };
    assert!(of("x", "nowhere.md").unwrap().contains("no such file"));
    assert!(of("x", "../../README.md#nowhere").unwrap().contains("no such heading"));
    assert!(of("`nobody`", "../../xtask/src/sh.rs").unwrap().contains("no test nobody"));
    assert_eq!(of("`root`", "../../xtask/src/sh.rs"), None);
    assert_eq!(of("x", "../../README.md#samport"), None);
}
