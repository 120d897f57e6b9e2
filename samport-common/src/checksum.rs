//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

/// Folds a 32-bit sum of 16-bit words into 16 bits, carries added back in.
#[must_use]
#[allow(
    clippy::cast_possible_truncation,
    reason = "two folds of a 32-bit sum always leave at most 16 bits"
)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What turning the bytes of `from` into those of `to` adds to a ones' complement sum.
///
/// Folded to 16 bits and widened, the form `bpf_l4_csum_replace` takes with size 0. `N` is even.
#[must_use]
#[inline(always)]
pub fn csum_diff<const N: usize>(from: &[u8; N], to: &[u8; N]) -> u32 {
    // Of a sum's complement, the complement of each word is as good.
    u32::from(fold_wide(wide_sum(to, 0) + wide_sum(from, u32::MAX)))
}

/// The sum of the words of `bytes`, each with `flip` exclusive-ored to it, not yet folded. By four bytes at
/// a time where that is even: an address of IPv6 in single bytes is more than the programs' stack.
#[inline(always)]
fn wide_sum<const N: usize>(bytes: &[u8; N], flip: u32) -> u64 {
    let mut sum = 0u64;
    if N.is_multiple_of(4) {
        for word in bytes.chunks_exact(4) {
            if let [a, b, c, d] = word {
                sum += u64::from(u32::from_ne_bytes([*a, *b, *c, *d]) ^ flip);
            }
        }
    } else {
        for word in bytes.chunks_exact(2) {
            sum += u64::from(u32::from(word_of(word)) ^ (flip & 0xffff));
        }
    }
    sum
}

/// Folds a sum of less than 2^32 words of 32 bits into 16 bits.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "two folds leave at most 33 bits, then 32")]
const fn fold_wide(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    fold(sum as u32)
}

/// The ones' complement sum of the words of `bytes`, in the machine's own order. `N` is even.
#[must_use]
#[inline(always)]
pub fn csum<const N: usize>(bytes: &[u8; N]) -> u16 {
    fold_wide(wide_sum(bytes, 0))
}

/// The sum of the pseudo-header that a transport checksum covers (RFC 9293, section 3.1; RFC 8200,
/// section 8.1), given the sums of both addresses; in the machine's own order. `length` is that of
/// the transport header and all behind it, in bytes.
#[must_use]
#[inline(always)]
pub fn pseudo_header(source: u16, destination: u16, protocol: u8, length: u16) -> u16 {
    let rest = u32::from(u16::from_be(length)) + u32::from(u16::from_be(protocol.into()));
    fold(u32::from(source) + u32::from(destination) + rest)
}

/// Whether a checksum field holds just this sum: what a sender leaves there whose device, or offload
/// further on, is to finish the checksum. Zero has two forms.
#[must_use]
#[inline(always)]
pub const fn is_unfinished(field: [u8; 2], pseudo_header: u16) -> bool {
    let field = u16::from_ne_bytes(field);
    field == pseudo_header
        || (field == 0 && pseudo_header == 0xffff)
        || (field == 0xffff && pseudo_header == 0)
}

/// The checksum field after its covered bytes changed by `csum_diff` (network order in and out).
#[must_use]
#[inline(always)]
pub fn update(field: [u8; 2], csum_diff: u32) -> [u8; 2] {
    let sum = u32::from(!u16::from_ne_bytes(field)) + u32::from(fold(csum_diff));
    (!fold(sum)).to_ne_bytes()
}

/// The field of a checksum that is still to be finished, which is a plain sum, after its pseudo-header changed
/// by `csum_diff` (network order in and out).
#[must_use]
#[inline(always)]
pub fn update_unfinished(field: [u8; 2], csum_diff: u32) -> [u8; 2] {
    fold(u32::from(u16::from_ne_bytes(field)) + u32::from(fold(csum_diff))).to_ne_bytes()
}

/// The checksum field of `bytes` computed from scratch, `seed` added first (network order out).
/// An odd last byte counts as if a zero followed.
#[must_use]
pub fn compute(bytes: &[u8], seed: u32) -> [u8; 2] {
    let mut sum = u32::from(fold(seed));
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum = u32::from(fold(sum)) + u32::from(word_of(word));
    }
    if let [last] = words.remainder() {
        sum = u32::from(fold(sum)) + u32::from(u16::from_ne_bytes([*last, 0]));
    }
    (!fold(sum)).to_ne_bytes()
}

/// A 16-bit word in the machine's own order: ones' complement sums do not care for the order as
/// long as the result is stored in the same one (RFC 1071, section 2 B).
#[inline(always)]
fn word_of(bytes: &[u8]) -> u16 {
    match bytes {
        [a, b] => u16::from_ne_bytes([*a, *b]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(compute(&bytes, 0), (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn an_odd_byte_counts_as_if_a_zero_followed() {
        assert_eq!(compute(&[1, 2, 3], 0), compute(&[1, 2, 3, 0], 0));
    }

    proptest! {
        /// What a device makes of it is what a new computation gives.
        #[test]
        fn an_unfinished_sum_is_finished_right_after_an_update(mut bytes in prop::collection::vec(any::<u8>(), 40..200), to in any::<[u8; 4]>()) {
            bytes[20] |= 1;
            let sum = |bytes: &[u8]| compute(&bytes[..12], 0).map(|byte| !byte);
            let from: [u8; 4] = bytes[8..12].try_into().unwrap();
            let field = sum(&bytes);
            bytes[8..12].copy_from_slice(&to);
            let field = update_unfinished(field, csum_diff(&from, &to));
            let finished = compute(&bytes[12..], u32::from(u16::from_ne_bytes(field)));
            prop_assert_eq!(finished, compute(&bytes, 0));
        }

        #[test]
        fn an_update_equals_a_new_computation(mut bytes in prop::collection::vec(any::<u8>(), 40..200), to in any::<[u8; 4]>()) {
            // A sum of zero has two forms; a packet with any non-zero word never sums to +0.
            bytes[0] |= 1;
            let from: [u8; 4] = bytes[8..12].try_into().unwrap();
            let before = compute(&bytes, 0);
            bytes[8..12].copy_from_slice(&to);
            prop_assert_eq!(update(before, csum_diff(&from, &to)), compute(&bytes, 0));
        }
    }
}
