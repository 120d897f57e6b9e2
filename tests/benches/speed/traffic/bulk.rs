//! Bytes a second, from a backend to the client and the other way.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use samport_tests::Lab;
use samport_tests::speed::{Better, Figure, Report};

use super::contenders::{self, Contender};
use super::sample::{Sample, Samples};
use super::server;
use super::streams::{self, Direction, Store};
use super::test_bed::TestBed;
use crate::Args;

const ALL: [Contender; 4] =
    [Contender::Direct, Contender::DockerP, Contender::Haproxy, Contender::Nginx];
/// The one that has a bar.
const QUICK: usize = 1;

/// What has a bar is the download, which is what most containers do all day.
const FIGURES: [(&str, Direction, u8); 4] = [
    ("bulk.1", Direction::Down, 1),
    ("bulk.8", Direction::Down, 8),
    ("bulk.1.up", Direction::Up, 1),
    ("bulk.8.up", Direction::Up, 8),
];
/// Those whose figures have bars.
const QUICK_FIGURES: usize = 2;

/// One backend for all: with several, samport's streams would be spread over their devices.
pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let usual = if args.quick && args.against.is_empty() { &ALL[..QUICK] } else { &ALL };
    let contenders = contenders::chosen(&args.against, usual, report);
    let figures = if args.quick { &FIGURES[..QUICK_FIGURES] } else { &FIGURES };
    let store = Store::make().context("make what is sent")?;
    for (id, direction, streams) in figures {
        let time = Duration::from_secs_f64(args.seconds());
        let samples = Samples::take(id, &contenders, args.rounds(), report, |contender| {
            measure_one(contender, *direction, *streams, time, &store)
        })?;
        let from = match direction {
            Direction::Down => "from a backend to the client",
            Direction::Up => "from the client to a backend",
        };
        let s = if *streams == 1 { "" } else { "s" };
        let title = format!("{streams} TCP stream{s} {from}, {} s", args.seconds());
        let figure = Figure::new(*id, title, "Gbit/s", Better::More);
        let rate = |sample: &Sample| sample.outcome.gbit_a_second();
        let cpu = |sample: &Sample| sample.cpu_us() / sample.outcome.mebibytes();
        report.add(samples.fill(figure, &rate, &[("CPU µs/MiB", &cpu)]));
        samples.note_noise(id, report);
    }
    Ok(())
}

fn measure_one(
    contender: Contender,
    direction: Direction,
    streams: u8,
    time: Duration,
    store: &Store,
) -> Result<Sample> {
    let lab = Lab::builder().backends(1).build()?;
    let listener: OwnedFd = server::listener(lab.backends()[0].namespace(), false)?;
    let servers = streams::Servers::start(listener, direction, store)?;
    let site = TestBed::new(lab, servers, contender)?;
    let sample = site.watch(|| {
        let target = site.running.target;
        Ok(site.lab.client().run(|| streams::run(target, direction, streams, time, store)))
    })?;
    site.tear_down()?;
    Ok(sample)
}
