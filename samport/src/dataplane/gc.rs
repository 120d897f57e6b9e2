//! Taking flows that are over out of the tables, and others out of a table that is full. Without it the
//! kernel's programs go by the clock themselves, and what finds no room is served from the tables beside, where
//! the oldest make way. It also keeps the numbers honest, and the way short for look-ups that find nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use rustix::time::{ClockId, clock_gettime};
use samport_common::conntrack::{TICK_SHIFT, Timeouts};
use samport_common::family::Address;
use samport_common::flow::{Flow, FlowKey, FlowWord, ProbeSlot};
use samport_common::layout::{GcStats, SynRate, flow_hint, is_nearly_full};

use super::batch::HashTable;
use super::maps::MapCell;
use super::recount::{Count, Recount};
use super::room::{Seen, Size, make_room};
use super::{load, pins, settle};

/// Between two rounds, at most and at least; half the shortest time-out if that is in between.
const SLOWEST: Duration = Duration::from_secs(10);
const FASTEST: Duration = Duration::from_secs(1);
/// Between two looks whether a table fills, and while one does.
const LOOK: Duration = Duration::from_secs(1);
const QUICK_LOOK: Duration = Duration::from_millis(250);

/// Removes what is over, round after round.
pub struct Collector {
    flows4: Table<[u8; 4]>,
    flows6: Table<[u8; 16]>,
    overflow4: Table<[u8; 4]>,
    overflow6: Table<[u8; 16]>,
    sizes: [Size; 2],
    nearly_full: Array<MapData, [u32; 2]>,
    /// Flows in both tables after the last round, and the entries made until then.
    left: [u64; 2],
    inserted: u64,
    /// Whether several services had flows of a family then: only others need room.
    shared: [bool; 2],
    flow_hints: Array<MapData, u32>,
    syn_rate: PerCpuArray<MapData, MapCell<SynRate>>,
    told: Array<MapData, MapCell<GcStats>>,
    recount: Recount,
    timeouts: Timeouts,
    pause: Duration,
    removed: u64,
    evicted: u64,
}

type Table<A> = HashTable<FlowKey<A>, Flow>;

/// What a round has found in a table.
#[derive(Default)]
struct Round {
    left: u64,
    removed: u64,
    /// Of those that were not over.
    evicted: u64,
    /// Whether any flow that is left is outside of the first probe slot.
    other_probe_slots: bool,
    /// The services of those that are left.
    services: BTreeSet<u16>,
}

