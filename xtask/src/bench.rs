//! `cargo xtask bench`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Level};
use crate::{build, sh};

/// Measure connections a second and latency, beside what else people use
#[derive(clap::Args)]
pub struct Args {
    /// 5 rounds instead of 9
    #[arg(long)]
    quick: bool,
    /// Given to the benchmark: --against LIST, --rounds N, --json FILE; `bench -- --help` lists all
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Bench)?;
    sh::run(sh::cargo().args(["build", "--release", "-p", "samport", "-p", "samport-tests"]))?;
    let mut cargo = sh::cargo();
    cargo.args(["bench", "-p", "samport-tests", "--bench", "speed", "--"]);
    if args.quick {
        cargo.arg("--quick");
    }
    cargo.args(&args.args).env("SAMPORT_BIN", build::binary(true)?);
    sh::run_tests_as_root(&mut cargo)?;
    sh::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
