//! `cargo xtask test`.

mod tally;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

pub use self::tally::Tally;
use crate::setup::{self, Level};
use crate::{build, sh, vm};

/// Run all tests, or those whose name contains a FILTER, as root
///
/// A test that is ignored or lacks what it needs counts as a failure: a run that passes has tested
/// everything. The last line is always `N passed, M failed`.
#[derive(clap::Args)]
pub struct Args {
    /// Part of a test's name; after `--`, also options of the test programs, such as --nocapture
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Run those of a selection, or those that FILTER names, on this kernel instead, in a machine of
    /// QEMU's (docs/kernels.md says which there are)
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,
}

/// What a run of the tests came to.
pub struct Outcome {
    tally: Tally,
    /// What went wrong beside the tests.
    errors: Vec<anyhow::Error>,
}

impl From<Tally> for Outcome {
    fn from(tally: Tally) -> Self {
        Self { tally, errors: Vec::new() }
    }
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Test)?;
    let outcome = match &args.kernel {
        Some(release) => vm::run(release, &args.filters)?.into(),
        None => run(&args.filters)?,
    };
    Ok(if outcome.report() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What cargo is to make of the workspace: all but the BPF crate, which samport's build script
/// builds. Always the same, so that nothing is compiled twice.
fn cargo_test() -> Command {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--workspace", "--exclude", "samport-ebpf"]);
    cargo
}

/// Builds samport and these test programs; where cargo has left them.
pub fn built(programs: impl Iterator<Item = &'static str>) -> Result<Vec<PathBuf>> {
    sh::run(sh::cargo().args(["build", "--bins"]))?;
    let mut cargo = cargo_test();
    for program in programs {
        cargo.args(["--test", program]);
    }
    let is_test = |message: &serde_json::Value| message["profile"]["test"] == true;
    let mut built = build::executables(&mut cargo, is_test)?;
    built.push(build::binary(false)?);
    Ok(built)
}

/// Builds everything and runs the tests, their output passing through as it comes.
pub fn run(filters: &[String]) -> Result<Outcome> {
    let mut cargo = cargo_test();
    cargo.args(["--no-fail-fast", "--"]).args(filters);
    cargo.env("SAMPORT_REQUIRE_ROOT", "1").env("SAMPORT_BIN", build::binary(false)?);
    sh::run_tests_as_root(&mut cargo)?;

    // The workspace's default members: all but the BPF crate, which samport's build script builds.
    sh::run(sh::cargo().args(["build", "--bins"]))?;

    sh::echo(&cargo);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo has no standard output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        // Tests may print what is not UTF-8.
        let line = String::from_utf8_lossy(&line.context("read cargo's output")?).into_owned();
        println!("{line}");
        tally.line(&line);
    }
    tally.end();
    let status = child.wait().context("wait for cargo")?;
    Ok(Outcome { tally, errors: sh::succeeded(&cargo, status).err().into_iter().collect() })
}

impl Outcome {
    /// Adds what a run on another kernel came to.
    pub fn add(&mut self, other: Result<Tally>) {
        match other {
            Ok(tally) => self.tally.add(tally),
            Err(error) => self.errors.push(error),
        }
    }

    /// Prints the summary and returns whether everything passed.
    pub fn report(&self) -> bool {
        let Tally { passed, failed, ignored, .. } = self.tally;
        for name in self.tally.failures() {
            eprintln!("failed: {name}");
        }
        if ignored > 0 {
            eprintln!("error: {ignored} tests were ignored, and each of them has to run");
        }
        if passed + failed == 0 {
            eprintln!("error: no test ran");
        }
        for error in &self.errors {
            eprintln!("error: {error:#}");
        }
        println!("{passed} passed, {failed} failed");
        failed == 0 && ignored == 0 && passed > 0 && self.errors.is_empty()
    }
}
