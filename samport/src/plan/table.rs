//! Room in the kernel's `TABLE`, and what is written there. Pure.

mod maglev;
mod turns;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use samport_common::choose::{self, Balance};
use samport_common::layout::TABLE_SLOTS;
use samport_common::seed::Seed;

/// A run of slots of `TABLE`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Region {
    /// First slot.
    pub base: u32,
    /// Number of slots.
    pub len: u32,
}

impl Region {
    /// No slots at all.
    pub const EMPTY: Self = Self { base: 0, len: 0 };

    const fn end(self) -> u32 {
        self.base + self.len
    }
}

/// Where a new table is to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Whether to wait first until no program reads the regions given back.
    pub settles: bool,
    /// The region, which is taken now; `None` if there is no gap.
    pub region: Option<Region>,
}

/// Which regions are in use. A region given back may still be read by a program that is running
/// right now, so it counts as used until [`Tables::settle`].
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tables {
    used: BTreeSet<Region>,
    given_back: BTreeSet<Region>,
}

impl Tables {
    /// The first gap large enough for a table, or `None` if none exists without settling.
    #[must_use]
    pub fn find(&self, len: u32) -> Option<Region> {
        if len == 0 {
            return Some(Region::EMPTY);
        }
        let mut base = 0;
        for region in self.used.union(&self.given_back) {
            if region.base.saturating_sub(base) >= len {
                break;
            }
            base = base.max(region.end());
        }
        (base.checked_add(len)? <= TABLE_SLOTS).then_some(Region { base, len })
    }

    /// Takes a gap large enough for a table, one that was given back only if there is no other.
    pub fn place(&mut self, len: u32) -> Placed {
        let settles = self.find(len).is_none() && self.has_given_back();
        if settles {
            self.settle();
        }
        let region = self.find(len);
        if let Some(region) = region {
            self.take(region);
        }
        Placed { settles, region }
    }

    /// Marks a region as used.
    pub fn take(&mut self, region: Region) {
        if region.len > 0 {
            self.used.insert(region);
        }
    }

    /// Gives a region back.
    pub fn give_back(&mut self, region: Region) {
        if self.used.remove(&region) {
            self.given_back.insert(region);
        }
    }

    /// Whether settling makes any room.
    fn has_given_back(&self) -> bool {
        !self.given_back.is_empty()
    }

    /// The regions given back are not read any more.
    pub fn settle(&mut self) {
        self.given_back.clear();
    }
}

/// A backend that takes part in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its index in `BACKENDS`.
    pub id: u32,
    /// Where it answers.
    pub endpoint: SocketAddr,
    /// Its share relative to the others.
    pub weight: u32,
}

/// Which slots are whose. Other choices by the same arrangement need no other table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arrangement {
    /// Everybody's side by side: slots are drawn.
    Blocks,
    /// In the order of turns: slots are used one after the other.
    Turns,
    /// As hashes find them.
    Hashed,
}

/// All that a table follows from, so that one is only made when it will be another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    arrangement: Arrangement,
    len: u32,
    members: Vec<Member>,
    /// Of an arrangement by hashes; the same in all others.
    seed: Seed,
}

impl Recipe {
    /// What an empty table follows from.
    pub const NOTHING: Self = Self::empty(0);

    /// What is not known: every table follows from something else.
    pub const UNKNOWN: Self = Self::empty(u32::MAX);

    const fn empty(len: u32) -> Self {
        let (arrangement, seed) = (Arrangement::Blocks, Seed::from_bytes([0; Seed::BYTES]));
        Self { arrangement, len, members: Vec::new(), seed }
    }

    /// A table for this choice among these backends, of about `room` slots at most. A backend of weight
    /// 0 takes no part. The seed matters to choices by hash only.
    #[must_use]
    pub fn new(balance: Balance, mut members: Vec<Member>, room: u32, seed: Seed) -> Self {
        members.retain(|member| member.weight > 0);
        if members.is_empty() {
            return Self::NOTHING;
        }
        let arrangement = match balance {
            Balance::Random | Balance::LeastConn => Arrangement::Blocks,
            Balance::RoundRobin => Arrangement::Turns,
            Balance::Maglev | Balance::SourceHash => Arrangement::Hashed,
        };
        let len = match arrangement {
            Arrangement::Blocks | Arrangement::Turns => {
                let len = choose::table_len(members.iter().map(|member| member.weight));
                // Room for every backend, however many there are.
                len.min(room).max(u32::try_from(members.len()).unwrap_or(u32::MAX))
            }
            Arrangement::Hashed => maglev::length(members.len(), room),
        };
        let seed = if arrangement == Arrangement::Hashed { seed } else { Seed::default() };
        Self { arrangement, len, members, seed }
    }

    /// Number of slots.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Backend ids, one for each slot.
    #[must_use]
    pub fn slots(&self) -> Vec<u32> {
        match self.arrangement {
            Arrangement::Blocks => {
                let mut slots = vec![0; self.len as usize];
                choose::fill(self.members.iter().map(|one| (one.id, one.weight)), &mut slots);
                slots
            }
            Arrangement::Turns => {
                let weights: Vec<u32> = self.members.iter().map(|one| one.weight).collect();
                let order = turns::turns(&weights, self.len);
                order.into_iter().map(|turn| self.members[turn as usize].id).collect()
            }
            Arrangement::Hashed => maglev::slots(&self.members, self.len, self.seed),
        }
    }
}

