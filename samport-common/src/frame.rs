//! How the core looks at a packet without knowing what holds it.

/// Bytes of one packet, starting at its Ethernet header.
///
/// Implemented by slices on the host and by the kernel's contexts in `samport-ebpf`, so that one
/// parser serves both.
pub trait Frame {
    /// Reads `N` bytes at `offset` (in bytes from the start of the frame), or `None` if the frame
    /// ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same offset. The kernel's frame takes the occasion to make the verifier forget which of
    /// many ways led to it.
    fn reconsider(&self, offset: usize) -> usize {
        offset
    }
}

impl Frame for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_past_the_end_is_none() {
        let frame: &[u8] = &[1, 2, 3, 4];
        assert_eq!(frame.read::<2>(2), Some([3, 4]));
        assert_eq!(frame.read::<2>(3), None);
        assert_eq!(frame.read::<1>(usize::MAX), None);
        assert_eq!(frame.read::<0>(4), Some([]));
    }
}
