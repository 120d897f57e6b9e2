use super::*;
use crate::family::{V4, V6};
use etherparse::PacketBuilder;
use proptest::prelude::*;

fn v4_syn() -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 1], [198, 51, 100, 7], 64)
        .tcp(40_000, 80, 1, 1_000)
        .syn()
        .write(&mut bytes, b"")
        .unwrap();
    bytes
}

fn v6_syn() -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([1; 16], [2; 16], 64)
        .tcp(40_000, 80, 1, 1_000)
        .syn()
        .write(&mut bytes, b"")
        .unwrap();
    bytes
}

/// Puts `extension` (already ending in the next header's bytes) between IPv6 and TCP.
fn with_extension(kind: u8, extension: &[u8]) -> Vec<u8> {
    let mut bytes = v6_syn();
    bytes[L3 + ipv6::NEXT_HEADER] = kind;
    let payload = u16::try_from(20 + extension.len()).unwrap();
    bytes[L3 + ipv6::PAYLOAD_LEN.start..][..2].copy_from_slice(&payload.to_be_bytes());
    bytes.splice(L3 + ipv6::LEN..L3 + ipv6::LEN, extension.iter().copied());
    bytes
}

#[test]
fn a_plain_syn_is_understood() {
    let packet = parse::<V4, _>(&v4_syn()[..]).unwrap();
    assert_eq!(packet.l4, 34);
    assert_eq!(packet.source, Endpoint { addr: [192, 0, 2, 1], port: 40_000u16.to_be_bytes() });
    assert_eq!(packet.destination, Endpoint { addr: [198, 51, 100, 7], port: [0, 80] });
    assert!(packet.flags.opens());
    let packet = parse::<V6, _>(&v6_syn()[..]).unwrap();
    assert_eq!((packet.l4, packet.destination.port), (54, [0, 80]));
}

/// Case 6: IHL < 5, truncated L4, lying lengths: no rewrite, no crash.
#[test]
fn headers_that_lie_are_left_alone() {
    let mut short_ihl = v4_syn();
    short_ihl[L3] = 0x44;
    assert_eq!(parse::<V4, _>(&short_ihl[..]), Err(Special::Leave(Verdict::Malformed)));

    let mut wrong_version = v4_syn();
    wrong_version[L3] = 0x65;
    assert_eq!(parse::<V4, _>(&wrong_version[..]), Err(Special::Leave(Verdict::Malformed)));

    let mut short_total = v4_syn();
    short_total[L3 + ipv4::TOTAL_LEN.start..][..2].copy_from_slice(&39u16.to_be_bytes());
    assert_eq!(parse::<V4, _>(&short_total[..]), Err(Special::Leave(Verdict::Malformed)));

    let mut short_payload = v6_syn();
    short_payload[L3 + ipv6::PAYLOAD_LEN.start..][..2].copy_from_slice(&19u16.to_be_bytes());
    assert_eq!(parse::<V6, _>(&short_payload[..]), Err(Special::Leave(Verdict::Malformed)));

    let mut short_tcp = v4_syn();
    short_tcp[34 + tcp::DATA_OFFSET] = 0x40;
    assert_eq!(parse::<V4, _>(&short_tcp[..]), Err(Special::Leave(Verdict::Malformed)));

    let whole = v4_syn();
    for len in L3..whole.len() {
        assert_eq!(
            parse::<V4, _>(&whole[..len]),
            Err(Special::Leave(Verdict::Truncated)),
            "{len} bytes"
        );
    }
}

