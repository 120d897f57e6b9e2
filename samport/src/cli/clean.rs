//! `samport clean`: removes what killed instances have left, and nothing else.

use anyhow::Result;

use crate::dataplane::{clean, pins};
use crate::instance::{self, Instance};
use crate::privileges;

/// Options of `samport clean`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
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
        let filters = record.as_ref().map_or(&[][..], |record| &record.filters);
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
