//! One program against one that does nothing, round by round.

use anyhow::Result;
use samport::dataplane::program_run::harness::{Harness, Measured, Traffic};
use samport_tests::speed::{Better, Figure};

use crate::interrupt;

/// Runs of a measurement: long enough for the kernel's clock, short enough for many rounds.
pub const RUNS: u32 = 300_000;

/// What is measured, and where its figure goes.
pub struct Case<'a> {
    /// The figure's id.
    pub figure: &'static str,
    /// The line above its table.
    pub title: &'static str,
    /// The series.
    pub series: String,
    /// The program.
    pub program: Measured<'a>,
    /// What is subtracted.
    pub nothing: Measured<'a>,
    /// On what packets.
    pub traffic: Traffic<'a>,
}

impl<'a> Case<'a> {
    /// A program at tc, against the one that does nothing.
    pub fn tc(
        figure: &'static str,
        title: &'static str,
        series: &str,
        program: Measured<'a>,
        traffic: Traffic<'a>,
    ) -> Self {
        let nothing = match program {
            Measured::Xdp(_) | Measured::EmptyXdp => Measured::EmptyXdp,
            Measured::Own(_) | Measured::Tc(_) => Measured::Own("empty"),
        };
        Self { figure, title, series: series.to_owned(), program, nothing, traffic }
    }
}

/// Measures all cases in turn, that many times, and gives their figures in the order of their first cases.
pub fn measure(harness: &mut Harness, cases: &[Case<'_>], rounds: u32) -> Result<Vec<Figure>> {
    let mut figures: Vec<Figure> = Vec::new();
    for _ in 0..rounds {
        for case in cases {
            interrupt::go_on()?;
            let nothing = harness.time(case.nothing, &case.traffic, RUNS)?;
            let whole = harness.time(case.program, &case.traffic, RUNS)?;
            let known = figures.iter().position(|figure| figure.id == case.figure);
            let index = known.unwrap_or_else(|| {
                let figure = Figure::new(case.figure, case.title, "ns", Better::Less);
                let has_sizes = case.figure.starts_with("kernel.backends");
                figures.push(if has_sizes { figure } else { figure.of_different_things() });
                figures.len() - 1
            });
            // Whole nanoseconds: the kernel gives no more, and a difference may be below nothing.
            let net = whole.as_secs_f64() - nothing.as_secs_f64();
            figures[index].series(&case.series).samples.push(net * 1e9);
        }
    }
    Ok(figures)
}
