//! Whether the table of programs has every program that the code starts, at a level that reaches the code.
//!
//! Names are read from the tokens of the sources: the string in `Command::new("ip")`, `host.command("ip")`,
//! `sh::find("ip")` and the like, and the commands in what a shell gets after `-c`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use walkdir::WalkDir;

use super::Level::{self, Bench, Demo, Fuzz, Kernel, Lint, Package, Pristine, Run, Test};
use super::programs::PROGRAMS;
use super::tools::TOOLS;
use crate::sh;

/// Functions whose first argument names a program.
const STARTERS: [&str; 4] = ["command", "as_root", "has_program", "tool"];

/// What every Debian and Ubuntu has, however small: packages that are essential, or apt itself.
const ESSENTIAL: &[&str] = &[
    "apt-cache",
    "apt-config",
    "apt-get",
    "apt-mark",
    "bash",
    "cat",
    "chown",
    "chroot",
    "cp",
    "date",
    "dpkg",
    "dpkg-deb",
    "dpkg-query",
    "env",
    "false",
    "find",
    "grep",
    "hostname",
    "ldd",
    "ls",
    "mkdir",
    "mount",
    "nsenter",
    "rm",
    "seq",
    "setpriv",
    "sh",
    "sleep",
    "tar",
    "timeout",
    "true",
    "umount",
    "unshare",
];

/// What the README asks for before the two commands.
const README: &[&str] = &["cargo", "cc", "git", "ld", "rustc", "rustup", "strip"];

/// Looked for, and done without where they are not.
const OPTIONAL: &[&str] = &["sudo", "bpf-linker"];

/// Which level runs the code of a file, by the beginning of its path; the longest that fits counts.
const LEVELS: [(&str, Level); 17] = [
    ("samport/src", Run),
    ("samport/src/lab", Demo),
    ("samport/src/cli/demo.rs", Demo),
    ("tests/src", Test),
    ("tests/src/speed", Bench),
    ("tests/tests", Test),
    ("tests/examples", Test),
    ("tests/image", Test),
    ("tests/benches", Bench),
    ("xtask/src", Run),
    ("xtask/src/vm", Kernel),
    ("xtask/src/fuzz.rs", Fuzz),
    ("xtask/src/package.rs", Package),
    ("xtask/src/lint.rs", Lint),
    ("xtask/src/prebuilt", Lint),
    ("xtask/src/pristine", Pristine),
    ("xtask/src/archives.rs", Pristine),
];

/// A program that a file starts.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Start {
    program: String,
    line: usize,
}

fn starts(source: &str) -> Vec<Start> {
    let mut found = Vec::new();
    walk(source.parse().unwrap(), &mut found);
    found
}

fn walk(stream: TokenStream, found: &mut Vec<Start>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        let before = |distance: usize| {
            let at = index.checked_sub(distance).and_then(|at| tokens.get(at));
            at.map(ToString::to_string).unwrap_or_default()
        };
        match token {
            TokenTree::Group(group) => {
                let called = before(1);
                let is_command = called == "new" && before(4) == "Command";
                let is_parser = before(7) == "clap";
                let is_find = called == "find" && before(4) == "sh";
                if is_command && !is_parser || is_find || STARTERS.contains(&called.as_str()) {
                    found.extend(first_literal(group.stream()));
                }
                // clap's, imported by its plain name.
                if called != "augment_args" {
                    walk(group.stream(), found);
                }
            }
            // "-c", "the script".
            TokenTree::Literal(script) if before(1) == "," && before(2) == "\"-c\"" => {
                let line = script.span().start().line;
                let names = commands(&string(&script.to_string()).unwrap_or_default());
                found.extend(names.into_iter().map(|program| Start { program, line }));
            }
            _ => {}
        }
    }
}

fn first_literal(stream: TokenStream) -> Option<Start> {
    match stream.into_iter().next()? {
        TokenTree::Literal(literal) => {
            let program = string(&literal.to_string())?;
            Some(Start { program, line: literal.span().start().line })
        }
        _ => None,
    }
}

/// The text of a plain string literal.
fn string(literal: &str) -> Option<String> {
    let text = literal.strip_prefix('"')?.strip_suffix('"')?;
    Some(text.replace("\\n", "\n").replace("\\\"", "\""))
}

