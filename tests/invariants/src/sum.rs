//! Internet checksums (RFC 1071), the slow and plain way: no code is shared with what is checked.

/// The ones' complement sum of big-endian words; an odd last byte counts as if a zero followed.
pub fn csum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded to 16 bits")
}

/// The checksum that was `field` before `from` became `to` in what it covers.
pub fn moved(field: [u8; 2], from: &[u8], to: &[u8]) -> [u8; 2] {
    let complement = |bytes: &[u8]| bytes.iter().map(|byte| !byte).collect::<Vec<_>>();
    (!csum(&[&complement(&field), &complement(from), to])).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(csum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        assert_eq!(csum(&[&[1, 2, 3]]), 0x0402);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(moved([0xdd, 0x2f], &[0x55, 0x55], &[0x32, 0x85]), [0x00, 0x00]);
    }
}
