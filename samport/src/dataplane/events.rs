//! What the kernel's programs tell at once: backends that fail connections.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use samport_common::conntrack::TICK_SHIFT;
use samport_common::layout::{Event, event};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes as _;

use super::maps::typed;
use crate::plan::BackendId;

/// A backend that has failed a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which one.
    pub backend: BackendId,
    /// It has refused; otherwise it has not answered.
    pub refused: bool,
    /// For how long new flows avoid it.
    pub avoided: Duration,
}

/// The ring the programs write to.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let ring: RingBuf<MapData> = typed(ebpf, "EVENTS")?;
        // SAFETY: the ring owns its file descriptor for as long as it lives, and never exchanges it.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = registered.map_err(std::io::Error::from);
        Ok(Self(ring.context("poll the kernel's events")?))
    }

    /// The next failure; waits for it.
    pub async fn next(&mut self) -> Result<Failure> {
        loop {
            if let Some(failure) = self.read() {
                return Ok(failure);
            }
            let mut ready = self.0.readable_mut().await.context("wait for the kernel's events")?;
            ready.clear_ready();
        }
    }

    /// What is in the ring already; what it does not understand is skipped.
    fn read(&mut self) -> Option<Failure> {
        while let Some(item) = self.0.get_mut().next() {
            if let Some(failure) = Event::read_from_bytes(&item).ok().and_then(understand) {
                return Some(failure);
            }
        }
        None
    }
}

fn understand(told: Event) -> Option<Failure> {
    let refused = match told.kind {
        event::REFUSED => true,
        event::SILENT => false,
        _ => return None,
    };
    let backend = BackendId { index: told.backend, generation: told.generation };
    let avoided = Duration::from_nanos(u64::from(told.ticks) << TICK_SHIFT);
    Some(Failure { backend, refused, avoided })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_understood_or_skipped() {
        let told = Event { kind: event::SILENT, backend: 3, generation: 7, ticks: 10 };
        let failure = understand(told).unwrap();
        assert_eq!(failure.backend, BackendId { index: 3, generation: 7 });
        assert!(!failure.refused && failure.avoided.as_secs() == 10);
        assert!(understand(Event { kind: event::REFUSED, ..told }).unwrap().refused);
        assert_eq!(understand(Event { kind: 99, ..told }), None);
    }
}
