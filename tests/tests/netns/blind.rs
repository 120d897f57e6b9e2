//! Attackers who know the addresses and ports of open connections, and no sequence number of them.
//!
//! They are on the client's own segment, so that their packets pass for the client's wherever a source is looked
//! at.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use samport_tests::flood::Flood;
use samport_tests::frames::{ends_of, fragments, icmp, quote, to_mac};
use samport_tests::open_connections::{OpenConnection, Requests};
use samport_tests::packet::Segment;
use samport_tests::raw::{Sniffer, mac, send};
use samport_tests::served::{Served, text};
use samport_tests::{Lab, eventually, require_root};
use serde_json::Value;

use crate::lab;

/// Connections to either front that say nothing during the attack, and as many that ask all the time: 1,000 in all.
const EACH: usize = 250;
/// Forged packets in all.
const FORGED: u64 = 100_000;

/// A small generator of numbers that nobody has to guess (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        let Self(state) = self;
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 32) as u32
    }
}

/// Forged packets on connections, with any numbers.
struct Forger {
    /// Client and front of each.
    connections: Vec<[SocketAddr; 2]>,
    host_mac: [u8; 6],
    numbers: Numbers,
    /// Frames that are still to be sent before the next ones are made.
    made: Vec<Vec<u8>>,
}

impl Forger {
    fn new(served: &Served, kept: &[&[OpenConnection]]) -> Self {
        let (fronts, host_mac) = (served.fronts(), mac(served.lab.host(), "eth0"));
        let ends = |kept: &OpenConnection| {
            let client = kept.connection.local_addr();
            [client, fronts[usize::from(client.is_ipv6())]]
        };
        let connections = kept.iter().flat_map(|kept| kept.iter().map(ends)).collect();
        Self { connections, host_mac, numbers: Numbers(0x9e37_79b9_7f4a_7c15), made: Vec::new() }
    }

    /// A segment of a client with any numbers.
    fn segment(&mut self, [client, front]: [SocketAddr; 2], flags: &str) -> Segment {
        let mut segment = Segment::new(client, front);
        let tcp = &mut segment.tcp;
        tcp.sequence_number = self.numbers.next();
        tcp.acknowledgment_number = self.numbers.next();
        (tcp.syn, tcp.ack) = (flags.contains('S'), flags.contains('A'));
        (tcp.rst, tcp.fin) = (flags.contains('R'), flags.contains('F'));
        segment
    }

    /// ICMP errors about a reply with any number, as of a router on the way to the client.
    fn errors(&mut self, [client, front]: [SocketAddr; 2]) -> Vec<Vec<u8>> {
        let reply = self.segment([front, client], "A").frame();
        let quoted = quote(&reply, 64);
        // The next hop's MTU, where the error has one: 576, and 1,280.
        let [unreachable, too_big]: [((u8, u8), [u8; 4]); 2] = if client.is_ipv4() {
            [((3, 1), [0; 4]), ((3, 4), [0, 0, 2, 64])]
        } else {
            [((1, 0), [0; 4]), ((2, 0), [0, 0, 5, 0])]
        };
        let port = if client.is_ipv4() { (3, 3) } else { (1, 4) };
        [unreachable, (port, [0; 4]), too_big]
            .map(|(kind, word)| icmp((client.ip(), front.ip()), kind, word, quoted))
            .to_vec()
    }

    /// The first fragment of a segment, and the later one; of another, the later one alone.
    fn fragments(&mut self, ends: [SocketAddr; 2]) -> Vec<Vec<u8>> {
        let mut cut = |flags| {
            let mut segment = self.segment(ends, flags);
            segment.payload = vec![b'x'; 64];
            let id = (self.numbers.next() % 60_000) as u16;
            fragments(&segment.frame(), id, 48)
        };
        let mut all = cut("A");
        all.extend(cut("R"));
        all.extend(cut("FA").pop());
        all
    }

