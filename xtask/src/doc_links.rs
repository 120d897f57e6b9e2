//! Whether the documents point at things that exist: files, headings, and tests by their name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

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
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
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
    // `name` of a Rust file is a function of it: the test that shows what is said.
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

/// A page nobody finds is a page nobody reads.
#[test]
fn every_page_of_the_documentation_is_linked_from_the_readme() {
    let readme = fs::read_to_string(sh::root().join("README.md")).unwrap();
    let linked: BTreeSet<String> = links(&readme).into_iter().map(|link| link.target).collect();
    let folder = sh::root().join("docs");
    let pages = documents().into_iter().filter(|path| path.parent() == Some(&folder));
    let pages = pages.map(|path| format!("docs/{}", path.file_name().unwrap().display()));
    let missing: Vec<_> = pages.filter(|page| !linked.contains(page)).collect();
    assert!(missing.is_empty(), "README.md does not link {missing:?}");
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
        trouble(&sh::root().join("docs/cases.md"), &link)
    };
    assert!(of("x", "nowhere.md").unwrap().contains("no such file"));
    assert!(of("x", "../README.md#nowhere").unwrap().contains("no such heading"));
    assert!(of("`nobody`", "../xtask/src/sh.rs").unwrap().contains("no test nobody"));
    assert_eq!(of("`root`", "../xtask/src/sh.rs"), None);
    assert_eq!(of("x", "../README.md#samport"), None);
}
