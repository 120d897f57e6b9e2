//! Layout 4, of the versions from commit f55cf46 to 897d8c1: the maps of layout 5 under other names. No release has it.

/// What becomes of each map.
pub(super) use super::layout5::MAPS;

/// The old name of a map and the present one.
pub(super) use super::layout3::RENAMED;
