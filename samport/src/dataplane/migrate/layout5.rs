//! Layout 5, of the versions from commit bcdcda2 to 2b61d2c: fewer verdicts, and nothing of other nodes. No release has it.

use super::Migration::{self, Converted, Kept, New, OfRun};
use super::copy::array_by_cpu;
use crate::dataplane::load;

/// The maps that are others since, and what becomes of them.
const CHANGED: [(&str, Migration); 3] = [
    // There are more of them now.
    ("VERDICTS", Converted(array_by_cpu::<u64>)),
    ("NODES", New),
    ("NODE_IDS", New),
];

/// Every other map goes on being used, but for those that each run makes.
pub(super) const MAPS: [(&str, Migration); load::MAPS.len()] = {
    let mut maps = [("", OfRun); load::MAPS.len()];
    let mut at = 0;
    while at < maps.len() {
        maps[at] = (load::MAPS[at], Kept);
        let mut changed = 0;
        while changed < CHANGED.len() {
            if is_same(CHANGED[changed].0, load::MAPS[at]) {
                maps[at] = CHANGED[changed];
            }
            changed += 1;
        }
        at += 1;
    }
    maps
};

/// `==` of what is known when this is compiled.
const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}
