//! Which modules of the loader import which: the list in `layers/imports.txt` and the sources have to agree, so that no
//! import comes unnoticed and the list shrinks with them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use walkdir::WalkDir;

use crate::sh;

/// As a list has it: `from -> to`.
type Import = String;

/// The module of a file below `samport/src`: the first folder, or the file's own name.
fn module_of(path: &Path) -> Option<String> {
    let first = path.components().next()?.as_os_str().to_str()?;
    Some(first.strip_suffix(".rs").unwrap_or(first).to_owned())
}

/// The words that follow `crate::` in code that is no test's. Of `use crate::{a, b};` each.
fn named(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let word = |text: &str| {
            let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
            text[..end].to_owned()
        };
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                found.extend(list.split(',').map(|one| word(one.trim())));
            }
            None => {
                found.insert(word(rest));
            }
        }
    }
    found
}

/// All imports between modules of the loader, macros at its root aside.
fn imports(source: &Path) -> BTreeSet<Import> {
    let files = WalkDir::new(source).into_iter().flatten().filter(|file| {
        file.path().extension().is_some_and(|e| e == "rs") && file.file_name() != "tests.rs"
    });
    let files: Vec<_> = files
        .filter_map(|file| {
            let module = module_of(file.path().strip_prefix(source).ok()?)?;
            Some((module, fs::read_to_string(file.path()).ok()?))
        })
        .filter(|(module, _)| module != "lib" && module != "main")
        .collect();
    let modules: BTreeSet<&String> = files.iter().map(|(module, _)| module).collect();
    let of = |(from, text): &(String, String)| {
        let others = named(text).into_iter().filter(|to| to != from && modules.contains(to));
        others.map(|to| format!("{from} -> {to}")).collect::<Vec<_>>()
    };
    files.iter().flat_map(of).collect()
}

#[test]
fn imports_between_modules_are_those_of_the_list() {
    let list = sh::root().join("xtask/src/layers/imports.txt");
    let found = imports(&sh::root().join("samport/src"));
    if std::env::var_os("SAMPORT_WRITE_REFERENCE").is_some() {
        let lines: Vec<_> = found.iter().map(String::as_str).collect();
        fs::write(&list, lines.join("\n") + "\n").unwrap();
    }
    let listed = fs::read_to_string(&list).unwrap();
    let listed: BTreeSet<Import> = listed.lines().map(str::to_owned).collect();
    let added: Vec<_> = found.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(
        added.is_empty() && gone.is_empty(),
        "new imports: {added:?}; no longer there: {gone:?}; after a look at ARCHITECTURE.md, \
         SAMPORT_WRITE_REFERENCE=1 cargo test -p xtask layers writes {}",
        list.display()
    );
}

#[test]
fn a_list_of_imports_is_read_and_comments_and_tests_are_not() {
    let text = "use crate::{plan::Change, ports};\n// crate::no\nlet a = crate::model::Place;\n\
                #[cfg(test)]\nmod tests {\n    use crate::lab;\n}\n";
    let expected = ["model", "plan", "ports"].map(str::to_owned);
    assert_eq!(named(text), BTreeSet::from(expected));
}

#[test]
fn a_folder_and_its_file_are_one_module() {
    let module = |path: &str| module_of(Path::new(path)).unwrap();
    assert_eq!(module("plan.rs"), "plan");
    assert_eq!(module("plan/room.rs"), "plan");
    assert_eq!(module("cli/run/flags.rs"), "cli");
}
