//! Changes of the network that come faster than rounds can follow.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// After the first change of a burst.
const FIRST: Duration = Duration::from_millis(10);
/// Rounds that changes of the network begin take a fifth of the time at most, …
const APART: u32 = 4;
/// … unless one takes very long: what changes must not wait for ever.
const LONGEST: Duration = Duration::from_secs(2);

/// Says when the round is due that a burst of changes begins.
#[derive(Default, Debug)]
pub(super) struct Burst {
    /// When there will be one.
    due: Option<Instant>,
    /// Before which time there must not be one.
    not_before: Option<Instant>,
}

impl Burst {
    /// Whether a round is due already.
    pub(super) const fn has_begun(&self) -> bool {
        self.due.is_some()
    }

    /// Remembers the time of the first change.
    pub(super) fn begin(&mut self, now: Instant) {
        let soon = now + FIRST;
        self.due = Some(self.not_before.map_or(soon, |not_before| soon.max(not_before)));
    }

    /// Waits until the round is due; for ever, if no round is due.
    pub(super) async fn end(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// A round has just ended, whatever has begun it: it has seen all changes so far.
    pub(super) fn round(&mut self, now: Instant, took: Duration) {
        self.due = None;
        self.not_before = Some(now + (took * APART).min(LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_followed_soon_and_the_next_ones_as_rounds_take() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut burst = Burst::default();
        burst.begin(start);
        assert_eq!(burst.due, Some(at(10)));
        burst.round(at(60), Duration::from_millis(50));
        assert!(!burst.has_begun());
        burst.begin(at(61));
        assert_eq!(burst.due, Some(at(260)));
        burst.round(at(310), Duration::from_millis(50));
        // It was quiet meanwhile.
        burst.begin(at(900));
        assert_eq!(burst.due, Some(at(910)));
        burst.round(at(9_000), Duration::from_secs(8));
        burst.begin(at(9_001));
        assert_eq!(burst.due, Some(at(11_000)));
    }
}
