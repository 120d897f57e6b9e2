//! Requests a second over connections that stay open, and how long they take.

use anyhow::Result;
use samport_tests::speed::{Better, Figure, Report};

use super::client::After;
use super::connections::cpu_us_each;
use super::contenders::{self, Contender};
use super::sample::{Sample, Samples};
use super::test_bed::{From, RequestOptions};
use crate::Args;
use crate::machine::ConntrackRoom;

const ALL: [Contender; 4] =
    [Contender::DockerP, Contender::Direct, Contender::Haproxy, Contender::Nginx];
/// The one that has a bar.
const QUICK: usize = 1;

/// One backend for all: with several, a container more would serve samport's requests.
pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let usual = if args.quick && args.against.is_empty() { &ALL[..QUICK] } else { &ALL };
    let contenders = contenders::chosen(&args.against, usual, report);
    let _room = ConntrackRoom::make()?;
    let asking = RequestOptions::new(args, From::Client, 1, After::Stay);
    let samples = Samples::take("requests", &contenders, args.rounds(), report, |contender| {
        asking.measure(contender)
    })?;
    let how = format!(
        "over {} connections that stay open, one backend, {} s",
        args.at_once,
        args.seconds()
    );
    let title = format!("HTTP requests a second {how}");
    let figure = Figure::new("requests", title, "1/s", Better::More);
    let rate = |sample: &Sample| sample.outcome.rate();
    report.add(samples.fill(figure, &rate, &[("CPU µs", &cpu_us_each)]));

    let title = format!("what 99 of 100 answers came within, {how}");
    let figure = Figure::new("requests.p99", title, "µs", Better::Less);
    let p99 = |sample: &Sample| sample.outcome.wait_us(0.99);
    let p50 = |sample: &Sample| sample.outcome.wait_us(0.5);
    report.add(samples.fill(figure, &p99, &[("median µs", &p50)]));
    samples.note_noise("requests", report);
    Ok(())
}
