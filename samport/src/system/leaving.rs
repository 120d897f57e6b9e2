//! Candidates that are offered no longer, because somebody has changed what is wanted: they keep their
//! connections for the time to drain.

use std::collections::BTreeSet;

use tokio::time::{Instant, sleep_until};

use crate::model::{Candidate, Condition};
use crate::system::snapshots::sort;

/// Those that are leaving, and until when they are offered as draining.
#[derive(Default)]
pub(crate) struct Leaving(Vec<(Candidate, Instant)>);

impl Leaving {
    /// Takes all of `old` that are not in `new` any more; who is back leaves no longer.
    pub(crate) fn replace(&mut self, old: Vec<Candidate>, new: &[Candidate], until: Instant) {
        let leave = |candidate| (Candidate { condition: Condition::Draining, ..candidate }, until);
        self.0.extend(old.into_iter().map(leave));
        let staying: BTreeSet<_> = new.iter().map(|new| (new.listen, new.endpoint)).collect();
        self.0.retain(|(old, _)| !staying.contains(&(old.listen, old.endpoint)));
    }

    /// Forgets those whose time is over.
    pub(crate) fn pass(&mut self, now: Instant) {
        self.0.retain(|(_, until)| *until > now);
    }

    /// Forgets all but these.
    pub(crate) fn keep_only(&mut self, mut wanted: impl FnMut(&Candidate) -> bool) {
        self.0.retain(|(candidate, _)| wanted(candidate));
    }

    /// What is offered: those that stay, and those that leave.
    pub(crate) fn and(&self, staying: &[Candidate]) -> Vec<Candidate> {
        let leaving = self.0.iter().map(|(candidate, _)| candidate);
        let mut candidates: Vec<_> = staying.iter().chain(leaving).cloned().collect();
        sort(&mut candidates);
        candidates
    }

    /// Waits until the time of one is over; for ever, if none is leaving.
    pub(crate) async fn next(&self) {
        match self.0.iter().map(|(_, until)| *until).min() {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}
