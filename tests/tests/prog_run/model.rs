//! The kernel's programs against the core on the host: the same bytes come out.

use std::net::{IpAddr, SocketAddr};

use samport_common::family::{Family, V4, V6};
use samport_common::flow::Endpoint;
use samport_common::packet::{self, Special};
use samport_common::rewrite::{self, End};
use samport_common::verdict::Verdict;
use samport_tests::frames::{IP, IPV4_LEN, IPV6_LEN, SOURCE_MAC, is_v6};

use crate::bench::{Bench, mac};
use crate::datagrams::{FAMILIES, addressed};
use crate::{REDIRECT, UNSPEC};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Pseudo-random numbers (xorshift64*), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn units(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// A packet with any options, extension headers, payload and checksums, right or wrong: what is changed
/// is changed by differences, whatever stood there.
fn any_frame(random: &mut Random, from: SocketAddr, to: SocketAddr, opens: bool) -> Vec<u8> {
    let tcp = random.one_in(2);
    let mut l4 = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    if tcp {
        let words = random.units(11);
        l4.extend(random.bytes(8));
        // SYN, and none of ACK, RST and FIN; or any.
        let flags = if opens { random.byte() & 0xe8 | 2 } else { random.byte() };
        l4.extend([(5 + words) << 4, flags]);
        l4.extend(random.bytes(6 + 4 * usize::from(words)));
    } else {
        l4.extend(random.bytes(4));
        if random.one_in(4) {
            l4[6..8].fill(0);
        }
    }
    let length = random.below(200);
    l4.extend(random.bytes(length));
    let mut frame = [&[0; 6][..], &SOURCE_MAC].concat();
    let protocol = if tcp { TCP } else { UDP };
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let words = if random.one_in(2) { 0 } else { random.units(11) };
            frame.extend([0x08, 0x00, 0x45 + words, random.byte()]);
            let options = 4 * usize::from(words);
            let total = u16::try_from(20 + options + l4.len()).unwrap();
            frame.extend(total.to_be_bytes());
            frame.extend(random.bytes(2));
            frame.extend([random.byte() & 0x40, 0, random.byte(), protocol]);
            frame.extend(random.bytes(2));
            frame.extend([from.octets(), to.octets()].concat());
            frame.extend(random.bytes(options));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (first, extensions) = any_extensions(random, protocol);
            frame.extend([0x86, 0xdd, 0x60 | random.byte() & 0x0f]);
            frame.extend(random.bytes(3));
            let payload = u16::try_from(extensions.len() + l4.len()).unwrap();
            frame.extend(payload.to_be_bytes());
            frame.extend([first, random.byte()]);
            frame.extend([from.octets(), to.octets()].concat());
            frame.extend(extensions);
        }
        _ => unreachable!("both of one family"),
    }
    frame.extend(l4);
    frame
}

/// Up to four extension headers, and the kind of the first.
fn any_extensions(random: &mut Random, protocol: u8) -> (u8, Vec<u8>) {
    const KINDS: [u8; 4] = [0, 43, 60, 51];
    let count = if random.one_in(2) { 0 } else { random.below(5) };
    let kinds: Vec<_> = (0..count).map(|_| KINDS[random.below(4)]).chain([protocol]).collect();
    let mut bytes = Vec::new();
    for pair in kinds.windows(2) {
        let units = random.units(4);
        let length = usize::from(units);
        // An authentication header counts in words, less two (RFC 4302, section 2.2).
        let length = if pair[0] == 51 { (length + 2) * 4 } else { (length + 1) * 8 };
        bytes.extend([pair[1], units]);
        bytes.extend(random.bytes(length - 2));
    }
    (kinds[0], bytes)
}

