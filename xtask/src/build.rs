//! `cargo xtask build`.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::setup::{self, Level};
use crate::sh;

/// Build samport with its BPF programs
#[derive(clap::Args)]
pub struct Args {
    /// Optimise, as `cargo xtask run` does
    #[arg(long)]
    release: bool,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Build)?;
    let binary = samport(args.release)?;
    println!("{}", binary.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds samport and returns the path of its binary.
pub fn samport(release: bool) -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "-p", "samport"]);
    if release {
        cargo.arg("--release");
    }
    sh::run(&mut cargo)?;
    binary(release)
}

/// Builds what this call of cargo is about without running it; the programs of those of cargo's messages that are
/// wanted.
pub fn executables(
    cargo: &mut Command,
    is_wanted: impl Fn(&Value) -> bool,
) -> Result<Vec<PathBuf>> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    sh::echo(cargo);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    sh::succeeded(cargo, output.status)?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path = |message: Value| message["executable"].as_str().map(PathBuf::from);
    Ok(messages.filter(|message| is_wanted(message)).filter_map(path).collect())
}

/// Where cargo leaves samport's binary.
pub fn binary(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    Ok(sh::target_dir()?.join(profile).join("samport"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::sh;

    /// Debian 12's cargo 1.65 reads no further than what it does not know: the edition is the one thing whose error
    /// says that cargo is too old.
    #[test]
    fn an_old_cargo_reads_as_far_as_the_edition() {
        let manifest = fs::read_to_string(sh::root().join("Cargo.toml")).unwrap();
        let values = |key: &str| {
            let key = format!("{key} = ");
            manifest.lines().filter_map(move |line| line.strip_prefix(&key).map(str::to_owned))
        };
        assert_eq!(values("resolver").collect::<Vec<_>>(), ["\"2\""]);
        let known = |value: &String| ["0", "1", "2", "false", "true"].contains(&value.as_str());
        assert!(values("debug").count() > 0 && values("debug").all(|value| known(&value)));
    }
}
