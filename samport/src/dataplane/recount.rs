//! How many flows backends really have open. The kernel counts those that open and those it sees end; flows
//! that expire, and those that make room in a full table, end unseen. What the counting says too much is
//! written down beside it, never into it, so that no flow that opens meanwhile is lost.

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use samport_common::flow::{FlowWord, ServiceId};
use samport_common::layout::{Backend, BackendLoad, HELD_LEN, Held, UNPROVEN, held_by};
use samport_common::sock_lb::{Connected, Dialled};

use super::batch::{HashTable, Values};
use super::pins;

/// The maps it takes.
pub(super) struct Recount {
    backends: Values<Backend>,
    backend_load: Values<BackendLoad>,
    open_correction: Array<MapData, u64>,
    peers: HashTable<u64, Connected>,
    held: Values<Held>,
    freed: Array<MapData, u64>,
}

/// What the kernel has counted: flows opened, and flows seen to end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct FlowCount {
    opened: u64,
    ended: u64,
}

/// Which counters of `HELD` a round has found to be how much.
pub(super) struct Holding {
    before: Vec<FlowCount>,
    found: Vec<u64>,
}

/// A count under way, by backend id.
pub(super) struct Count {
    generations: Vec<u32>,
    /// What the kernel had counted before we began.
    before: Vec<FlowCount>,
    found: Vec<u64>,
    holding: Holding,
}

impl Recount {
    pub(super) fn open(pins: &pins::Folder) -> Result<Self> {
        let open_correction = Map::Array(pins::open(&pins.map("OPEN_CORRECTION"))?);
        Ok(Self {
            backends: Values::open(&pins.map("BACKENDS"))?,
            backend_load: Values::open(&pins.map("BACKEND_LOAD"))?,
            open_correction: Array::try_from(open_correction).context("OPEN_CORRECTION")?,
            peers: HashTable::open(&pins.map("LOCAL_PEERS"))?,
            held: Values::open(&pins.map("HELD"))?,
            freed: Array::try_from(Map::Array(pins::open(&pins.map("FREED"))?)).context("FREED")?,
        })
    }

    /// Begins to count: sockets of this machine are counted immediately.
    pub(super) fn begin(&self) -> Result<Count> {
        let generations = self.generations()?;
        let found = vec![0; generations.len()];
        let before = self.counted()?;
        let holding = Holding { before: self.held()?, found: vec![0; HELD_LEN as usize] };
        let mut count = Count { generations, before, found, holding };
        self.peers
            .for_each(|_, Connected { dialled: Dialled { chosen, .. }, .. }| {
                count.add(chosen.backend, chosen.generation);
            })
            .context("read LOCAL_PEERS")?;
        Ok(count)
    }

    /// Writes down what has come out.
    pub(super) fn end(&mut self, count: &Count) -> Result<()> {
        let (after, generations) = (self.counted()?, self.generations()?);
        let all = (0u32..).zip(&count.found).zip(count.before.iter().zip(&after));
        for ((index, found), (before, after)) in all {
            let at = index as usize;
            if generations.get(at) != count.generations.get(at) || after.opened == 0 {
                continue;
            }
            let open_correction =
                self.open_correction.get(&index, 0).context("read OPEN_CORRECTION")?;
            let right = corrected(open_correction, *before, *after, *found);
            if right != open_correction {
                self.open_correction.set(index, right, 0).context("write OPEN_CORRECTION")?;
            }
        }
        self.end_holding(&count.holding)
    }

    fn end_holding(&mut self, holding: &Holding) -> Result<()> {
        let after = self.held()?;
        let all = (0u32..).zip(&holding.found).zip(holding.before.iter().zip(&after));
        for ((index, found), (before, after)) in all {
            if after.opened == 0 {
                continue;
            }
            let freed = self.freed.get(&index, 0).context("read FREED")?;
            let right = corrected(freed, *before, *after, *found);
            if right != freed {
                self.freed.set(index, right, 0).context("write FREED")?;
            }
        }
        Ok(())
    }

    fn held(&self) -> Result<Vec<FlowCount>> {
        let held = self.held.read().context("read HELD")?;
        Ok(held.iter().map(|&Held { opened, ended }| FlowCount { opened, ended }).collect())
    }

    fn counted(&self) -> Result<Vec<FlowCount>> {
        let backend_load = self.backend_load.read().context("read BACKEND_LOAD")?;
        let counted = backend_load
            .iter()
            .map(|&BackendLoad { opened, ended, .. }| FlowCount { opened, ended });
        Ok(counted.collect())
    }

    fn generations(&self) -> Result<Vec<u32>> {
        let backends = self.backends.read().context("read BACKENDS")?;
        Ok(backends.iter().map(|backend| backend.generation).collect())
    }
}

impl Count {
    /// Counts a flow, if it is open.
    pub(super) fn see(&mut self, word: FlowWord) {
        if word.state().is_open() {
            self.add(word.backend(), word.generation());
        }
    }