/// The programs that a shell script starts: the first word of each command that is no built-in and no keyword.
fn commands(script: &str) -> Vec<String> {
    const OWN: [&str; 22] = [
        "", ":", "[", "break", "case", "cd", "command", "do", "done", "echo", "else", "esac",
        "exec", "exit", "fi", "for", "if", "kill", "read", "then", "trap", "while",
    ];
    let mut names = Vec::new();
    for part in script.split([';', '|', '&', '\n', '(', ')']) {
        let mut words = part.split_whitespace().skip_while(|word| {
            ["if", "then", "do", "else", "exec", "while", "until", "!", "{"].contains(word)
                || word.contains('=')
        });
        let name = words.next().unwrap_or_default();
        let is_name = name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./".contains(c));
        if is_name
            && name.len() > 1
            && !OWN.contains(&name)
            && !name.chars().all(|c| c.is_ascii_digit())
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// Nothing of setup's own: it looks at what is there, and gets what it needs.
fn level_of(path: &str) -> Option<Level> {
    if path.starts_with("xtask/src/setup") {
        return None;
    }
    let fits = LEVELS.iter().filter(|(beginning, _)| path.starts_with(beginning));
    fits.max_by_key(|(beginning, _)| beginning.len()).map(|(_, level)| *level)
}

/// What is wrong about starting a program from the code of a level.
fn trouble(program: &str, level: Level) -> Option<String> {
    let given = [ESSENTIAL, README, OPTIONAL].concat();
    if given.contains(&program) || TOOLS.iter().any(|tool| tool.name == program) {
        return None;
    }
    // This very program, or one below the place it is told.
    if program.starts_with("/proc/") || program.starts_with("./") {
        return None;
    }
    // An option, or what a test of ours knows not to exist.
    if program.starts_with('-') || program == "no-such-program" && level == Run {
        return None;
    }
    let Some(known) = PROGRAMS.iter().find(|known| known.name == program) else {
        return Some(format!("{program} is not in the table of programs (setup/programs.rs)"));
    };
    let reached = known.levels.iter().any(|own| level.includes(*own));
    (!reached).then(|| format!("{program} is not installed at level {level}"))
}

#[test]
fn every_program_that_is_started_is_in_the_table_at_a_level_that_reaches_it() {
    let mut troubles = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for entry in WalkDir::new(sh::root()).into_iter().filter_entry(|entry| {
        let name = entry.file_name();
        name != "target" && name != ".git"
    }) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(sh::root()).unwrap().to_string_lossy().into_owned();
        let is_rust = entry.path().extension().is_some_and(|extension| extension == "rs");
        let Some(level) = level_of(&path).filter(|_| is_rust) else { continue };
        let source = fs::read_to_string(entry.path()).unwrap();
        for Start { program, line } in starts(&source) {
            troubles.extend(trouble(&program, level).map(|text| format!("{path}:{line}: {text}")));
            seen.insert(program);
        }
    }
    let troubles: Vec<_> = troubles.into_iter().collect();
    assert!(troubles.is_empty(), "\n{}\n", troubles.join("\n"));
    // The test sees what it should see.
    for program in ["ip", "iptables", "dockerd", "podman", "nft", "tmux", "haproxy"] {
        assert!(seen.contains(program), "no source starts {program}, or the test is blind");
    }
}

#[test]
fn a_program_that_is_missing_or_at_the_wrong_level_is_named() {
    assert_eq!(trouble("ip", Demo), None);
    assert!(trouble("no-such-program", Test).unwrap().contains("no-such-program"));
    assert!(trouble("dockerd", Demo).unwrap().contains("not installed at level demo"));
}

#[test]
fn starts_are_seen_however_they_are_written() {
    let source = r#"
        fn f() {
            Command::new("ip").args(["-c", "not a script"]);
            host.command("tc");
            sh::find("ethtool").and_then(|_| list.find("text"));
            std::process::Command::new("nsenter");
            Flags::augment_args(Command::new("run"));
            clap::Command::new("fuzz");
            Command::new("sh").args(["-c", "nft list ruleset | grep x; exec sleep 1"]);
        }
    "#;
    let names: Vec<_> = starts(source).into_iter().map(|start| start.program).collect();
    let expected = ["ip", "not", "tc", "ethtool", "nsenter", "sh", "nft", "grep", "sleep"];
    assert_eq!(names, expected);
}

#[test]
fn the_level_of_a_file_is_that_of_the_longest_path() {
    assert_eq!(level_of("samport/src/lab/namespace.rs"), Some(Demo));
    assert_eq!(level_of("samport/src/main.rs"), Some(Run));
    assert_eq!(level_of("docs/reference/kernels.md"), None);
    assert!(sh::root().join(Path::new(LEVELS[1].0)).is_dir());
}
