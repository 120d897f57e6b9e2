//! Target `parse`: the bytes are one that says where to cut, and a frame.

use samport_common::family::{Family, V4, V6};
use samport_common::frame::Frame as _;
use samport_common::packet::{self, FragmentId, IcmpError, L3, MAX_OFFSET, Packet, Part, Special};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::{ethernet, icmp, ipv4, ipv6, tcp, udp};

use crate::second_parser::{self, Reading};

/// Whatever a frame holds, it is parsed without a crash, what is found lies inside of it and is what
/// another parser finds, and of a frame that is cut off nothing else is said than of the whole.
pub fn check(bytes: &[u8]) {
    let Some((cut, frame)) = bytes.split_first() else { return };
    let part = frame.get(..usize::from(*cut)).unwrap_or(frame);
    match frame.read(ethernet::TYPE.start) {
        Some(ethernet::IPV4) => family::<V4>(frame, part),
        Some(ethernet::IPV6) => family::<V6>(frame, part),
        // The type is the caller's to look at.
        _ => {
            family::<V4>(frame, part);
            family::<V6>(frame, part);
        }
    }
}

/// What a frame turns out to be when each parser is asked in its turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen<P: Family> {
    Packet(Packet<P::Addr>),
    First(Packet<P::Addr>, FragmentId<P::Addr>),
    Later(FragmentId<P::Addr>),
    Error(IcmpError<P::Addr>),
    Nothing(Verdict),
}

pub(crate) fn look<P: Family>(frame: &[u8]) -> Seen<P> {
    let parsed = packet::parse::<P, _>(frame);
    let or_first = packet::parse_first::<P, _>(frame);
    if parsed != Err(Special::First) {
        assert_eq!(parsed, or_first);
    }
    match or_first {
        Ok(packet) => match packet::first_of::<P>(&packet) {
            Some(id) => Seen::First(packet, id),
            None => Seen::Packet(packet),
        },
        Err(Special::Leave(verdict)) => Seen::Nothing(verdict),
        Err(Special::First) => panic!("a first fragment is taken"),
        Err(Special::Later) => {
            packet::parse_later::<P, _>(frame).map_or_else(Seen::Nothing, Seen::Later)
        }
        Err(Special::Icmp) => {
            let error = packet::parse_error::<P, _>(frame);
            // The other fragments could not be sent after it.
            assert!(error.is_err() || parsed == Err(Special::Icmp), "{error:?} of a fragment");
            error.map_or_else(Seen::Nothing, Seen::Error)
        }
    }
}

fn family<P: Family + PartialEq + std::fmt::Debug>(frame: &[u8], part: &[u8]) {
    let whole = look::<P>(frame);
    match &whole {
        Seen::Packet(packet) => {
            assert_eq!(packet.part, Part::Whole);
            packet_lies_inside::<P>(frame, packet);
        }
        Seen::First(packet, id) => {
            assert_eq!(packet.part, Part::First(id.id));
            packet_lies_inside::<P>(frame, packet);
            fragment_is_its_own::<P>(frame, id, packet.l4);
        }
        Seen::Later(id) => {
            fragment_is_its_own::<P>(frame, id, frame.len());
            assert!(header_fits::<P>(frame), "{id:?}");
        }
        Seen::Error(error) => error_lies_inside::<P>(frame, error),
        Seen::Nothing(_) => {}
    }
    match (second_parser::read::<P>(frame), &whole) {
        (None, _) => {}
        // Also one of a protocol that no service has.
        (Some(Reading::Fragment), ours) if !matches!(ours, Seen::Packet(_)) => {}
        (Some(Reading::Whole(protocol, l4)), Seen::Packet(ours)) => {
            assert_eq!((ours.protocol, ours.l4), (protocol, l4));
        }
        (Some(theirs), ours) => panic!("{ours:?}, and etherparse: {theirs:?}"),
    }

    let cut = look::<P>(part);
    let about_icmp = matches!(whole, Seen::Error(_) | Seen::Nothing(Verdict::IcmpOther));
    assert!(
        cut == whole
            || cut == Seen::Nothing(Verdict::Truncated)
            // What an error quotes may end anywhere without anybody's having cut it off.
            || about_icmp && cut == Seen::Nothing(Verdict::IcmpOther),
        "{} of {} bytes: {cut:?}, the whole: {whole:?}",
        part.len(),
        frame.len()
    );
}