    /// Counts an entry of a table that never drives anything out.
    pub(super) fn hold(&mut self, service: ServiceId, word: FlowWord) {
        let unproven = word.state().is_unproven().then_some(UNPROVEN);
        for index in unproven.into_iter().chain([held_by(service)]) {
            if let Some(found) = self.holding.found.get_mut(index as usize) {
                *found += 1;
            }
        }
    }

    fn add(&mut self, backend: u32, generation: u32) {
        let at = backend as usize;
        if self.generations.get(at) == Some(&generation)
            && let Some(found) = self.found.get_mut(at)
        {
            *found += 1;
        }
    }
}

/// What the kernel counts too much, given that `found` flows were met between `before` and `after`: as before
/// if that is possible, or the nearest that is.
///
/// Each flow that opened meanwhile may be among those met or not, and so may each that ended. So the
/// number given here is never more than what has really been lost, and no backend seems to have fewer flows than it
/// has.
fn corrected(open_correction: u64, before: FlowCount, after: FlowCount, found: u64) -> u64 {
    let counted = before.opened.wrapping_sub(before.ended);
    let excess = counted.wrapping_sub(found).cast_signed();
    let meanwhile = |one: u64, other: u64| other.wrapping_sub(one).cast_signed().max(0);
    let least = excess.saturating_sub(meanwhile(before.ended, after.ended));
    let most = excess.saturating_add(meanwhile(before.opened, after.opened));
    open_correction.cast_signed().clamp(least, most).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn counted(opened: u64, ended: u64) -> FlowCount {
        FlowCount { opened, ended }
    }

    #[test]
    fn what_has_ended_unseen_is_taken_off() {
        let quiet =
            |open_correction, counted, found| corrected(open_correction, counted, counted, found);
        let ten = counted(12, 2);
        assert_eq!(quiet(0, ten, 10), 0);
        assert_eq!(quiet(0, ten, 4), 6);
        assert_eq!(quiet(6, ten, 10), 0, "they were there after all");
        // While it was counted three more were opened: between 3 and 6 of them are gone.
        assert_eq!(corrected(0, ten, counted(15, 2), 7), 3);
        assert_eq!(corrected(5, ten, counted(15, 2), 7), 5);
        assert_eq!(corrected(9, ten, counted(15, 2), 7), 6);
        // More than the kernel has counted.
        assert_eq!(quiet(0, counted(1, 0), 3), (-2i64).cast_unsigned());
    }

    #[test]
    fn a_connection_that_is_held_is_not_lost_because_others_came_and_went() {
        // One ended before it was met, the next opened behind the reader.
        assert_eq!(corrected(0, counted(8, 6), counted(9, 7), 1), 0);
    }

    /// What happens to a backend's flows while they are counted.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Open,
        End(usize),
        /// It expires, or makes room.
        Vanish(usize),
        /// The reader looks at the next bucket.
        Read,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Open),
            any::<usize>().prop_map(Event::End),
            any::<usize>().prop_map(Event::Vanish),
            Just(Event::Read),
        ]
    }

    const BUCKETS: usize = 4;

    /// A table whose buckets are read one after the other while flows come and go.
    #[derive(Default)]
    struct Table {
        buckets: [u64; BUCKETS],
        counted: FlowCount,
        unseen: u64,
    }

    impl Table {
        fn take(&mut self, at: usize) -> bool {
            let order = (0..BUCKETS).map(|step| (at % BUCKETS + step) % BUCKETS);
            let Some(full) = { order }.find(|at| self.buckets[*at] > 0) else { return false };
            self.buckets[full] -= 1;
            true
        }

        fn carry_out(&mut self, event: Event, turn: usize) {
            match event {
                Event::Open => {
                    self.buckets[turn % BUCKETS] += 1;
                    self.counted.opened += 1;
                }
                Event::End(at) => self.counted.ended += u64::from(self.take(at)),
                Event::Vanish(at) => self.unseen += u64::from(self.take(at)),
                Event::Read => {}
            }
        }
    }

    proptest! {
        #[test]
        fn no_backend_ever_seems_to_have_fewer_flows_than_it_has(
            rounds in proptest::collection::vec(proptest::collection::vec(event(), 0..40), 1..6),
        ) {
            let mut table = Table::default();
            let mut open_correction = 0u64;
            for round in rounds {
                let before = table.counted;
                let (mut found, mut next) = (0, 0);
                for (turn, event) in round.into_iter().enumerate() {
                    if matches!(event, Event::Read) && next < BUCKETS {
                        found += table.buckets[next];
                        next += 1;
                    }
                    table.carry_out(event, turn);
                }
                found += table.buckets[next..].iter().sum::<u64>();
                open_correction = corrected(open_correction, before, table.counted, found);
                prop_assert!(open_correction <= table.unseen, "{open_correction} of {}", table.unseen);
            }
            // The next count, when nothing happens, is exact.
            let found = table.buckets.iter().sum();
            prop_assert_eq!(corrected(open_correction, table.counted, table.counted, found), table.unseen);
        }
    }
}
