//! `cargo xtask demo`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::run;

/// Build samport and run `samport demo ARGS` as root: a lab of its own, no Docker needed
#[derive(clap::Args)]
pub struct Args {
    /// Given to `samport demo`
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    run::samport("demo", &args.args)
}
