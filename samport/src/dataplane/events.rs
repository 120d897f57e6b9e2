//! What the kernel's programs report as it happens: backends that fail connections.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use samport_common::layout::{EVENT_BYTES, Event, event, failure};
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
    /// How, the last time.
    pub failing: Failing,
    /// What is to be done.
    pub ask: Ask,
}

/// How a connection has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failing {
    /// By a reset.
    Refused,
    /// There was no answer.
    Silent,
    /// By an ICMP error.
    Unreachable,
}

/// What the kernel asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// That the active health check, if there is one, looks now.
    Check,
    /// That it is confirmed or refuted now: connections of several clients have failed.
    Confirm,
}

/// What the ring says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingEvent {
    /// A backend has failed a connection.
    Failure(Failure),
    /// The ring was so full that events may have been lost.
    Overrun,
}

/// Bytes of the ring that an event takes: its own, and the kernel's header before it.
const ENTRY: usize = size_of::<Event>() + 8;
/// As many events in a row, without the ring being empty in between, nearly fill it.
const NEARLY_FULL: usize = EVENT_BYTES as usize / ENTRY * 9 / 10;

/// The ring the programs write to.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    row: Row,
}

/// Events that were read one after the other.
#[derive(Default)]
struct Row(usize);

impl Row {
    /// Counts one. Whether the ring may have been full: once for each row that is as long.
    const fn is_long(&mut self) -> bool {
        self.0 += 1;
        self.0.is_multiple_of(NEARLY_FULL)
    }

    const fn end(&mut self) {
        self.0 = 0;
    }
}

impl Events {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let ring: RingBuf<MapData> = typed(ebpf, "EVENTS")?;
        // SAFETY: the ring owns its file descriptor for as long as it lives, and never exchanges it.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = registered.map_err(std::io::Error::from);
        Ok(Self { ring: ring.context("poll the kernel's events")?, row: Row::default() })
    }

    /// What comes next; waits for it.
    pub async fn next(&mut self) -> Result<RingEvent> {
        loop {
            if let Some(told) = self.read() {
                return Ok(told);
            }
            self.row.end();
            let mut ready =
                self.ring.readable_mut().await.context("wait for the kernel's events")?;
            ready.clear_ready();
        }
    }

    /// What is in the ring already; what it does not understand is skipped.
    fn read(&mut self) -> Option<RingEvent> {
        while let Some(item) = self.ring.get_mut().next() {
            if self.row.is_long() {
                return Some(RingEvent::Overrun);
            }
            if let Some(failure) = Event::read_from_bytes(&item).ok().and_then(understand) {
                return Some(RingEvent::Failure(failure));
            }
        }
        None
    }
}

fn understand(told: Event) -> Option<Failure> {
    let ask = match told.kind {
        event::CHECK => Ask::Check,
        event::CONFIRM => Ask::Confirm,
        _ => return None,
    };
    let failing = match told.failure {
        failure::REFUSED => Failing::Refused,
        failure::SILENT => Failing::Silent,
        failure::UNREACHABLE => Failing::Unreachable,
        _ => return None,
    };
    let backend = BackendId { index: told.backend, generation: told.generation };
    Some(Failure { backend, failing, ask })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_was_nearly_full_may_have_had_no_room() {
        assert_eq!((ENTRY, NEARLY_FULL), (24, 2_457));
        let mut row = Row::default();
        let mut long = |times: usize| (0..times).filter(|_| row.is_long()).count();
        assert_eq!((long(NEARLY_FULL - 1), long(1), long(NEARLY_FULL - 1)), (0, 1, 0));
        row.end();
        assert!((1..NEARLY_FULL).all(|_| !row.is_long()) && row.is_long());
    }

    #[test]
    fn an_event_is_understood_or_skipped() {
        let told =
            Event { kind: event::CONFIRM, backend: 3, generation: 7, failure: failure::SILENT };
        let backend = BackendId { index: 3, generation: 7 };
        let expected = Failure { backend, failing: Failing::Silent, ask: Ask::Confirm };
        assert_eq!(understand(told), Some(expected));
        let check = Event { kind: event::CHECK, failure: failure::UNREACHABLE, ..told };
        let expected = Failure { failing: Failing::Unreachable, ask: Ask::Check, ..expected };
        assert_eq!(understand(check), Some(expected));
        assert_eq!(understand(Event { kind: 99, ..told }), None);
        assert_eq!(understand(Event { failure: 99, ..told }), None);
    }
}
