//! Which backend gets a new flow, and the table that answers it in one look-up.

use crate::family::Family;
use crate::flow::Endpoint;
use crate::seed::{Rest, Seed};

/// Most slots of one service's table. Weights are kept to 1/4096 or better.
pub const MAX_SLOTS: u32 = 4_096;

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Balance {
    /// A slot drawn at random.
    Random = 0,
    /// One slot after the other.
    RoundRobin = 1,
    /// Of two slots drawn at random, the backend with fewer open flows for its weight.
    LeastConn = 2,
    /// The slot that the client's address and port hash to.
    Maglev = 3,
    /// The slot that the client's address hashes to.
    SourceHash = 4,
}

impl Balance {
    /// All modes.
    pub const ALL: [Self; 5] =
        [Self::Random, Self::RoundRobin, Self::LeastConn, Self::Maglev, Self::SourceHash];

    /// Total decoder: an unknown byte is [`Balance::Random`].
    #[must_use]
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::RoundRobin,
            2 => Self::LeastConn,
            3 => Self::Maglev,
            4 => Self::SourceHash,
            _ => Self::Random,
        }
    }

    /// The name users know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::LeastConn => "least-conn",
            Self::Maglev => "maglev",
            Self::SourceHash => "source-hash",
        }
    }

    /// Whether the same client always finds the same backend, also without anything remembered.
    #[must_use]
    #[inline(always)]
    pub const fn is_by_hash(self) -> bool {
        matches!(self, Self::Maglev | Self::SourceHash)
    }
}

/// Maps a random 32-bit number onto a slot of a table, every slot as likely as any other (to
/// within `len` / 2³²). `None` for an empty table.
#[must_use]
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the upper half of a product of two 32-bit numbers is below `len`"
)]
pub const fn slot(random: u32, len: u32) -> Option<u32> {
    if len == 0 { None } else { Some(((random as u64 * len as u64) >> 32) as u32) }
}

/// A client as a hash, the same for the same client wherever the seed is the same; with its port, or for all of
/// its connections alike. Who does not have the seed cannot tell which clients have similar hashes.
#[must_use]
#[inline(always)]
pub fn hash<P: Family>(seed: &Seed, client: &Endpoint<P::Addr>, with_port: bool) -> u32 {
    let rest = if with_port { Rest::of_two(client.port) } else { Rest::NONE };
    upper_half(seed.hash(words(&P::to_mapped(client.addr)), rest))
}

/// A number as a hash.
#[must_use]
#[inline(always)]
pub fn hash_of(seed: &Seed, number: u64) -> u32 {
    upper_half(seed.hash([number], Rest::NONE))
}

/// An address as words of a message.
#[must_use]
#[inline(always)]
pub fn words(addr: &[u8; 16]) -> [u64; 2] {
    let halves: [[u8; 8]; 2] = zerocopy::transmute!(*addr);
    halves.map(u64::from_le_bytes)
}

