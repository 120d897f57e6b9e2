//! How many flows backends really have open. The kernel counts those that open and those it sees end; flows
//! that expire, and those that make room in a full table, end unseen. What the counting says too much is
//! written down beside it, never into it, so that no flow that opens meanwhile is lost.

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use samport_common::flow::FlowWord;
use samport_common::layout::{Backend, Condition};
use samport_common::local::{Dialled, SocketKey};

use super::batch::{HashTable, Values};
use super::pins;

/// The maps it takes.
pub(super) struct Census {
    backends: Values<Backend>,
    conditions: Values<Condition>,
    lost: Array<MapData, u64>,
    peers: HashTable<SocketKey, Dialled>,
}

/// A count under way, by backend id.
pub(super) struct Count {
    generations: Vec<u32>,
    /// What the kernel had counted before we began.
    before: Vec<u64>,
    found: Vec<u64>,
}

impl Census {
    pub(super) fn open(pins: &pins::Folder) -> Result<Self> {
        let lost = Map::Array(pins::open(&pins.map("LOST"))?);
        Ok(Self {
            backends: Values::open(&pins.map("BACKENDS"))?,
            conditions: Values::open(&pins.map("CONDITIONS"))?,
            lost: Array::try_from(lost).context("LOST")?,
            peers: HashTable::open(&pins.map("LOCAL_PEERS"))?,
        })
    }

    /// Begins to count: sockets of this machine are counted at once.
    pub(super) fn begin(&self) -> Result<Count> {
        let generations = self.generations()?;
        let found = vec![0; generations.len()];
        let mut count = Count { generations, before: self.counted()?, found };
        self.peers
            .for_each(|_, socket| count.add(socket.chosen.backend, socket.chosen.generation))
            .context("read LOCAL_PEERS")?;
        Ok(count)
    }

    /// Writes down what has come out.
    pub(super) fn end(&mut self, count: &Count) -> Result<()> {
        let (after, generations) = (self.counted()?, self.generations()?);
        let all = (0u32..).zip(&count.found).zip(count.before.iter().zip(&after));
        for ((index, found), (before, after)) in all {
            let at = index as usize;
            if generations.get(at) != count.generations.get(at) || (*before, *after) == (0, 0) {
                continue;
            }
            let lost = self.lost.get(&index, 0).context("read LOST")?;
            let right = corrected(lost, *before, *after, *found);
            if right != lost {
                self.lost.set(index, right, 0).context("write LOST")?;
            }
        }
        Ok(())
    }

    fn counted(&self) -> Result<Vec<u64>> {
        let conditions = self.conditions.read().context("read CONDITIONS")?;
        Ok(conditions.iter().map(|condition| condition.open).collect())
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

    fn add(&mut self, backend: u32, generation: u32) {
        let at = backend as usize;
        if self.generations.get(at) == Some(&generation)
            && let Some(found) = self.found.get_mut(at)
        {
            *found += 1;
        }
    }
}

/// What the kernel counts too much, given that it had counted `before` and `after` while `found` were
/// there: as before if that is possible, or the nearest that is. All wrap around zero.
fn corrected(lost: u64, before: u64, after: u64, found: u64) -> u64 {
    let excess = |counted: u64| counted.wrapping_sub(found).cast_signed();
    let (one, other) = (excess(before), excess(after));
    lost.cast_signed().clamp(one.min(other), one.max(other)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_has_ended_unseen_is_taken_off() {
        assert_eq!(corrected(0, 10, 10, 10), 0);
        assert_eq!(corrected(0, 10, 10, 4), 6);
        assert_eq!(corrected(6, 10, 10, 10), 0, "they were there after all");
        // While it was counted three more were opened: between 3 and 6 of them are gone.
        assert_eq!(corrected(0, 10, 13, 7), 3);
        assert_eq!(corrected(5, 10, 13, 7), 5);
        assert_eq!(corrected(9, 10, 13, 7), 6);
        // More than the kernel has counted.
        assert_eq!(corrected(0, 1, 1, 3), (-2i64).cast_unsigned());
    }

    proptest! {
        #[test]
        fn a_quiet_count_is_exact(lost in any::<i32>(), counted in 0u64..1_000, found in 0u64..1_000) {
            let lost = i64::from(lost).cast_unsigned();
            let right = corrected(lost, counted, counted, found);
            prop_assert_eq!(counted.wrapping_sub(right), found);
        }
    }
}
