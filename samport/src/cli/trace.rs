//! `samport trace`: what becomes of single packets, as it happens.

mod filter;
mod show;

use std::io::{self, ErrorKind, Write as _};

use anyhow::Result;
use samport_common::trace::Traced;
use samport_common::verdict::Verdict;
use tokio::signal::unix::{SignalKind, signal};

use super::instances;
use super::output::Output;
use crate::dataplane::pins;
use crate::dataplane::traces::{RENEW, Tracer};
use crate::system::escape;
use crate::system::exit::{Exit, coded};
use crate::system::instance;
use crate::system::privileges;
use filter::Filter;
use show::{Clock, Names};

/// Options of `samport trace`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Exit after N packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Choose the format
    ///
    /// json prints a document on each line.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Trace the instance of this name
    ///
    /// As `samport status` shows it. Needed if several run in this network namespace.
    #[arg(long, value_name = "NAME", env = "SAMPORT_INSTANCE")]
    instance: Option<String>,
    // It has a heading, which flags after it would stand under.
    #[command(flatten)]
    filter: Filter,
}

/// Traces until it is told to end.
pub async fn run(args: Args) -> Result<()> {
    privileges::require()?;
    let name = one(instances::instances(args.instance.as_deref())?)?;
    let mut shower = Shower::new(&name, args.output)?;
    let watch = args.filter.watch(&shower.names)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tracer = Tracer::start(&name, watch)?;
    let mut bell = tracer.bell()?;
    let mut renewal = tokio::time::interval(RENEW);
    tracing::info!("tracing {name}; Ctrl-C ends it");
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = renewal.tick() => {
                if !pins::instances().contains(&name) {
                    tracing::info!("{name} has ended");
                    break;
                }
                tracer.renew()?;
                shower.say_lost(tracer.lost()?);
            }
            rung = bell.rings() => rung?,
        }
        while left > 0
            && let Some(traced) = tracer.take()
        {
            match shower.show(&traced) {
                // Who reads no further has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                shown => shown?,
            }
            left -= 1;
        }
    }
    shower.say_lost(tracer.lost()?);
    Ok(())
}

fn one(mut names: Vec<String>) -> Result<String> {
    if names.len() > 1 {
        let names = names.join(", ");
        let message = format!("several samports run; choose one with --instance: {names}");
        return Err(coded(Exit::Usage, message));
    }
    names.pop().ok_or_else(|| coded(Exit::Unreachable, "samport does not run here"))
}

/// Shows what it is given.
struct Shower {
    name: String,
    output: Output,
    clock: Clock,
    names: Names,
    lost: u64,
}

impl Shower {
    fn new(name: &str, output: Output) -> Result<Self> {
        let names = Names::of(&instance::read_record(name)?);
        Ok(Self { name: name.to_owned(), output, clock: Clock::now(), names, lost: 0 })
    }

    fn show(&mut self, traced: &Traced) -> io::Result<()> {
        if show::backend(traced, &self.names).is_none() && show::has_backend(traced) {
            // It may have come meanwhile.
            if let Ok(record) = instance::read_record(&self.name) {
                self.names = Names::of(&record);
            }
        }
        let text = match self.output {
            Output::Json => {
                let document = show::document(traced, &self.clock, &self.names);
                serde_json::to_string(&document)?
            }
            Output::Table | Output::Wide => show::line(traced, &self.clock, &self.names),
        };
        writeln!(io::stdout(), "{}", escape::lines(&text))
    }

    fn say_lost(&mut self, lost: u64) {
        if lost > self.lost {
            tracing::warn!("{} packets were not shown: they came too fast", lost - self.lost);
            self.lost = lost;
        }
    }
}

/// The name of a verdict, for what takes it as an argument.
fn verdict(text: &str) -> Result<Verdict, String> {
    let found = Verdict::ALL.iter().copied().find(|verdict| verdict.name() == text);
    found.ok_or_else(|| {
        let names: Vec<_> = Verdict::ALL.iter().map(|verdict| verdict.name()).collect();
        format!("unknown verdict {text:?}: expected one of {}", names.join(", "))
    })
}
