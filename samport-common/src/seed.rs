//! A keyed hash, so that nobody outside can tell where it leads: SipHash-1-3 ("SipHash: a fast short-input PRF",
//! Aumasson and Bernstein, INDOCRYPT 2012, with the rounds that hash tables use).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Value of `HASH_SEED`, and the key of every hash that chooses a backend: 128 secret bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Seed {
    low: u64,
    high: u64,
}

const _: () = assert!(size_of::<Seed>() == Seed::BYTES);

impl Seed {
    /// Its length.
    pub const BYTES: usize = 16;

    /// The seed with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let both = u128::from_le_bytes(bytes);
        let [low, high] = [both, both >> 64];
        Self { low: lower_half(low), high: lower_half(high) }
    }

    /// `SipHash-1-3` of a message: whole words, and a rest of up to 7 bytes. A word's first byte is its lowest.
    #[must_use]
    #[inline(always)]
    pub fn hash<const WORDS: usize>(&self, words: [u64; WORDS], rest: Rest) -> u64 {
        let mut state = State([
            self.low ^ 0x736f_6d65_7073_6575,
            self.high ^ 0x646f_7261_6e64_6f6d,
            self.low ^ 0x6c79_6765_6e65_7261,
            self.high ^ 0x7465_6462_7974_6573,
        ]);
        for word in words {
            state = state.take_in(word);
        }
        let len = 8 * WORDS as u64 + rest.len;
        state.take_in((len << 56) | rest.bytes).end()
    }
}

/// No secret ends up in a log.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// The last bytes of a message, fewer than a word has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rest {
    bytes: u64,
    len: u64,
}

impl Rest {
    /// Nothing is left.
    pub const NONE: Self = Self { bytes: 0, len: 0 };

    /// Two bytes.
    #[must_use]
    #[inline(always)]
    pub const fn of_two(bytes: [u8; 2]) -> Self {
        Self { bytes: u16::from_le_bytes(bytes) as u64, len: 2 }
    }

    /// Two bytes, and one more.
    #[must_use]
    #[inline(always)]
    pub const fn of_three([first, second]: [u8; 2], third: u8) -> Self {
        Self { bytes: u32::from_le_bytes([first, second, third, 0]) as u64, len: 3 }
    }
}

#[derive(Clone, Copy)]
struct State([u64; 4]);

impl State {
    #[inline(always)]
    const fn take_in(self, word: u64) -> Self {
        let Self([v0, v1, v2, v3]) = self;
        let Self([v0, v1, v2, v3]) = Self([v0, v1, v2, v3 ^ word]).round();
        Self([v0 ^ word, v1, v2, v3])
    }

    #[inline(always)]
    const fn end(self) -> u64 {
        let Self([v0, v1, v2, v3]) = self;
        let Self([v0, v1, v2, v3]) = Self([v0, v1, v2 ^ 0xff, v3]).round().round().round();
        v0 ^ v1 ^ v2 ^ v3
    }

    #[inline(always)]
    const fn round(self) -> Self {
        let Self([mut v0, mut v1, mut v2, mut v3]) = self;
        v0 = v0.wrapping_add(v1);
        v1 = v1.rotate_left(13) ^ v0;
        v0 = v0.rotate_left(32);
        v2 = v2.wrapping_add(v3);
        v3 = v3.rotate_left(16) ^ v2;
        v0 = v0.wrapping_add(v3);
        v3 = v3.rotate_left(21) ^ v0;
        v2 = v2.wrapping_add(v1);
        v1 = v1.rotate_left(17) ^ v2;
        v2 = v2.rotate_left(32);
        Self([v0, v1, v2, v3])
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn lower_half(both: u128) -> u64 {
    both as u64
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher as _};

    use super::*;
    use proptest::prelude::*;

    /// By `openssl mac -macopt hexkey:000102…0f -macopt size:8 -macopt c-rounds:1 -macopt d-rounds:3 SIPHASH` of the
    /// bytes 0, 1, 2 and so on.
    #[test]
    fn it_is_siphash_1_3() {
        let bytes: Vec<u8> = (0..).take(Seed::BYTES).collect();
        let seed = Seed::from_bytes(bytes.try_into().unwrap());
        let [first, second] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let number = u64::swap_bytes;
        assert_eq!(seed.hash([], Rest::NONE), number(0xdcc4_0f05_5801_acab));
        assert_eq!(seed.hash([first], Rest::NONE), number(0x8e9a_298d_1195_9036));
        let both = [first, second];
        assert_eq!(seed.hash(both, Rest::NONE), number(0x668b_907d_1add_4fcc));
        assert_eq!(seed.hash(both, Rest::of_two([16, 17])), number(0x3ee6_73b4_9c38_fc8f));
        assert_eq!(seed.hash(both, Rest::of_three([16, 17], 18)), number(0x1c7d_298d_e59d_1ff2));
    }

    #[test]
    fn no_log_has_the_seed() {
        assert_eq!(format!("{:?}", Seed::from_bytes([7; 16])), "Seed(..)");
    }

    proptest! {
        /// The standard library's is the same with a key of zeros.
        #[test]
        fn it_is_what_the_standard_library_has(words: [u64; 3], rest: [u8; 2], last: u8) {
            let of = |rest: &[u8]| {
                let mut hasher = DefaultHasher::new();
                hasher.write(&[&words.map(u64::to_le_bytes).concat(), rest].concat());
                hasher.finish()
            };
            let seed = Seed::default();
            prop_assert_eq!(seed.hash(words, Rest::NONE), of(&[]));
            prop_assert_eq!(seed.hash(words, Rest::of_two(rest)), of(&rest));
            prop_assert_eq!(seed.hash(words, Rest::of_three(rest, last)), of(&[rest[0], rest[1], last]));
        }

        /// Each bit of the seed, and of the message, turns half of the hash's bits.
        #[test]
        fn every_bit_changes_half_of_all(bytes: [u8; 16], words: [u64; 2], bit in 0usize..128) {
            let seed = Seed::from_bytes(bytes);
            let (mut others, mut changed) = (bytes, words);
            others[bit / 8] ^= 1 << (bit % 8);
            changed[bit / 64] ^= 1 << (bit % 64);
            let mut turned = 0;
            for number in 0..64u64 {
                let hash = seed.hash([words[0], words[1], number], Rest::NONE);
                turned += (hash ^ Seed::from_bytes(others).hash([words[0], words[1], number], Rest::NONE)).count_ones();
                turned += (hash ^ seed.hash([changed[0], changed[1], number], Rest::NONE)).count_ones();
            }
            // Of 8,192 bits half, within 8 standard deviations.
            prop_assert!((4_096 - 362..=4_096 + 362).contains(&turned), "{}", turned);
        }
    }
}
