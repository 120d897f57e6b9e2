//! Answering a segment with a reset, where its connection has nobody at the other end. Pure.
//!
//! The packet itself becomes the answer: turned round, its headers' lengths set anew, a fresh TCP header
//! without options, and no payload. IP options and extension headers stay.

use crate::checksum;
use crate::conntrack::Segment;
use crate::family::Family;
use crate::frame::Frame;
use crate::packet::{MAX_OFFSET, Packet};
use crate::wire::tcp::Flags;
use crate::wire::{ipv4, ipv6, protocol, tcp};

/// Hops an answer may take: what Linux gives its own.
const HOPS: u8 = 64;

/// What the answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResetReply {
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
}

impl ResetReply {
    /// The reset that answers a segment of no connection (RFC 9293, section 3.10.7.1). `None` for a
    /// reset, which nobody answers.
    #[must_use]
    #[inline(always)]
    pub const fn to(segment: &Segment) -> Option<Self> {
        if segment.flags.rst() {
            return None;
        }
        if segment.flags.ack() {
            let sequence = segment.acknowledgement;
            return Some(Self { sequence, acknowledgement: 0, flags: Flags::RST });
        }
        let flags = Flags::RST | Flags::ACK;
        Some(Self { sequence: 0, acknowledgement: segment.end(), flags })
    }

    /// The TCP header, from `from` to `to`, its checksum all ones: zero, to whoever adds to it.
    #[must_use]
    #[inline(always)]
    pub fn header(&self, from: [u8; 2], to: [u8; 2]) -> [u8; tcp::MIN_LEN] {
        let ports: [u8; 4] = zerocopy::transmute!([from, to]);
        let (sequence, acknowledgement) =
            (self.sequence.to_be_bytes(), self.acknowledgement.to_be_bytes());
        let words =
            [ports, sequence, acknowledgement, [0x50, self.flags, 0, 0], [0xff, 0xff, 0, 0]];
        zerocopy::transmute!(words)
    }
}

/// A packet's change into the answer to itself. Offsets are in bytes from the start of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset<P: Family> {
    /// Length of the frame afterwards.
    pub frame_len: usize,
    /// Where the IP header's length stands.
    pub length_at: usize,
    /// That length.
    pub length: [u8; 2],
    /// Where the hop limit stands, with its neighbour.
    pub hops_at: usize,
    /// Both.
    pub hops: [u8; 2],
    /// Where the IP header's own checksum stands, if it has one.
    pub l3_checksum_at: Option<usize>,
    /// What length and hop limit add to it. Addresses that change places add nothing.
    pub l3_csum_diff: u32,
    /// Where the source address stands.
    pub source_at: usize,
    /// The source: who was addressed.
    pub source: P::Addr,
    /// Where the destination address stands.
    pub destination_at: usize,
    /// The destination: who has sent.
    pub destination: P::Addr,
    /// Where the TCP header stands.
    pub l4: usize,
    /// The TCP header; its checksum is all ones: zero, to whoever adds to it.
    pub header: [u8; tcp::MIN_LEN],
    /// The sum over what the checksum covers besides: addresses, protocol, length.
    pub pseudo: u32,
    /// The sum over the TCP header.
    pub sum: u32,
}

