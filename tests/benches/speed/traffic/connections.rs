//! New connections a second, one request over each.

use std::time::Duration;

use anyhow::Result;
use samport::lab::Backend;
use samport_tests::Lab;
use samport_tests::speed::{Better, Figure, Report};

use super::client::Load;
use super::contenders::{self, Contender};
use super::sample::{Sample, Samples};
use super::server::Server;
use crate::Args;
use crate::machine::{self, ConntrackRoom};

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let contenders = contenders::chosen(&args.against, &Contender::USUAL, report);
    let _room = ConntrackRoom::make()?;
    let samples =
        Samples::take("connections", &contenders, args.rounds(), |one| measure_one(one, args))?;
    let Args { at_once, backends, .. } = args;
    let title = format!(
        "new HTTP connections a second, {at_once} at a time, {backends} backends, {} s",
        args.seconds()
    );
    let figure = Figure::new("connections", title, "1/s", Better::More);
    let rate = |sample: &Sample| sample.outcome.rate();
    let cpu = |sample: &Sample| {
        let tries = sample.outcome.answered() + sample.outcome.failures;
        sample.cpu_us() / f64::from(tries)
    };
    report.add(samples.fill(figure, &rate, &[("CPU µs", &cpu)]));
    samples.note_noise("connections", report);
    Ok(())
}

/// One measurement in a network made for it. The same backends would know the client's ports from
/// the contender before, with other timestamps, and refuse them (`PAWSTimewait` in nstat).
fn measure_one(contender: Contender, args: &Args) -> Result<Sample> {
    let lab = Lab::builder().backends(args.backends).build()?;
    let threads = usize::from(args.at_once);
    let start =
        |(index, backend): (usize, &Backend)| Server::start(backend.namespace(), index, threads);
    let servers: Vec<Server> =
        lab.backends().iter().enumerate().map(start).collect::<Result<_>>()?;
    let running = contender.set_up(&lab)?;

    let load = Load::new(&lab, running.target, threads)?;
    load.warm_up()?;
    let busy_before = machine::busy_share()?;
    let timeouts = timeouts(&lab)?;
    let ticks = machine::cpu_ticks_of_ours()?;
    let outcome = load.run(Duration::from_secs_f64(args.seconds()));
    let cpu_ticks = machine::cpu_ticks_of_ours()? - ticks;
    let timeouts = self::timeouts(&lab)? - timeouts;

    drop(running);
    drop(servers);
    drop(lab);
    machine::wait_for_teardown()?;
    Ok(Sample { outcome, cpu_ticks, timeouts, busy_before })
}

/// How often anybody in the lab has waited for an answer in vain so far.
fn timeouts(lab: &Lab) -> Result<u64> {
    let backends = lab.backends().iter().map(Backend::namespace);
    backends.chain([lab.client()]).map(machine::tcp_timeouts).sum()
}
