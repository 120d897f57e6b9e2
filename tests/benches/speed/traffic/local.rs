//! New connections a second from the host itself.

use anyhow::Result;
use samport_tests::speed::{Better, Figure, Report};

use super::client::After;
use super::connections::cpu_us_each;
use super::contenders::{self, Contender};
use super::sample::{Sample, Samples};
use super::test_bed::{From, RequestOptions};
use crate::Args;

/// samport is asked at 127.0.0.1, which nobody else serves: Docker's rules leave it alone.
pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let contenders = contenders::chosen(&args.against, &[Contender::Direct], report);
    let asking = RequestOptions::new(args, From::Host, 1, After::Another);
    let samples = Samples::take("local", &contenders, args.rounds(), report, |contender| {
        asking.measure(contender)
    })?;
    let title = format!(
        "new HTTP connections a second from the host itself, {} at a time, one backend, {} s",
        args.at_once,
        args.seconds()
    );
    let figure = Figure::new("local", title, "1/s", Better::More);
    let rate = |sample: &Sample| sample.outcome.rate();
    report.add(samples.fill(figure, &rate, &[("CPU µs", &cpu_us_each)]));
    samples.note_noise("local", report);
    Ok(())
}