/// Plans the answer. `None` if there is none to this packet, or the frame ends too early.
#[must_use]
#[inline(always)]
#[allow(clippy::many_single_char_names, reason = "the bytes of two numbers")]
pub fn plan<P: Family, F: Frame + ?Sized>(frame: &F, packet: &Packet<P::Addr>) -> Option<Reset<P>> {
    let Packet { source, destination, flags, .. } = *packet;
    // They are below that anyway: older verifiers want it said where they have not seen it.
    let (l3, l4) = (packet.l3 & MAX_OFFSET, packet.l4 & MAX_OFFSET);
    let (length_at, hops_at) = match P::CHECKSUM {
        Some(_) => (l3 + ipv4::TOTAL_LEN.start, l3 + ipv4::TTL_AND_PROTOCOL.start),
        None => (l3 + ipv6::PAYLOAD_LEN.start, l3 + ipv6::NEXT_HEADER_AND_HOPS.start),
    };
    let old_length: [u8; 2] = frame.read(length_at)?;
    let old_hops: [u8; 2] = frame.read(hops_at)?;
    let [_, _, _, _, a, b, c, d, e, f, g, h, offset, _] = frame.read(l4)?;
    // What the length counts begins here.
    let counted_from = if P::CHECKSUM.is_some() { l3 } else { l3 + ipv6::LEN };
    let end = counted_from + usize::from(u16::from_be_bytes(old_length));
    let begin = l4 + usize::from(offset >> 4) * 4;
    // Read here once more: all of the packet's segment would take more of Linux 6.1's stack than there is.
    let answer = ResetReply::to(&Segment {
        flags,
        sequence: u32::from_be_bytes([a, b, c, d]),
        acknowledgement: u32::from_be_bytes([e, f, g, h]),
        payload: u16::try_from(end.saturating_sub(begin)).ok()?,
    })?;
    let length = u16::try_from((l4 + tcp::MIN_LEN).checked_sub(counted_from)?).ok()?.to_be_bytes();
    let hops = match (P::CHECKSUM, old_hops) {
        (Some(_), [_, protocol]) => [HOPS, protocol],
        (None, [next_header, _]) => [next_header, HOPS],
    };
    let header = answer.header(destination.port, source.port);
    Some(Reset {
        frame_len: l4 + tcp::MIN_LEN,
        length_at,
        length,
        hops_at,
        hops,
        l3_checksum_at: P::CHECKSUM.map(|at| l3 + at),
        l3_csum_diff: checksum::csum_diff(&old_length, &length)
            + checksum::csum_diff(&old_hops, &hops),
        source_at: l3 + P::SOURCE,
        source: destination.addr,
        destination_at: l3 + P::DESTINATION,
        destination: source.addr,
        l4,
        header,
        pseudo: pseudo_header::<P>(source.addr, destination.addr),
        sum: csum(&header),
    })
}

/// What the sum over a TCP segment begins with (RFC 9293, section 3.1).
#[inline(always)]
fn pseudo_header<P: Family>(one: P::Addr, other: P::Addr) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "20")]
    let [high, low] = const { (tcp::MIN_LEN as u16).to_be_bytes() };
    // The two bytes that make an address wide are zero to this sum.
    let addresses = csum(&P::to_mapped(one)) + csum(&P::to_mapped(other));
    u32::from(checksum::fold(addresses + csum(&[0, protocol::TCP, high, low])))
}

