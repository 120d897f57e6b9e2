//! How often something may have been missed, so that everything was looked at again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::watch;

/// Where it may have been missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    /// The kernel had more to tell of links, addresses, routes and rules than there was room for.
    Netlink,
    /// The same for neighbours and forwarding tables.
    Neighbours,
    /// An engine had more to tell of containers, or its stream of events broke off.
    Engine,
    /// A file's watcher had more to tell of its folder, or has failed.
    File,
    /// The kernel's programs had more to tell of failing backends.
    KernelEvents,
    /// The process did not run for a while: it was stopped or frozen.
    Pause,
}

impl Gap {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Netlink,
        Self::Neighbours,
        Self::Engine,
        Self::File,
        Self::KernelEvents,
        Self::Pause,
    ];

    /// Its name in `status` and the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Netlink => "netlink",
            Self::Neighbours => "neighbours",
            Self::Engine => "engine",
            Self::File => "file",
            Self::KernelEvents => "kernel-events",
            Self::Pause => "pause",
        }
    }
}

/// The counts of a run. Clones count together.
#[derive(Clone, Default, Debug)]
pub struct Resyncs(Arc<Shared>);

#[derive(Default, Debug)]
struct Shared {
    counts: [AtomicU64; Gap::ALL.len()],
    /// How often the whole process has not run for a while: all others may have missed something then.
    pauses: watch::Sender<u64>,
}

impl Resyncs {
    /// Counts one.
    pub fn count(&self, gap: Gap) {
        self.0.counts[gap as usize].fetch_add(1, Relaxed);
        if gap == Gap::Pause {
            self.0.pauses.send_modify(|pauses| *pauses += 1);
        }
    }

    /// Changes whenever the whole process has not run for a while.
    #[must_use]
    pub fn pauses(&self) -> watch::Receiver<u64> {
        self.0.pauses.subscribe()
    }

    /// How many there have been, by name.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let count = |gap: Gap| (gap.name().to_owned(), self.0.counts[gap as usize].load(Relaxed));
        Gap::ALL.into_iter().map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gap_counts_under_its_own_name() {
        let resyncs = Resyncs::default();
        for (times, gap) in Gap::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| resyncs.clone().count(gap));
        }
        let counts = resyncs.counts();
        assert_eq!(counts.len(), Gap::ALL.len());
        for (times, gap) in Gap::ALL.into_iter().enumerate() {
            assert_eq!(counts[gap.name()], times as u64, "{gap:?}");
        }
        assert_eq!(*resyncs.pauses().borrow(), counts["pause"]);
    }
}