/// How long each of this many tables may be for a new one to find a gap, wherever the others lie: between
/// and around `n` of them are `n` + 1 gaps at most, of which one is at least the average.
#[must_use]
pub fn room_for_each(tables: usize) -> u32 {
    let shares = u32::try_from(2 * tables + 1).unwrap_or(u32::MAX);
    TABLE_SLOTS / shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEED: Seed = Seed::from_bytes([7; Seed::BYTES]);

    #[test]
    fn a_region_given_back_is_not_reused_until_settled() {
        let mut tables = Tables::default();
        let region = tables.find(TABLE_SLOTS).unwrap();
        tables.take(region);
        assert_eq!(tables.find(1), None);
        tables.give_back(region);
        assert_eq!(tables.find(1), None);
        tables.settle();
        assert_eq!(tables.find(1), Some(Region { base: 0, len: 1 }));
    }

    #[test]
    fn an_empty_table_needs_no_room() {
        assert_eq!(Tables::default().find(0), Some(Region::EMPTY));
        for balance in Balance::ALL {
            let idle = Recipe::new(balance, members(&[0, 0]), TABLE_SLOTS, SEED);
            assert_eq!((&idle, idle.slots()), (&Recipe::NOTHING, vec![]), "{balance:?}");
        }
    }

    fn members(weights: &[u32]) -> Vec<Member> {
        let member = |(id, weight): (u8, &u32)| Member {
            id: id.into(),
            endpoint: ([172, 17, 0, id], 80).into(),
            weight: *weight,
        };
        (1..).zip(weights).map(member).collect()
    }

    fn slots(balance: Balance, weights: &[u32]) -> Vec<u32> {
        let recipe = Recipe::new(balance, members(weights), TABLE_SLOTS, SEED);
        let slots = recipe.slots();
        assert_eq!(slots.len(), recipe.len() as usize);
        slots
    }

    #[test]
    fn what_is_drawn_lies_in_blocks_and_what_takes_turns_is_mixed() {
        assert_eq!(slots(Balance::Random, &[3, 0, 1]), [1, 1, 1, 3]);
        assert_eq!(slots(Balance::LeastConn, &[30, 10]), [1, 1, 1, 2]);
        assert_eq!(slots(Balance::RoundRobin, &[3, 0, 1]), [1, 1, 3, 1]);
        assert_eq!(slots(Balance::RoundRobin, &[5, 5, 5]), [1, 2, 3]);
    }

    #[test]
    fn both_choices_by_hash_have_the_same_table_of_all_backends() {
        let table = slots(Balance::Maglev, &[1, 0, 3]);
        assert_eq!(table, slots(Balance::SourceHash, &[1, 0, 3]));
        let of = |id| table.iter().filter(|slot| **slot == id).count();
        assert_eq!((of(2), of(1) * 3 / 100), (0, of(3) / 100));
    }

    #[test]
    fn a_recipe_changes_only_if_its_table_does() {
        let recipe =
            |balance, weights: &[u32]| Recipe::new(balance, members(weights), TABLE_SLOTS, SEED);
        assert_eq!(recipe(Balance::Random, &[1, 2]), recipe(Balance::LeastConn, &[1, 2, 0]));
        assert_eq!(recipe(Balance::Maglev, &[1, 2]), recipe(Balance::SourceHash, &[1, 2]));
        assert_ne!(recipe(Balance::Random, &[1, 2]), recipe(Balance::RoundRobin, &[1, 2]));
        assert_ne!(recipe(Balance::Maglev, &[1, 2]), recipe(Balance::Maglev, &[2, 2]));
        let crowded = Recipe::new(Balance::Maglev, members(&[1, 2]), room_for_each(100), SEED);
        assert_ne!(recipe(Balance::Maglev, &[1, 2]), crowded);
        let by = |balance, seed| Recipe::new(balance, members(&[1, 2]), TABLE_SLOTS, seed);
        assert_ne!(by(Balance::Maglev, SEED), by(Balance::Maglev, Seed::default()));
        assert_eq!(by(Balance::Random, SEED), by(Balance::Random, Seed::default()));
    }

    #[test]
    fn every_backend_has_a_slot_however_many_there_are() {
        for balance in [Balance::Random, Balance::RoundRobin] {
            let many = (1..=10_000u32).map(|id| Member { id, weight: 1, ..members(&[1])[0] });
            let slots = Recipe::new(balance, many.collect(), TABLE_SLOTS, SEED).slots();
            assert!(slots.into_iter().eq(1..=10_000), "{balance:?}");
        }
    }

    proptest! {
        #[test]
        fn regions_in_use_never_overlap(steps in prop::collection::vec((1u32..5_000, any::<bool>()), 1..60)) {
            let mut tables = Tables::default();
            let mut mine: Vec<Region> = Vec::new();
            for (len, give_back) in steps {
                if give_back && !mine.is_empty() {
                    tables.give_back(mine.remove(0));
                    tables.settle();
                }
                let Some(region) = tables.find(len) else { continue };
                for other in &mine {
                    prop_assert!(region.end() <= other.base || other.end() <= region.base);
                }
                tables.take(region);
                mine.push(region);
            }
        }

        /// However the tables lie that are there, one that keeps to its room finds a gap.
        #[test]
        fn tables_that_keep_to_their_room_always_find_a_gap(
            steps in prop::collection::vec((0usize..20, 0..=room_for_each(20)), 1..200),
        ) {
            let mut tables = Tables::default();
            let mut mine = [Region::EMPTY; 20];
            for (which, len) in steps {
                tables.settle();
                let region = tables.find(len);
                prop_assert!(region.is_some(), "no gap of {} slots", len);
                tables.take(region.unwrap());
                tables.give_back(std::mem::replace(&mut mine[which], region.unwrap()));
            }
        }
    }
}