impl Collector {
    pub(super) fn open(pins: &pins::Folder, options: &load::Options) -> Result<Self> {
        let timeouts = &options.timeouts;
        let data = |name: &str| pins::open(&pins.map(name));
        let told: Array<_, MapCell<GcStats>> =
            Array::try_from(Map::Array(data("GC_STATS")?)).context("GC_STATS")?;
        // Another samport may have counted before us.
        let MapCell(before) = told.get(&0, 0).context("read GC_STATS")?;
        Ok(Self {
            flows4: HashTable::open(&pins.map("FLOWS4"))?,
            flows6: HashTable::open(&pins.map("FLOWS6"))?,
            overflow4: HashTable::open(&pins.map("OVERFLOW4"))?,
            overflow6: HashTable::open(&pins.map("OVERFLOW6"))?,
            sizes: sizes(options),
            nearly_full: Array::try_from(Map::Array(data("NEARLY_FULL")?))
                .context("NEARLY_FULL")?,
            left: [before.left4, before.left6],
            inserted: 0,
            shared: [false; 2],
            flow_hints: Array::try_from(Map::Array(data("FLOW_HINTS")?)).context("FLOW_HINTS")?,
            syn_rate: PerCpuArray::try_from(Map::PerCpuArray(data("SYN_RATE")?))
                .context("SYN_RATE")?,
            told,
            recount: Recount::open(pins)?,
            timeouts: timeouts.in_ticks(),
            pause: (timeouts.shortest() / 2).clamp(FASTEST, SLOWEST),
            removed: before.removed,
            evicted: before.evicted,
        })
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.wait().await {
                tracing::error!("the tables of flows cannot be looked at: {error:#}");
                tokio::time::sleep(SLOWEST).await;
            }
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

    /// Until the next round: its time has come, or a table fills.
    async fn wait(&mut self) -> Result<()> {
        let begin = Instant::now();
        let mut look = LOOK;
        while begin.elapsed() < self.pause {
            tokio::time::sleep(look.min(self.pause.saturating_sub(begin.elapsed()))).await;
            let new = self.inserts()?.saturating_sub(self.inserted);
            let at_most = [0, 1].map(|family| self.left[family] + new);
            let is_full = self.are_nearly_full(at_most);
            if is_full.contains(&true) {
                self.tell_nearly_full(is_full)?;
                tokio::time::sleep(QUICK_LOOK).await;
                return Ok(());
            }
            let is_half_full = |family: usize| at_most[family] > self.sizes[family].entries / 2;
            look = if is_half_full(0) || is_half_full(1) { QUICK_LOOK } else { LOOK };
        }
        Ok(())
    }

    /// Which tables are nearly full with this many flows.
    fn are_nearly_full(&self, held: [u64; 2]) -> [bool; 2] {
        [0, 1].map(|family| is_nearly_full(held[family], self.sizes[family].entries))
    }

    /// Tells the kernel in which tables a service may hold its share and no more: where others need room.
    fn tell_nearly_full(&mut self, is_full: [bool; 2]) -> Result<()> {
        let told = [0, 1].map(|family| u32::from(is_full[family] && self.shared[family]));
        self.nearly_full.set(0, told, 0).context("write NEARLY_FULL")
    }

    /// Entries made in both tables, ever.
    fn inserts(&self) -> Result<u64> {
        let syn_rate = self.syn_rate.get(&0, 0).context("read SYN_RATE")?;
        Ok(syn_rate.iter().map(|MapCell(cpu)| cpu.inserts).sum())
    }

    fn round(&mut self) -> Result<()> {
        let now = now_tick();
        // Before the tables are read: what comes meanwhile must not look as if it had been seen.
        let inserted = self.inserts()?;
        let mut count = self.recount.begin()?;
        let of_overflow = Sweep { timeouts: &self.timeouts, now, size: None };
        let overflow4 = sweep(&self.overflow4, &of_overflow, &mut count)?;
        let overflow6 = sweep(&self.overflow6, &of_overflow, &mut count)?;
        let [size4, size6] = self.sizes.map(Some);
        let flows4 = sweep(&self.flows4, &Sweep { size: size4, ..of_overflow }, &mut count)?;
        let flows6 = sweep(&self.flows6, &Sweep { size: size6, ..of_overflow }, &mut count)?;
        self.recount.end(&count)?;
        (self.left, self.inserted) = ([flows4.left, flows6.left], inserted);
        // Who waits for room in the table beside needs it, too.
        self.shared = [(&flows4, &overflow4), (&flows6, &overflow6)]
            .map(|(flows, beside)| flows.services.union(&beside.services).count() > 1);
        self.tell_nearly_full(self.are_nearly_full(self.left))?;
        self.removed += flows4.removed + flows6.removed;
        self.evicted += flows4.evicted + flows6.evicted;
        let told = GcStats {
            removed: self.removed,
            left4: flows4.left,
            left6: flows6.left,
            evicted: self.evicted,
            overflow: overflow4.left + overflow6.left,
        };
        self.told.set(0, MapCell(told), 0).context("write GC_STATS")?;
        if overflow4.left + overflow6.left == 0 {
            self.forget(flow_hint::OVERFLOW)?;
        }
        if !flows4.other_probe_slots && !flows6.other_probe_slots {
            self.forget(flow_hint::PROBE_SLOTS)?;
        }
        Ok(())
    }

    /// Clears a bit that makes look-ups long, if what it stands for is really gone: a program that
    /// was just about to store such a flow has ended when we look again.
    fn forget(&mut self, bit: u32) -> Result<()> {
        let bits = self.flow_hints.get(&0, 0).context("read FLOW_HINTS")?;
        if bits & bit == 0 {
            return Ok(());
        }
        self.flow_hints.set(0, bits & !bit, 0).context("write FLOW_HINTS")?;
        settle();
        let is_back = match bit {
            flow_hint::PROBE_SLOTS => has_lanes(&self.flows4)? || has_lanes(&self.flows6)?,
            _ => !is_empty(&self.overflow4)? || !is_empty(&self.overflow6)?,
        };
        if is_back {
            let bits = self.flow_hints.get(&0, 0).context("read FLOW_HINTS")?;
            self.flow_hints.set(0, bits | bit, 0).context("write FLOW_HINTS")?;
        }
        Ok(())
    }
}

/// The kernel programs' clock.
pub(super) fn now_tick() -> u32 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
    u32::try_from(ns >> TICK_SHIFT).unwrap_or(u32::MAX)
}

