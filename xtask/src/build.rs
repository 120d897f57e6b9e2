//! `cargo xtask build`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

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

/// Where cargo leaves samport's binary.
pub fn binary(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    Ok(sh::target_dir()?.join(profile).join("samport"))
}
