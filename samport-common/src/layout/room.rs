//! Who holds how much of the tables of flows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow::ServiceId;

/// Value of `HELD`: entries made in the tables of flows, and those that were seen to go, shared by all CPUs.
/// Entries that the loader takes out are not: it counts those in `FREED`, under the same index. 16 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Held {
    /// Entries made.
    pub opened: u64,
    /// Entries seen to go; of [`UNPROVEN`], also those whose client was proven.
    pub ended: u64,
}

impl Held {
    /// Entries there are, given how many the loader has taken out. Less than none for a moment, while both
    /// are counted.
    #[must_use]
    #[inline(always)]
    pub const fn now(&self, freed: u64) -> u64 {
        let now = self.opened.wrapping_sub(self.ended).wrapping_sub(freed);
        if now.cast_signed() < 0 { 0 } else { now }
    }
}

/// Index of `HELD` and `FREED`: flows of both families whose client nothing has proven yet
/// ([`State::is_unproven`](crate::conntrack::State::is_unproven)).
pub const UNPROVEN: u32 = 0;
/// Entries of `HELD` and `FREED`.
pub const HELD_LEN: u32 = 1 + ServiceId::LIMIT as u32;

/// Index of `HELD` and `FREED`: all flows of a service.
#[must_use]
#[inline(always)]
pub const fn held_by(service: ServiceId) -> u32 {
    1 + service.get() as u32
}

/// How much of the tables of flows may be held by whom. 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RoomLimits {
    /// Flows whose client is not proven, of both families together, while one is stored for IPv4 and for IPv6.
    pub unproven: [u32; 2],
    /// Flows of one service while a table is nearly full, for IPv4 and for IPv6.
    pub share: [u32; 2],
}

impl RoomLimits {
    /// The limits of tables of these sizes: a quarter of each for clients that are not proven, and `percent` of it
    /// for a service.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "at most a table's size, for 100 percent")]
    pub const fn new(flows: [u32; 2], percent: u8) -> Self {
        let [v4, v6] = flows;
        let percent = if percent < 100 { percent as u64 } else { 100 };
        let share = [(v4 as u64 * percent / 100) as u32, (v6 as u64 * percent / 100) as u32];
        Self { unproven: [v4 / 4, v6 / 4], share }
    }
}

/// A table of this many entries is nearly full with so many.
#[must_use]
pub const fn is_nearly_full(held: u64, entries: u64) -> bool {
    held > entries / 4 * 3
}

const _: () = assert!(size_of::<Held>() == 16);
const _: () = assert!(size_of::<RoomLimits>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_what_was_made_less_what_has_gone() {
        let held = Held { opened: 10, ended: 3 };
        assert_eq!((held.now(0), held.now(2), held.now(7)), (7, 5, 0));
        assert_eq!(held.now(8), 0, "counted twice for a moment");
    }

    #[test]
    fn limits_are_parts_of_the_tables() {
        let limits = RoomLimits::new([131_072, 65_536], 50);
        assert_eq!((limits.unproven, limits.share), ([32_768, 16_384], [65_536, 32_768]));
        assert_eq!(RoomLimits::new([1_024, 1_024], 100).share, [1_024, 1_024]);
        assert_eq!(RoomLimits::new([16_777_216, 1_024], 200).share[0], 16_777_216);
    }

    #[test]
    fn services_and_the_unproven_have_indices_of_their_own() {
        assert_eq!(held_by(ServiceId::FIRST), UNPROVEN + 1);
        let last = ServiceId::new(ServiceId::LIMIT - 1).unwrap();
        assert_eq!(held_by(last), HELD_LEN - 1);
    }
}
