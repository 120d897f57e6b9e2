//! From samples to one table, and to a file of raw figures.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use crate::Args;
use crate::client::Outcome;
use crate::contenders::Contender;
use crate::machine::{Machine, TICKS_PER_SECOND};

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

/// All samples of a run.
pub struct Report {
    machine: Machine,
    skipped: Vec<String>,
    backends: u8,
    at_once: u8,
    seconds: f64,
    /// In the order of the first round; a contender's samples are in the order of rounds.
    rows: Vec<(Contender, Vec<Sample>)>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { failures, first_failure, time, .. } = &self.outcome;
        let (rate, answered) = (self.outcome.rate(), self.outcome.answered());
        write!(f, "{rate:>7.0}/s ({answered} in {:.2} s)", time.as_secs_f64())?;
        if self.busy_before > BUSY {
            write!(f, ", others use {:.0} % of the CPUs", self.busy_before * 100.0)?;
        }
        if let Some(why) = first_failure {
            write!(f, ", {failures} failed, the first: {why}")?;
        }
        Ok(())
    }
}

/// Median and extremes.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let (middle, last) = (values.len() / 2, values.len().saturating_sub(1));
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self { median, min: at(0), max: at(last) }
    }
}

impl Report {
    pub fn new(machine: Machine, skipped: Vec<String>, args: &Args) -> Self {
        let Args { backends, at_once, seconds, .. } = *args;
        Self { machine, skipped, backends, at_once, seconds, rows: Vec::new() }
    }

    pub fn add(&mut self, contender: Contender, sample: Sample) {
        match self.rows.iter_mut().find(|(known, _)| *known == contender) {
            Some((_, samples)) => samples.push(sample),
            None => self.rows.push((contender, vec![sample])),
        }
    }

    /// The one table, and below it what makes its figures doubtful.
    pub fn table(&self) -> String {
        let Machine { kernel, cpu, cpus, commit, .. } = &self.machine;
        let rounds = self.rows.first().map_or(0, |(_, samples)| samples.len());
        let mut text = format!(
            "New HTTP connections, {} at a time, {} backends, medians of {rounds} rounds of {} s (min – max)\n\
             Linux {kernel}, {cpus} CPUs ({cpu}), commit {commit}\n\n{:14}{:>8} {:19}{:>10} {:15}{:>8}\n",
            self.at_once, self.backends, self.seconds, "", "conn/s", "", "samport ×", "", "CPU µs"
        );
        for (contender, samples) in &self.rows {
            text += self.row(*contender, samples).trim_end();
            text.push('\n');
        }
        for skipped in &self.skipped {
            let _ = writeln!(text, "skipped {skipped}");
        }
        let samples = self.rows.iter().flat_map(|(_, samples)| samples);
        let busy: Vec<bool> = samples.map(|sample| sample.busy_before > BUSY).collect();
        let (all, busy) = (busy.len(), busy.iter().filter(|busy| **busy).count());
        if busy > 0 {
            let _ =
                writeln!(text, "noisy: others used the CPUs before {busy} of {all} measurements");
        }
        text
    }

    fn row(&self, contender: Contender, samples: &[Sample]) -> String {
        let rate = Spread::of(samples.iter().map(|sample| sample.outcome.rate()));
        let range = format!("({:.0} – {:.0})", rate.min, rate.max);
        let mut text = format!("{:14}{:>8.0} {range:19}", contender.name(), rate.median);
        match self.ratios(contender) {
            Some(ratio) => {
                let range = format!("({:.2} – {:.2})", ratio.min, ratio.max);
                let _ = write!(text, "{:>10.2} {range:15}", ratio.median);
            }
            None => text += &" ".repeat(26),
        }
        let cpu = Spread::of(samples.iter().map(Sample::cpu_us));
        let _ = write!(text, "{:>8.1}", cpu.median);
        match self.doubts(contender, samples) {
            doubts if doubts.is_empty() => text,
            doubts => text + "  ! " + &doubts,
        }
    }

    /// samport's figure by the contender's, round by round: both of a round saw the same machine.
    fn ratios(&self, contender: Contender) -> Option<Spread> {
        let samples = |of: Contender| self.rows.iter().find(|(who, _)| *who == of);
        let (own, others) = (samples(Contender::Samport)?, samples(contender)?);
        let pairs = own.1.iter().zip(&others.1);
        (contender != Contender::Samport).then(|| {
            Spread::of(pairs.map(|(own, other)| own.outcome.rate() / other.outcome.rate()))
        })
    }

    /// What makes a contender's figure one that should not be used.
    fn doubts(&self, contender: Contender, samples: &[Sample]) -> String {
        let mut doubts = Vec::new();
        let failures: u32 = samples.iter().map(|sample| sample.outcome.failures).sum();
        if failures > 0 {
            doubts.push(format!("{failures} failures"));
        }
        let timeouts: u64 = samples.iter().map(|sample| sample.timeouts).sum();
        if timeouts > 0 {
            doubts.push(format!("{timeouts} timeouts"));
        }
        let shares = shares(usize::from(self.backends), samples);
        let fair = 1.0 / f64::from(self.backends);
        if contender.balances() && shares.iter().any(|share| (share / fair - 1.0).abs() > UNEVEN) {
            let shares: Vec<String> =
                shares.iter().map(|share| format!("{:.1} %", share * 100.0)).collect();
            doubts.push(format!("not balanced: {}", shares.join(", ")));
        }
        doubts.join(", ")
    }

    /// All there is to know of a run.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(contender, samples)| {
                let rate = Spread::of(samples.iter().map(|sample| sample.outcome.rate()));
                let cpu = Spread::of(samples.iter().map(Sample::cpu_us));
                let ratio = self.ratios(*contender);
                json!({
                    "name": contender.name(),
                    "per_second": rate.json(),
                    "cpu_us": cpu.json(),
                    "samport_by_it": ratio.map(|ratio| ratio.json()),
                    "doubts": self.doubts(*contender, samples),
                    "rounds": samples.iter().map(Sample::json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "figure": "new HTTP connections a second", "machine": self.machine.json(),
            "backends": self.backends, "at_once": self.at_once, "seconds": self.seconds, "skipped": self.skipped,
            "contenders": rows,
        })
    }
}

impl Spread {
    fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl Sample {
    /// CPU time that a connection took on both sides and in between, in microseconds: steadier than
    /// connections a second when others use the machine too.
    fn cpu_us(&self) -> f64 {
        let tries = self.outcome.answered() + self.outcome.failures;
        let ticks = u32::try_from(self.cpu_ticks).unwrap_or(u32::MAX);
        f64::from(ticks) / TICKS_PER_SECOND * 1e6 / f64::from(tries)
    }

    fn json(&self) -> Value {
        let Outcome { answers, failures, first_failure, time } = &self.outcome;
        json!({
            "per_second": self.outcome.rate(), "seconds": time.as_secs_f64(), "answers": answers,
            "cpu_us": self.cpu_us(), "failures": failures, "first_failure": first_failure,
            "timeouts": self.timeouts, "busy_before": self.busy_before,
        })
    }
}

/// Each backend's share of all answers.
fn shares(backends: usize, samples: &[Sample]) -> Vec<f64> {
    let all: u32 = samples.iter().map(|sample| sample.outcome.answered()).sum();
    let of = |index: usize| samples.iter().map(|sample| sample.outcome.answers[index]).sum::<u32>();
    (0..backends).map(|index| f64::from(of(index)) / f64::from(all.max(1))).collect()
}
