//! The bench's services for UDP, and what becomes of datagrams.

use std::net::{IpAddr, SocketAddr};

use samport::model::HostDevice;
use samport::model::ports::Listen;
use samport::plan::table::{Recipe, Region};
use samport::plan::{BackendId, BackendKey, Change, Frontend, Part, Policy, Route, ServiceKey};
use samport_common::flow::ServiceId;
use samport_common::layout::{BackendState, DeviceSet, Scope};
use samport_common::verdict::Verdict;
use samport_tests::frames::{IP, IPV4_LEN, IPV6_LEN, UDP_CHECKSUM, datagram, is_v6, to_mac};
use samport_tests::packet::Segment;

use crate::bench::{BACKENDS, Bench, CLIENT, CLIENT6, DEVICE, VIP, VIP6, at_host, mac};
use crate::{DROP, REDIRECT, UNSPEC};

/// UDP port 80.
const LISTEN: Listen = Listen::udp(80);

/// For each family: a client, the VIP it dials, the backend that is the only one, and its index.
pub const FAMILIES: [(&str, &str, &str, u32); 2] =
    [(CLIENT, VIP, BACKENDS[0], 5), (CLIENT6, VIP6, BACKENDS[2], 7)];

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Bench {
    /// TCP as in [`Bench::new`], and UDP port 80 of `VIP` and `VIP6` over one backend of each family:
    /// the first, behind the same port as for TCP.
    pub fn with_datagrams() -> Self {
        let mut bench = Self::new();
        bench.only(1, 3);
        bench.add_datagrams();
        bench
    }

    fn add_datagrams(&mut self) {
        let services = [(VIP, 4, 5, BACKENDS[0], 4), (VIP6, 5, 7, BACKENDS[2], 6)];
        for (vip, service, index, endpoint, base) in services {
            let (vip, endpoint) = (address(vip), address(endpoint));
            let route = Route::Peer(HostDevice { ifindex: DEVICE, mac: mac(index), polls: false });
            let key = BackendKey { listen: LISTEN, id: format!("udp-{index}"), endpoint, route };
            let (source, id) = (key.source(), BackendId { index, generation: 1 });
            let number = ServiceId::new(service).unwrap();
            let service = ServiceKey { listen: LISTEN, v6: vip.is_ipv6() };
            let region = Region { base, len: 2 };
            let scope = Scope::External;
            let to = Frontend {
                id: number,
                region,
                scope,
                restricted: false,
                shared: false,
                nodes: false,
                policy: Policy::default(),
            };
            for change in [
                Change::SetBackend {
                    key,
                    id,
                    shared: false,
                    weight: 1,
                    state: BackendState::Serving,
                    answers_on: DeviceSet::from_iter([DEVICE]),
                },
                Change::SetReverseNat { source, reverse_nat: vec![(number, id)] },
                Change::WriteTable {
                    service,
                    part: Part::All,
                    region,
                    slots: vec![index; 2],
                    recipe: Recipe::NOTHING,
                },
                Change::SetFrontend { addr: vip.ip(), listen: LISTEN, to },
            ] {
                self.dataplane.apply(&change).unwrap();
            }
        }
        self.dataplane.apply(&Change::OpenPort(LISTEN)).unwrap();
    }

    /// Sends a client's frame through, so that its flow is known.
    pub fn open(&mut self, frame: &[u8]) -> Vec<u8> {
        self.expect("samport_forward", frame, Verdict::ForwardPeer, REDIRECT)
    }
}

/// Cases 12 and 13, for UDP: addresses, ports, MAC and checksum exact; odd and empty payloads too.
#[test]
fn a_datagram_is_rewritten_exactly() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        for payload in [&b""[..], b"x", b"even", b"a question", &[0xff; 1_001]] {
            let out = bench.open(&datagram(client, vip, payload));
            assert_eq!(out, to_mac(datagram(client, backend, payload), mac(index)));
        }
    }
}

pub fn addressed(
    (client, vip, backend, index): (&str, &str, &str, u32),
) -> (SocketAddr, SocketAddr, SocketAddr, u32) {
    (address(client), address(vip), address(backend), index)
}

