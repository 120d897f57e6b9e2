//! When a backend that takes no new flows has had its time: then its flows are refused. Pure; the time
//! now is a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Candidate;
use crate::plan::{BackendKey, Desired, Share};
use crate::seat::Seat;

/// How often it is looked whether a draining backend has flows left.
pub const LOOK: Duration = Duration::from_millis(250);

/// The backends that drain, and those that have.
#[derive(Default, Debug)]
pub struct Drains {
    draining: BTreeMap<Seat, Phase>,
    down: BTreeMap<Seat, Share>,
}

#[derive(Clone, Copy, Debug)]
struct Phase {
    /// Since when it takes no new flows.
    since: Instant,
    /// When it has had its time, if its provider does not see to that.
    until: Option<Instant>,
    /// It takes new flows all the same: nobody else of its service is there.
    is_last: bool,
}

impl Drains {
    /// Takes the backends that have had their time out of what is desired.
    ///
    /// `time` says how long a candidate may drain, if that is not its provider's business, and `open` how
    /// many flows a backend has, if that is known. Returns those that had had theirs and are gone now.
    pub fn settle(
        &mut self,
        desired: &mut Desired,
        candidates: &[Candidate],
        time: impl Fn(&Candidate, &Share) -> Option<Duration>,
        open: impl Fn(&BackendKey) -> Option<u64>,
        now: Instant,
    ) -> BTreeMap<Seat, Share> {
        let offered: BTreeMap<Seat, &Candidate> =
            candidates.iter().map(|candidate| (Seat::from(candidate), candidate)).collect();
        let gone = self.forget(desired, &offered);
        desired.backends.retain(|key, _| !self.down.contains_key(&Seat::from(key)));
        let active = desired.backends.iter().filter(|(_, share)| !share.drains());
        let served: BTreeSet<_> = active.map(|(key, _)| key.service()).collect();
        let before = std::mem::take(&mut self.draining);
        desired.backends.retain(|key, share| {
            if !share.leaves() {
                return true;
            }
            let seat = Seat::from(key);
            let phase = before.get(&seat).filter(|phase| !phase.is_last).copied();
            let mut phase = phase.unwrap_or(Phase { since: now, until: None, is_last: false });
            phase.is_last = !served.contains(&key.service());
            let limit = offered.get(&seat).and_then(|candidate| time(candidate, share));
            phase.until = limit.and_then(|limit| phase.since.checked_add(limit));
            if !phase.is_last && phase.is_over(now, || open(key)) {
                self.down.insert(seat, share.clone());
                return false;
            }
            self.draining.insert(seat, phase);
            true
        });
        gone
    }

    /// Who is down stays so until it is wanted again, or is gone; returns the latter.
    fn forget(
        &mut self,
        desired: &Desired,
        offered: &BTreeMap<Seat, &Candidate>,
    ) -> BTreeMap<Seat, Share> {
        let wanted = desired.backends.iter().filter(|(_, share)| !share.leaves());
        let wanted: BTreeSet<_> = wanted.map(|(key, _)| Seat::from(key)).collect();
        self.down.retain(|seat, _| !wanted.contains(seat));
        let (still, gone) = std::mem::take(&mut self.down)
            .into_iter()
            .partition(|(seat, _)| offered.contains_key(seat));
        self.down = still;
        gone
    }

    /// Backends that have had their time, and are still there.
    #[must_use]
    pub const fn down(&self) -> &BTreeMap<Seat, Share> {
        &self.down
    }

    /// Whether any backend drains and will have had its time some day.
    #[must_use]
    pub fn any(&self) -> bool {
        self.draining.values().any(|phase| !phase.is_last)
    }

    /// When a draining backend will have had its time, if that is known.
    #[must_use]
    pub fn until(&self, seat: &Seat) -> Option<Instant> {
        self.draining.get(seat).filter(|phase| !phase.is_last)?.until
    }

    /// Whether a backend should take no new flows and does, because nobody else is there.
    #[must_use]
    pub fn is_last(&self, seat: &Seat) -> bool {
        self.draining.get(seat).is_some_and(|phase| phase.is_last)
    }
}

impl Phase {
    /// Flows are looked at only after a while: a packet may be on its way that has chosen before.
    fn is_over(&self, now: Instant, open: impl Fn() -> Option<u64>) -> bool {
        let is_late = self.until.is_some_and(|until| until <= now);
        is_late || (now.duration_since(self.since) >= LOOK && open() == Some(0))
    }
}

#[cfg(test)]
mod tests;
