//! What is remembered of connections.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use samport::model::ports::Listen;
use samport::plan::{BackendId, Change, Source};
use samport_common::conntrack::TICK_SHIFT;
use samport_common::layout::program;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_tests::bpf::Map;
use samport_tests::packet::Segment;

use crate::bench::{
    BACKENDS, Bench, CLIENT, CLIENT6, DEVICE, VIP, VIP_443, VIP_B, VIP6, at_host, service,
};
use crate::{DROP, REDIRECT};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::new(address(CLIENT).ip(), port)
}

#[test]
fn a_syn_sent_again_goes_to_the_same_backend() {
    let mut bench = Bench::new();
    for port in 40_000..40_050 {
        let syn = Segment::syn(client(port), address(VIP));
        let first = bench.forward(&syn);
        for _ in 0..5 {
            assert_eq!(bench.forward(&syn), first);
        }
    }
}

#[test]
fn new_flows_are_spread() {
    let mut bench = Bench::new();
    let chosen: BTreeSet<_> =
        (0..100).map(|n| bench.forward(&Segment::syn(client(40_000 + n), address(VIP)))).collect();
    assert_eq!(chosen, BTreeSet::from([address(BACKENDS[0]), address(BACKENDS[1])]));
}

/// Case 25: two SYNs racing on two CPUs: one backend.
#[test]
fn the_same_syn_on_two_cpus_gets_one_backend() {
    let mut bench = Bench::with_flows(16_384);
    let runners: Vec<_> = (0..4).map(|_| bench.runner("samport_forward")).collect();
    let frames: Vec<_> = (0..2_000)
        .map(|n| at_host(Segment::syn(client(10_000 + n), address(VIP))).frame())
        .collect();
    let results: Vec<Vec<SocketAddr>> = thread::scope(|scope| {
        let run = |runner| {
            let frames = &frames;
            move || {
                let run = |frame: &Vec<u8>| {
                    let runner: &samport::dataplane::program_run::Runner = runner;
                    Segment::read(&runner.run(frame, DEVICE).unwrap().bytes).destination
                };
                frames.iter().map(run).collect()
            }
        };
        let threads: Vec<_> = runners.iter().map(|runner| scope.spawn(run(runner))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (n, first) in results[0].iter().enumerate() {
        for other in &results[1..] {
            assert_eq!(&other[n], first, "SYN {n}");
        }
    }
}

/// Neither of two FINs that cross on two CPUs is lost: the flow would count as open for hours.
#[test]
fn fins_that_cross_on_two_cpus_close_their_flows() {
    const FLOWS: u16 = 15_000;
    let mut bench = Bench::with_flows(65_536);
    bench.only(1, 3);
    let backend = address(BACKENDS[0]);
    for port in 10_000..10_000 + FLOWS {
        bench.forward(&Segment::syn(client(port), address(VIP)));
        bench.run("samport_reverse", &Segment::syn_ack(backend, client(port)).frame());
        bench.forward(&Segment::ack(client(port), address(VIP), b"").numbered(1_001, 1_001));
    }
    assert_eq!(bench.open_flows(1), u64::from(FLOWS));
    let fins = |from: &dyn Fn(u16) -> Segment| -> Vec<Vec<u8>> {
        let fin = |port| {
            let mut fin = from(port);
            fin.tcp.fin = true;
            at_host(fin).frame()
        };
        (10_000..10_000 + FLOWS).map(fin).collect()
    };
    let of_clients =
        fins(&|port| Segment::ack(client(port), address(VIP), b"").numbered(1_001, 1_001));
    let of_backend = fins(&|port| Segment::ack(backend, client(port), b"").numbered(1_001, 1_001));
    let (forward, reverse) = (bench.runner("samport_forward"), bench.runner("samport_reverse"));
    let arrived = AtomicUsize::new(0);
    let send = |runner: &samport::dataplane::program_run::Runner, frames: &[Vec<u8>]| {
        for (turn, frame) in (1..).zip(frames) {
            // Spinning: who is woken up comes too late to cross anybody.
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * turn {
                std::hint::spin_loop();
            }
            runner.run(frame, DEVICE).unwrap();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| send(&forward, &of_clients));
        send(&reverse, &of_backend);
    });
    // Neither has been acknowledged yet.
    assert_eq!(bench.open_flows(1), u64::from(FLOWS));
    for port in 10_000..10_000 + FLOWS {
        let last = Segment::ack(backend, client(port), b"").numbered(1_002, 1_002);
        bench.run("samport_reverse", &last.frame());
    }
    assert_eq!(bench.open_flows(1), 0);
}

/// Case 29: a SYN after FIN and FIN on the same tuple: fresh choice.
#[test]
fn a_port_used_again_after_both_fins_is_a_new_flow() {
    let mut bench = Bench::new();
    let mut chosen = BTreeSet::new();
    for _ in 0..40 {
        let backend = bench.forward(&Segment::syn(address(CLIENT), address(VIP)));
        chosen.insert(backend);
        let accepts = Segment::syn_ack(backend, address(CLIENT));
        bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
        let mut fin = Segment::ack(address(CLIENT), address(VIP), b"").numbered(1_001, 1_001);
        assert_eq!(bench.forward(&fin), backend);
        fin.tcp.fin = true;
        assert_eq!(bench.forward(&fin), backend);
        let mut answer = Segment::ack(backend, address(CLIENT), b"").numbered(1_001, 1_002);
        answer.tcp.fin = true;
        bench.expect("samport_reverse", &answer.frame(), Verdict::Reply, REDIRECT);
        bench.forward(&fin);
    }
    assert_eq!(chosen.len(), 2, "40 connections from one port went to {chosen:?} only");
}

/// Case 30: a mid-flow miss is never spread.
#[test]
fn the_middle_of_an_unknown_connection_is_left_to_the_host() {
    let mut bench = Bench::new();
    for (client, vip) in [(CLIENT, VIP), (CLIENT6, VIP6)] {
        let mut segment = at_host(Segment::ack(address(client), address(vip), b"GET /"));
        bench.expect_untouched("samport_forward", &segment.frame(), Verdict::MidFlowMiss);
        segment.tcp.fin = true;
        bench.expect_untouched("samport_forward", &segment.frame(), Verdict::MidFlowMiss);
        segment.tcp.rst = true;
        bench.expect_untouched("samport_forward", &segment.frame(), Verdict::MidFlowMiss);
    }
}

/// Case 36: a failed insert is counted, never silent.
#[test]
fn a_flow_that_cannot_be_stored_is_counted_and_dropped() {
    let mut bench = Bench::with_room_for_two_flows();
    bench.forward(&Segment::syn(client(40_000), address(VIP)));
    // The second finds its room beside the table.
    let second = at_host(Segment::syn(client(40_001), address(VIP)));
    bench.expect("samport_forward", &second.frame(), Verdict::ForwardOverflow, REDIRECT);
    let third = at_host(Segment::syn(client(40_002), address(VIP)));
    bench.expect("samport_forward", &third.frame(), Verdict::FlowInsertFailed, DROP);
    for port in [40_000, 40_001] {
        bench.forward(&Segment::ack(client(port), address(VIP), b"x"));
    }
}

#[test]
fn flows_of_a_removed_backend_are_refused_and_its_syns_go_elsewhere() {
    let mut bench = Bench::new();
    bench.only(1, 3);
    let syn = Segment::syn(address(CLIENT), address(VIP));
    assert_eq!(bench.forward(&syn), address(BACKENDS[0]));
    bench.only(2, 4);
    bench.retire(1);
    let data = at_host(Segment::ack(address(CLIENT), address(VIP), b"GET /"));
    bench.expect("samport_forward", &data.frame(), Verdict::GoneReset, REDIRECT);
    assert_eq!(bench.forward(&syn), address(BACKENDS[1]));
}

#[test]
fn a_backend_id_used_again_inherits_no_flows() {
    let mut bench = Bench::new();
    bench.only(1, 3);
    bench.forward(&Segment::syn(address(CLIENT), address(VIP)));
    assert_eq!((bench.open_flows(1), bench.total_flows(1)), (1, 1));
    bench.set_backend(1, "172.30.0.99:9090", 80, 2, false);
    assert_eq!((bench.open_flows(1), bench.total_flows(1)), (0, 0));
    let data = at_host(Segment::ack(address(CLIENT), address(VIP), b"GET /"));
    bench.expect("samport_forward", &data.frame(), Verdict::GoneReset, REDIRECT);
    let reply = Segment::ack(address("172.30.0.99:9090"), address(CLIENT), b"");
    bench.expect_untouched("samport_reverse", &reply.frame(), Verdict::NotAReply);
}

#[test]
fn a_slot_that_names_no_backend_is_counted_and_dropped() {
    let mut bench = Bench::new();
    bench.only(77, 77);
    let syn = at_host(Segment::syn(address(CLIENT), address(VIP)));
    bench.expect("samport_forward", &syn.frame(), Verdict::BackendUnset, DROP);
}

/// Case 32, by programs alone: one client port towards two addresses of a service. Each flow has
/// its own backend, and each backend's replies come from the right address.
#[test]
fn one_port_towards_two_addresses_gets_two_backends() {
    for port in 40_000..40_030 {
        let mut bench = Bench::new();
        let one = bench.forward(&Segment::syn(client(port), address(VIP)));
        let two = bench.forward(&Segment::syn(client(port), address(VIP_B)));
        assert_ne!(one, two);
        assert_eq!(bench.forward(&Segment::ack(client(port), address(VIP), b"x")), one);
        assert_eq!(bench.forward(&Segment::ack(client(port), address(VIP_B), b"x")), two);
        for (backend, vip) in [(one, VIP), (two, VIP_B)] {
            let reply = Segment::ack(backend, client(port), b"y");
            let out = bench.expect("samport_reverse", &reply.frame(), Verdict::Reply, REDIRECT);
            assert_eq!(Segment::read(&out).source, address(vip));
        }
    }
}

#[test]
fn a_flow_whose_replies_would_be_ambiguous_is_counted_and_dropped() {
    let mut bench = Bench::new();
    bench.only(1, 3);
    let backend = bench.forward(&Segment::syn(address(CLIENT), address(VIP)));
    let accepts = Segment::syn_ack(backend, address(CLIENT));
    bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
    bench.forward(&Segment::ack(address(CLIENT), address(VIP), b"").numbered(1_001, 1_001));
    let second = at_host(Segment::syn(address(CLIENT), address(VIP_B)));
    bench.expect("samport_forward", &second.frame(), Verdict::FlowAmbiguous, DROP);
}

/// One that is half open may be of anybody who knows the port, and makes way.
#[test]
fn a_half_open_flow_makes_way_for_another_of_its_port() {
    let mut bench = Bench::new();
    bench.only(1, 3);
    let backend = bench.forward(&Segment::syn(address(CLIENT), address(VIP)));
    assert_eq!(bench.forward(&Segment::syn(address(CLIENT), address(VIP_B))), backend);
    assert_eq!((bench.open_flows(1), bench.total_flows(1)), (1, 2));
    let accepts = Segment::syn_ack(backend, address(CLIENT));
    let out = bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
    assert_eq!(Segment::read(&out).source, address(VIP_B));
}

#[test]
fn two_services_on_one_backend_port_are_kept_apart() {
    let mut bench = Bench::new();
    bench.only(1, 3);
    let endpoint = address(BACKENDS[0]);
    // Id 5 is the same endpoint under port 443.
    bench.set_backend(5, BACKENDS[0], 443, 1, true);
    bench.set_backend(1, BACKENDS[0], 80, 1, true);
    let id = |index| BackendId { index, generation: 1 };
    let reverse_nat = vec![(service(80, false), id(1)), (service(443, false), id(5))];
    let source = Source { endpoint, protocol: Protocol::Tcp };
    bench.dataplane.apply(&Change::SetReverseNat { source, reverse_nat }).unwrap();
    bench.set_table(443, false, 10, &[5]);
    bench.set_frontend(VIP_443, 10, 1);
    bench.dataplane.apply(&Change::OpenPort(Listen::tcp(443))).unwrap();

    for (port, vip) in [(40_000, VIP), (40_001, VIP_443)] {
        assert_eq!(bench.forward(&Segment::syn(client(port), address(vip))), endpoint);
        let reply = Segment::ack(endpoint, client(port), b"");
        let out = bench.expect("samport_reverse", &reply.frame(), Verdict::Reply, REDIRECT);
        assert_eq!(Segment::read(&out).source, address(vip));
    }
    // The backend could not tell these from the connections it has.
    for (port, vip) in [(40_000, VIP_443), (40_001, VIP)] {
        let syn = at_host(Segment::syn(client(port), address(vip)));
        bench.expect("samport_forward", &syn.frame(), Verdict::FlowAmbiguous, DROP);
    }
}

/// Without the program that goes on with a packet, it does not get past us by chance.
#[test]
fn a_program_that_is_not_where_it_belongs_is_told_from_a_crowd() {
    let mut bench = Bench::new();
    let syn = at_host(Segment::syn(client(40_000), address(VIP))).frame();
    bench.forward(&Segment::syn(client(40_001), address(VIP)));
    bench.dataplane.take_away(program::CHOOSE).unwrap();
    bench.expect("samport_forward", &syn, Verdict::MissedTailCall, DROP);
}

/// Jiffies tell the programs the time that the kernel's clock would.
#[test]
fn the_programs_know_what_time_it_is() {
    let mut bench = Bench::new();
    let tick = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        (now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()) >> TICK_SHIFT
    };
    let before = tick();
    bench.forward(&Segment::syn(client(40_000), address(VIP)));
    let after = tick();
    let table = samport::dataplane::pins::map_of(bench.name(), "FLOWS4");
    let values = Map::open(&table).unwrap().values().unwrap();
    // `Flow::seen_tick`.
    let seen = u32::from_ne_bytes(values[0][12..16].try_into().unwrap()).into();
    // A jiffy may be over that nobody has counted yet.
    assert!((before - 1..=after).contains(&seen), "{before} to {after}, and {seen}");
}
