//! `samport clean`: removes what killed instances have left, and nothing else.

use anyhow::Result;

use crate::dataplane::{clean, pins};
use crate::instance::{self, Instance, Record};
use crate::privileges;

/// Options of `samport clean`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
}

/// The way to an instance whose filters can only be removed from its own network namespace: devices
/// here have the same numbers. `None` if that is this one, or is gone with everything in it.
fn filters_elsewhere(record: &Record) -> Option<String> {
    let here = instance::network_namespace().ok()?;
    if record.filters.is_empty() || record.namespace == here {
        return None;
    }
    let path = instance::path_of_namespace(record.namespace)?;
    Some(format!("clean it with: nsenter --net={} samport clean", path.display()))
}

/// Removes every instance nobody runs.
pub fn run(args: &Args) -> Result<()> {
    privileges::require()?;
    let mut names = pins::instances();
    names.extend(instance::known());
    names.sort();
    names.dedup();
    let mut found = false;
    for name in names {
        if instance::is_running(&name) {
            println!("{name}: runs, left alone");
            continue;
        }
        found = true;
        let pins = pins::pins_of(&name);
        let record = instance::read_record(&name).ok();
        if let Some(elsewhere) = record.as_ref().and_then(filters_elsewhere) {
            println!("{name}: has tc filters in another network namespace; {elsewhere}");
            continue;
        }
        let here = instance::network_namespace()?;
        let filters = match &record {
            Some(record) if record.namespace == here => &record.filters[..],
            _ => &[],
        };
        let what = format!("{} pins, {} tc filters", pins.len(), filters.len());
        if args.dry_run {
            println!("{name}: would remove {what}");
            continue;
        }
        // Holding the lock while removing: nobody starts on top of it.
        let claimed = Instance::claim(&name)?;
        clean::remove_filters(filters)?;
        clean::remove_pins(&name)?;
        drop(claimed);
        println!("{name}: removed {what}");
    }
    if !found {
        println!("nothing to clean");
    }
    Ok(())
}
