//! `samport clean`: removes what killed instances have left, and nothing else.

use anyhow::Result;

use super::instances;
use super::output::{Output, print_json, say};
use super::table::{Column, LEFT, RIGHT, number, table, text};
use crate::api::types::{Cleaned, Cleaning, SCHEMA};
use crate::dataplane::{clean, pins};
use crate::system::instance::{self, Instance, Record};
use crate::system::privileges;

/// Options of `samport clean`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print what would be removed, and exit
    #[arg(long)]
    dry_run: bool,
    /// Clean only the instance of this name
    ///
    /// As `samport status` shows it. May be given several times. Default: all that do not run
    #[arg(long, value_name = "NAME")]
    instance: Vec<String>,
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
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

/// Removes every instance that is not running, or those that are named.
pub fn run(args: &Args) -> Result<()> {
    privileges::require()?;
    let names = names(&args.instance)?;
    let mut cleaned = Vec::new();
    for name in names {
        let one = clean_one(&name, args.dry_run)?;
        if args.output == Output::Table {
            say(&line(&one));
        }
        cleaned.push(one);
    }
    match args.output {
        Output::Json => print_json(&Cleaning { schema: SCHEMA, instances: cleaned })?,
        Output::Wide if !cleaned.is_empty() => say(&table(&cleaned, &COLUMNS)),
        _ if cleaned.iter().all(|one| one.outcome == RUNNING) => println!("nothing to clean"),
        _ => {}
    }
    Ok(())
}

/// Those that are meant: the named ones, or all.
fn names(meant: &[String]) -> Result<Vec<String>> {
    let mut names = pins::instances();
    names.extend(instance::known());
    names.sort();
    names.dedup();
    if let Some(missing) = meant.iter().find(|name| !names.contains(name)) {
        return Err(instances::not_found(missing));
    }
    names.retain(|name| meant.is_empty() || meant.contains(name));
    Ok(names)
}

const RUNNING: &str = "running";
const ELSEWHERE: &str = "elsewhere";
const WOULD_REMOVE: &str = "would-remove";
const REMOVED: &str = "removed";

fn clean_one(name: &str, dry_run: bool) -> Result<Cleaned> {
    let found = |outcome: &str| Cleaned {
        name: name.to_owned(),
        outcome: outcome.to_owned(),
        pins: pins::pins_of(name),
        filters: 0,
        way_out: None,
    };
    if instance::is_running(name) {
        return Ok(found(RUNNING));
    }
    let record = instance::read_record(name).ok();
    if let Some(elsewhere) = record.as_ref().and_then(filters_elsewhere) {
        return Ok(Cleaned { way_out: Some(elsewhere), ..found(ELSEWHERE) });
    }
    let here = instance::network_namespace()?;
    let filters = match &record {
        Some(record) if record.namespace == here => &record.filters[..],
        _ => &[],
    };
    let outcome = if dry_run { WOULD_REMOVE } else { REMOVED };
    let cleaned = Cleaned { filters: filters.len(), ..found(outcome) };
    if !dry_run {
        // Holding the lock while removing: no other samport starts on top of it.
        let claimed = Instance::claim(name)?;
        clean::remove_filters(filters)?;
        clean::remove_pins(name)?;
        drop(claimed);
    }
    Ok(cleaned)
}

const COLUMNS: [Column<Cleaned>; 5] = [
    ("INSTANCE", LEFT, |one| one.name.clone()),
    ("OUTCOME", LEFT, |one| one.outcome.clone()),
    ("PINS", RIGHT, |one| number(u64::try_from(one.pins.len()).ok())),
    ("FILTERS", RIGHT, |one| number(u64::try_from(one.filters).ok())),
    ("WAY OUT", LEFT, |one| text(one.way_out.clone())),
];

fn line(one: &Cleaned) -> String {
    let Cleaned { name, outcome, pins, filters, way_out } = one;
    let what = format!("{} pins, {filters} tc filters", pins.len());
    match outcome.as_str() {
        RUNNING => format!("{name}: runs, left alone"),
        ELSEWHERE => {
            let way_out = way_out.as_deref().unwrap_or_default();
            format!("{name}: has tc filters in another network namespace; {way_out}")
        }
        WOULD_REMOVE => format!("{name}: would remove {what}"),
        _ => format!("{name}: removed {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshots::Pages;

    #[test]
    fn a_line_says_what_was_done_and_what_is_to_be_done() {
        let one = |outcome: &str| Cleaned {
            name: "eth0:80@1".into(),
            outcome: outcome.into(),
            pins: vec!["map_FLOWS4".into(), "link_forward_2".into()],
            filters: 1,
            way_out: Some("go there".into()),
        };
        for (outcome, said) in [
            (RUNNING, "runs, left alone"),
            (ELSEWHERE, "in another network namespace; go there"),
            (WOULD_REMOVE, "would remove 2 pins, 1 tc filters"),
            (REMOVED, "removed 2 pins, 1 tc filters"),
        ] {
            let line = line(&one(outcome));
            assert!(line.starts_with("eth0:80@1: ") && line.ends_with(said), "{line}");
        }
    }

    #[test]
    fn what_is_printed_is_as_it_was() {
        let one = |(name, outcome, way_out): (&str, &str, Option<&str>)| Cleaned {
            name: name.into(),
            outcome: outcome.into(),
            pins: vec!["map_FLOWS4".into(), "link_forward_2".into()],
            filters: 1,
            way_out: way_out.map(str::to_owned),
        };
        let all = [
            ("eth0:80@1", REMOVED, None),
            ("eth0:81@1", WOULD_REMOVE, None),
            ("eth0:82@1", RUNNING, None),
            (
                "eth0:83@2",
                ELSEWHERE,
                Some("clean it with: nsenter --net=/proc/7/ns/net samport clean"),
            ),
        ];
        let instances = all.map(one).to_vec();
        let mut pages = Pages::default();
        pages.add("samport clean", &instances.iter().map(line).collect::<Vec<_>>().join("\n"));
        pages.add("samport clean -o wide", &table(&instances, &COLUMNS));
        pages.add_json("samport clean -o json", &Cleaning { schema: SCHEMA, instances });
        pages.assert("clean");
    }
}
