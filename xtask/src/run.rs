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
    samport("run", &args.args)
}

/// Builds samport and becomes `samport VERB ARGS`; returns only if that cannot be started.
pub fn samport(verb: &str, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(Level::Run)?;
    // Before the build: whoever cannot become root should not have to wait for it to learn so.
    let mut samport = sh::as_root(build::binary(true)?)?;
    build::samport(true)?;
    Err(sh::exec(samport.arg(verb).args(args)))
}
