//! The loaded programs on single packets, byte for byte: `BPF_PROG_TEST_RUN`.

mod bench;
mod datagrams;
mod flows;
mod fragments;
mod icmp;
mod model;
mod modes;
mod refusals;
mod rewrite;
mod traces;

use bench::{Bench, CLIENT, CLIENT6, VIP, VIP6};
use samport::dataplane::program_run;
use samport_common::verdict::Verdict;
use samport_tests::packet::Segment;

/// What a program tells the kernel when the packet is none of ours: go on (`TC_ACT_UNSPEC`).
const UNSPEC: i32 = -1;
/// Follow the redirect that a helper has prepared (`TC_ACT_REDIRECT`).
const REDIRECT: i32 = 7;
/// Discard (`TC_ACT_SHOT`).
const DROP: i32 = 2;

/// Offsets in a frame, of fields that the tests overwrite.
const IPV4_PROTOCOL: usize = 14 + 9;
const IPV6_NEXT_HEADER: usize = 14 + 6;
const ICMPV6: u8 = 58;

/// Case 1: non-service IPv4 and IPv6 passes unmodified.
#[test]
fn packets_to_other_addresses_pass_untouched() {
    expect_not_ours(&[(CLIENT, "192.0.2.99:80"), (CLIENT6, "[2001:db8::99]:80")]);
}

/// Case 3: same address, other port passes.
#[test]
fn other_ports_of_a_served_address_pass() {
    expect_not_ours(&[(CLIENT, "192.0.2.1:81"), (CLIENT6, "[2001:db8::1]:81")]);
}

fn expect_not_ours(dialled: &[(&str, &str)]) {
    let mut bench = Bench::new();
    for (client, other) in dialled {
        let frame = bench::at_host(syn(client, other)).frame();
        bench.expect_untouched("samport_forward", &frame, Verdict::NotOurs);
    }
}

fn syn(client: &str, dialled: &str) -> Segment {
    Segment::syn(client.parse().unwrap(), dialled.parse().unwrap())
}

/// Case 2: ARP and neighbour discovery pass.
#[test]
fn arp_and_neighbour_discovery_pass() {
    let mut bench = Bench::new();
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    bench.expect_untouched("samport_forward", &arp, Verdict::NotIp);
    bench.expect_untouched("samport_reverse", &arp, Verdict::NotIp);

    let mut solicitation = bench::at_host(syn(CLIENT6, VIP6)).frame();
    solicitation[IPV6_NEXT_HEADER] = ICMPV6;
    bench.expect_untouched("samport_forward", &solicitation, Verdict::IcmpOther);
    bench.expect_untouched("samport_reverse", &solicitation, Verdict::IcmpOther);
}

/// Case 10: an unknown transport protocol passes.
#[test]
fn other_protocols_pass() {
    let mut bench = Bench::new();
    let mut frame = bench::at_host(syn(CLIENT, VIP)).frame();
    for protocol in [47, 50, 132] {
        frame[IPV4_PROTOCOL] = protocol;
        bench.expect_untouched("samport_forward", &frame, Verdict::OtherProtocol);
    }
}

#[test]
fn frames_for_other_machines_pass() {
    let mut bench = Bench::new();
    let overheard = syn(CLIENT, VIP);
    bench.expect_untouched("samport_forward", &overheard.frame(), Verdict::OtherHost);
}

/// Case 84: every program loads under its instruction ceiling. The kernel stops at 1,000,000; what
/// other kernels and compilers add must fit in between.
#[test]
fn programs_stay_below_their_instruction_ceilings() {
    const CEILINGS: [(&str, u32); 21] = [
        ("samport_forward", 15_000),
        ("samport_bridge", 15_000),
        ("samport_hairpin", 15_000),
        ("samport_forward6", 40_000),
        ("samport_choose", 65_000),
        ("samport_slow_path", 130_000),
        ("samport_open", 120_000),
        ("samport_make_way", 15_000),
        ("samport_icmp", 100_000),
        ("samport_reverse", 15_000),
        ("samport_device", 15_000),
        ("samport_egress", 15_000),
        ("samport_outbound", 15_000),
        ("samport_reverse6", 40_000),
        ("samport_answer", 80_000),
        ("samport_reverse_first", 130_000),
        ("samport_reverse_icmp", 120_000),
        ("samport_later", 15_000),
        ("samport_reset", 40_000),
        ("samport_refused", 90_000),
        ("samport_trace", 100_000),
    ];
    const OF_TUNNEL: [(&str, u32); 5] = [
        ("samport_unwrap", 20_000),
        ("samport_inner", 50_000),
        ("samport_wrap", 15_000),
        ("samport_probe", 15_000),
        ("samport_too_big", 15_000),
    ];
    let names: Vec<_> = CEILINGS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, program_run::PROGRAMS, "every program has a ceiling");
    assert_eq!(OF_TUNNEL.map(|(name, _)| name), program_run::OF_TUNNEL);
    // Without a cluster the verifier leaves out what is for one.
    let alone = Bench::with_local_clients();
    let clustered = Bench::clustered();
    let mut above = Vec::new();
    for (mut bench, of_tunnel) in [(alone, &[][..]), (clustered, &OF_TUNNEL)] {
        let local = program_run::LOCAL_PROGRAMS.map(|name| (name, 70_000));
        bench.dataplane.load_xdp().unwrap();
        let xdp = [("samport_xdp", 100_000)];
        let all = CEILINGS.into_iter().chain(local).chain(xdp);
        for (name, ceiling) in all.chain(of_tunnel.iter().copied()) {
            // In a cluster there are more ways through most of them: by four tenths on Linux 6.1.
            let ceiling = if of_tunnel.is_empty() { ceiling } else { ceiling * 14 / 10 };
            let count = bench.dataplane.verified_instructions(name).unwrap();
            println!("{name}: {count} of {ceiling} instructions verified");
            if count > ceiling {
                above.push(format!("{name}: {count} instructions"));
            }
        }
    }
    assert!(above.is_empty(), "{above:?}");
}