/// What the core makes of a frame.
fn modelled<P: Family>(frame: &[u8], end: End, to: SocketAddr) -> Vec<u8> {
    let packet = packet::parse::<P, _>(frame).unwrap_or_else(|special| panic!("{special:?}"));
    let wide = match to.ip() {
        IpAddr::V4(ip) => V4::to_mapped(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    };
    let to = Endpoint { addr: P::from_mapped(&wide), port: to.port().to_be_bytes() };
    let mut frame = frame.to_vec();
    rewrite::apply(&mut frame, &rewrite::plan::<P>(&packet, end, to)).unwrap();
    frame
}

fn model(frame: &[u8], end: End, to: SocketAddr) -> Vec<u8> {
    if is_v6(frame) { modelled::<V6>(frame, end, to) } else { modelled::<V4>(frame, end, to) }
}

/// Cases 7, 8, 12, 13 and 17: the core and the kernel agree on every byte.
#[test]
fn the_kernel_makes_of_any_packet_what_the_core_makes_of_it() {
    let mut bench = Bench::with_datagrams();
    let (forward, reverse) = (bench.runner("samport_forward"), bench.runner("samport_reverse"));
    let mut random = Random(0x5a4d_504f_5254);
    for round in 0..1_000 {
        let (client, vip, backend, index) = addressed(FAMILIES[random.below(2)]);
        let client = SocketAddr::new(client.ip(), 10_000 + round);
        let sent = any_frame(&mut random, client, vip, true);
        let ran = forward.run(&sent, 1).unwrap();
        let mut expected = model(&sent, End::Destination, backend);
        expected[..6].copy_from_slice(&mac(if is_tcp(&sent) { index - 4 } else { index }));
        assert_eq!((ran.action, ran.bytes), (REDIRECT, expected), "{round}: {sent:02x?}");

        // Half of the answers are of the protocol that was opened: the others are no replies.
        let answer = any_frame(&mut random, backend, client, false);
        let ran = reverse.run(&answer, 1).unwrap();
        let expected = if is_tcp(&answer) == is_tcp(&sent) {
            (REDIRECT, model(&answer, End::Source, vip))
        } else {
            (UNSPEC, answer.clone())
        };
        assert_eq!((ran.action, ran.bytes), expected, "{round}: {answer:02x?}");
    }
}

fn is_tcp(frame: &[u8]) -> bool {
    use samport_common::wire::protocol::Protocol;
    let protocol = if is_v6(frame) {
        packet::parse::<V6, _>(frame).map(|packet| packet.protocol)
    } else {
        packet::parse::<V4, _>(frame).map(|packet| packet.protocol)
    };
    protocol.unwrap_or_else(|special| panic!("{special:?}")) == Protocol::Tcp
}

/// Case 6, in the kernel: packets with broken headers, and packets that end anywhere, leave by the
/// verdict the core gives them, untouched.
#[test]
fn the_kernel_leaves_alone_what_the_core_cannot_read() {
    let mut bench = Bench::with_datagrams();
    let mut random = Random(0x4252_4f4b_454e);
    let mut seen = std::collections::BTreeMap::new();
    for round in 0..2_000 {
        let (client, vip, ..) = addressed(FAMILIES[random.below(2)]);
        let mut frame = any_frame(&mut random, client, vip, true);
        // One byte of the IP header or of what follows, but neither type nor addresses.
        let header = if is_v6(&frame) { [0, 4, 5, 6, 40, 41] } else { [0, 2, 3, 6, 7, 9] };
        let at = IP + header[random.below(6)];
        frame[at] = random.byte();
        if random.one_in(2) {
            // The kernel runs no program on less than an IP header.
            let least = IP + if is_v6(&frame) { IPV6_LEN } else { IPV4_LEN };
            frame.truncate(least + random.below(frame.len() - least));
        }
        let Some(verdict) = unreadable(&frame) else { continue };
        let (ran, counted) = bench.run("samport_forward", &frame);
        assert_eq!(counted, [verdict], "{round}: {frame:02x?}");
        assert_eq!((ran.action, &ran.bytes), (UNSPEC, &frame), "{round}: {}", verdict.name());
        *seen.entry(verdict).or_insert(0) += 1;
    }
    for verdict in [Verdict::Malformed, Verdict::Truncated, Verdict::OtherProtocol] {
        assert!(seen.contains_key(&verdict), "{seen:?}");
    }
}

/// The verdict of a frame that cannot be read.
fn unreadable(frame: &[u8]) -> Option<Verdict> {
    let special = if is_v6(frame) {
        packet::parse::<V6, _>(frame).err()
    } else {
        packet::parse::<V4, _>(frame).err()
    };
    match special? {
        Special::Leave(verdict) => Some(verdict),
        Special::Icmp | Special::First | Special::Later => None,
    }
}