    fn next(&mut self, number: u32) -> Vec<u8> {
        if self.made.is_empty() {
            let index = number as usize % self.connections.len();
            let ends = self.connections[index];
            self.made = match self.numbers.next() % 8 {
                0 => vec![self.segment(ends, "S").frame()],
                1 => vec![self.segment(ends, "A").frame()],
                2 => vec![self.segment(ends, "R").frame(), self.segment(ends, "RA").frame()],
                3 => vec![self.segment(ends, "FA").frame(), self.segment(ends, "F").frame()],
                4 => vec![self.segment(ends, "R").frame(), self.segment(ends, "S").frame()],
                5 => vec![self.segment(ends, "SA").frame()],
                6 => self.errors(ends),
                _ => self.fragments(ends),
            };
            self.made.reverse();
        }
        to_mac(self.made.pop().unwrap(), self.host_mac)
    }
}

/// The open flows of the lab's client.
fn open_flows(served: &Served) -> Vec<Value> {
    let listed = served.order(&["flows", "-o", "json", "--limit", "0"]);
    let document: Value = serde_json::from_str(&listed).unwrap();
    document["flows"].as_array().unwrap().clone()
}

/// How many flows are in this state.
fn count(served: &Served, state: &str) -> usize {
    open_flows(served).iter().filter(|flow| text(flow, "state") == state).count()
}

/// The flows of these connections lead to the backends that have answered, and nothing has ended them. What may be a
/// FIN of the client is waited for to be acknowledged; nothing comes of that.
fn assert_flows_live(served: &Served, kept: &[OpenConnection]) {
    let flows = open_flows(served);
    let flow_of = |kept: &OpenConnection| {
        let own = kept.connection.local_addr().to_string();
        let ours: Vec<_> = flows.iter().filter(|flow| text(flow, "client") == own).collect();
        let [flow] = ours[..] else { panic!("{own} has one flow: {ours:?}") };
        assert_eq!(text(flow, "backend"), kept.backend, "{own}");
        text(flow, "state").to_owned()
    };
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for kept in kept {
        *states.entry(flow_of(kept)).or_default() += 1;
    }
    let over = states.keys().any(|state| !["established", "client-finishing"].contains(&&**state));
    assert!(!over, "states of established connections: {states:?}");
}

/// Whoever knows nothing but addresses and ports harms no connection, whatever he sends.
#[test]
fn who_knows_no_sequence_number_harms_no_established_connection() {
    // A reset that was believed is a flow that is over within two rounds of the collector.
    let served = Served::start(lab(2), &["--tcp-rst-timeout", "1s", "--tcp-fin-timeout", "1s"]);
    let client = served.lab.client();
    let mut idle = OpenConnection::open(client, &served.fronts(), EACH);
    let busy = OpenConnection::open(client, &served.fronts(), EACH);
    let mut forger = Forger::new(&served, &[&idle, &busy]);
    let before = served.status();

    let asking = Requests::start(busy);
    let flood = Flood::start(client, FORGED, move |number| forger.next(number));
    flood.wait_for(FORGED);
    flood.stop();
    let mut busy = asking.stop();
    OpenConnection::check_all(&mut idle);
    OpenConnection::check_all(&mut busy);
    assert_flows_live(&served, &idle);
    assert_flows_live(&served, &busy);

    // They were seen, and none of them has opened anything.
    let after = served.status();
    assert_eq!(after.sum("flows"), before.sum("flows"), "flows that were opened");
    for (verdict, at_least) in [("forward-peer", FORGED / 4), ("icmp-forward", FORGED / 20)] {
        let seen = after.verdict(verdict) - before.verdict(verdict);
        assert!(seen > at_least, "{seen} packets were seen as {verdict}");
    }
}

