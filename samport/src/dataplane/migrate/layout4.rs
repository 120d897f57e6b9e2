//! Layout 4, of the versions from commit f55cf46 to 897d8c1: the present maps under other names. No release has it.

use super::Migration::{self, Kept, OfRun};
use crate::dataplane::load;

/// Every map goes on being used, but for those that each run makes.
pub(super) const MAPS: [(&str, Migration); load::MAPS.len()] = {
    let mut maps = [("", OfRun); load::MAPS.len()];
    let mut at = 0;
    while at < maps.len() {
        maps[at] = (load::MAPS[at], Kept);
        at += 1;
    }
    maps
};

/// The old name of a map and the present one.
pub(super) use super::layout3::RENAMED;
