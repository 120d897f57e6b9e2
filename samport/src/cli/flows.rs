//! `samport flows`: the connections that are open, read from the kernel, whether samport runs or not.

mod changes;
mod show;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write as _};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::instances;
use super::output::Output;
use crate::dataplane::flows::{OpenFlow, open_flows};
use crate::dataplane::pins;
use crate::system::escape;
use crate::system::instance;
use crate::system::privileges;

/// Between two looks with --follow.
const LOOK: Duration = Duration::from_secs(1);

/// Options of `samport flows`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Show at most N connections; 0 shows all
    ///
    /// Those with the latest packets come first.
    #[arg(long, value_name = "N", default_value = "1000")]
    limit: usize,
    /// Show connections as they open and close
    ///
    /// samport looks every second: what opens and closes in between is not shown.
    #[arg(long, conflicts_with = "limit")]
    follow: bool,
    /// Show only the instance of this name
    ///
    /// As `samport status` shows it. Default: all in this network namespace
    #[arg(long, value_name = "NAME", env = "SAMPORT_INSTANCE")]
    instance: Option<String>,
}

/// A flow, and what its backend is called.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Named {
    instance: String,
    flow: OpenFlow,
    /// None if the backend is gone.
    backend: Option<String>,
}

/// Shows them.
pub fn run(args: &Args) -> Result<()> {
    privileges::require()?;
    let shown = if args.follow { follow(args) } else { once(args) };
    match shown {
        // Who reads no further has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        shown => shown,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn once(args: &Args) -> Result<()> {
    let mut flows = look(args.instance.as_deref())?;
    flows.sort_by_key(|one| (one.flow.idle, one.flow.client, one.flow.dialled));
    let total = flows.len();
    if args.limit > 0 {
        flows.truncate(args.limit);
    }
    let text = match args.output {
        Output::Json => {
            format!("{:#}", serde_json::to_value(show::document(&flows, total))?)
        }
        Output::Table | Output::Wide => show::table(&flows, args.output == Output::Wide),
    };
    writeln!(io::stdout(), "{}", escape::lines(&text))?;
    // Unless they have ended meanwhile.
    for name in instances::instances(args.instance.as_deref()).unwrap_or_default() {
        if !instance::is_running(&name) {
            tracing::warn!("{name}: samport is not running; the kernel keeps forwarding");
        }
    }
    if flows.len() < total {
        tracing::info!("{} of {total}; --limit 0 shows all", flows.len());
    }
    Ok(())
}

fn follow(args: &Args) -> Result<()> {
    let mut before = changes::by_key(look(args.instance.as_deref())?);
    tracing::info!("{} are open; looking every second", before.len());
    loop {
        thread::sleep(LOOK);
        let now = changes::by_key(look(args.instance.as_deref())?);
        for change in changes::between(&before, &now) {
            let line = match args.output {
                Output::Json => serde_json::to_string(&show::event(change))?,
                Output::Table | Output::Wide => show::line(change),
            };
            writeln!(io::stdout(), "{}", escape::lines(&line))?;
        }
        before = now;
    }
}

/// The flows of the instances that are meant.
///
/// # Errors
/// [`crate::system::exit::Exit::Unreachable`] if none exists, running or left behind.
fn look(meant: Option<&str>) -> Result<Vec<Named>> {
    let mut flows = Vec::new();
    for name in instances::instances(meant)? {
        match of_instance(&name) {
            Ok(more) => flows.extend(more),
            // It has ended meanwhile.
            Err(_) if !pins::instances().contains(&name) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(flows)
}

fn of_instance(name: &str) -> Result<Vec<Named>> {
    let flows = open_flows(name)?;
    let record = instance::read_record(name)?;
    let names: BTreeMap<u32, String> =
        record.backends.into_iter().map(|backend| (backend.id, backend.name)).collect();
    let with_name = |flow: OpenFlow| {
        let backend = flow.backend.and_then(|id| names.get(&id).cloned());
        Named { instance: name.to_owned(), flow, backend }
    };
    Ok(flows.into_iter().map(with_name).collect())
}