fn packet_lies_inside<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) {
    let least = match packet.protocol {
        Protocol::Tcp => tcp::MIN_LEN,
        Protocol::Udp => udp::LEN,
    };
    assert_eq!(packet.l3, L3);
    assert!(packet.l4 + least <= frame.len(), "{packet:?}");
    endpoints_are_theirs::<P>(frame, packet);
    let flags = match packet.protocol {
        Protocol::Tcp => frame[packet.l4 + tcp::FLAGS],
        Protocol::Udp => 0,
    };
    assert_eq!(packet.flags.0, flags);
}

/// `end` is where the headers end at the latest.
fn fragment_is_its_own<P: Family>(frame: &[u8], fragment: &FragmentId<P::Addr>, end: usize) {
    let FragmentId { source, destination, id, protocol } = *fragment;
    assert!(stands_at::<P>(frame, L3 + P::SOURCE, source), "{fragment:?}");
    assert!(stands_at::<P>(frame, L3 + P::DESTINATION, destination), "{fragment:?}");
    if P::FRAGMENTS_BY_PROTOCOL {
        assert_eq!(protocol, frame[L3 + ipv4::PROTOCOL]);
        assert_eq!(id.to_be_bytes(), [0, 0, frame[L3 + 4], frame[L3 + 5]]);
    } else {
        assert_eq!(protocol, 0);
        let mut words = frame[L3 + ipv6::LEN..end].windows(4);
        assert!(words.any(|word| word == id.to_be_bytes()), "{fragment:?}");
    }
}

/// Whether an IPv4 packet's length is at least that of its header.
fn header_fits<P: Family>(frame: &[u8]) -> bool {
    let length = u16::from_be_bytes([frame[L3 + 2], frame[L3 + 3]]);
    let header = u16::from(frame[L3] & 0x0f) * 4;
    P::CHECKSUM.is_none() || length == 0 || length >= header
}

fn error_lies_inside<P: Family>(frame: &[u8], error: &IcmpError<P::Addr>) {
    assert_eq!(error.l3, L3);
    assert!(error.l3 + P::HEADER_LEN <= error.icmp, "{error:?}");
    assert_eq!(error.quoted.l3, error.icmp + icmp::LEN);
    assert!(P::is_icmp_error(frame[error.icmp]), "{error:?}");
    assert!(stands_at::<P>(frame, error.l3 + P::SOURCE, error.reporter), "{error:?}");
    assert!(stands_at::<P>(frame, error.l3 + P::DESTINATION, error.told), "{error:?}");
    endpoints_are_theirs::<P>(frame, &error.quoted);
}

/// Whether a packet's addresses and ports are those at its own offsets.
fn endpoints_are_theirs<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) {
    let Packet { l3, l4, source, destination, .. } = *packet;
    assert!(l3 + P::HEADER_LEN <= l4 && l4 <= MAX_OFFSET, "{packet:?}");
    assert_eq!(frame[l4..l4 + 4], [source.port, destination.port].concat());
    assert!(stands_at::<P>(frame, l3 + P::SOURCE, source.addr), "{packet:?}");
    assert!(stands_at::<P>(frame, l3 + P::DESTINATION, destination.addr), "{packet:?}");
}

fn stands_at<P: Family>(frame: &[u8], at: usize, address: P::Addr) -> bool {
    let len = size_of::<P::Addr>();
    frame[at..at + len] == P::to_mapped(address)[16 - len..]
}
