//! From the outcomes of checks to a backend's health: pure.

use std::time::Duration;

use crate::model::check::Rhythm;

/// Between two checks of a backend that starts: at first nothing a person would notice, then nothing a
/// server would.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// How much an interval may be shorter or longer: many backends that came together are not always asked
/// together.
const JITTER: f64 = 0.1;

/// What the checks so far say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Has never been healthy.
    Starting,
    Healthy,
    /// Was healthy before.
    Unhealthy,
}

/// The phase, and how close the next one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Progress {
    phase: Phase,
    /// Outcomes in a row that speak for another phase.
    against: u32,
}

impl Progress {
    /// A phase of which nothing speaks against.
    pub(super) const fn at(phase: Phase) -> Self {
        Self { phase, against: 0 }
    }

    pub(super) const fn phase(self) -> Phase {
        self.phase
    }

    /// Takes in an outcome; says whether the phase is another one now.
    pub(super) const fn take(&mut self, passed: bool, rhythm: &Rhythm) -> bool {
        let (other, enough) = match self.phase {
            Phase::Starting | Phase::Unhealthy => (Phase::Healthy, rhythm.rise),
            Phase::Healthy => (Phase::Unhealthy, rhythm.fall),
        };
        if passed != matches!(other, Phase::Healthy) {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let changes = self.against >= enough;
        if changes {
            *self = Self::at(other);
        }
        changes
    }
}

/// When the next check is due.
#[derive(Debug)]
pub(super) struct CheckInterval {
    starting: Duration,
    /// Whether somebody has a reason to think that it fails.
    alarmed: bool,
}

impl CheckInterval {
    pub(super) const fn new() -> Self {
        Self { starting: FIRST_PAUSE, alarmed: false }
    }

    /// From now on failures are looked into quickly, until a check passes or the phase changes.
    pub(super) const fn alarm(&mut self) {
        self.alarmed = true;
    }

    /// The time until the next check; `random` is from 0 to 1.
    pub(super) fn pause(&mut self, progress: Progress, rhythm: &Rhythm, random: f64) -> Duration {
        let in_doubt = progress.phase == Phase::Healthy && progress.against > 0;
        self.alarmed &= in_doubt;
        if progress.phase == Phase::Starting {
            let pause = self.starting;
            self.starting = (pause * 3 / 2).min(LONGEST_PAUSE);
            return pause.min(rhythm.interval);
        }
        if self.alarmed {
            return LONGEST_PAUSE.min(rhythm.interval);
        }
        rhythm.interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * random)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn rhythm(rise: u32, fall: u32) -> Rhythm {
        Rhythm { rise, fall, ..Rhythm::default() }
    }

    /// The phases after each outcome: `+` passed, `-` failed.
    fn phases(outcomes: &str, rhythm: &Rhythm) -> String {
        let mut progress = Progress::at(Phase::Starting);
        let mut letter = |outcome| {
            progress.take(outcome == '+', rhythm);
            match progress.phase() {
                Phase::Starting => 'S',
                Phase::Healthy => 'H',
                Phase::Unhealthy => 'U',
            }
        };
        outcomes.chars().map(&mut letter).collect()
    }

    #[test]
    fn rise_and_fall_count_outcomes_in_a_row() {
        for (rise, fall, outcomes, expected) in [
            (1, 3, "+---+", "HHHUH"),
            (1, 3, "+--+--+---", "HHHHHHHHHU"),
            (1, 1, "-+-+-", "SHUHU"),
            (3, 1, "++-+++-++-+++", "SSSSSHUUUUUUH"),
            // It has never been healthy: it goes on starting, however often it fails.
            (2, 2, "-----+-++--++", "SSSSSSSSHHUUH"),
        ] {
            assert_eq!(phases(outcomes, &rhythm(rise, fall)), expected, "{rise} {fall}");
        }
    }

    proptest! {
        /// A phase begins exactly when the last `rise` or `fall` outcomes agree on it, whatever was before.
        #[test]
        fn a_phase_follows_from_the_last_outcomes(
            outcomes in vec(any::<bool>(), 1..200),
            rise in 1u32..6,
            fall in 1u32..6,
        ) {
            let rhythm = rhythm(rise, fall);
            let mut progress = Progress::at(Phase::Starting);
            let mut was_healthy = false;
            for end in 1..=outcomes.len() {
                let before = progress.phase();
                let changed = progress.take(outcomes[end - 1], &rhythm);
                let last = |count: u32, passed: bool| {
                    let tail = outcomes[..end].iter().rev().take(count as usize);
                    tail.clone().count() == count as usize && tail.copied().all(|one| one == passed)
                };
                let expected = match before {
                    Phase::Healthy if last(fall, false) => Phase::Unhealthy,
                    Phase::Starting | Phase::Unhealthy if last(rise, true) => Phase::Healthy,
                    other => other,
                };
                prop_assert_eq!(progress.phase(), expected);
                prop_assert_eq!(changed, before != expected);
                was_healthy |= expected == Phase::Healthy;
                prop_assert_eq!(expected == Phase::Starting, !was_healthy);
            }
        }

        #[test]
        fn after_the_start_checks_keep_to_the_interval(random in 0f64..=1.0, millis in 100u64..100_000) {
            let rhythm = Rhythm { interval: Duration::from_millis(millis), ..Rhythm::default() };
            for phase in [Phase::Healthy, Phase::Unhealthy] {
                let pause = CheckInterval::new().pause(Progress::at(phase), &rhythm, random);
                let tenth = rhythm.interval / 10 + Duration::from_micros(1);
                prop_assert!(pause.abs_diff(rhythm.interval) <= tenth, "{pause:?}");
            }
        }
    }

    #[test]
    fn one_that_starts_is_asked_quickly_and_then_less_so() {
        let (mut pace, rhythm) = (CheckInterval::new(), rhythm(1, 3));
        let pauses: Vec<_> =
            (0..20).map(|_| pace.pause(Progress::at(Phase::Starting), &rhythm, 0.5)).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses[19], LONGEST_PAUSE);
        let rhythm = Rhythm { interval: Duration::from_millis(100), ..rhythm };
        assert_eq!(pace.pause(Progress::at(Phase::Starting), &rhythm, 0.5), rhythm.interval);
    }

    #[test]
    fn a_suspicion_is_looked_into_quickly_until_it_is_settled() {
        let (mut pace, rhythm) = (CheckInterval::new(), rhythm(1, 3));
        let mut progress = Progress::at(Phase::Healthy);
        pace.alarm();
        for expected in [LONGEST_PAUSE, LONGEST_PAUSE, rhythm.interval] {
            progress.take(false, &rhythm);
            assert_eq!(pace.pause(progress, &rhythm, 0.5), expected, "{progress:?}");
        }
        assert_eq!(progress, Progress::at(Phase::Unhealthy));
        // Without a reason, or after one that a check has refuted, a failure changes no pace.
        progress.take(true, &rhythm);
        pace.alarm();
        assert_eq!(pace.pause(progress, &rhythm, 0.5), rhythm.interval);
        progress.take(false, &rhythm);
        assert_eq!(pace.pause(progress, &rhythm, 0.5), rhythm.interval);
    }
}
