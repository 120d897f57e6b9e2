//! What is told of single packets while somebody watches.

use std::net::{Ipv6Addr, SocketAddr};

use samport::dataplane::traces::Tracer;
use samport::plan::Policy;
use samport_common::choose::Balance;
use samport_common::trace::{Ends, Traced, Watch};
use samport_common::verdict::{Action, Verdict};
use samport_tests::frames::{datagram, fragments, icmp, quote};
use samport_tests::packet::Segment;

use crate::bench::{BACKENDS, Bench, CLIENT, CLIENT6, DEVICE, VIP, VIP_443, VIP6, at_host};
use crate::{DROP, REDIRECT, UNSPEC};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Everything.
const ALL: u64 = u64::MAX;

fn watch(verdicts: u64) -> Watch {
    Watch { verdicts, ..Watch::default() }
}

/// Sender and receiver; none where nothing is known.
fn ends(of: &Ends) -> Option<[SocketAddr; 2]> {
    let end = |addr: [u8; 16], port| {
        SocketAddr::new(Ipv6Addr::from(addr).to_canonical(), u16::from_be_bytes(port))
    };
    (of.protocol != 0)
        .then(|| [end(of.source, of.source_port), end(of.destination, of.destination_port)])
}

struct Tracing {
    bench: Bench,
    tracer: Tracer,
}

impl Tracing {
    fn of(bench: Bench) -> Self {
        let tracer = Tracer::start(bench.name(), watch(ALL)).unwrap();
        Self { bench, tracer }
    }

    /// Runs a program; what is told of it, after the verdict was counted and nothing else happened.
    fn told(&mut self, program: &str, frame: &[u8]) -> (Verdict, Traced) {
        self.tracer.renew().unwrap();
        let (ran, counted) = self.bench.run(program, frame);
        let [verdict] = counted[..] else { panic!("{counted:?}") };
        let action = match verdict.action() {
            Action::Pass => UNSPEC,
            Action::Redirect => REDIRECT,
            Action::Drop => DROP,
        };
        assert_eq!(ran.action, action, "{}: who tells changes nothing", verdict.name());
        let traced = self.tracer.take().unwrap_or_else(|| panic!("{}: nothing", verdict.name()));
        assert!(self.tracer.take().is_none(), "one packet is told of once");
        assert_eq!(traced.verdict, verdict as u8);
        assert_eq!(traced.ifindex, DEVICE);
        assert!(traced.at_ns > 0);
        (verdict, traced)
    }

    /// The packet leaves by this verdict, and is told of with these ends, as it came and as it left.
    fn expect(
        &mut self,
        program: &str,
        frame: &[u8],
        verdict: Verdict,
        came: [SocketAddr; 2],
        left: [SocketAddr; 2],
    ) {
        let (told, traced) = self.told(program, frame);
        assert_eq!(told, verdict, "{program}");
        assert_eq!(ends(&traced.came), Some(came), "{program} {}", verdict.name());
        assert_eq!(ends(&traced.left), Some(left), "{program} {}", verdict.name());
    }

    fn expect_untouched(
        &mut self,
        program: &str,
        frame: &[u8],
        verdict: Verdict,
        of: [SocketAddr; 2],
    ) {
        self.expect(program, frame, verdict, of, of);
    }
}

/// The client, what it dials, and its backend, of both families.
fn both() -> [[SocketAddr; 3]; 2] {
    [[CLIENT, VIP, BACKENDS[0]], [CLIENT6, VIP6, BACKENDS[2]]].map(|of| of.map(address))
}

fn only_first() -> Bench {
    let mut bench = Bench::new();
    bench.only(1, 3);
    bench
}

#[test]
fn every_way_of_a_connection_is_told_of() {
    let mut tracing = Tracing::of(only_first());
    for [client, vip, backend] in both() {
        let (came, left) = ([client, vip], [client, backend]);
        let syn = at_host(Segment::syn(client, vip)).frame();
        tracing.expect("samport_forward", &syn, Verdict::ForwardPeer, came, left);
        let mut accepts = Segment::ack(backend, client, b"");
        accepts.tcp.syn = true;
        let (came, left) = ([backend, client], [vip, client]);
        tracing.expect("samport_reverse", &accepts.frame(), Verdict::Reply, came, left);
        let data = at_host(Segment::ack(client, vip, b"hello")).frame();
        let (came, left) = ([client, vip], [client, backend]);
        tracing.expect("samport_forward", &data, Verdict::ForwardPeer, came, left);
        // From the same container, but no reply.
        let own = Segment::ack(
            backend,
            address(if client.is_ipv4() { "192.0.2.9:5" } else { "[2001:db8::9]:5" }),
            b"",
        );
        let ends = [own.source, own.destination];
        tracing.expect_untouched("samport_reverse", &own.frame(), Verdict::NotAReply, ends);
    }
}

#[test]
fn what_is_left_alone_or_dropped_is_told_of() {
    let mut tracing = Tracing::of(only_first());
    for [client, vip, _] in both() {
        let other = SocketAddr::new(vip.ip(), 81);
        let syn = |to| at_host(Segment::syn(client, to)).frame();
        let forward = "samport_forward";
        tracing.expect_untouched(forward, &syn(other), Verdict::NotOurs, [client, other]);
        let data = at_host(Segment::ack(client, vip, b"hello")).frame();
        tracing.expect_untouched(forward, &data, Verdict::MidFlowMiss, [client, vip]);
        let elsewhere = Segment::syn(client, vip).frame();
        tracing.expect_untouched(forward, &elsewhere, Verdict::OtherHost, [client, vip]);
    }
    tracing.bench.restrict(VIP);
    let came = [address(CLIENT), address(VIP)];
    let syn = at_host(Segment::syn(came[0], came[1])).frame();
    tracing.expect_untouched("samport_forward", &syn, Verdict::NotAllowed, came);
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let (verdict, traced) = tracing.told("samport_forward", &arp);
    assert_eq!((verdict, ends(&traced.came), traced.len), (Verdict::NotIp, None, 60));
}

