//! `cargo xtask demo`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Level};
use crate::{build, sh};

/// Build samport and run `samport demo ARGS` as root, in its own lab, without Docker
#[derive(clap::Args)]
pub struct Args {
    /// Given to `samport demo`
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Demo)?;
    // The build of the tests: what is seen first is there sooner, and `cargo xtask test` goes on with it.
    let mut samport = sh::as_root(build::samport(false)?)?;
    Err(sh::exec(samport.arg("demo").args(&args.args)))
}