/// A4: What acknowledges a SYN-ACK that it has not seen opens no connection.
#[test]
fn a_handshake_that_was_guessed_is_never_established() {
    const HANDSHAKES: u32 = 400;
    let served = Served::start(lab(2), &[]);
    let client = served.lab.client();
    let mut kept = OpenConnection::open(client, &served.fronts(), 10);
    let fronts = served.fronts();
    let host_mac = mac(served.lab.host(), "eth0");
    // Who owns the addresses keeps silent: a reset of his would end the handshakes.
    let routes = "route add 198.18.0.0/24 via 192.0.2.2\n\
                  route add 2001:db8:bad::/48 via 2001:db8:1::2\n";
    served.lab.host().batch(routes).unwrap();
    let mut numbers = Numbers(0x0123_4567_89ab_cdef);
    let forged = |number: u32| {
        let (round, number) = (number / HANDSHAKES, number % HANDSHAKES);
        let front = fronts[number as usize % 2];
        let address =
            if front.is_ipv4() { "198.18.0.9" } else { "2001:db8:bad::9" }.parse().unwrap();
        let source = SocketAddr::new(address, 20_000 + (number % HANDSHAKES) as u16);
        let mut segment = Segment::syn(source, front);
        segment.tcp.sequence_number = 7_000;
        if round > 0 {
            (segment.tcp.syn, segment.tcp.ack) = (false, true);
            segment.tcp.sequence_number = 7_001;
            segment.tcp.acknowledgment_number = numbers.next();
            segment.tcp.fin = round == 3;
            segment.payload = if round == 2 { b"GET / HTTP/1.1\r\n\r\n".to_vec() } else { vec![] };
        }
        to_mac(segment.frame(), host_mac)
    };
    let all = u64::from(HANDSHAKES);
    // The SYNs first, until the backends have answered all of them; then ACKs, bytes, and FINs.
    let mut syns: Vec<Vec<u8>> = (0..4 * HANDSHAKES).map(forged).collect();
    let guesses = syns.split_off(HANDSHAKES as usize);
    Flood::start(client, all, move |number| syns[number as usize].clone()).wait_for(all);
    eventually("the backends have answered all SYNs", || {
        (count(&served, "syn-received") == HANDSHAKES as usize).then_some(())
    });
    let seen = served.status().verdict("forward-peer");
    let flood = Flood::start(client, 3 * all, move |number| guesses[number as usize].clone());
    flood.wait_for(3 * all);
    eventually("the guesses have been forwarded", || {
        (served.status().verdict("forward-peer") >= seen + 3 * all).then_some(())
    });
    let open = open_flows(&served);
    let clients: Vec<_> =
        kept.iter().map(|kept| kept.connection.local_addr().to_string()).collect();
    let (ours, forged): (Vec<_>, Vec<_>) =
        open.iter().partition(|flow| clients.contains(&text(flow, "client").to_owned()));
    let states =
        |flows: &[&Value], state| flows.iter().filter(|f| text(f, "state") == state).count();
    assert_eq!(states(&ours, "established"), kept.len(), "{ours:?}");
    assert_eq!(states(&forged, "syn-received"), forged.len(), "{forged:?}");
    // A guess within 64 KiB of the right number, one in 65,537, is answered by a reset that is believed.
    assert!(forged.len() >= HANDSHAKES as usize - 5, "{} are open", forged.len());
    OpenConnection::check_all(&mut kept);
}

/// A reset in each window of the sequence space, 65,537 in half a second, of which this test sends only the one that
/// is near enough to be challenged. The backend keeps its challenge back, because a SYN has just drawn one (Linux: one
/// in 500 ms for a connection). Nothing but silence says then that the reset was forged, and that ends no connection.
#[test]
fn a_reset_that_draws_no_challenge_ends_no_idle_connection() {
    require_root();
    let lab = Lab::builder().backends(2).tx_offload_off().build().unwrap();
    let served = Served::start(lab, &["--tcp-rst-timeout", "1s"]);
    let client = served.lab.client();
    let sniffer = Sniffer::start(served.lab.host(), "eth0");
    let mut idle = OpenConnection::open(client, &served.fronts(), 20);
    let mut next = BTreeMap::new();
    for frame in sniffer.frames().iter().filter(|frame| ends_of(frame).is_some()) {
        let Segment { source, tcp, payload, .. } = Segment::read(frame);
        let length = u32::from(tcp.syn) + u32::try_from(payload.len()).unwrap();
        let end = tcp.sequence_number.wrapping_add(length);
        next.insert(source, end);
    }
    let mut forger = Forger::new(&served, &[&idle]);
    for ends in forger.connections.clone() {
        let near = next[&ends[0]].wrapping_add(1_000);
        let mut segments = ["S", "R"].map(|flags| forger.segment(ends, flags));
        segments[1].tcp.sequence_number = near;
        send(client, "eth0", &segments.map(|one| to_mac(one.frame(), forger.host_mac)));
    }
    // The collector has seen a time-out of two ticks pass, of 1.07 s each, several times.
    thread::sleep(Duration::from_secs(6));
    OpenConnection::check_all(&mut idle);
    assert_flows_live(&served, &idle);
}
