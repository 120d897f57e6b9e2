//! `cargo xtask ci`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::setup::{self, Level};
use crate::{lint, test, vm};

/// The oldest kernel that every change is tested on, of Debian 12.
const OLD_KERNEL: &str = "6.1";

/// Everything a change has to pass: setup, lint, all tests, and some on Linux 6.1; each timed
#[derive(clap::Args)]
pub struct Args {}

pub fn verb(_: &Args) -> Result<ExitCode> {
    let mut times = Vec::new();
    let bpf = timed("setup", &mut times, || {
        let bpf = setup::ensure(Level::Test)?;
        setup::ensure_lint_tools(&bpf)?;
        Ok(bpf)
    })?;
    let lint_failures = timed("lint", &mut times, || lint::run(&bpf))?;
    // The tests run also after a lint: one run then tells everything there is to repair.
    let mut tests = timed("test", &mut times, || test::run(&[]))?;
    tests.add(timed("kernel", &mut times, || vm::run(OLD_KERNEL, &[])));

    for failure in &lint_failures {
        eprintln!("error: {failure:#}");
    }
    for (stage, time) in &times {
        eprintln!("{stage:<6} {:>6.1} s", time.as_secs_f64());
    }
    let tests_pass = tests.report();
    let pass = tests_pass && lint_failures.is_empty();
    Ok(if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn timed<T>(
    stage: &'static str,
    times: &mut Vec<(&'static str, Duration)>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    eprintln!("== {stage}");
    let start = Instant::now();
    let result = work();
    times.push((stage, start.elapsed()));
    result
}
