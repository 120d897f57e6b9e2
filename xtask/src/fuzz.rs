//! `cargo xtask fuzz`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Level};
use crate::sh;

/// The length of an input, in bytes: room for every header we parse, twice over.
const MAX_LEN: u32 = 256;

/// Let libFuzzer look for bytes that break what must hold (tests/invariants)
///
/// Begins with the inputs in tests/fuzz/corpus. One that breaks something is left in
/// tests/fuzz/crashes, to be committed with the repair: the tests replay every input there is.
#[derive(clap::Args)]
pub struct Args {
    /// One of conntrack, encap, parse and rewrite; without it each, one after the other
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// How long to look, for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Add to tests/fuzz/corpus what reaches code that nothing there has reached, and drop what
    /// others there reach too
    #[arg(long)]
    keep: bool,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    let mut targets = targets()?;
    if let Some(target) = &args.target {
        if !targets.contains(target) {
            bail!("there is no target {target}: it is one of {}", targets.join(", "));
        }
        targets = vec![target.clone()];
    }
    setup::ensure(Level::Fuzz)?;
    let program = setup::tool(&setup::CARGO_FUZZ)?;
    let mut ended = ExitCode::SUCCESS;
    for target in targets {
        if let Err(error) = fuzz(&program, &target, args) {
            eprintln!("error: {target}: {error:#}");
            ended = ExitCode::FAILURE;
        }
    }
    Ok(ended)
}

fn folder() -> PathBuf {
    sh::root().join("tests/fuzz")
}

/// The names of the programs that there are.
fn targets() -> Result<Vec<String>> {
    let folder = folder().join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    Ok(names)
}

fn fuzz(program: &Path, target: &str, args: &Args) -> Result<()> {
    let kept = folder().join("corpus").join(format!("{target}.hex"));
    let seeds = unpacked(&kept, &folder().join("target/seeds").join(target))?;
    // What is found goes into the first folder.
    let corpora = if args.keep {
        vec![seeds.clone()]
    } else {
        vec![created(folder().join("target/corpus").join(target))?, seeds.clone()]
    };
    let crashes = created(folder().join("crashes").join(target))?;
    let mut run = command(program, "run", target);
    run.args(&corpora).arg("--");
    run.arg(format!("-max_total_time={}", args.seconds)).arg(format!("-max_len={MAX_LEN}"));
    // The slash at its end makes it a folder.
    run.arg(format!("-artifact_prefix={}/", crashes.display()));
    run.args(["-print_final_stats=1", "-verbosity=0"]);
    sh::run(&mut run)?;
    if args.keep {
        sh::run(command(program, "cmin", target).arg(&seeds))?;
        pack(&seeds, &kept)?;
    }
    Ok(())
}

fn command(program: &Path, verb: &str, target: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder()).args(["fuzz", verb, "--fuzz-dir", ".", "--sanitizer", "none"]);
    command.arg(target);
    command
}

/// Writes each line of a corpus, which is an input in hexadecimal digits, into a file in a folder that has nothing
/// else; the folder.
fn unpacked(corpus: &Path, folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    let folder = created(folder.to_owned())?;
    let text = fs::read_to_string(corpus).with_context(|| format!("read {}", corpus.display()))?;
    for (line, number) in text.lines().zip(1..) {
        let bytes = hex::decode(line).with_context(|| format!("{}:{number}", corpus.display()))?;
        let file = folder.join(number.to_string());
        fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(folder)
}

/// Writes the files of a folder into a corpus, sorted, so that a change is the lines that have changed.
fn pack(folder: &Path, corpus: &Path) -> Result<()> {
    let mut lines = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        lines.insert(hex::encode(bytes) + "\n");
    }
    let text: String = lines.into_iter().collect();
    fs::write(corpus, text).with_context(|| format!("write {}", corpus.display()))
}

fn created(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the repository is what would be written: sorted, without an input twice.
    #[test]
    fn a_corpus_is_the_same_after_it_was_unpacked_and_packed() {
        for target in targets().unwrap() {
            let scratch = tempfile::tempdir().unwrap();
            let corpus = folder().join("corpus").join(format!("{target}.hex"));
            let seeds = unpacked(&corpus, &scratch.path().join("seeds")).unwrap();
            let again = scratch.path().join("again.hex");
            pack(&seeds, &again).unwrap();
            assert!(fs::read(&corpus).unwrap() == fs::read(again).unwrap(), "{target}");
        }
    }

    #[test]
    fn help_names_every_target() {
        let help = <super::Args as clap::Args>::augment_args(clap::Command::new("fuzz"));
        let help = help.get_arguments().find(|arg| arg.get_id() == "target").unwrap().get_help();
        let help = help.unwrap().to_string();
        for target in super::targets().unwrap() {
            assert!(help.contains(&target), "no {target} in: {help}");
        }
    }
}
