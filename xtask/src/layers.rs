//! The layers of the loader: a module imports only from those below it, as the table in ARCHITECTURE.md says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use walkdir::WalkDir;

use crate::sh;

/// The modules of `samport/src`, the topmost first. Each may import those that come after it.
const LAYERS: [&str; 11] = [
    "cli",
    "diagnose",
    "api",
    "control",
    "discovery",
    "cluster",
    "dataplane",
    "net",
    "system",
    "plan",
    "model",
];

/// Not a layer: the network namespaces that `samport demo` and the tests share. It may import all of them, and `cli` only
/// may import it.
const LAB: &str = "lab";

/// A crate that one module only may name: what depends on it is exchanged there.
const KEPT_IN: [(&str, &str); 2] = [("aya", "dataplane"), ("bollard", "discovery")];

/// The module of a file below `samport/src`: the first folder, or the file's own name.
fn module_of(path: &Path) -> Option<String> {
    let first = path.components().next()?.as_os_str().to_str()?;
    Some(first.strip_suffix(".rs").unwrap_or(first).to_owned())
}

/// A file's code: without comments, and without tests at its end.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect()
}

/// The words that follow `crate::`. Of `use crate::{a, b};` each.
fn named(code: &str) -> BTreeSet<String> {
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

/// Whether code names a crate.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        !code[..at]
            .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
    })
}

/// The files of the loader that are no tests: their paths below `samport/src`, their modules and their code.
fn files() -> Vec<(String, String, String)> {
    let source = sh::root().join("samport/src");
    let files = WalkDir::new(&source).into_iter().flatten().filter(|file| {
        file.path().extension().is_some_and(|e| e == "rs") && file.file_name() != "tests.rs"
    });
    files
        .filter_map(|file| {
            let path = file.path().strip_prefix(&source).ok()?;
            let module = module_of(path)?;
            let text = fs::read_to_string(file.path()).ok()?;
            Some((path.display().to_string(), module, code_of(&text)))
        })
        .filter(|(_, module, _)| module != "lib" && module != "main")
        .collect()
}

/// Why a module may not import another.
fn refusal(from: &str, to: &str) -> Option<&'static str> {
    let rank = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    match (rank(from), rank(to)) {
        _ if from == to || from == LAB => None,
        (Some(_), None) if to == LAB => (from != "cli").then_some("only cli may"),
        (Some(from), Some(to)) => (from > to).then_some("it lies above"),
        _ => Some("it is no layer"),
    }
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let files = files();
    assert!(files.len() > 100, "{} files", files.len());
    let modules: BTreeSet<&str> = files.iter().map(|(_, module, _)| module.as_str()).collect();
    let known: BTreeSet<&str> = LAYERS.into_iter().chain([LAB]).collect();
    assert_eq!(modules, known, "the modules of samport/src, and those that are layers");
    let mut wrong = Vec::new();
    for (path, module, code) in &files {
        for to in named(code).iter().filter(|to| modules.contains(to.as_str())) {
            wrong.extend(refusal(module, to).map(|why| format!("{path} imports {to}: {why}")));
        }
        for (name, place) in KEPT_IN {
            if names_crate(code, name) && module != place && module != LAB {
                wrong.push(format!("{path} names {name}: only {place} may"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "see the layers in ARCHITECTURE.md");
}

/// The rows of the table in ARCHITECTURE.md are the layers, in their order, with what each imports.
#[test]
fn architecture_shows_the_layers() {
    let files = files();
    let mut imports: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (_, module, code) in &files {
        imports.entry(module).or_default().extend(named(code));
    }
    let row = |layer: &str| {
        let of = |to: &&&str| **to != layer && imports[layer].contains(**to);
        let below: Vec<_> = LAYERS.iter().filter(of).copied().collect();
        let below = if below.is_empty() { "–".to_owned() } else { below.join(", ") };
        (format!("| `{layer}` | "), format!(" | {below} |"))
    };
    let page = fs::read_to_string(sh::root().join("ARCHITECTURE.md")).unwrap();
    let mut lines = page.lines().skip_while(|line| !line.starts_with("| module |")).skip(2);
    for layer in LAYERS {
        let (begin, end) = row(layer);
        let line = lines.next().unwrap_or_default();
        assert!(
            line.starts_with(&begin) && line.ends_with(&end),
            "{line:?} is to be {begin}…{end}"
        );
    }
}

#[test]
fn what_a_module_may_import_is_below_it() {
    assert_eq!(refusal("cli", "model"), None);
    assert_eq!(refusal("plan", "plan"), None);
    assert_eq!(refusal("cli", "lab"), None);
    assert_eq!(refusal("lab", "cli"), None);
    assert!(refusal("model", "plan").is_some());
    assert!(refusal("net", "lab").is_some());
    assert!(refusal("net", "elsewhere").is_some());
}

#[test]
fn imports_are_read_and_comments_and_tests_are_not() {
    let text = "use crate::{plan::Change, ports};\n// crate::no\nlet a = crate::model::Place;\n\
                #[cfg(test)]\nmod tests {\n    use crate::lab;\n}\n";
    let expected = ["model", "plan", "ports"].map(str::to_owned);
    assert_eq!(named(&code_of(text)), BTreeSet::from(expected));
}

#[test]
fn a_crate_is_named_by_its_whole_name() {
    assert!(names_crate("use aya::Ebpf;", "aya"));
    assert!(names_crate("let a = (aya::maps::Map::new(), 1);", "aya"));
    assert!(!names_crate("use crate::aya::Ebpf; use laya::b; aya_log::init()", "aya"));
}

#[test]
fn a_folder_and_its_file_are_one_module() {
    let module = |path: &str| module_of(Path::new(path)).unwrap();
    assert_eq!(module("plan.rs"), "plan");
    assert_eq!(module("plan/room.rs"), "plan");
    assert_eq!(module("cli/run/flags.rs"), "cli");
}
