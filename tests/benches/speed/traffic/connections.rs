//! New connections a second, one request over each.

use anyhow::Result;
use samport_tests::speed::{Better, Figure, Report};

use super::client::After;
use super::contenders::{self, Contender};
use super::sample::{Sample, Samples};
use super::test_bed::{From, RequestOptions};
use crate::Args;
use crate::machine::ConntrackRoom;

const ALL: [Contender; 11] = [
    Contender::Direct,
    Contender::DockerP,
    Contender::Iptables,
    Contender::Nftables,
    Contender::Haproxy,
    Contender::Nginx,
    Contender::DirectDocker,
    Contender::Reuseport,
    Contender::SamportNeigh,
    Contender::SamportStack,
    Contender::SamportXdp,
];
/// Those that have a bar.
const QUICK: usize = 6;

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let usual = if args.quick && args.against.is_empty() { &ALL[..QUICK] } else { &ALL };
    let contenders = contenders::chosen(&args.against, usual, report);
    if contenders.contains(&Contender::SamportXdp) {
        report.note(
            "samport-xdp is generic XDP, and its client computes checksums without a network card"
                .to_owned(),
        );
    }
    let _room = ConntrackRoom::make()?;
    let asking = RequestOptions::new(args, From::Client, args.backends, After::Another);
    let samples = Samples::take("connections", &contenders, args.rounds(), report, |contender| {
        asking.measure(contender)
    })?;
    let title = format!(
        "new HTTP connections a second, {} at a time, {} backends, {} s",
        args.at_once,
        args.backends,
        args.seconds()
    );
    let figure = Figure::new("connections", title, "1/s", Better::More);
    let rate = |sample: &Sample| sample.outcome.rate();
    report.add(samples.fill(figure, &rate, &[("CPU µs", &cpu_us_each)]));
    samples.note_noise("connections", report);
    Ok(())
}

/// CPU time that an answer took on both sides and in between: steadier than answers a second when others use the
/// machine too.
pub fn cpu_us_each(sample: &Sample) -> f64 {
    let tries = sample.outcome.answered() + sample.outcome.failures;
    sample.cpu_us() / f64::from(tries)
}
