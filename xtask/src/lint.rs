//! `cargo xtask lint`.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::setup::{self, Bpf, Level};
use crate::{old_names, prose, sh};

/// Check formatting, lints, the crates used and the words of prose
///
/// rustfmt; clippy for the host and for the kernel's target; cargo deny (deny.toml); and words that docs/internals/style.md does
/// without.
#[derive(clap::Args)]
pub struct Args {}

pub fn verb(_: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Lint)?;
    let failures = run(&setup::bpf()?)?;
    for failure in &failures {
        eprintln!("error: {failure:#}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every check, also after one has failed: they are independent and cheap to see together.
/// Returns the failures.
pub fn run(bpf: &Bpf) -> Result<Vec<anyhow::Error>> {
    let checks = [
        ("the formatting", formatting()),
        ("clippy for the host", host()?),
        ("the crates (deny.toml)", crates()?),
        ("clippy for the kernel's target", kernel(bpf)?),
    ];
    let failure = |(name, mut command): (&str, Command)| {
        sh::run(&mut command).with_context(|| format!("lint: {name}")).err()
    };
    let old_names = old_names::check().context("lint: names that are gone").err();
    let prose = prose::check().context("lint: the words of comments and messages").err();
    Ok(checks.into_iter().filter_map(failure).chain(old_names).chain(prose).collect())
}

fn formatting() -> Command {
    let mut cargo = sh::cargo();
    cargo.args(["fmt", "--all", "--check"]);
    cargo
}

fn host() -> Result<Command> {
    let mut cargo = sh::cargo();
    // AYA_BUILD_SKIP would make the next build start over if both used one target folder.
    cargo.env("AYA_BUILD_SKIP", "1");
    cargo.args(["clippy", "--workspace", "--all-targets", "--target-dir"]);
    cargo.arg(sh::target_dir()?.join("lint")).args(["--", "-D", "warnings"]);
    Ok(cargo)
}

/// Licences, versions and sources of all crates in the lock file; nothing is fetched.
fn crates() -> Result<Command> {
    let mut deny = Command::new(setup::tool(&setup::CARGO_DENY)?);
    deny.current_dir(sh::root()).args(["--locked", "check", "licenses", "bans", "sources"]);
    Ok(deny)
}

fn kernel(bpf: &Bpf) -> Result<Command> {
    let mut cargo = bpf.toolchain.command("cargo");
    // Building core needs -Z build-std, which a stable compiler only takes with this.
    cargo.current_dir(sh::root()).env("RUSTC_BOOTSTRAP", "1");
    cargo.args(["clippy", "--release", "-Z", "build-std=core", "--target", "bpfel-unknown-none"]);
    cargo.args(["-p", "samport-ebpf", "--target-dir"]).arg(sh::target_dir()?.join("lint-bpf"));
    cargo.args(["--", "-D", "warnings"]);
    Ok(cargo)
}
