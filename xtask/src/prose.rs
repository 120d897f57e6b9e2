//! Words that prose does without (docs/internals/style.md): where comments and messages still have them.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Result, ensure};
use walkdir::WalkDir;

use crate::sh;

/// Habits that say nothing. Compared in lower case, as whole words, over the ends of lines too.
const WORDS: [&str; 15] = [
    "anew",
    "likewise",
    "besides",
    "at once",
    "in vain",
    "for good",
    "so many",
    "of its own",
    "is none",
    "nobody",
    "goes by",
    "takes note",
    "has got",
    "is there for",
    "is said",
];

/// Folders whose Rust files are held to it.
const COVERED: [&str; 2] = ["samport/src", "xtask/src"];

/// Those that are not yet: they still have such words in comments, and join `COVERED` when they have none.
#[cfg(test)]
const NOT_YET: [&str; 3] = ["samport-common", "samport-ebpf", "tests"];

/// Where a word is the best one, or part of what is compared with something else: the file, the word and why.
const ALLOWED: [(&str, &str, &str); 3] = [
    ("samport/src/system/privileges.rs", "of its own", "that is whose they are"),
    ("xtask/src/doc_links.rs", "", "its test of documents has them"),
    ("xtask/src/prose.rs", "", "names them all"),
];

/// Prose of a Rust file, a character at a time with the number of its line: comments and what is in quotes, each
/// line's indentation and marks left out. Anything else is one blank.
fn prose(text: &str) -> Vec<(char, usize)> {
    let mut prose = Vec::new();
    let mut is_quoted = false;
    for (line, number) in text.lines().zip(1..) {
        let trimmed = line.trim();
        let mut put = |text: &str| prose.extend(text.chars().map(|c| (c, number)));
        if !is_quoted && let Some(comment) = trimmed.strip_prefix("//") {
            put(comment.trim_start_matches(['/', '!', ' ']));
        } else {
            let mut rest = trimmed;
            while let Some(c) = rest.chars().next() {
                let (taken, shown) = match c {
                    '\\' if is_quoted => (rest.chars().take(2).map(char::len_utf8).sum(), " "),
                    '"' => {
                        is_quoted = !is_quoted;
                        (1, " ")
                    }
                    '\'' if !is_quoted && rest.starts_with("'\"'") => (3, " "),
                    '/' if !is_quoted && rest.starts_with("// ") => (rest.len(), &rest[3..]),
                    c if is_quoted => (c.len_utf8(), &rest[..c.len_utf8()]),
                    c => (c.len_utf8(), " "),
                };
                put(shown);
                rest = &rest[taken..];
            }
        }
        put(" ");
    }
    // A gap of any length is one blank.
    prose.dedup_by(|next, before| next.0 == ' ' && before.0 == ' ');
    prose
}

/// The words of the list that a Rust file's prose has: lines and words.
fn found(text: &str) -> Vec<(usize, &'static str)> {
    words_in(&prose(text))
}

/// The words of the list in characters, each with the number of its line: lines and words.
pub fn words_in(prose: &[(char, usize)]) -> Vec<(usize, &'static str)> {
    let lower: Vec<char> = prose.iter().map(|(c, _)| c.to_ascii_lowercase()).collect();
    let is_of_word = |at: Option<&char>| at.is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let mut found = Vec::new();
    for word in WORDS {
        let letters: Vec<char> = word.chars().collect();
        let at = lower.windows(letters.len()).enumerate().filter(|(_, part)| *part == letters);
        for (begin, _) in at {
            let before = begin.checked_sub(1).and_then(|at| lower.get(at));
            if !is_of_word(before) && !is_of_word(lower.get(begin + letters.len())) {
                found.push((prose[begin].1, word));
            }
        }
    }
    found.sort_unstable();
    found
}

/// The Rust files below a folder of the checkout, by their paths from its root.
fn files(folder: &str) -> impl Iterator<Item = (String, String)> {
    let all = WalkDir::new(sh::root().join(folder)).sort_by_file_name().into_iter().flatten();
    let rust = all.filter(|file| file.path().extension().is_some_and(|e| e == "rs"));
    rust.filter_map(|file| {
        let path = file.path().strip_prefix(sh::root()).ok()?.display().to_string();
        Some((path, fs::read_to_string(file.path()).ok()?))
    })
}

/// Reads the covered folders.
///
/// # Errors
/// Every place with a word that is not allowed there, and every line of `ALLOWED` that allows nothing any more.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for (path, text) in COVERED.into_iter().flat_map(files) {
        for (line, word) in found(&text) {
            let allowed = |(file, of, _): &(&str, &str, &str)| {
                *file == path && (of.is_empty() || *of == word)
            };
            match ALLOWED.iter().position(allowed) {
                Some(at) => {
                    used.insert(at);
                }
                None => wrong.push(format!("{path}:{line}: {word:?}")),
            }
        }
    }
    let idle = ALLOWED.iter().enumerate().filter(|(at, _)| !used.contains(at));
    wrong.extend(idle.map(|(_, (file, word, _))| format!("{file} no longer has {word:?}")));
    ensure!(
        wrong.is_empty(),
        "docs/internals/style.md does without these words; say it plainly, or add a line to ALLOWED of xtask/src/prose.rs:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_comments_and_texts_but_not_in_names() {
        for (text, expected) in [
            ("// Nobody is here.", &[(1, "nobody")][..]),
            ("/// It is\n/// none.", &[(1, "is none")]),
            ("let a = \"x\"; // made anew\nlet b = 1;", &[(1, "anew")]),
            ("bail!(\"at \\\n      once {nobody}\");", &[(1, "at once"), (2, "nobody")]),
            ("let nobody = anew(so_many);\nlet c = '\"'; // it's likewise", &[(2, "likewise")]),
            ("let a = \"a \\\" likewise\"; b(besides)", &[(1, "likewise")]),
            ("// he is, none; at-once; unbesides", &[]),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn the_covered_folders_do_without_them() {
        check().unwrap();
    }

    #[test]
    fn every_folder_with_rust_files_is_covered_or_named_as_not_yet() {
        let is_listed = |path: &str| {
            COVERED.iter().chain(&NOT_YET).any(|folder| path.starts_with(&format!("{folder}/")))
        };
        let folders = ["samport", "samport-common", "samport-ebpf", "tests", "xtask"];
        let paths = folders.into_iter().flat_map(files).map(|(path, _)| path);
        let missing: Vec<_> = paths.filter(|path| !is_listed(path)).collect();
        assert_eq!(missing, ["samport/build.rs"]);
        // One that has become clean is to be covered.
        for folder in NOT_YET {
            assert!(files(folder).any(|(_, text)| !found(&text).is_empty()), "{folder} is clean");
        }
    }
}
