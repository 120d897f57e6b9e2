//! Room in the kernel's `TABLE`, and what is written there. Pure.

use std::collections::BTreeSet;

use samport_common::choose;
use samport_common::layout::TABLE_SLOTS;

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

/// Which regions are in use. A region given back may still be read by a program that is running
/// right now, so it counts as used until [`Tables::settle`].
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tables {
    used: BTreeSet<Region>,
    given_back: BTreeSet<Region>,
}

impl Tables {
    /// The first gap large enough for a table, or `None` if there is none without settling.
    #[must_use]
    pub fn find(&self, slots: &[u32]) -> Option<Region> {
        let len = u32::try_from(slots.len()).ok()?;
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

    /// Nobody reads the regions given back any more.
    pub fn settle(&mut self) {
        self.given_back.clear();
    }
}

/// The slots of a table for backend ids and weights.
#[must_use]
pub fn slots_for(backends: &[(u32, u32)]) -> Vec<u32> {
    let len = choose::table_len(backends.iter().map(|(_, weight)| *weight));
    // Room for every backend, however many there are.
    let len = len.max(u32::try_from(backends.len()).unwrap_or(u32::MAX)) as usize;
    let mut slots = vec![0; len];
    choose::fill(backends.iter().copied(), &mut slots);
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_region_given_back_is_not_reused_until_settled() {
        let mut tables = Tables::default();
        let all = vec![0; TABLE_SLOTS as usize];
        let region = tables.find(&all).unwrap();
        tables.take(region);
        assert_eq!(tables.find(&[1]), None);
        tables.give_back(region);
        assert_eq!(tables.find(&[1]), None);
        tables.settle();
        assert_eq!(tables.find(&[1]), Some(Region { base: 0, len: 1 }));
    }

    #[test]
    fn an_empty_table_needs_no_room() {
        assert_eq!(Tables::default().find(&[]), Some(Region::EMPTY));
        assert_eq!(slots_for(&[]), Vec::<u32>::new());
    }

    proptest! {
        #[test]
        fn regions_in_use_never_overlap(steps in prop::collection::vec((1usize..5_000, any::<bool>()), 1..60)) {
            let mut tables = Tables::default();
            let mut mine: Vec<Region> = Vec::new();
            for (len, give_back) in steps {
                if give_back && !mine.is_empty() {
                    tables.give_back(mine.remove(0));
                    tables.settle();
                }
                let Some(region) = tables.find(&vec![0; len]) else { continue };
                for other in &mine {
                    prop_assert!(region.end() <= other.base || other.end() <= region.base);
                }
                tables.take(region);
                mine.push(region);
            }
        }
    }
}
