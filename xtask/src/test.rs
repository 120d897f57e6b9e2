//! `cargo xtask test`.

mod tally;

use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, Result};

pub use self::tally::Tally;
use self::tally::{AGAIN, AGAIN_OVER};
use crate::setup::{self, Level};
use crate::vm::{self, Which};
use crate::{build, released, sh};

/// Run all tests, or those whose name contains a FILTER, as root
///
/// A test that is ignored or lacks what it needs counts as a failure: a run that passes has tested
/// everything. If at most three fail, they run once more by themselves, one after the other: who passes then is named as
/// flaky, and is a fault to be found, but no failure. The last line is always `N passed, M failed`.
#[derive(clap::Args)]
pub struct Args {
    /// Part of a test's name; after `--`, also options of the test programs, such as --nocapture
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Run those of a selection, or those that FILTER names, on this kernel instead, in a machine of
    /// QEMU's (docs/reference/kernels.md says which there are)
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,
    /// Only those of the selection that every change has to pass: a few minutes
    #[arg(long, requires = "kernel", conflicts_with = "filters")]
    quick: bool,
    /// Only these test programs of tests/tests, such as containers or ops
    #[arg(long = "program", value_name = "NAME", conflicts_with = "kernel")]
    programs: Vec<String>,
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

impl Args {
    /// What runs on another kernel.
    fn which(&self) -> Which<'_> {
        match &self.filters[..] {
            [] if self.quick => Which::Quick,
            [] => Which::Chosen,
            filters => Which::Named(filters),
        }
    }
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    let level = if args.kernel.is_some() { Level::Kernel } else { Level::Test };
    setup::ensure(level)?;
    let outcome = match &args.kernel {
        Some(release) => vm::run(release, args.which())?.into(),
        None => run(&args.programs, &args.filters)?,
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

/// This many failures may be chance; more are not.
const FLAKY_AT_MOST: usize = 3;

/// Builds everything and runs the tests, their output passing through as it comes.
fn run(programs: &[String], filters: &[String]) -> Result<Outcome> {
    let released =
        if released::is_needed(programs, filters) { released::programs()? } else { Vec::new() };
    let tests = || -> Result<Command> {
        let mut cargo = cargo_test();
        for program in programs {
            cargo.args(["--test", program]);
        }
        cargo.args(["--no-fail-fast", "--"]).envs(released.iter().cloned());
        // A snapshot that differs or is missing fails; nothing is written into the sources.
        cargo.env("INSTA_UPDATE", "no");
        cargo.env("SAMPORT_REQUIRE_ROOT", "1").env("SAMPORT_BIN", build::binary(false)?);
        sh::run_tests_as_root(&mut cargo)?;
        Ok(cargo)
    };

    // The workspace's default members: all but the BPF crate, which samport's build script builds.
    sh::run(sh::cargo().args(["build", "--bins"]))?;

    let mut tally = Tally::default();
    let mut once = tests()?;
    let status = run_counted(once.args(filters), &mut tally)?;
    let failures: Vec<String> = tally.failures().map(str::to_owned).collect();
    let has_options = filters.iter().any(|filter| filter.starts_with('-'));
    if (1..=FLAKY_AT_MOST).contains(&failures.len()) && !has_options {
        tally.say(AGAIN);
        let mut again = tests()?;
        let arguments = again.args(["--exact", "--test-threads=1"]).args(&failures);
        run_counted(arguments, &mut tally)?;
        tally.say(AGAIN_OVER);
        if tally.failed == 0 {
            return Ok(tally.into());
        }
    }
    Ok(Outcome { tally, errors: sh::succeeded(&once, status).err().into_iter().collect() })
}

/// Runs `cargo test` and adds up what it prints.
fn run_counted(cargo: &mut Command, tally: &mut Tally) -> Result<ExitStatus> {
    sh::echo(cargo);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo has no standard output")?;
    tally.pass_through(output, |_| {})?;
    child.wait().context("wait for cargo")
}

impl Outcome {
    /// Prints the summary and returns whether everything passed.
    pub fn report(&self) -> bool {
        let Tally { passed, failed, ignored, .. } = self.tally;
        for name in self.tally.flaky() {
            eprintln!("flaky, to be found out: {name}");
        }
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
