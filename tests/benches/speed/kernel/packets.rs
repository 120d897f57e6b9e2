//! Packets of every kind through the programs.

use anyhow::Result;
use samport::dataplane::program_run::PROGRAMS;
use samport::dataplane::program_run::harness::{Harness, Measured};
use samport_common::harness::Order::{Each, Random};
use samport_common::layout::DEFAULT_FLOWS;
use samport_tests::speed::{Better, Figure, Report};

use super::bed::{
    self, Bed, Flags, backend_traffic, between, client_traffic, from_backend, from_client,
};
use super::operations;
use super::stopwatch::{self, Case};
use crate::Args;

/// More clients than any table here has room for.
const MANY: u32 = 1 << 24;
/// The table that new flows make room in.
const ROOM: u32 = 65_536;

/// How many flows are open, and in a table of which size: the usual one as long as they have room there.
const SIZES: [(&str, &str, u32, u32); 4] = [
    ("kernel.flows.1", "a packet of an open flow, one flow", 1, DEFAULT_FLOWS),
    (
        "kernel.flows.10000",
        "a packet of an open flow, 10 thousand flows at random",
        10_000,
        DEFAULT_FLOWS,
    ),
    (
        "kernel.flows.100000",
        "a packet of an open flow, 100 thousand flows at random",
        100_000,
        DEFAULT_FLOWS,
    ),
    (
        "kernel.flows.1000000",
        "a packet of an open flow, 1 million flows at random in a table for 1.25 million",
        1_000_000,
        1_250_000,
    ),
];
/// Those that have bars.
const QUICK: usize = 3;
const NEW: &str = "a new flow's first packet";
const FOREIGN: &str = "a packet that is not ours";
const OTHER: &str = "other packets";
const DROPPED: &str = "a packet of a client that is not allowed, or not where it says";
const BACKENDS: &str = "a packet of an open flow, 10 thousand flows at random, so many backends";
const BACKENDS_NEW: &str = "a new flow's first packet in a full table, so many backends";

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let mut harness = Harness::open()?;
    let rounds = args.rounds();
    // Routes to clients are looked up in the namespace that a program is run from.
    let network = bed::network()?;
    let measured = network.run(|| {
        let mut measured = flows(args, &mut harness, rounds)?;
        measured.extend(backends(&mut harness, rounds)?);
        measured.extend(operations::measure(&mut harness, rounds)?);
        anyhow::Ok(measured)
    });
    for figure in measured? {
        report.add(figure);
    }
    report.add(instructions()?);
    Ok(())
}

/// All kinds of packets, over one backend.
fn flows(args: &Args, harness: &mut Harness, rounds: u32) -> Result<Vec<Figure>> {
    let sizes = if args.quick { &SIZES[..QUICK] } else { &SIZES };
    let mut open = Vec::new();
    for (_, _, clients, room) in sizes {
        let bed = Bed::new(&format!("open-{clients}"), *room, 1)?;
        bed.establish(harness, *clients)?;
        open.push(bed);
    }
    // Never full: each round brings as many half-open flows as it has runs, and they may be a quarter of the table.
    let filling = Bed::new("filling", 4 * (rounds + 1) * stopwatch::RUNS, 1)?;
    let full = Bed::new("full", ROOM, 1)?;
    let closed = Bed::restricted("closed")?;
    let strict = Bed::strict("strict")?;
    let (syn, ack, answer) =
        (from_client(Flags::Syn), from_client(Flags::Ack), from_backend(Flags::Ack));
    let other_port = between("10.0.0.0:40000", "192.0.2.1:81", Flags::Ack);
    let other_address = between("10.0.0.0:40000", "192.0.2.9:80", Flags::Ack);
    let own_business = between("172.16.0.1:5000", "10.0.0.0:40000", Flags::Ack);
    let error = icmp_error(&from_backend(Flags::Ack));

    let mut cases = Vec::new();
    for (bed, (figure, title, clients, _)) in open.iter().zip(sizes) {
        let to_service = || client_traffic(&ack, *clients, Random);
        let forward = Measured::Tc(&bed.forward);
        cases.push(Case::tc(figure, title, "forward", forward, to_service()));
        let to_client = backend_traffic(&answer, *clients, Random);
        cases.push(Case::tc(figure, title, "reply", Measured::Tc(&bed.reverse), to_client));
        cases.push(Case::tc(figure, title, "xdp", Measured::Xdp(&bed.xdp), to_service()));
    }
    let bed = &open[0];
    let (forward, reverse) = (Measured::Tc(&bed.forward), Measured::Tc(&bed.reverse));
    let xdp = Measured::Xdp(&bed.xdp);
    let new = || client_traffic(&syn, MANY, Each);
    let into_full = Measured::Tc(&full.forward);
    cases.push(Case::tc("kernel.new", NEW, "full", into_full, new()));
    cases.push(Case::tc("kernel.new", NEW, "filling", Measured::Tc(&filling.forward), new()));
    let foreign =
        |series, program, traffic| Case::tc("kernel.foreign", FOREIGN, series, program, traffic);
    cases.push(foreign("forward", forward, client_traffic(&other_port, 1, Each)));
    cases.push(foreign(
        "forward, our port elsewhere",
        forward,
        client_traffic(&other_address, 1, Each),
    ));
    cases.push(foreign(
        "reply, a container's own",
        reverse,
        backend_traffic(&own_business, 1, Each),
    ));
    cases.push(foreign("xdp", xdp, client_traffic(&other_port, 1, Each)));
    let other = |series, traffic| Case::tc("kernel.other", OTHER, series, forward, traffic);
    cases.push(other("ICMP error about a flow", client_traffic(&error, 1, Each)));
    cases.push(other("of no flow", client_traffic(&ack, MANY, Each)));
    let dropped = |series, program| {
        Case::tc("kernel.dropped", DROPPED, series, program, client_traffic(&syn, MANY, Each))
    };
    cases.push(dropped("tc", Measured::Tc(&closed.forward)));
    cases.push(dropped("xdp", Measured::Xdp(&closed.xdp)));
    cases.push(dropped("tc, spoofed source", Measured::Tc(&strict.forward)));
    stopwatch::measure(harness, &cases, rounds)
}