#[test]
fn fragments_are_named() {
    for (field, special) in [
        ([0x20, 0x00], Special::First),
        ([0x00, 0x01], Special::Later),
        ([0x20, 0xb9], Special::Later),
    ] {
        let mut bytes = v4_syn();
        bytes[L3 + ipv4::FRAGMENT.start..][..2].copy_from_slice(&field);
        assert_eq!(parse::<V4, _>(&bytes[..]), Err(special));
        let first = parse_first::<V4, _>(&bytes[..]).ok().and_then(|p| first_of::<V4>(&p));
        assert_eq!(first.is_some(), special == Special::First);
        assert_eq!(parse_later::<V4, _>(&bytes[..]).is_ok(), special == Special::Later);
    }
    let mut dont_fragment = v4_syn();
    dont_fragment[L3 + ipv4::FRAGMENT.start] = 0x40;
    assert!(parse::<V4, _>(&dont_fragment[..]).is_ok());

    let fragment = with_extension(ipv6::FRAGMENT, &[protocol::TCP, 0, 0, 1, 0, 0, 0, 7]);
    assert_eq!(parse::<V6, _>(&fragment[..]), Err(Special::First));
    let atomic = with_extension(ipv6::FRAGMENT, &[protocol::TCP, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(parse::<V6, _>(&atomic[..]).map(|p| p.l4), Ok(62));
}

#[test]
fn options_and_extension_headers_move_the_ports() {
    let mut bytes = v4_syn();
    bytes[L3] = 0x47;
    bytes[L3 + 3] += 8;
    bytes.splice(34..34, [1; 8]);
    let packet = parse::<V4, _>(&bytes[..]).unwrap();
    assert_eq!((packet.l4, packet.destination.port), (42, [0, 80]));

    let mut options = vec![protocol::TCP, 1];
    options.resize(16, 0);
    let packet = parse::<V6, _>(&with_extension(ipv6::HOP_BY_HOP, &options)[..]).unwrap();
    assert_eq!((packet.l4, packet.destination.port), (70, [0, 80]));

    let mut authentication = vec![protocol::TCP, 4];
    authentication.resize(24, 0);
    let packet =
        parse::<V6, _>(&with_extension(ipv6::AUTHENTICATION, &authentication)[..]).unwrap();
    assert_eq!((packet.l4, packet.destination.port), (78, [0, 80]));
}

fn segment_of_v4(bytes: &[u8]) -> Segment {
    segment(bytes, &parse::<V4, _>(bytes).unwrap())
}

fn segment_of_v6(bytes: &[u8]) -> Segment {
    segment(bytes, &parse::<V6, _>(bytes).unwrap())
}

/// Makes the packet one whose IP header gives this many bytes of TCP.
fn set_v4_length(bytes: &mut [u8], segment: u16) {
    let header = u16::from(bytes[L3] & 0x0f) * 4;
    bytes[L3 + ipv4::TOTAL_LEN.start..][..2].copy_from_slice(&(header + segment).to_be_bytes());
}

#[test]
fn a_segment_has_its_numbers_and_its_payload() {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 1], [198, 51, 100, 7], 64)
        .tcp(40_000, 80, 0x8102_0304, 1_000)
        .ack(0x8506_0708)
        .fin()
        // With a timestamp, as nearly every segment has one: 12 bytes of options.
        .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .unwrap()
        .write(&mut bytes, b"seven b")
        .unwrap();
    let flags = tcp::Flags(tcp::Flags::ACK | tcp::Flags::FIN);
    let (sequence, acknowledgement) = (0x8102_0304, 0x8506_0708);
    let expected = Segment { flags, sequence, acknowledgement, payload: 7 };
    assert_eq!(segment_of_v4(&bytes), expected);
    assert_eq!(expected.end(), 0x8102_030c, "a FIN counts for one");

    // Ethernet pads what is short.
    bytes.extend([0; 20]);
    assert_eq!(segment_of_v4(&bytes), expected);

    // Options of IP.
    bytes[L3] = 0x47;
    bytes.splice(34..34, [1; 8]);
    set_v4_length(&mut bytes, 39);
    assert_eq!(segment_of_v4(&bytes), expected);
}

