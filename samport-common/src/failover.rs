//! When a backend is given up for another before its client notices. Pure.
//!
//! Time is in units of 1.024 µs (the kernel's nanoseconds shifted by 10) and in
//! [ticks](crate::conntrack::TICK_SHIFT).

use crate::conntrack::{State, Timeouts};
use crate::layout::HANDSHAKE_CLASSES;
use crate::wire::tcp::Flags;

/// The kernel's nanoseconds are shifted by this to make the units of [`Flow::opened`](crate::flow::Flow).
pub const MICRO_SHIFT: u32 = 10;

/// A SYN that has had no answer for 0.9 s has had none: Linux sends it again after 1 s (RFC 6298,
/// section 2.1), other systems later.
pub const SILENT_AFTER: u32 = 878_906;

/// How long a backend is avoided after its first failure. Each further one doubles that.
const FIRST_SUSPICION: u32 = 10;
/// How long at most.
const LONGEST_SUSPICION: u32 = 80;

/// Draws for a new flow that avoid suspects; after that anyone who serves will do. Less than the
/// kernel's limit of 33 tail calls.
pub const PATIENCE: u32 = 24;

/// Whether a backend's segment refuses the connection.
#[must_use]
#[inline(always)]
pub const fn refuses(state: State, flags: Flags) -> bool {
    matches!(state, State::SynSent) && flags.rst()
}

/// Whether a client's SYN says that its backend has kept silent since it was chosen, `age` ago.
#[must_use]
#[inline(always)]
pub const fn is_silent(state: State, flags: Flags, age: u32) -> bool {
    matches!(state, State::SynSent) && flags.opens() && age >= SILENT_AFTER
}

/// Ticks for which a backend is avoided that has now failed so many times in a row.
#[must_use]
#[inline(always)]
pub const fn suspicion(failures: u32) -> u32 {
    const FIRST: u32 = Timeouts::ticks(FIRST_SUSPICION);
    const LONGEST: u32 = Timeouts::ticks(LONGEST_SUSPICION);
    let doubled = match failures {
        0 | 1 => FIRST,
        2 => FIRST * 2,
        3 => FIRST * 4,
        _ => LONGEST,
    };
    if doubled < LONGEST { doubled } else { LONGEST }
}

/// The class of a handshake that took this long: see [`Handshakes`](crate::layout::Handshakes).
#[must_use]
#[inline(always)]
pub const fn class(took: u32) -> usize {
    const LAST: usize = HANDSHAKE_CLASSES - 1;
    const FIRST_BOUND: u32 = 4;
    let bits = u32::BITS - took.leading_zeros();
    let class = bits.saturating_sub(FIRST_BOUND) as usize;
    if class < LAST { class } else { LAST }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reset_before_any_answer_refuses() {
        for state in State::ALL {
            for bits in 0..=u8::MAX {
                let flags = Flags(bits);
                assert_eq!(refuses(state, flags), state == State::SynSent && flags.rst());
                let silent = is_silent(state, flags, SILENT_AFTER);
                assert_eq!(silent, state == State::SynSent && flags.opens());
                assert!(!is_silent(state, flags, SILENT_AFTER - 1));
            }
        }
    }

    #[test]
    fn silence_is_shorter_than_the_first_second() {
        let ns = u64::from(SILENT_AFTER) << MICRO_SHIFT;
        assert!((899_000_000..=900_000_000).contains(&ns), "{ns}");
    }

    #[test]
    fn suspicion_grows_and_has_an_end() {
        let ticks: Vec<u32> = (0..9).map(suspicion).collect();
        assert!(ticks.is_sorted(), "{ticks:?}");
        assert_eq!(ticks[1], Timeouts::ticks(10));
        assert_eq!(ticks[8], Timeouts::ticks(80));
    }

    #[test]
    fn classes_are_powers_of_two() {
        assert_eq!((class(0), class(15), class(16), class(31)), (0, 0, 1, 1));
        for n in 1..HANDSHAKE_CLASSES - 1 {
            let bound = 1 << (4 + n);
            assert_eq!((class(bound - 1), class(bound)), (n, n + 1));
        }
        assert_eq!(class(u32::MAX), HANDSHAKE_CLASSES - 1);
    }
}