/// The same packets with more and more backends.
fn backends(harness: &mut Harness, rounds: u32) -> Result<Vec<Figure>> {
    let (syn, ack) = (from_client(Flags::Syn), from_client(Flags::Ack));
    let sizes = [1, 10, 100, 1_000];
    let open = sizes.map(|count| Bed::new(&format!("open-{count}"), ROOM, count));
    let open = open.into_iter().collect::<Result<Vec<_>>>()?;
    let full = sizes.map(|count| Bed::new(&format!("full-{count}"), ROOM, count));
    let full = full.into_iter().collect::<Result<Vec<_>>>()?;
    for bed in &open {
        bed.establish(harness, 10_000)?;
    }
    let mut cases = Vec::new();
    // The largest first: its ratio to the others is what counts.
    for (size, (open, full)) in sizes.iter().zip(open.iter().zip(&full)).rev() {
        let (series, open, full) = (size.to_string(), &open.forward, &full.forward);
        let traffic = client_traffic(&ack, 10_000, Random);
        cases.push(Case::tc("kernel.backends", BACKENDS, &series, Measured::Tc(open), traffic));
        let traffic = client_traffic(&syn, MANY, Each);
        cases.push(Case::tc(
            "kernel.backends.new",
            BACKENDS_NEW,
            &series,
            Measured::Tc(full),
            traffic,
        ));
    }
    stopwatch::measure(harness, &cases, rounds)
}

/// How much the verifier has to walk through for each program.
fn instructions() -> Result<Figure> {
    let title = "instructions that the verifier walks through at the start";
    let figure = Figure::new("kernel.instructions", title, "", Better::Less);
    let mut figure = figure.of_different_things();
    let mut bed = Bed::new("instructions", 1_024, 1)?;
    for name in PROGRAMS.into_iter().chain(["samport_xdp"]) {
        let count = bed.verified_instructions(name)?;
        figure.series(name.trim_start_matches("samport_")).samples.push(count.into());
    }
    Ok(figure)
}

/// An ICMP error from a router about a packet that a backend's reply was sent as: it quotes what the client
/// should have got. The router's address tells such errors apart, so it is always the same flow.
fn icmp_error(reply: &[u8]) -> Vec<u8> {
    use etherparse::{Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader};

    // What the client sees comes from the VIP.
    let mut quoted = reply[14..14 + 28].to_vec();
    quoted[12..16].copy_from_slice(&[192, 0, 2, 1]);
    quoted[20..22].copy_from_slice(&80u16.to_be_bytes());
    let mut frame = Vec::new();
    let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host);
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6])
        .ipv4([10, 0, 0, 0], [192, 0, 2, 1], 64)
        .icmpv4(kind)
        .write(&mut frame, &quoted)
        .expect("a Vec takes everything");
    frame
}