/// How a table is swept.
#[derive(Clone, Copy)]
struct Sweep<'a> {
    timeouts: &'a Timeouts,
    now: u32,
    /// That of a table that drives nothing out by itself.
    size: Option<Size>,
}

/// Takes out what is over, and what makes room; counts what stays.
fn sweep<A: Address>(table: &Table<A>, how: &Sweep<'_>, count: &mut Count) -> Result<Round> {
    let Sweep { timeouts, now, size } = *how;
    let (mut expired, mut stay) = (Vec::new(), Vec::new());
    table
        .for_each(|key, flow| {
            let of = if has_expired(flow, timeouts, now) { &mut expired } else { &mut stay };
            of.push(Met { key: *key, word: FlowWord::from_bits(flow.word), seen: flow.seen_tick });
        })
        .context("read a flow table")?;
    let mut round = Round::default();
    round.removed += expired.iter().filter(|met| met.leaves(table)).count() as u64;
    if let Some(size) = size {
        let seen = stay.iter().enumerate().map(|(index, met)| met.seen_as(index, now)).collect();
        let leaving = make_room(seen, size);
        let mut take = |indices: &[usize]| {
            let leave = |index: &&usize| stay.get(**index).is_some_and(|met| met.leaves(table));
            let gone: Vec<usize> = indices.iter().filter(leave).copied().collect();
            for index in &gone {
                stay[*index].word = FlowWord::from_bits(0);
            }
            gone.len() as u64
        };
        round.removed += take(&leaving.over);
        round.evicted += take(&leaving.evicted);
    }
    for Met { key, word, .. } in stay.iter().filter(|met| met.word.to_bits() != 0) {
        round.left += 1;
        round.other_probe_slots |= key.probe_slot() != ProbeSlot::FIRST;
        round.services.insert(key.service().get());
        count.see(*word);
        if size.is_some() {
            count.hold(key.service(), *word);
        }
    }
    Ok(round)
}

/// A flow as it was when its turn came.
struct Met<A: Address> {
    key: FlowKey<A>,
    word: FlowWord,
    seen: u32,
}

impl<A: Address> Met<A> {
    fn seen_as(&self, index: usize, now: u32) -> Seen<usize> {
        let (service, state) = (self.key.service().get(), self.word.state());
        Seen { key: index, service, state, idle: now.saturating_sub(self.seen) }
    }

    /// Takes it out, unless it has gone on since, or its entry has been taken by a new connection. What is left
    /// of that window is microseconds, and a connection that falls into it sends its SYN again.
    fn leaves(&self, table: &Table<A>) -> bool {
        let is_same = |flow: Flow| flow.word == self.word.to_bits() && flow.seen_tick == self.seen;
        table.get(&self.key).is_some_and(is_same) && table.remove(&self.key)
    }
}

/// The tables of flows, and what a service may hold of them.
fn sizes(options: &load::Options) -> [Size; 2] {
    let [share4, share6] = options.room_limits().share.map(u64::from);
    [
        Size { entries: options.flows.into(), share: share4 },
        Size { entries: options.flows6.into(), share: share6 },
    ]
}

fn has_expired(flow: &Flow, timeouts: &Timeouts, now: u32) -> bool {
    let state = FlowWord::from_bits(flow.word).state();
    now.saturating_sub(flow.seen_tick) > timeouts.of(state)
}

fn has_lanes<A: Address>(table: &Table<A>) -> Result<bool> {
    let mut found = false;
    table
        .for_each(|key, _| found |= key.probe_slot() != ProbeSlot::FIRST)
        .context("read a flow table")?;
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
                reply_path: 1,
                seen_tick: 1_000,
                vip: [0; 16],
                port: [0; 2],
                mac: [0; 6],
                opened: 0,
                failed: 0,
                flags: 0,
                acknowledged: 0,
                awaited: 0,
            };
            let last = 1_000 + timeouts.of(state);
            assert!(!has_expired(&flow, &timeouts, last), "{state:?}");
            assert!(has_expired(&flow, &timeouts, last + 1), "{state:?}");
            // Another CPU's clock may be a tick ahead of ours.
            assert!(!has_expired(&flow, &timeouts, 999), "{state:?}");
        }
    }
}