/// Another number for the same client: where it goes if it cannot go where its hash leads.
#[must_use]
#[inline(always)]
pub const fn rehash(hash: u32, attempt: u32) -> u32 {
    if attempt == 0 { hash } else { upper_half(mix(hash as u64, attempt as u64)) }
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the upper half of a word is half a word")]
const fn upper_half(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Stirs a word into a hash: the finalizer of `SplitMix64` (Steele, Lea and Flood 2014), whose every
/// output bit depends on every input bit.
#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    let mut z = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How busy a backend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Flows it has open.
    pub open: u32,
    /// Its share relative to the others.
    pub weight: u32,
}

impl Load {
    /// Whether one more flow is better given to this backend than to the other, for their weights.
    #[must_use]
    #[inline(always)]
    pub const fn is_lighter_than(self, other: Self) -> bool {
        let (mine, others) = (self.open as u64 + 1, other.open as u64 + 1);
        mine * (other.weight as u64) < others * (self.weight as u64)
    }
}

/// How many slots a table for these weights needs: their sum with the common divisor taken out, at
/// most [`MAX_SLOTS`]. Weights of 0 take no part. 0 if no weight is above 0.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "capped at MAX_SLOTS")]
pub fn table_len(weights: impl Iterator<Item = u32>) -> u32 {
    let (divisor, sum) =
        weights.fold((0, 0u64), |(divisor, sum), w| (gcd(divisor, w), sum + u64::from(w)));
    match sum.checked_div(u64::from(divisor)) {
        None => 0,
        Some(slots) => slots.min(u64::from(MAX_SLOTS)) as u32,
    }
}

/// Fills a table: each backend id gets slots in proportion to its weight, rounded so that no share
/// is more than one slot off and the whole table is used.
pub fn fill(backends: impl Iterator<Item = (u32, u32)> + Clone, table: &mut [u32]) {
    let total: u64 = backends.clone().map(|(_, weight)| u64::from(weight)).sum();
    let slots = table.len() as u64;
    let mut rest = table;
    let (mut before, mut placed) = (0u64, 0u64);
    for (id, weight) in backends {
        before += u64::from(weight);
        // The end of this backend's slots on a ruler of `slots` marks; the last one is `slots`.
        let Some(end) = (before * slots).checked_div(total) else { return };
        let take = usize::try_from(end - placed).unwrap_or(usize::MAX);
        let Some((mine, others)) = rest.split_at_mut_checked(take) else { return };
        mine.fill(id);
        (rest, placed) = (others, end);
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while let Some(rest) = a.checked_rem(b) {
        (a, b) = (b, rest);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use proptest::prelude::*;

    fn table(weights: &[u32]) -> Vec<u32> {
        let mut table = vec![u32::MAX; table_len(weights.iter().copied()) as usize];
        fill((0..).zip(weights.iter().copied()), &mut table);
        table
    }

    #[test]
    fn equal_weights_need_one_slot_each() {
        assert_eq!(table(&[5, 5, 5]), [0, 1, 2]);
        assert_eq!(table(&[70, 20, 10]), [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]);
    }

    #[test]
    fn weight_zero_gets_nothing() {
        assert_eq!(table(&[0, 3]), [1]);
        assert_eq!(table(&[0, 0]), []);
        assert_eq!(table(&[]), []);
    }

    #[test]
    fn a_slot_is_always_inside() {
        assert_eq!(slot(0, 0), None);
        for len in [1, 2, 3, 4_096] {
            assert_eq!(slot(0, len), Some(0));
            assert_eq!(slot(u32::MAX, len), Some(len - 1));
        }
    }

    #[test]
    fn modes_survive_their_byte() {
        for balance in Balance::ALL {
            assert_eq!(Balance::from_byte(balance as u8), balance);
        }
        assert_eq!(Balance::from_byte(99), Balance::Random);
    }

    #[test]
    fn loads_count_by_weight() {
        let load = |open, weight| Load { open, weight };
        assert!(load(0, 1).is_lighter_than(load(1, 1)));
        assert!(!load(1, 1).is_lighter_than(load(1, 1)));
        assert!(load(5, 3).is_lighter_than(load(2, 1)));
        assert!(!load(6, 2).is_lighter_than(load(2, 1)));
        assert!(load(u32::MAX, u32::MAX).is_lighter_than(load(u32::MAX, 1)));
        assert!(!load(0, 0).is_lighter_than(load(9, 1)));
    }

    fn seed(number: u8) -> Seed {
        Seed::from_bytes([number; 16])
    }

    fn spread(hashes: impl Iterator<Item = u32>) -> [u32; 16] {
        let mut counts = [0; 16];
        for hash in hashes {
            counts[slot(hash, 16).unwrap() as usize] += 1;
        }
        counts
    }

    /// χ² with 15 degrees of freedom: 37.7 is passed by one fair hash in a thousand.
    fn assert_even(counts: [u32; 16]) {
        let expected = f64::from(counts.iter().sum::<u32>()) / 16.0;
        let chi2: f64 = counts.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        assert!(chi2 < 37.7, "{chi2} {counts:?}");
    }

    fn host(number: u16) -> Endpoint<[u8; 4]> {
        let [high, low] = number.to_be_bytes();
        Endpoint { addr: [10, 0, high, low], port: [0; 2] }
    }

    #[test]
    fn neighbours_spread_evenly() {
        let port = |n: u16| Endpoint { addr: [192, 0, 2, 1], port: n.to_be_bytes() };
        assert_even(spread((1_024..9_024).map(|n| hash::<V4>(&seed(1), &port(n), true))));
        assert_even(spread((0..8_000).map(|n| hash::<V4>(&seed(1), &host(n), false))));
        assert_even(spread((0..8_000).map(|n| hash_of(&seed(1), n))));
        let client = hash::<V4>(&seed(1), &host(1), false);
        assert_even(spread((0..8_000).map(|n| rehash(client, n))));
    }

    #[test]
    fn the_port_counts_only_where_it_is_to_count() {
        let client = |port| Endpoint { addr: [7; 16], port };
        let hash = |port, with_port| hash::<V6>(&seed(1), &client(port), with_port);
        assert_eq!(hash([1, 2], false), hash([3, 4], false));
        assert_ne!(hash([1, 2], true), hash([3, 4], true));
    }

    /// Whoever has another seed, or none, learns nothing from its hashes: those clients that would load one of 16
    /// backends there are spread over all of them here.
    #[test]
    fn clients_of_one_backend_by_one_seed_are_spread_by_another() {
        for other in [0, 1, 255] {
            let chosen = (0..u16::MAX).filter(|n| {
                let hash = hash::<V4>(&seed(other), &host(*n), false);
                slot(hash, 16) == Some(3)
            });
            let here = spread(chosen.map(|n| hash::<V4>(&seed(2), &host(n), false)));
            assert!(here.iter().sum::<u32>() > 3_500);
            assert_even(here);
        }
    }

    proptest! {
        #[test]
        fn shares_are_within_a_slot_of_the_weights(weights in prop::collection::vec(0u32..100_000, 1..50)) {
            let table = table(&weights);
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assert_eq!(table.is_empty(), total == 0);
            for (id, weight) in (0u32..).zip(&weights) {
                let got = table.iter().filter(|slot| **slot == id).count() as u64;
                // Both sides times the total, to stay with whole numbers.
                let (got, exact) = (got * total, u64::from(*weight) * table.len() as u64);
                prop_assert!(got.abs_diff(exact) <= total, "{} for {} of {}", got, exact, total);
            }
        }
    }
}