/// Case 17: a reply gets VIP and port back, over UDP.
#[test]
fn a_datagram_that_answers_comes_from_what_the_client_dialled() {
    for (program, verdict, action) in [
        ("samport_reverse", Verdict::Reply, REDIRECT),
        ("samport_device", Verdict::Reply, REDIRECT),
        ("samport_egress", Verdict::ReplyStack, UNSPEC),
    ] {
        let mut bench = Bench::with_datagrams();
        for (client, vip, backend, _) in FAMILIES.map(addressed) {
            let reply = datagram(backend, client, b"an answer");
            bench.expect_untouched(program, &reply, Verdict::NotAReply);
            bench.open(&datagram(client, vip, b"?"));
            let out = bench.expect(program, &reply, verdict, action);
            assert_eq!(out, datagram(vip, client, b"an answer"), "{program}");
        }
    }
}

/// Case 4, in single packets: the TCP and the UDP flow of one client port are two.
#[test]
fn the_same_ports_over_tcp_and_udp_are_two_flows() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        bench.open(&datagram(client, vip, b"?"));
        let data = at_host(Segment::ack(client, vip, b"x"));
        bench.expect_untouched("samport_forward", &data.frame(), Verdict::MidFlowMiss);
        let answer = Segment::ack(backend, client, b"x").frame();
        bench.expect_untouched("samport_reverse", &answer, Verdict::NotAReply);
        let syn = at_host(Segment::syn(client, vip));
        assert_eq!(Segment::read(&bench.open(&syn.frame())).destination_mac, mac(index - 4));
    }
}

/// Case 15: a UDP checksum of zero stays zero, both ways.
#[test]
fn a_datagram_without_a_checksum_stays_without_one() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        let none = |frame| with_checksum(frame, [0; 2]);
        let out = bench.open(&none(datagram(client, vip, b"question")));
        assert_eq!(out, to_mac(none(datagram(client, backend, b"question")), mac(index)));
        let reply = none(datagram(backend, client, b"answer"));
        let out = bench.expect("samport_reverse", &reply, Verdict::Reply, REDIRECT);
        assert_eq!(out, none(datagram(vip, client, b"answer")));
    }
}

/// Case 16: a checksum that comes out as zero is sent as `0xffff`.
#[test]
fn a_checksum_that_comes_out_as_zero_is_written_as_all_ones() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        let payload = payload_with_checksum_of_all_ones(client, backend);
        let out = bench.open(&datagram(client, vip, &payload));
        assert_eq!(checksum_of(&out), [0xff; 2]);
        assert_eq!(out, to_mac(datagram(client, backend, &payload), mac(index)));

        let payload = payload_with_checksum_of_all_ones(vip, client);
        let reply = datagram(backend, client, &payload);
        let out = bench.expect("samport_reverse", &reply, Verdict::Reply, REDIRECT);
        assert_eq!(checksum_of(&out), [0xff; 2]);
        assert_eq!(out, datagram(vip, client, &payload));
    }
}

/// A payload for which the checksum is computed as zero.
fn payload_with_checksum_of_all_ones(source: SocketAddr, destination: SocketAddr) -> [u8; 2] {
    // The checksum of a zero payload, put into the payload, makes up for everything else.
    let payload: [u8; 2] = checksum_of(&datagram(source, destination, &[0; 2])).try_into().unwrap();
    assert_eq!(checksum_of(&datagram(source, destination, &payload)), [0xff; 2]);
    payload
}

/// Where the transport header begins in a frame without options and extensions.
pub fn l4(frame: &[u8]) -> usize {
    IP + if is_v6(frame) { IPV6_LEN } else { IPV4_LEN }
}

fn checksum_of(frame: &[u8]) -> &[u8] {
    &frame[l4(frame) + UDP_CHECKSUM..][..2]
}

fn with_checksum(mut frame: Vec<u8>, checksum: [u8; 2]) -> Vec<u8> {
    let at = l4(&frame) + UDP_CHECKSUM;
    frame[at..at + 2].copy_from_slice(&checksum);
    frame
}

