//! Samples of contenders, and the figures that are made of them.

use std::fmt;

use anyhow::{Context as _, Result};
use samport_tests::speed::{Figure, Report, Spread};

use super::contenders::Contender;
use super::outcome::Outcome;
use crate::interrupt;
use crate::machine::TICKS_PER_SECOND;

/// A backend may have this much more or less than its share, as a part of it. Chance alone stays
/// within a tenth of that.
const UNEVEN: f64 = 0.2;
/// More than this share of the CPUs' time used by others makes figures noisy.
const BUSY: f64 = 0.1;

/// One contender's measurement in one round.
pub struct Sample {
    pub outcome: Outcome,
    /// CPU time of client, servers and all between them, in 1/100 s.
    pub cpu_ticks: u64,
    /// How often anybody waited for an answer in vain.
    pub timeouts: u64,
    /// Share of the CPUs' time that others used just before.
    pub busy_before: f64,
}

impl Sample {
    /// CPU time on both sides and in between, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        let ticks = u32::try_from(self.cpu_ticks).unwrap_or(u32::MAX);
        f64::from(ticks) / TICKS_PER_SECOND * 1e6
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.outcome)?;
        if self.busy_before > BUSY {
            write!(f, ", others use {:.0} % of the CPUs", self.busy_before * 100.0)?;
        }
        Ok(())
    }
}

/// What is read from a sample.
pub type Value<'a> = &'a dyn Fn(&Sample) -> f64;

/// The samples of several contenders, in the order of the first round; each one's are in the order of rounds.
#[derive(Default)]
pub struct Samples(Vec<(Contender, Vec<Sample>)>);

impl Samples {
    /// Measures every contender once in each round. Who fails is named in the report and no longer measured; without
    /// samport itself there is nothing to compare.
    pub fn take(
        what: &str,
        contenders: &[Contender],
        rounds: u32,
        report: &mut Report,
        mut measure: impl FnMut(Contender) -> Result<Sample>,
    ) -> Result<Self> {
        let mut all: Vec<_> = contenders.iter().map(|contender| (*contender, vec![])).collect();
        for round in 0..rounds {
            // The first of a round may find the machine in another state than the last: take turns.
            let first = round as usize % all.len().max(1);
            let turns: Vec<Contender> =
                all[first..].iter().chain(&all[..first]).map(|(contender, _)| *contender).collect();
            for contender in turns {
                interrupt::go_on()?;
                let name = contender.name();
                match measure(contender) {
                    Ok(sample) => {
                        eprintln!("{what}, round {} of {rounds}: {name:<14} {sample}", round + 1);
                        let place = all.iter_mut().find(|(known, _)| *known == contender);
                        place.context("a contender was lost")?.1.push(sample);
                    }
                    Err(error) if contender != Contender::Samport => {
                        // A signal from a terminal goes to its processes, too.
                        interrupt::go_on()?;
                        report.skip(format!("{name}, {what}: {error:#}"));
                        all.retain(|(known, _)| *known != contender);
                    }
                    Err(error) => return Err(error).with_context(|| format!("measure {name}")),
                }
            }
        }
        Ok(Self(all))
    }

    /// Fills a figure with a value of each sample, and what is shown beside it with medians.
    pub fn fill(
        &self,
        mut figure: Figure,
        value: Value<'_>,
        beside: &[(&str, Value<'_>)],
    ) -> Figure {
        for (contender, samples) in &self.0 {
            let series = figure.series(contender.name());
            series.samples = samples.iter().map(value).collect();
            let medians = beside.iter().filter_map(|(name, value)| {
                Some(((*name).to_owned(), Spread::of(samples.iter().map(value))?.median))
            });
            series.beside = medians.collect();
            series.doubts = doubts(*contender, samples);
        }
        figure
    }

    /// Says in the report how often others used the machine.
    pub fn note_noise(&self, what: &str, report: &mut Report) {
        let samples = self.0.iter().flat_map(|(_, samples)| samples);
        let busy: Vec<bool> = samples.map(|sample| sample.busy_before > BUSY).collect();
        let (all, busy) = (busy.len(), busy.iter().filter(|busy| **busy).count());
        if busy > 0 {
            report.note(format!(
                "noisy: others used the CPUs before {busy} of {all} measurements of {what}"
            ));
        }
    }
}

/// What makes a contender's figure one that should not be used.
fn doubts(contender: Contender, samples: &[Sample]) -> Vec<String> {
    let mut doubts = Vec::new();
    let failures: u32 = samples.iter().map(|sample| sample.outcome.failures).sum();
    if let Some(why) = samples.iter().find_map(|sample| sample.outcome.first_failure.as_ref()) {
        doubts.push(format!("{failures} failures, the first: {why}"));
    }
    let timeouts: u64 = samples.iter().map(|sample| sample.timeouts).sum();
    if timeouts > 0 {
        doubts.push(format!("{timeouts} timeouts"));
    }
    let shares = shares(samples);
    let fair = 1.0 / f64::from(u32::try_from(shares.len()).unwrap_or(1));
    let is_shared = contender.balances() && shares.len() > 1;
    if is_shared && shares.iter().any(|share| (share / fair - 1.0).abs() > UNEVEN) {
        let shares: Vec<String> =
            shares.iter().map(|share| format!("{:.1} %", share * 100.0)).collect();
        doubts.push(format!("not balanced: {}", shares.join(", ")));
    }
    doubts
}

/// Each backend's share of all answers.
fn shares(samples: &[Sample]) -> Vec<f64> {
    let all: u32 = samples.iter().map(|sample| sample.outcome.answered()).sum();
    let backends = samples.first().map_or(0, |sample| sample.outcome.answers.len());
    let of = |index: usize| samples.iter().map(|sample| sample.outcome.answers[index]).sum::<u32>();
    (0..backends).map(|index| f64::from(of(index)) / f64::from(all.max(1))).collect()
}