/// What the bytes add to a sum.
#[inline(always)]
fn csum<const N: usize>(bytes: &[u8; N]) -> u32 {
    checksum::csum_diff(&[0xff; N], bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use crate::packet;

    const SYN: u8 = Flags::SYN;
    const ACK: u8 = Flags::ACK;
    const FIN: u8 = Flags::FIN;

    fn segment(flags: u8) -> Segment {
        Segment { flags: Flags(flags), sequence: u32::MAX, acknowledgement: 77, payload: 10 }
    }

    /// RFC 9293, section 3.10.7.1.
    #[test]
    fn the_numbers_are_those_of_a_closed_port() {
        assert_eq!(ResetReply::to(&segment(Flags::RST)), None);
        assert_eq!(ResetReply::to(&segment(Flags::RST | ACK)), None);
        let with = |sequence, acknowledgement, flags| {
            Some(ResetReply { sequence, acknowledgement, flags: Flags::RST | flags })
        };
        assert_eq!(ResetReply::to(&segment(ACK)), with(77, 0, 0));
        assert_eq!(ResetReply::to(&segment(ACK | FIN)), with(77, 0, 0));
        let syn = Segment { payload: 0, ..segment(SYN) };
        assert_eq!(ResetReply::to(&syn), with(0, 0, ACK));
        assert_eq!(ResetReply::to(&segment(SYN | FIN)), with(0, 11, ACK));
    }

    /// The change made to a frame as the kernel program makes it, checksums complete.
    fn applied<P: Family>(frame: &[u8], reset: &Reset<P>) -> Vec<u8> {
        let mut frame = frame[..reset.frame_len].to_vec();
        let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
        put(reset.length_at, &reset.length);
        put(reset.hops_at, &reset.hops);
        put(reset.source_at, zerocopy::IntoBytes::as_bytes(&reset.source));
        put(reset.destination_at, zerocopy::IntoBytes::as_bytes(&reset.destination));
        put(reset.l4, &reset.header);
        let at = reset.l4 + tcp::CHECKSUM.start;
        put(at, &checksum::update([0xff, 0xff], reset.pseudo + reset.sum));
        if let Some(at) = reset.l3_checksum_at {
            let field = [frame[at], frame[at + 1]];
            let field = checksum::update(field, reset.l3_csum_diff);
            frame[at..at + 2].copy_from_slice(&field);
        }
        frame
    }

    fn v4(options: &[u8], flags: u8, payload: &[u8]) -> Vec<u8> {
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        let length = u16::try_from(20 + options.len() + 24 + payload.len()).unwrap();
        let mut ip = vec![0x40 | words, 0, 0, 0, 0, 7, 0x40, 0, 3, 6, 0, 0];
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip.extend([203, 0, 113, 9, 198, 51, 100, 7]);
        ip.extend(options);
        let sum = checksum::compute(&ip, 0);
        ip[10..12].copy_from_slice(&sum);
        let ether = [[2; 6], [4; 6]].concat();
        [ether, vec![8, 0], ip, segment_bytes(flags), payload.to_vec()].concat()
    }

    fn v6(flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(24 + payload.len()).unwrap().to_be_bytes();
        let mut ip = vec![0x60, 0, 0, 0, length[0], length[1], 6, 3];
        ip.extend([[0x20; 16], [0x30; 16]].concat());
        let ether = [[2; 6], [4; 6]].concat();
        [ether, vec![0x86, 0xdd], ip, segment_bytes(flags), payload.to_vec()].concat()
    }

    /// A TCP header with one option, from port 51022 to 80.
    fn segment_bytes(flags: u8) -> Vec<u8> {
        let mut header = vec![0xc7, 0x4e, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0x60, flags, 1, 1];
        header.extend([9, 9, 0, 0, 1, 1, 1, 1]);
        header
    }

    fn answer<P: Family>(frame: &[u8]) -> Option<Vec<u8>> {
        let packet = packet::parse::<P, _>(frame).unwrap();
        plan::<P, _>(frame, &packet).map(|reset| applied(frame, &reset))
    }

    #[test]
    fn the_answer_to_a_segment_over_ipv4() {
        for options in [&[][..], &[1; 8]] {
            let got = answer::<V4>(&v4(options, ACK, b"GET / ")).unwrap();
            let l4 = 34 + options.len();
            assert_eq!(got.len(), l4 + 20);
            assert_eq!(u16::from_be_bytes([got[16], got[17]]), u16::try_from(l4 + 6).unwrap());
            assert_eq!(got[22], HOPS);
            assert_eq!(got[26..34], [198, 51, 100, 7, 203, 0, 113, 9]);
            assert_eq!(checksum::compute(&got[14..l4], 0), [0, 0], "IPv4's own");
            assert_eq!(got[l4..l4 + 4], [0, 80, 0xc7, 0x4e]);
            assert_eq!(got[l4 + 4..l4 + 8], [5, 6, 7, 8], "what the client expects next");
            assert_eq!(got[l4 + 13], Flags::RST);
            let pseudo = [&got[26..34], &[0, 6, 0, 20]].concat();
            assert_eq!(checksum::compute(&[&pseudo, &got[l4..]].concat(), 0), [0, 0], "TCP's");
        }
    }

    #[test]
    fn the_answer_to_a_segment_over_ipv6() {
        let got = answer::<V6>(&v6(SYN, b"")).unwrap();
        assert_eq!(got.len(), 74);
        assert_eq!((got[18], got[19], got[20], got[21]), (0, 20, 6, HOPS));
        assert_eq!((got[22], got[38]), (0x30, 0x20), "turned round");
        assert_eq!(got[54 + 8..54 + 12], [1, 2, 3, 5], "SYN counts for one");
        let pseudo = [&got[22..54], &[0, 6, 0, 20]].concat();
        assert_eq!(checksum::compute(&[&pseudo, &got[54..]].concat(), 0), [0, 0]);
    }

    #[test]
    fn nobody_answers_a_reset() {
        assert_eq!(answer::<V4>(&v4(&[], Flags::RST | ACK, b"")), None);
        assert_eq!(answer::<V6>(&v6(Flags::RST, b"")), None);
    }
}
