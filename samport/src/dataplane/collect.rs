//! Taking flows that are over out of the tables. Nothing depends on it: the kernel's programs go by the
//! clock themselves, and a full table makes room. It keeps the numbers honest, and the way short for
//! look-ups that find nothing.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use rustix::time::{ClockId, clock_gettime};
use samport_common::conntrack::{TICK_SHIFT, Timeouts};
use samport_common::family::Address;
use samport_common::flow::{Flow, FlowKey, FlowWord, Lane};
use samport_common::layout::{Collected, Pressure, unusual};

use super::batch::HashTable;
use super::census::{Census, Count};
use super::maps::MapCell;
use super::{load, pins, settle};

/// Between two rounds, at most and at least; half the shortest time-out if that is in between.
const SLOWEST: Duration = Duration::from_secs(10);
const FASTEST: Duration = Duration::from_secs(1);

/// Removes what is over, round after round.
pub struct Collector {
    flows4: Table<[u8; 4]>,
    flows6: Table<[u8; 16]>,
    flood4: Table<[u8; 4]>,
    flood6: Table<[u8; 16]>,
    unusual: Array<MapData, u32>,
    pressure: PerCpuArray<MapData, MapCell<Pressure>>,
    told: Array<MapData, MapCell<Collected>>,
    census: Census,
    timeouts: Timeouts,
    pause: Duration,
    removed: u64,
    evicted: u64,
}

type Table<A> = HashTable<FlowKey<A>, Flow>;

/// What a round has found in a table.
#[derive(Clone, Copy, Default)]
struct Round {
    left: u64,
    removed: u64,
    /// Whether any flow that is left is outside of the first lane.
    lanes: bool,
}

impl Collector {
    pub(super) fn open(pins: &pins::Folder, timeouts: &load::Timeouts) -> Result<Self> {
        let data = |name: &str| pins::open(&pins.map(name));
        let told: Array<_, MapCell<Collected>> =
            Array::try_from(Map::Array(data("COLLECTED")?)).context("COLLECTED")?;
        // Another samport may have counted before us.
        let MapCell(before) = told.get(&0, 0).context("read COLLECTED")?;
        Ok(Self {
            flows4: HashTable::open(&pins.map("FLOWS4"))?,
            flows6: HashTable::open(&pins.map("FLOWS6"))?,
            flood4: HashTable::open(&pins.map("FLOOD4"))?,
            flood6: HashTable::open(&pins.map("FLOOD6"))?,
            unusual: Array::try_from(Map::Array(data("UNUSUAL")?)).context("UNUSUAL")?,
            pressure: PerCpuArray::try_from(Map::PerCpuArray(data("PRESSURE")?))
                .context("PRESSURE")?,
            told,
            census: Census::open(pins)?,
            timeouts: timeouts.in_ticks(),
            pause: (timeouts.shortest() / 2).clamp(FASTEST, SLOWEST),
            removed: before.removed,
            evicted: before.evicted,
        })
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(self.pause).await;
            // Some ten milliseconds for a hundred thousand flows: too long for the others to wait.
            let round = tokio::task::spawn_blocking(move || {
                let result = self.round();
                (self, result)
            });
            let Ok((back, result)) = round.await else { return };
            if let Err(error) = result {
                tracing::error!("flows that are over could not be collected: {error:#}");
            }
            self = back;
        }
    }

    fn round(&mut self) -> Result<()> {
        let now = now_tick();
        // Before the tables are read: what comes meanwhile must not look as if it had gone.
        let pressure = self.pressure.get(&0, 0).context("read PRESSURE")?;
        let inserted: u64 = pressure.iter().map(|MapCell(cpu)| cpu.inserts).sum();
        let mut count = self.census.begin()?;
        let flood4 = sweep(&self.flood4, &self.timeouts, now, &mut count)?;
        let flood6 = sweep(&self.flood6, &self.timeouts, now, &mut count)?;
        let flows4 = sweep(&self.flows4, &self.timeouts, now, &mut count)?;
        let flows6 = sweep(&self.flows6, &self.timeouts, now, &mut count)?;
        self.census.end(&count)?;
        self.removed += flows4.removed + flows6.removed;
        let accounted = self.removed + flows4.left + flows6.left;
        self.evicted = self.evicted.max(inserted.saturating_sub(accounted));
        let told = Collected {
            removed: self.removed,
            left4: flows4.left,
            left6: flows6.left,
            evicted: self.evicted,
        };
        self.told.set(0, MapCell(told), 0).context("write COLLECTED")?;
        if flood4.left + flood6.left == 0 {
            self.forget(unusual::FLOOD)?;
        }
        if !flows4.lanes && !flows6.lanes {
            self.forget(unusual::LANES)?;
        }
        Ok(())
    }

    /// Clears a bit that makes look-ups long, if what it stands for is really gone: a program that
    /// was just about to store such a flow has ended when we look again.
    fn forget(&mut self, bit: u32) -> Result<()> {
        let bits = self.unusual.get(&0, 0).context("read UNUSUAL")?;
        if bits & bit == 0 {
            return Ok(());
        }
        self.unusual.set(0, bits & !bit, 0).context("write UNUSUAL")?;
        settle();
        let is_back = match bit {
            unusual::LANES => has_lanes(&self.flows4)? || has_lanes(&self.flows6)?,
            _ => !is_empty(&self.flood4)? || !is_empty(&self.flood6)?,
        };
        if is_back {
            let bits = self.unusual.get(&0, 0).context("read UNUSUAL")?;
            self.unusual.set(0, bits | bit, 0).context("write UNUSUAL")?;
        }
        Ok(())
    }
}

