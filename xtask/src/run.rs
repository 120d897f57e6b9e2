//! `cargo xtask run`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Level};
use crate::{build, sh};

/// Build samport and run `samport run ARGS` as root
#[derive(clap::Args)]
pub struct Args {
    /// Given to `samport run`, for example: cargo xtask run -- --iface eth0 --port 80
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Run)?;
    let mut samport = sh::as_root(build::samport(true)?)?;
    Err(sh::exec(samport.arg("run").args(&args.args)))
}
