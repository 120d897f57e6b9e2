//! A container on another host than the one that is dialled: through the tunnel of samport's nodes, through a proxy, and by
//! plain routing. Beside it a container on the host that is dialled.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use samport_tests::bpf::{self, Hook};
use samport_tests::speed::{Better, Figure, Report};

use super::client::{After, Load};
use super::connections::cpu_us_each;
use super::contenders::{self, Contender};
use super::node_bed::{NodeBed, host_of};
use super::sample::{Sample, Samples};
use super::server::{self, Servers};
use super::streams::{self, Direction, Store};
use crate::kernel::load::Counting;
use crate::{Args, Part, interrupt};

const ALL: [Contender; 3] = [Contender::Direct, Contender::Haproxy, Contender::SamportLocal];
/// The ways of a stream.
const STREAMS: [(&str, Direction, &str); 2] = [
    ("cluster.bulk", Direction::Down, "to the client"),
    ("cluster.bulk.up", Direction::Up, "from the client"),
];

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    if args.quick && !args.only.contains(&Part::Cluster) {
        report.skip("a container on another host: too slow for --quick".to_owned());
        return Ok(());
    }
    let contenders = contenders::chosen(&args.against, &ALL, report);
    connections(args, &contenders, report)?;
    let store = Store::make().context("make what is sent")?;
    for (id, direction, way) in STREAMS {
        stream(args, &contenders, report, (id, direction, way), &store)?;
    }
    report.add(programs(args, &contenders)?);
    Ok(())
}

fn connections(args: &Args, contenders: &[Contender], report: &mut Report) -> Result<()> {
    let what = "cluster.connections";
    let samples = Samples::take(what, contenders, args.rounds(), report, |contender| {
        let (sample, ()) = ask(args, contender, After::Another, |_| Ok(()))?;
        Ok(sample)
    })?;
    let title = format!(
        "new HTTP connections a second to a container on another host, {} at a time, {} s",
        args.at_once,
        args.seconds()
    );
    let figure = Figure::new(what, title, "1/s", Better::More);
    let rate = |sample: &Sample| sample.outcome.rate();
    report.add(samples.fill(figure, &rate, &[("CPU µs", &cpu_us_each)]));
    samples.note_noise(what, report);
    Ok(())
}

/// Questions in a network made for them, that something is looked at in before it is taken apart.
fn ask<T>(
    args: &Args,
    contender: Contender,
    after: After,
    look: impl FnOnce(&NodeBed<Servers>) -> Result<T>,
) -> Result<(Sample, T)> {
    let bed = NodeBed::new(contender, |container| {
        Servers::start(vec![server::listener(container, false)?], after)
    })?;
    let load = Load::new(bed.cluster.client(), bed.target, 1, args.at_once.into(), after)?;
    load.warm_up()?;
    let sample = bed.watch(|| Ok(load.run(Duration::from_secs_f64(args.seconds()))))?;
    let seen = look(&bed)?;
    bed.tear_down()?;
    Ok((sample, seen))
}

fn stream(
    args: &Args,
    contenders: &[Contender],
    report: &mut Report,
    (id, direction, way): (&str, Direction, &str),
    store: &Store,
) -> Result<()> {
    let time = Duration::from_secs_f64(args.seconds());
    let samples = Samples::take(id, contenders, args.rounds(), report, |contender| {
        let bed = NodeBed::new(contender, |container| {
            streams::Servers::start(server::listener(container, false)?, direction, store)
        })?;
        let load = || streams::run(bed.target, direction, 1, time, store);
        let sample = bed.watch(|| Ok(bed.cluster.client().run(load)))?;
        bed.tear_down()?;
        Ok(sample)
    })?;
    let seconds = args.seconds();
    let title = format!("one TCP stream {way}, the container on another host, {seconds} s");
    let figure = Figure::new(id, title, "Gbit/s", Better::More);
    let rate = |sample: &Sample| sample.outcome.gbit_a_second();
    let cpu = |sample: &Sample| sample.cpu_us() / sample.outcome.mebibytes();
    report.add(samples.fill(figure, &rate, &[("CPU µs/MiB", &cpu)]));
    samples.note_noise(id, report);
    Ok(())
}

/// What the programs cost with and without a tunnel, as the kernel counts it. The second host's each do one thing: take
/// packets out, or put them in. What they cost more than those of a container on the host that is dialled, the tunnel does.
fn programs(args: &Args, contenders: &[Contender]) -> Result<Figure> {
    let title = format!(
        "a run under {} s of requests over open connections, as the kernel counts (kernel.bpf_stats_enabled)",
        args.seconds()
    );
    let figure = Figure::new("cluster.load", title, "ns", Better::Less);
    let mut figure = figure.of_different_things();
    let _counting = Counting::begin()?;
    let measured = [Contender::Samport, Contender::SamportOther, Contender::SamportLocal];
    let measured = measured
        .into_iter()
        .filter(|one| contenders.contains(one) || *one == Contender::SamportLocal);
    let measured: Vec<_> = measured.collect();
    for _ in 0..args.rounds() {
        let mut round = BTreeMap::new();
        for contender in &measured {
            interrupt::go_on()?;
            let (_, runs) = ask(args, *contender, After::Stay, |bed| {
                let host = host_of(&bed.cluster, *contender);
                let veth = host.backends()[0].host_interface();
                ["eth0", veth].map(|device| mean_ns(host.namespace(), device)).into_iter().collect()
            })?;
            let runs: Vec<f64> = runs;
            round.insert(contender.name(), (runs[0], runs[1]));
        }
        let (forward, reply) = round[Contender::SamportLocal.name()];
        figure.series("local: forward").samples.push(forward);
        figure.series("local: reply").samples.push(reply);
        for contender in measured.iter().filter(|one| **one != Contender::SamportLocal) {
            let name = contender.name();
            let (unwrap, wrap) = round[name];
            figure.series(&format!("{name}: take out, forward")).samples.push(unwrap);
            figure.series(&format!("{name}: reply, put in")).samples.push(wrap);
            figure.series(&format!("{name}: taking out")).samples.push(unwrap - forward);
            figure.series(&format!("{name}: putting in")).samples.push(wrap - reply);
        }
    }
    Ok(figure)
}

/// Mean time of a run of the programs at ingress of a device, what they call included.
fn mean_ns(namespace: &samport_tests::Namespace, device: &str) -> Result<f64> {
    let attached = bpf::programs_on(namespace, device, Hook::Ingress);
    let runs = bpf::runs().context("ask for the programs")?;
    let (mut count, mut time_ns) = (0, 0);
    for run in runs.iter().filter(|run| attached.contains(&run.id)) {
        count += run.count;
        time_ns += run.time_ns;
    }
    #[expect(clippy::cast_precision_loss, reason = "a minute is less than 2^52 ns")]
    let mean = time_ns as f64 / count as f64;
    Ok(mean)
}
