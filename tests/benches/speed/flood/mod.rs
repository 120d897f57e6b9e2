//! XDP beside tc under a flood of frames, which come as from a driver: there is no skb until somebody makes one.

mod kind;
mod path;
mod target;

use anyhow::{Context as _, Result};
use samport::dataplane::program_run::harness::{Harness, Traffic};
use samport_common::harness::Order;
use samport_tests::docker::has_program;
use samport_tests::speed::{Better, Figure, Report, Spread};

use crate::{Args, interrupt, machine};
use kind::Kind;
use path::Path;
use target::{Sample, Target};

/// Less of the frames than this, lost or not decided on as they should be, are of no consequence: the first
/// SYNs are no flood yet.
const FEW: f64 = 0.05;
/// Rounds with --quick, at most.
const QUICK_ROUNDS: u32 = 3;
/// The loopback device.
const LOOPBACK: u32 = 1;

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let mut harness = Harness::open()?;
    if let Some(why) = missing(&mut harness) {
        report.skip(format!("flood: {why}"));
        return Ok(());
    }
    // A samport takes a second to start: in a hurry, all rounds are in the same networks.
    let (frames, networks, rounds) = if args.quick {
        (50_000, 1, args.rounds().min(QUICK_ROUNDS))
    } else {
        (500_000, args.rounds(), 1)
    };
    let mut samples = Samples::default();
    for network in 0..networks {
        let targets = Path::ALL.map(|path| {
            Target::set_up(path, &mut harness).with_context(|| format!("set up {}", path.name()))
        });
        let targets = targets.into_iter().collect::<Result<Vec<_>>>()?;
        for round in 0..rounds {
            samples.take(&targets, (network + round) as usize, &mut harness, frames)?;
        }
        drop(targets);
        machine::wait_for_teardown()?;
    }
    for kind in Kind::ALL {
        report.add(samples.figure(kind));
    }
    Ok(())
}

/// What is not there that is needed.
fn missing(harness: &mut Harness) -> Option<String> {
    if !has_program("ethtool") {
        return Some("there is no ethtool".to_owned());
    }
    let frame = Kind::Foreign.frame();
    let one =
        Traffic { frame: &frame, vary_at: 0, clients: 1, order: Order::Each, ifindex: LOOPBACK };
    let sent = harness.flood(&one, 1);
    sent.err().map(|error| format!("{error:#}; Linux 5.18 and later have live frames"))
}

/// All samples, in the order of rounds.
#[derive(Default)]
struct Samples(Vec<(Kind, Path, Sample)>);

impl Samples {
    /// One of each kind and way; each round begins with another way.
    fn take(
        &mut self,
        targets: &[Target],
        round: usize,
        harness: &mut Harness,
        frames: u32,
    ) -> Result<()> {
        let (first, last) = targets.split_at(round % targets.len());
        for kind in Kind::ALL {
            let measured = |target: &&Target| kind == target.path.measured_on(kind);
            for target in last.iter().chain(first).filter(measured) {
                interrupt::go_on()?;
                let sample = target.flood(harness, kind, frames);
                let (what, path) = (kind.figure(), target.path.name());
                let sample = sample.with_context(|| format!("measure {what} of {path}"))?;
                eprintln!("{what}, round {}: {path:<11} {:.0} ns", round + 1, sample.ns);
                self.0.push((kind, target.path, sample));
            }
        }
        Ok(())
    }

    /// Those of a kind and a way.
    fn of(&self, kind: Kind, path: Path) -> impl Iterator<Item = &Sample> {
        let kind = path.measured_on(kind);
        self.0.iter().filter(move |(of, by, _)| (*of, *by) == (kind, path)).map(|(_, _, one)| one)
    }

    fn figure(&self, kind: Kind) -> Figure {
        let mut figure = Figure::new(kind.figure(), kind.title(), "ns", Better::Less);
        for path in Path::ALL {
            let series = figure.series(path.name());
            series.samples = self.of(kind, path).map(|sample| sample.ns).collect();
            let pairs = self.of(kind, path).zip(self.of(kind, Path::Generator));
            let net = Spread::of(pairs.map(|(one, generator)| one.ns - generator.ns));
            let lost = Spread::of(self.of(kind, path).map(|one| (1.0 - one.arrived) * 100.0));
            let net = net.filter(|_| path != Path::Generator);
            let beside = [("without the sending", net), ("lost %", lost)];
            let medians = beside.into_iter().filter_map(|(what, of)| Some((what, of?.median)));
            series.beside = medians.map(|(what, median)| (what.to_owned(), median)).collect();
            series.doubts = self.doubts(kind, path);
        }
        figure
    }

    /// What makes a series one that should not be used.
    fn doubts(&self, kind: Kind, path: Path) -> Vec<String> {
        let least = |part: fn(&Sample) -> f64| self.of(kind, path).map(part).fold(1.0, f64::min);
        let checks = [
            (least(|sample| sample.arrived), "arrived"),
            (least(|sample| sample.as_meant), kind.verdict(path)),
        ];
        let failed = checks.into_iter().filter(|(part, _)| *part < 1.0 - FEW);
        failed.map(|(part, what)| format!("{:.0} % {what} only", part * 100.0)).collect()
    }
}
