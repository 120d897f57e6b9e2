//! When a backend that takes no new flows has had its time: then its flows are refused. Pure; the time
//! now is a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::control::handle::BackendRef;
use crate::model::Candidate;
use crate::plan::{BackendKey, Desired, Share};

/// How often it is looked whether a draining backend has flows left.
pub const LOOK: Duration = Duration::from_millis(250);

/// The backends that drain, and those that have.
#[derive(Default, Debug)]
pub struct Drains {
    draining: BTreeMap<BackendRef, Phase>,
    down: BTreeMap<BackendRef, Share>,
}

/// When a backend that takes no new flows is taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// When it has no flow left. For how long it may have some is its provider's business.
    Empty,
    /// When it has none left, or after this time.
    EmptyOrAfter(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Phase {
    /// Since when it takes no new flows.
    since: Instant,
    ending: Ending,
    /// It takes new flows all the same: it is the last of its service.
    is_last: bool,
}

impl Drains {
    /// Takes the backends that have had their time out of what is desired.
    ///
    /// `ending` says when that is, and `open` how many flows a backend has, if that is known. Returns those
    /// that had been taken out and are gone now.
    pub fn settle(
        &mut self,
        desired: &mut Desired,
        candidates: &[Candidate],
        ending: impl Fn(&Candidate, &Share) -> Ending,
        mut open: impl FnMut(&BackendKey) -> Option<u64>,
        now: Instant,
    ) -> BTreeMap<BackendRef, Share> {
        let offered: BTreeMap<BackendRef, &Candidate> =
            candidates.iter().map(|candidate| (BackendRef::from(candidate), candidate)).collect();
        let gone = self.forget(desired, &offered);
        desired.backends.retain(|key, _| !self.down.contains_key(&BackendRef::from(key)));
        let active = desired.backends.iter().filter(|(_, share)| !share.drains());
        let served: BTreeSet<_> = active.map(|(key, _)| key.service()).collect();
        let before = std::mem::take(&mut self.draining);
        desired.backends.retain(|key, share| {
            if !share.leaves() {
                return true;
            }
            let backend_ref = BackendRef::from(key);
            let before = before.get(&backend_ref).filter(|phase| !phase.is_last);
            let candidate = offered.get(&backend_ref);
            let phase = Phase {
                since: before.map_or(now, |phase| phase.since),
                ending: candidate.map_or(Ending::Empty, |candidate| ending(candidate, share)),
                is_last: !served.contains(&key.service()),
            };
            if !phase.is_last && phase.is_over(now, || open(key)) {
                self.down.insert(backend_ref, share.clone());
                return false;
            }
            self.draining.insert(backend_ref, phase);
            true
        });
        gone
    }

    /// Who is down stays so until it is wanted again, or is gone; returns the latter.
    fn forget(
        &mut self,
        desired: &Desired,
        offered: &BTreeMap<BackendRef, &Candidate>,
    ) -> BTreeMap<BackendRef, Share> {
        let wanted = desired.backends.iter().filter(|(_, share)| !share.leaves());
        let wanted: BTreeSet<_> = wanted.map(|(key, _)| BackendRef::from(key)).collect();
        self.down.retain(|backend_ref, _| !wanted.contains(backend_ref));
        let (still, gone) = std::mem::take(&mut self.down)
            .into_iter()
            .partition(|(backend_ref, _)| offered.contains_key(backend_ref));
        self.down = still;
        gone
    }

    /// Backends that have had their time, and are still there.
    #[must_use]
    pub const fn down(&self) -> &BTreeMap<BackendRef, Share> {
        &self.down
    }

    /// Whether any backend is to be taken out some day.
    #[must_use]
    pub fn any(&self) -> bool {
        self.draining.values().any(|phase| !phase.is_last)
    }

    /// When a draining backend will have had its time, if that is known.
    #[must_use]
    pub fn until(&self, backend_ref: &BackendRef) -> Option<Instant> {
        self.draining.get(backend_ref).filter(|phase| !phase.is_last)?.until()
    }
}

impl Phase {
    fn until(&self) -> Option<Instant> {
        match self.ending {
            Ending::EmptyOrAfter(time) => self.since.checked_add(time),
            Ending::Empty => None,
        }
    }

    /// Flows are looked at only after a while: a packet may be on its way that has chosen before.
    fn is_over(&self, now: Instant, open: impl FnOnce() -> Option<u64>) -> bool {
        let is_late = self.until().is_some_and(|until| until <= now);
        is_late || (now.duration_since(self.since) >= LOOK && open() == Some(0))
    }
}

#[cfg(test)]
mod tests;
