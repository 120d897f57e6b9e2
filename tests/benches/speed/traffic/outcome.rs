//! What came of a load.

use std::fmt;
use std::time::Duration;

/// What came of a load.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Answers of each backend.
    pub answers: Vec<u32>,
    /// How long each answer took, in nanoseconds.
    waits: Vec<u32>,
    /// Bytes that arrived, if that is what was counted.
    pub bytes: u64,
    /// Connections without a right answer.
    pub failures: u32,
    /// Why the first of them failed.
    pub first_failure: Option<String>,
    /// From the first connection's start to the last one's end.
    pub time: Duration,
}

impl Outcome {
    /// Of nothing yet.
    pub fn none(backends: usize) -> Self {
        Self {
            answers: vec![0; backends],
            waits: Vec::new(),
            bytes: 0,
            failures: 0,
            first_failure: None,
            time: Duration::ZERO,
        }
    }

    /// Counts an answer.
    pub fn count(&mut self, backend: usize, wait: Duration) {
        self.answers[backend] += 1;
        self.waits.push(u32::try_from(wait.as_nanos()).unwrap_or(u32::MAX));
    }

    /// Counts a failure.
    pub fn fail(&mut self, why: String) {
        self.failures += 1;
        self.first_failure.get_or_insert(why);
    }

    /// Answers of all backends.
    pub fn answered(&self) -> u32 {
        self.answers.iter().sum()
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.answered()) / self.time.as_secs_f64()
    }

    /// Microseconds that a part of the answers came within: 0.99 is all but one of a hundred.
    pub fn wait_us(&self, part: f64) -> f64 {
        let mut waits = self.waits.clone();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a list of less than a few million, by a part between 0 and 1"
        )]
        let index = (waits.len().saturating_sub(1) as f64 * part).round() as usize;
        if waits.is_empty() {
            return f64::NAN;
        }
        let (_, wait, _) = waits.select_nth_unstable(index);
        f64::from(*wait) / 1000.0
    }

    #[expect(clippy::cast_precision_loss, reason = "less than 2^52 bytes")]
    pub fn mebibytes(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20)
    }

    pub fn gbit_a_second(&self) -> f64 {
        self.mebibytes() * f64::from(8 << 20) / 1e9 / self.time.as_secs_f64()
    }

    /// Adds what came of another thread's part of the load.
    pub fn merge(&mut self, other: Self) {
        for (sum, count) in self.answers.iter_mut().zip(other.answers) {
            *sum += count;
        }
        self.waits.extend(other.waits);
        self.bytes += other.bytes;
        self.failures += other.failures;
        if self.first_failure.is_none() {
            self.first_failure = other.first_failure;
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        if self.bytes > 0 {
            write!(f, "{:>6.2} Gbit/s", self.gbit_a_second())?;
        } else {
            write!(f, "{:>7.0}/s ({} in {seconds:.2} s)", self.rate(), self.answered())?;
        }
        if let Some(why) = &self.first_failure {
            write!(f, ", {} failed, the first: {why}", self.failures)?;
        }
        Ok(())
    }
}
