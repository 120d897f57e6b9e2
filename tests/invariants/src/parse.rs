//! Target `parse`: the bytes are one that says where to cut, and a frame.

use samport_common::family::{Family, V4, V6};
use samport_common::frame::Frame as _;
use samport_common::packet::{self, Packet};
use samport_common::verdict::Verdict;
use samport_common::wire::{ethernet, tcp};

/// Whatever a frame holds, it is parsed without a crash, what is found lies inside of it, and of a
/// frame that is cut off nothing else is said than of the whole.
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

fn family<P: Family>(frame: &[u8], part: &[u8]) {
    let whole = packet::parse::<P, _>(frame);
    if let Ok(packet) = &whole {
        lies_inside::<P>(frame, packet);
    }
    let of_part = packet::parse::<P, _>(part);
    assert!(
        of_part == whole || of_part == Err(Verdict::Truncated),
        "{} of {} bytes: {of_part:?}, the whole: {whole:?}",
        part.len(),
        frame.len()
    );
}

fn lies_inside<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) {
    assert!(packet.l3 + P::HEADER_LEN <= packet.l4, "{packet:?}");
    assert!(packet.l4 + tcp::MIN_LEN <= frame.len(), "{packet:?}");
    let ports = &frame[packet.l4..packet.l4 + 4];
    assert_eq!(ports, [packet.source.port, packet.destination.port].concat());
    let addresses = [(P::SOURCE, packet.source.addr), (P::DESTINATION, packet.destination.addr)];
    for (offset, address) in addresses {
        let wide = P::widen(address);
        let len = size_of::<P::Addr>();
        assert_eq!(frame[packet.l3 + offset..][..len], wide[16 - len..], "{packet:?}");
    }
    assert_eq!(frame[packet.l4 + tcp::FLAGS], packet.flags.0);
}
