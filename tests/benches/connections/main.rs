//! How many new HTTP connections a second get through samport, and through what else people use.
//!
//! Started by `cargo xtask bench`; the method and its reasons are in `docs/benchmarks.md`.

mod client;
mod contenders;
mod machine;
mod report;
mod rules;
mod server;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use samport::lab::Backend;
use samport_tests::{Lab, require_root};

use client::Load;
use contenders::Contender;
use machine::{ConntrackRoom, Machine};
use report::{Report, Sample};
use server::Server;

/// Where the servers listen in their namespaces.
const BACKEND_PORT: u16 = 9090;
/// Where clients dial.
const FRONT_PORT: u16 = 80;

/// New HTTP connections a second, samport's beside others', in namespaces of its own
#[derive(clap::Parser)]
#[command(name = "connections")]
struct Args {
    /// 5 rounds of 2 s against direct, docker-p and iptables
    #[arg(long)]
    quick: bool,
    /// Rounds; in each, every contender is measured once [default: 9, or 5 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Length of a measurement; shorter if 64,000 connections are made before
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Whom samport is measured beside [default: direct,docker-p,iptables]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    against: Vec<Contender>,
    /// Backends that contenders balance over
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    backends: u8,
    /// Connections open at a time: enough to keep all CPUs busy, or waiting is measured
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..))]
    at_once: u8,
    /// Keeps the raw figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    require_root();
    let machine = Machine::look()?;
    let (contenders, skipped) = args.contenders();
    if !contenders.contains(&Contender::Samport) {
        bail!("samport itself cannot be measured: {}", skipped.join("; "));
    }
    let _room = ConntrackRoom::make()?;
    let rounds = args.rounds.unwrap_or(if args.quick { 5 } else { 9 });
    let mut report = Report::new(machine, skipped, &args);
    for round in 0..rounds {
        // The first of a round may find the machine in another state than the last: take turns.
        let turns = contenders.iter().cycle().skip(round as usize).take(contenders.len());
        for &contender in turns {
            let name = contender.name();
            let sample = measure(contender, &args).with_context(|| format!("measure {name}"))?;
            eprintln!("round {} of {rounds}: {name:<14} {sample}", round + 1);
            report.add(contender, sample);
        }
    }
    println!("\n{}", report.table());
    if let Some(file) = &args.json {
        let file = from_where_the_user_is(file);
        fs::write(&file, format!("{:#}\n", report.json()))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

impl Args {
    /// Who is measured, and why the others are not.
    fn contenders(&self) -> (Vec<Contender>, Vec<String>) {
        let mut wanted = vec![Contender::Samport];
        let against =
            if self.against.is_empty() { &Contender::USUAL[..] } else { &self.against[..] };
        for contender in against {
            if !wanted.contains(contender) {
                wanted.push(*contender);
            }
        }
        let mut skipped = Vec::new();
        wanted.retain(|contender| match contender.missing() {
            Some(what) => {
                skipped.push(format!("{}: there is no {what}", contender.name()));
                false
            }
            None => true,
        });
        (wanted, skipped)
    }
}

/// One measurement in a network made for it. The same backends would know the client's ports from
/// the contender before, with other timestamps, and refuse them (`PAWSTimewait` in nstat).
fn measure(contender: Contender, args: &Args) -> Result<Sample> {
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
    let outcome = load.run(Duration::from_secs_f64(args.seconds));
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

/// Cargo runs benchmarks in the package's folder; PWD still names the one cargo was started in.
fn from_where_the_user_is(file: &Path) -> PathBuf {
    env::var_os("PWD").map(PathBuf::from).unwrap_or_default().join(file)
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 60".to_owned()),
    }
}
