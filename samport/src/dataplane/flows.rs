//! Reading the flows an instance has open, also one that was killed.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use rustix::time::{ClockId, clock_gettime};
use samport_common::conntrack::{State, TICK_SHIFT};
use samport_common::failover::MICRO_SHIFT;
use samport_common::family::Address;
use samport_common::flow::{Endpoint, Flow, FlowKey, FlowWord};
use samport_common::layout::Backend;
use samport_common::wire::protocol::Protocol;

use super::batch::HashTable;
use super::maps::MapCell;
use super::pins;

/// Times are in ticks, and one is written down at most once a tick.
const DOUBT: Duration = Duration::from_nanos(2 << TICK_SHIFT);

/// A connection, or an exchange of datagrams, between a client and a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFlow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// What it has dialled.
    pub dialled: SocketAddr,
    /// The kernel's id of its backend; none if that is another's now.
    pub backend: Option<u32>,
    /// Where its backend answers; None if that is gone.
    pub endpoint: Option<SocketAddr>,
    /// Where it stands.
    pub state: State,
    /// Since it was opened. Counts up to 73 minutes, then from 0 again; none if that is known to be so.
    pub age: Option<Duration>,
    /// Since its last packet, to about a second.
    pub idle: Duration,
}

/// The flows of an instance that are open, in no order.
pub fn open_flows(instance: &str) -> Result<Vec<OpenFlow>> {
    let backends = pins::open(&pins::map_of(instance, "BACKENDS"))?;
    let reader = Reader {
        backends: Array::try_from(Map::Array(backends)).context("BACKENDS has another type")?,
        now_ns: now_ns(),
    };
    let mut found = Vec::new();
    for map in ["FLOWS4", "OVERFLOW4"] {
        reader.read(instance, map, v4, &mut found)?;
    }
    for map in ["FLOWS6", "OVERFLOW6"] {
        reader.read(instance, map, v6, &mut found)?;
    }
    Ok(found)
}

struct Reader {
    backends: Array<MapData, MapCell<Backend>>,
    now_ns: u64,
}

impl Reader {
    fn read<A: Address>(
        &self,
        instance: &str,
        map: &str,
        socket: fn(Endpoint<A>) -> SocketAddr,
        found: &mut Vec<OpenFlow>,
    ) -> Result<()> {
        let table: HashTable<FlowKey<A>, Flow> = HashTable::open(&pins::map_of(instance, map))?;
        let mut visit = |key: &FlowKey<A>, flow: &Flow| {
            if FlowWord::from_bits(flow.word).state().is_open() {
                found.push(self.flow(socket(key.client), flow));
            }
        };
        table.for_each(&mut visit).with_context(|| format!("read {map}"))
    }

    fn flow(&self, client: SocketAddr, flow: &Flow) -> OpenFlow {
        let word = FlowWord::from_bits(flow.word);
        let backend = self.backend(word);
        let idle = idle(flow.seen_tick, self.now_ns);
        OpenFlow {
            protocol: protocol_of(word.state()),
            client,
            dialled: wide(flow.vip, flow.port),
            backend: backend.map(|_| word.backend()),
            endpoint: backend.map(|backend| wide(backend.addr, backend.port)),
            state: word.state(),
            age: age(flow.opened, idle, self.now_ns),
            idle,
        }
    }

    /// The backend a flow goes to. Its id may have another user meanwhile.
    fn backend(&self, word: FlowWord) -> Option<Backend> {
        let MapCell(backend) = self.backends.get(&word.backend(), 0).ok()?;
        (backend.generation & FlowWord::MAX_GENERATION == word.generation()).then_some(backend)
    }
}

/// The kernel programs' clock.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

#[allow(clippy::cast_possible_truncation, reason = "it may wrap: only differences count")]
fn age(opened: u32, idle: Duration, now_ns: u64) -> Option<Duration> {
    let units = ((now_ns >> MICRO_SHIFT) as u32).wrapping_sub(opened);
    let age = Duration::from_nanos(u64::from(units) << MICRO_SHIFT);
    (idle <= age + DOUBT).then_some(age)
}

fn idle(seen_tick: u32, now_ns: u64) -> Duration {
    let ticks = (now_ns >> TICK_SHIFT).saturating_sub(u64::from(seen_tick));
    Duration::from_nanos(ticks << TICK_SHIFT)
}

const fn protocol_of(state: State) -> Protocol {
    match state {
        State::Unanswered | State::Answered | State::Assured => Protocol::Udp,
        State::Closed
        | State::SynSent
        | State::SynReceived
        | State::Established
        | State::ClientFinished
        | State::BackendFinished
        | State::Finished
        | State::Reset
        | State::Failed
        | State::Unverified
        | State::ClientFinishing
        | State::Finishing
        | State::ClientReset => Protocol::Tcp,
    }
}

pub(super) fn v4(endpoint: Endpoint<[u8; 4]>) -> SocketAddr {
    (Ipv4Addr::from(endpoint.addr), u16::from_be_bytes(endpoint.port)).into()
}

pub(super) fn v6(endpoint: Endpoint<[u8; 16]>) -> SocketAddr {
    (Ipv6Addr::from(endpoint.addr), u16::from_be_bytes(endpoint.port)).into()
}

pub(super) fn wide(addr: [u8; 16], port: [u8; 2]) -> SocketAddr {
    (Ipv6Addr::from(addr).to_canonical(), u16::from_be_bytes(port)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_from_the_kernels_marks() {
        let now_ns = 5_000 * (1 << TICK_SHIFT) + 77;
        assert_eq!(idle(4_999, now_ns), Duration::from_nanos(1 << TICK_SHIFT));
        // Another CPU's clock may be a tick ahead of ours.
        assert_eq!(idle(5_001, now_ns), Duration::ZERO);
        let opened = u32::try_from((now_ns >> MICRO_SHIFT) & u64::from(u32::MAX)).unwrap();
        let busy = |opened, now_ns| age(opened, Duration::ZERO, now_ns);
        assert_eq!(busy(opened, now_ns), Some(Duration::ZERO));
        let earlier = opened.wrapping_sub(1_000_000);
        assert_eq!(busy(earlier, now_ns), Some(Duration::from_millis(1_024)));
        // The clock has wrapped since.
        assert_eq!(busy(u32::MAX, 9 << MICRO_SHIFT), Some(Duration::from_nanos(10 << MICRO_SHIFT)));
        // No flow is idle for longer than it exists.
        assert_eq!(age(opened, DOUBT * 2, now_ns), None);
    }

    #[test]
    fn addresses_are_those_people_write() {
        let wide4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
        assert_eq!(wide(wide4, [0, 80]).to_string(), "192.0.2.1:80");
        let v4_client = v4(Endpoint { addr: [192, 0, 2, 9], port: [0x1f, 0x90] });
        assert_eq!(v4_client.to_string(), "192.0.2.9:8080");
        let mut addr = [0; 16];
        addr[15] = 1;
        assert_eq!(v6(Endpoint { addr, port: [0, 53] }).to_string(), "[::1]:53");
        assert_eq!(wide(addr, [0, 53]).to_string(), "[::1]:53");
    }
}
