//! The time, read from jiffies.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::conntrack::TICK_SHIFT;

/// Value of `CLOCK`: how the time follows from jiffies, which programs read in one instruction. 16 bytes; all
/// zero while that is not known.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Clock {
    /// Nanoseconds in a jiffy. The kernel counts jiffies by its monotonic clock, so that they do not drift
    /// apart.
    pub jiffy_ns: u64,
    /// What the clock was when there were no jiffies; wraps below zero.
    pub begin_ns: u64,
}

impl Clock {
    /// The clock that shows this time at so many jiffies.
    #[must_use]
    pub const fn set(jiffy_ns: u64, jiffies: u64, now_ns: u64) -> Self {
        Self { jiffy_ns, begin_ns: now_ns.wrapping_sub(jiffies.wrapping_mul(jiffy_ns)) }
    }

    /// The time in ticks at so many jiffies; `None` if it is not known.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "2³² ticks are 146 years")]
    pub const fn tick(&self, jiffies: u64) -> Option<u32> {
        if self.jiffy_ns == 0 {
            return None;
        }
        let now_ns = self.begin_ns.wrapping_add(jiffies.wrapping_mul(self.jiffy_ns));
        Some((now_ns >> TICK_SHIFT) as u32)
    }
}

const _: () = assert!(size_of::<Clock>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_on_from_where_it_was_set() {
        const SECOND: u64 = 1_000_000_000;
        // Jiffies begin 300 s before they need a 33rd bit.
        let (jiffies, jiffy_ns) = (u64::from(u32::MAX) - 300 * 250, SECOND / 250);
        let clock = Clock::set(jiffy_ns, jiffies, 7 * SECOND);
        for seconds in [0, 1, 299, 301, 86_400, 400 * 86_400] {
            let expected = ((7 + seconds) * SECOND) >> TICK_SHIFT;
            assert_eq!(clock.tick(jiffies + seconds * 250).map(u64::from), Some(expected));
        }
        assert_eq!(Clock::default().tick(jiffies), None);
    }
}