/// Cases 21 and 22, for UDP: TTL, DSCP and ECN stay.
#[test]
fn hop_limit_and_traffic_class_of_a_datagram_stay() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        for (hops, class) in [(1, 0b1011_1001), (255, 3), (64, 0xff)] {
            let sent = with_hops(datagram(client, vip, b"?"), hops, class);
            let out = bench.open(&sent);
            let expected = with_hops(datagram(client, backend, b"?"), hops, class);
            assert_eq!(out, to_mac(expected, mac(index)));
            let reply = with_hops(datagram(backend, client, b"!"), hops, class);
            let out = bench.expect("samport_reverse", &reply, Verdict::Reply, REDIRECT);
            assert_eq!(out, with_hops(datagram(vip, client, b"!"), hops, class));
        }
    }
}

/// The frame with another TTL or hop limit, and another traffic class.
fn with_hops(mut frame: Vec<u8>, hops: u8, class: u8) -> Vec<u8> {
    if is_v6(&frame) {
        frame[IP] = 0x60 | class >> 4;
        frame[IP + 1] = frame[IP + 1] & 0x0f | class << 4;
        frame[IP + 7] = hops;
    } else {
        let (mut header, _) = etherparse::Ipv4Header::from_slice(&frame[IP..]).unwrap();
        header.dscp = (class >> 2).try_into().unwrap();
        header.ecn = (class & 3).try_into().unwrap();
        header.time_to_live = hops;
        header.header_checksum = header.calc_header_checksum();
        frame[IP..IP + IPV4_LEN].copy_from_slice(&header.to_bytes());
    }
    frame
}

/// Case 36, for UDP: a failed insert is counted, never silent.
#[test]
fn a_datagram_whose_flow_cannot_be_stored_is_counted_and_dropped() {
    let mut bench = Bench::with_room_for_two_flows();
    bench.add_datagrams();
    let (_, vip, ..) = addressed(FAMILIES[0]);
    let client = |port| SocketAddr::new(IpAddr::from([192, 0, 2, 2]), port);
    bench.open(&datagram(client(40_000), vip, b"?"));
    let second = datagram(client(40_001), vip, b"?");
    bench.expect("samport_forward", &second, Verdict::ForwardOverflow, REDIRECT);
    let third = datagram(client(40_002), vip, b"?");
    bench.expect("samport_forward", &third, Verdict::FlowInsertFailed, DROP);
    bench.open(&datagram(client(40_000), vip, b"?"));
}

/// Case 9: a frame with an 802.1Q or 802.1ad tag in its bytes passes.
#[test]
fn frames_with_a_tag_in_their_bytes_pass() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, _) in FAMILIES.map(addressed) {
        for tag in [[0x81, 0x00, 0x00, 0x07], [0x88, 0xa8, 0x00, 0x07], [0x81, 0, 0, 0]] {
            let tagged = |frame: &[u8]| [&frame[..12], &tag, &frame[12..]].concat();
            let syn = at_host(Segment::syn(client, vip)).frame();
            for frame in [&datagram(client, vip, b"?"), &syn] {
                bench.expect_untouched("samport_forward", &tagged(frame), Verdict::Vlan);
            }
            let reply = tagged(&datagram(backend, client, b"!"));
            bench.expect_untouched("samport_reverse", &reply, Verdict::Vlan);
            bench.expect_untouched("samport_egress", &reply, Verdict::Vlan);
        }
    }
}

/// Case 10: what is neither TCP nor UDP nor ICMP passes, whatever it is.
#[test]
fn every_other_protocol_passes() {
    // Extension headers of IPv6 among them are not protocols there.
    const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];
    let mut bench = Bench::with_datagrams();
    for (client, vip, _, _) in FAMILIES.map(addressed) {
        let mut frame = datagram(client, vip, b"?");
        for protocol in 0..=u8::MAX {
            let v6 = is_v6(&frame);
            let known = matches!((protocol, v6), (6 | 17, _) | (1, false) | (58, true));
            if known || v6 && EXTENSIONS.contains(&protocol) {
                continue;
            }
            frame[IP + if v6 { 6 } else { 9 }] = protocol;
            bench.expect_untouched("samport_forward", &frame, Verdict::OtherProtocol);
        }
    }
}