#[test]
fn what_is_answered_is_told_of() {
    let mut tracing = Tracing::of(only_first());
    for [client, vip, _] in both() {
        let syn = at_host(Segment::syn(client, vip)).frame();
        tracing.told("samport_forward", &syn);
    }
    tracing.bench.retire(1);
    tracing.bench.retire(3);
    for [client, vip, _] in both() {
        let data = at_host(Segment::ack(client, vip, b"hello")).frame();
        let (came, left) = ([client, vip], [vip, client]);
        tracing.expect("samport_forward", &data, Verdict::GoneReset, came, left);
    }
    tracing.bench.empty_the_table();
    for [client, vip, _] in both() {
        let client = SocketAddr::new(client.ip(), 40_001);
        let syn = at_host(Segment::syn(client, vip)).frame();
        let (came, left) = ([client, vip], [vip, client]);
        tracing.expect("samport_forward", &syn, Verdict::NoBackendReset, came, left);
    }
}

/// Programs that are reached by several calls, and those with a stack of their own.
#[test]
fn what_rare_programs_do_is_told_of() {
    let mut bench = only_first();
    let policy = Policy { balance: Balance::Maglev, ..Policy::default() };
    bench.with_policy(VIP, 0, 2, policy);
    bench.with_policy(VIP6, 2, 2, policy);
    let mut tracing = Tracing::of(bench);
    for [client, vip, backend] in both() {
        let syn = at_host(Segment::syn(client, vip)).frame();
        let (came, left) = ([client, vip], [client, backend]);
        tracing.expect("samport_forward", &syn, Verdict::ForwardPeer, came, left);
        // An error about a reply: it is told of by the connection's ends.
        let reply = Segment::ack(vip, client, b"an answer").frame();
        let quoted = quote(&reply, 100);
        let ends = (client.ip(), vip.ip());
        let (kind, echo) = if vip.is_ipv4() { ((3, 3), (8, 0)) } else { ((1, 4), (128, 0)) };
        let error = icmp(ends, kind, [0; 4], quoted);
        tracing.expect("samport_forward", &error, Verdict::IcmpForward, came, left);
        let question = icmp(ends, echo, [0; 4], b"are you there?");
        let nobody = [client, vip].map(|at| SocketAddr::new(at.ip(), 0));
        tracing.expect_untouched("samport_forward", &question, Verdict::IcmpOther, nobody);
        let pieces = fragments(&datagram(client, vip, &[7; 64]), 9, 32);
        tracing.expect_untouched("samport_forward", &pieces[1], Verdict::FragmentOrphan, nobody);
    }
}

#[test]
fn nobody_is_told_of_what_he_does_not_watch() {
    let mut bench = only_first();
    let [client, vip, backend] = both()[0];
    let syn = |port| at_host(Segment::syn(SocketAddr::new(client.ip(), port), vip)).frame();
    let other = at_host(Segment::syn(client, address(VIP_443))).frame();
    let mut tracer = Tracer::start(bench.name(), watch(1 << Verdict::NotOurs as u32)).unwrap();
    bench.run("samport_forward", &syn(1_000));
    assert_eq!(tracer.take(), None);
    bench.run("samport_forward", &other);
    assert!(tracer.take().is_some());
    drop(tracer);
    bench.run("samport_forward", &other);
    let port = Watch { port: vip.port().to_be_bytes(), ..watch(ALL) };
    let mut tracer = Tracer::start(bench.name(), port).unwrap();
    assert_eq!(tracer.take(), None, "of what came while nobody watched");
    bench.run("samport_forward", &other);
    assert_eq!(tracer.take(), None);
    bench.run("samport_forward", &syn(1_001));
    bench.run(
        "samport_reverse",
        &Segment::ack(backend, SocketAddr::new(client.ip(), 1_001), b"").frame(),
    );
    let told = [tracer.take(), tracer.take()].map(|told| told.unwrap().verdict);
    assert_eq!(told, [Verdict::ForwardPeer as u8, Verdict::Reply as u8]);
    assert_eq!(tracer.lost().unwrap(), 0);
}

/// The ring is full long before: what does not fit is counted, and packets go their way.
#[test]
fn what_cannot_be_told_is_counted() {
    const PACKETS: u32 = 4_000;
    let mut bench = only_first();
    let mut tracer = Tracer::start(bench.name(), watch(ALL)).unwrap();
    let other = at_host(Segment::syn(address(CLIENT), address(VIP_443))).frame();
    let runner = bench.runner("samport_forward");
    for _ in 0..PACKETS {
        tracer.renew().unwrap();
        assert_eq!(runner.run(&other, DEVICE).unwrap().action, UNSPEC);
    }
    let mut told = 0;
    while tracer.take().is_some() {
        told += 1;
    }
    assert!((2_000..PACKETS.into()).contains(&told), "{told}");
    assert_eq!(told + tracer.lost().unwrap(), u64::from(PACKETS));
}
