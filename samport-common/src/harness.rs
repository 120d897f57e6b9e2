//! What the measuring harness and its loader agree on. Nothing of it is in the programs that are used.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of 8 bytes at the beginning of a packet that are written anew.
pub const FRAME_WORDS: usize = 10;
/// Entries of the maps that single operations are measured on.
pub const ENTRIES: u32 = 1 << 17;
/// Words of their values: as large as a flow.
pub const VALUE_WORDS: usize = 6;

/// Value of `PACKETS`: what packets are made. 104 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Packets {
    /// The bytes that each begins with.
    pub frame: [u64; FRAME_WORDS],
    /// The number of the next one.
    pub number: u64,
    /// Where the three bytes stand that tell clients apart; below 64.
    pub vary_at: u32,
    /// An [`Order`].
    pub order: u32,
    /// Numbers of clients are below this.
    pub clients: u32,
    /// Zero.
    pub pad: u32,
}

/// In which order clients come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Order {
    /// One after the other.
    Each = 0,
    /// Each seems to be drawn at random.
    Random = 1,
}

impl Order {
    /// The client of a packet with this number, of so many; 0 if there are none.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "less than a number of 32 bits")]
    pub const fn client(order: u32, number: u64, clients: u32) -> u32 {
        if order == Self::Random as u32 {
            // Fibonacci hashing alone would step through the clients evenly; twice, it does not.
            let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
            (((mixed >> 32) * clients as u64) >> 32) as u32
        } else {
            match number.checked_rem(clients as u64) {
                Some(client) => client as u32,
                None => 0,
            }
        }
    }
}

const _: () = assert!(size_of::<Packets>() == 104);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_clients_are_spread() {
        let mut counts = [0; 16];
        for number in 0..16_000 {
            counts[Order::client(Order::Random as u32, number, 16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }

    #[test]
    fn in_order_each_client_has_its_turn() {
        assert!((0..100).all(|n| Order::client(Order::Each as u32, u64::from(n) + 300, 100) == n));
    }
}