/// The kernel programs' clock.
fn now_tick() -> u32 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
    u32::try_from(ns >> TICK_SHIFT).unwrap_or(u32::MAX)
}

fn sweep<A: Address>(
    table: &Table<A>,
    timeouts: &Timeouts,
    now: u32,
    count: &mut Count,
) -> Result<Round> {
    let mut round = Round::default();
    let mut over = Vec::new();
    table
        .for_each(|key, flow| {
            if has_expired(flow, timeouts, now) {
                over.push(*key);
            } else {
                round.left += 1;
                count.see(FlowWord::from_bits(flow.word));
                round.lanes |= key.lane() != Lane::FIRST;
            }
        })
        .context("read a flow table")?;
    for key in over {
        // Between reading and now it may have been taken by a new connection. What is left of that
        // window is microseconds, and a connection that falls into it sends its SYN again.
        let still = table.get(&key).is_some_and(|flow| has_expired(&flow, timeouts, now));
        if still && table.remove(&key) {
            round.removed += 1;
        }
    }
    Ok(round)
}

fn has_expired(flow: &Flow, timeouts: &Timeouts, now: u32) -> bool {
    let state = FlowWord::from_bits(flow.word).state();
    now.saturating_sub(flow.seen_tick) > timeouts.of(state)
}

fn has_lanes<A: Address>(table: &Table<A>) -> Result<bool> {
    let mut found = false;
    table.for_each(|key, _| found |= key.lane() != Lane::FIRST).context("read a flow table")?;
    Ok(found)
}

fn is_empty<A: Address>(table: &Table<A>) -> Result<bool> {
    let mut empty = true;
    table.for_each(|_, _| empty = false).context("read a flow table")?;
    Ok(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use samport_common::conntrack::{Seconds, State};

    #[test]
    fn a_flow_is_over_when_its_states_time_has_passed() {
        let timeouts = Timeouts::new(&Seconds::DEFAULT);
        for state in State::ALL {
            let word = FlowWord::new(1, 1, state).to_bits();
            let flow = Flow {
                word,
                way: 1,
                seen_tick: 1_000,
                vip: [0; 16],
                port: [0; 2],
                mac: [0; 6],
                opened: 0,
                failed: 0,
                flags: 0,
            };
            let last = 1_000 + timeouts.of(state);
            assert!(!has_expired(&flow, &timeouts, last), "{state:?}");
            assert!(has_expired(&flow, &timeouts, last + 1), "{state:?}");
            // Another CPU's clock may be a tick ahead of ours.
            assert!(!has_expired(&flow, &timeouts, 999), "{state:?}");
        }
    }
}