/// What segmentation offload leaves to the device is longer than what is there of the frame.
#[test]
fn the_payload_is_what_the_ip_header_says() {
    let mut bytes = v4_syn();
    assert_eq!(segment_of_v4(&bytes).payload, 0);
    assert_eq!(segment_of_v4(&bytes).end(), 2, "a SYN counts for one");
    set_v4_length(&mut bytes, u16::MAX - 20);
    assert_eq!(segment_of_v4(&bytes).payload, u16::MAX - 40);
    // Longer than the field can say: not known.
    bytes[L3 + ipv4::TOTAL_LEN.start..][..2].copy_from_slice(&[0, 0]);
    assert_eq!(segment_of_v4(&bytes).payload, 0);
    // A header that is longer than all there is.
    let mut bytes = v4_syn();
    bytes[34 + tcp::DATA_OFFSET] = 0xf0;
    assert_eq!(segment_of_v4(&bytes).payload, 0);

    let mut bytes = v6_syn();
    assert_eq!(segment_of_v6(&bytes).payload, 0);
    for (length, payload) in [(21, 1), (u16::MAX, u16::MAX - 20), (0, 0)] {
        bytes[L3 + ipv6::PAYLOAD_LEN.start..][..2].copy_from_slice(&length.to_be_bytes());
        assert_eq!(segment_of_v6(&bytes).payload, payload, "length {length}");
    }
    // Extension headers are no payload of TCP's.
    for (units, extension) in [(0, 8), (1, 16)] {
        let mut options = vec![protocol::TCP, units];
        options.resize(extension, 0);
        let mut bytes = with_extension(ipv6::HOP_BY_HOP, &options);
        assert_eq!(segment_of_v6(&bytes).payload, 0);
        bytes[L3 + ipv6::PAYLOAD_LEN.start + 1] += 9;
        assert_eq!(segment_of_v6(&bytes).payload, 9);
        assert_eq!(segment_of_v6(&bytes).sequence, 1);
    }
}

#[test]
fn a_datagram_has_no_numbers() {
    let mut bytes = Vec::new();
    let builder =
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [198, 51, 100, 7], 64);
    builder.udp(40_000, 53).write(&mut bytes, &[0xff; 30]).unwrap();
    let Segment { flags, sequence, acknowledgement, .. } = segment_of_v4(&bytes);
    assert_eq!((flags, sequence, acknowledgement), (tcp::Flags(0), 0, 0));
}

#[test]
fn a_chain_of_extensions_ends() {
    let endless: Vec<u8> = [ipv6::HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(ipv6::MAX_EXTENSIONS + 1);
    assert_eq!(
        parse::<V6, _>(&with_extension(ipv6::HOP_BY_HOP, &endless)[..]),
        Err(Special::Leave(Verdict::OtherProtocol))
    );
}

#[test]
fn other_protocols_are_not_ours() {
    let mut sctp = v4_syn();
    sctp[L3 + ipv4::PROTOCOL] = 132;
    assert_eq!(parse::<V4, _>(&sctp[..]), Err(Special::Leave(Verdict::OtherProtocol)));
    let mut sctp = v6_syn();
    sctp[L3 + ipv6::NEXT_HEADER] = 132;
    assert_eq!(parse::<V6, _>(&sctp[..]), Err(Special::Leave(Verdict::OtherProtocol)));
    let mut icmp6 = v6_syn();
    icmp6[L3 + ipv6::NEXT_HEADER] = protocol::ICMP6;
    assert_eq!(parse::<V6, _>(&icmp6[..]), Err(Special::Icmp));
}

proptest! {
    #[test]
    fn any_bytes_parse_without_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse::<V4, _>(&bytes[..]);
        if let Ok(packet) = parse::<V6, _>(&bytes[..]) {
            prop_assert!(packet.l4 + tcp::MIN_LEN <= bytes.len());
        }
    }

    #[test]
    fn any_damage_to_a_syn_parses_without_a_crash(at in 0usize..54, to in any::<u8>(), cut in 0usize..60) {
        let mut bytes = v4_syn();
        bytes[at] = to;
        bytes.truncate(cut.max(1));
        if let Ok(packet) = parse::<V4, _>(&bytes[..]) {
            prop_assert!(packet.l4 + tcp::MIN_LEN <= bytes.len());
        }
    }
}
