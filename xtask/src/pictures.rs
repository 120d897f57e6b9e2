//! `cargo xtask pictures`.

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Level};
use crate::{build, sh};

/// Take the pictures in docs/pictures again: samport at work on a real terminal, in a lab
#[derive(clap::Args)]
pub struct Args {}

pub fn verb(_: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Test)?;
    let samport = build::samport(false)?;
    let mut cargo = sh::cargo();
    cargo.args(["run", "-p", "samport-tests", "--example", "pictures"]);
    cargo.env("SAMPORT_BIN", samport);
    sh::run_tests_as_root(&mut cargo)?;
    sh::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
