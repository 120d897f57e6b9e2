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
