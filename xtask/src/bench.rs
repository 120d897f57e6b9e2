//! `cargo xtask bench`.

use std::ffi::OsString;
use std::path::{self, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::setup::{self, Level};
use crate::{build, sh};

/// Measure how fast samport is, beside what else people use, and say which bars it meets
#[derive(clap::Args)]
pub struct Args {
    /// Less of everything, in less than 3 minutes
    #[arg(long)]
    quick: bool,
    /// Whom samport is measured beside: direct, docker-p and so on
    #[arg(long, value_name = "LIST")]
    against: Option<OsString>,
    /// Rounds; in each, everybody is measured once
    #[arg(long, value_name = "N")]
    rounds: Option<OsString>,
    /// Which parts are measured: connections, requests and so on
    #[arg(long, value_name = "LIST")]
    only: Option<OsString>,
    /// Keeps the raw figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the figures that have bars
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Given to the benchmark as they are: `bench -- --help` lists all
    #[arg(value_name = "ARGS", last = true)]
    more: Vec<OsString>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Bench)?;
    sh::run(sh::cargo().args(["build", "--release", "-p", "samport", "-p", "samport-tests"]))?;
    let mut cargo = sh::cargo();
    cargo.args(["bench", "-p", "samport-tests", "--bench", "speed"]);
    let is_it = |message: &Value| {
        message["target"]["kind"][0] == "bench" && message["target"]["name"] == "speed"
    };
    let program = build::executables(&mut cargo, is_it)?.pop().context("cargo has built none")?;
    // Not below cargo: it would end at Ctrl-C, and the prompt be there before all is taken apart.
    let mut bench = sh::as_root(program)?;
    bench.args(args.given()?).current_dir(sh::root()).env("SAMPORT_BIN", build::binary(true)?);
    Err(sh::exec(&mut bench))
}

impl Args {
    /// The benchmark's command line.
    fn given(&self) -> Result<Vec<OsString>> {
        let mut given: Vec<OsString> = Vec::new();
        if self.quick {
            given.push("--quick".into());
        }
        let lists =
            [("--against", &self.against), ("--rounds", &self.rounds), ("--only", &self.only)];
        for (flag, value) in lists {
            given.extend(value.iter().flat_map(|value| [flag.into(), value.clone()]));
        }
        for (flag, file) in [("--json", &self.json), ("--svg", &self.svg)] {
            let Some(file) = file else { continue };
            // Cargo runs benchmarks in the package's folder.
            let absolute = path::absolute(file)
                .with_context(|| format!("find the folder of {}", file.display()))?;
            given.extend([flag.into(), absolute.into()]);
        }
        given.extend(self.more.iter().cloned());
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn given(words: &[&str]) -> Vec<String> {
        let cli = Cli::parse_from([&["bench"], words].concat());
        let given = cli.args.given().unwrap();
        given.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn flags_are_handed_on_without_two_dashes_before_them() {
        assert_eq!(
            given(&["--only", "bulk,local", "--quick", "--against=direct", "--rounds", "3"]),
            ["--quick", "--against", "direct", "--rounds", "3", "--only", "bulk,local"]
        );
    }

    #[test]
    fn files_are_where_the_user_is() {
        let here = std::env::current_dir().unwrap();
        let file = here.join("f.json").into_os_string().into_string().unwrap();
        assert_eq!(given(&["--json", "f.json"]), ["--json", &file]);
        assert_eq!(given(&["--svg", "/tmp/f.svg"]), ["--svg", "/tmp/f.svg"]);
    }

    #[test]
    fn what_follows_two_dashes_is_handed_on_as_it_is() {
        assert_eq!(given(&["--", "--help"]), ["--help"]);
    }
}
