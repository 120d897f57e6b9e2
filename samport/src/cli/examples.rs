//! The command lines in the documents: each of them is one that the program takes.

use std::fs;
use std::path::PathBuf;

use clap::{Command, CommandFactory as _};

use super::Cli;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What runs samport with the rest of the line, and the verb it puts before that.
const PROGRAMS: [(&str, &str); 2] = [("samport ", ""), ("cargo xtask run -- ", "run ")];

/// Every page people read commands from.
fn pages() -> Vec<PathBuf> {
    let folders = ["guides", "concepts", "reference", "internals"];
    let docs = folders.map(|folder| fs::read_dir(format!("{ROOT}/docs/{folder}")).unwrap());
    let docs = docs.into_iter().flatten().flatten().map(|entry| entry.path());
    let docs = docs.filter(|path| path.extension().is_some_and(|e| e == "md"));
    docs.chain(["README.md", "CONTRIBUTING.md"].map(|name| format!("{ROOT}/{name}").into()))
        .collect()
}

/// Command lines in the fenced blocks of a page, each without what is before samport's name and after its
/// arguments.
fn commands(text: &str) -> Vec<String> {
    let mut is_fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced {
            let parts = line.split("&&").flat_map(|part| part.split(['|', ';']));
            found.extend(parts.filter_map(command));
        }
    }
    found
}

/// The arguments after samport's name, if that is what a part of a line runs.
fn command(part: &str) -> Option<String> {
    let part = part.split(" #").next().unwrap_or_default().trim();
    let part = ["$ ", "# ", "do "]
        .iter()
        .fold(part, |part, before| part.strip_prefix(before).unwrap_or(part));
    let line = |(program, verb)| Some(format!("{verb}{}", part.strip_prefix(program)?.trim()));
    let line = PROGRAMS.into_iter().find_map(line)?;
    // Figures of a table may stand after the name, too.
    line.starts_with(|c: char| c.is_ascii_lowercase()).then(|| with_a_number_for_sums(&line))
}

/// `$((2 * n))` is some number.
fn with_a_number_for_sums(words: &str) -> String {
    let mut made = String::new();
    let mut rest = words;
    while let Some((before, after)) = rest.split_once("$((") {
        made.push_str(before);
        made.push('4');
        rest = after.split_once("))").map_or("", |(_, rest)| rest);
    }
    made + rest
}

/// Pieces of running text in backquotes that begin with samport's name.
fn mentions(text: &str) -> Vec<&str> {
    let pieces = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    pieces.filter_map(|piece| piece.strip_prefix("samport ")).collect()
}

/// The verb that is mentioned, and its flags; an error names what there is not.
fn known(mention: &str) -> Result<(), String> {
    let mut command: Command = Cli::command();
    command.build();
    let mut of = &command;
    for word in mention.split([' ', '\n', '[', ']', '=', '|']).filter(|word| !word.is_empty()) {
        if let Some(flag) = word.strip_prefix("--") {
            let has = |arg: &clap::Arg| arg.get_long() == Some(flag);
            if !of.get_arguments().any(has) {
                return Err(format!("{} has no --{flag}", of.get_name()));
            }
        } else if let Some(verb) = of.find_subcommand(word) {
            of = verb;
        } else if of.get_name() == "samport" && word.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(format!("there is no verb {word}"));
        }
    }
    Ok(())
}

#[test]
fn every_command_line_in_a_block_is_one_the_program_takes() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages() {
        for line in commands(&fs::read_to_string(&page).unwrap()) {
            count += 1;
            let words = shlex::split(&line).unwrap_or_default();
            let words = std::iter::once("samport".to_owned()).chain(words);
            if let Err(error) = Cli::command().try_get_matches_from(words) {
                let error = error.to_string();
                let first = error.lines().next().unwrap_or_default();
                wrong.push(format!("{}: samport {line}: {first}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(count > 30, "only {count} command lines are found");
}

#[test]
fn every_verb_and_flag_that_is_mentioned_exists() {
    let mut wrong = Vec::new();
    // What errors.md has is wrong on purpose, and another test tries it.
    for page in pages().into_iter().filter(|page| !page.ends_with("errors.md")) {
        let text = fs::read_to_string(&page).unwrap();
        for mention in mentions(&text) {
            if let Err(what) = known(mention) {
                wrong.push(format!("{}: `samport {mention}`: {what}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn command_lines_are_found_where_people_would_type_them() {
    let text = "samport no\n```\n$ samport run -p 80   # why\nfor id in $old; do samport drain \"$id\"; done\n\
                samport wait --healthy $((2 * n)) 80\nsamporter\ncargo xtask run -- -p 1\n```\n";
    let expected = ["run -p 80", "drain \"$id\"", "wait --healthy 4 80", "run -p 1"];
    assert_eq!(commands(text), expected);
}

#[test]
fn what_does_not_exist_is_named() {
    assert_eq!(mentions("a `samport run -p 80` b `other` `samport check`"), ["run -p 80", "check"]);
    assert_eq!(known("config show -o json"), Ok(()));
    assert_eq!(known("wait [--healthy N]"), Ok(()));
    assert!(known("explode").unwrap_err().contains("explode"));
    assert!(known("run --fast").unwrap_err().contains("--fast"));
}
