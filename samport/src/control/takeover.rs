//! What a samport that was killed has left, and what becomes of it: the next one for the same interfaces
//! goes on from there.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use samport_common::layout::LAYOUT_VERSION;

use crate::dataplane::{self, clean, pins};
use crate::discovery::ServedIn;
use crate::system::instance::{self, Instance, Record};

/// Finds what a killed run has left on the interfaces that this one is to serve. One is to be taken over, and
/// is under this instance's name afterwards: the one that had the same ports, if there is one. Others are
/// removed: their programs are before ours on the hook, with backends that may be gone.
///
/// # Errors
/// If what is left cannot be understood; the message says what to do.
pub fn prepare(ours: &Instance, interfaces: &[String], namespace: u64) -> Result<Option<Record>> {
    let mut found = own(ours)?;
    for name in instance::known() {
        let Ok(record) = instance::read_record(&name) else { continue };
        let overlaps = record.namespace == namespace
            && record.interfaces.iter().any(|other| interfaces.contains(other));
        if name == ours.name() || !overlaps || instance::is_running(&name) {
            continue;
        }
        // No other samport may start on top of it meanwhile.
        let claimed = Instance::claim(&name)?;
        if found.is_none() && !pins::pins_of(&name).is_empty() {
            check_layout(&name, &record)?;
            pins::rename_instance(&name, ours.name())?;
            ours.write(&record)?;
            tracing::info!("samport {name} is {} from now on", ours.name());
            instance::remove_socket(&record);
            found = Some(record);
        } else {
            tracing::info!("removing what a killed samport (pid {}) has left", record.pid);
            instance::remove_socket(&record);
            clean::remove_filters(&record.filters)?;
            clean::remove_pins(&name)?;
        }
        drop(claimed);
    }
    Ok(found)
}

/// Where killed runs on these interfaces have served containers, by the containers' ids.
#[must_use]
pub fn served_before(interfaces: &[String], namespace: u64) -> BTreeMap<String, ServedIn> {
    let names = instance::known();
    let records = names.iter().filter_map(|name| instance::read_record(name).ok());
    let ours = records.filter(|record| {
        record.namespace == namespace
            && record.interfaces.iter().any(|other| interfaces.contains(other))
    });
    let mut served: BTreeMap<String, ServedIn> = BTreeMap::new();
    for (key, _) in ours.flat_map(|record| record.ledger.backends().collect::<Vec<_>>()) {
        served.entry(key.id).or_default().addresses.insert(key.endpoint.ip());
    }
    served
}

/// What has been left under our own name.
fn own(ours: &Instance) -> Result<Option<Record>> {
    let name = ours.name();
    let record = instance::read_record(name);
    if pins::pins_of(name).is_empty() {
        // It was killed before it had done anything, or after it had removed everything.
        if let Ok(record) = record {
            clean::remove_filters(&record.filters)?;
        }
        clean::remove_pins(name)?;
        return Ok(None);
    }
    match record {
        Ok(record) => {
            check_layout(name, &record)?;
            instance::remove_socket(&record);
            Ok(Some(record))
        }
        Err(error) => bail!(
            "cannot take over samport {name}, which was killed: its record cannot be read ({error:#}); \
             `samport clean` removes it, which ends its connections"
        ),
    }
}

fn check_layout(name: &str, record: &Record) -> Result<()> {
    let Record { layout, version, .. } = record;
    let known = dataplane::layouts();
    if known.contains(layout) {
        return Ok(());
    }
    let way_out = "`samport clean` removes it, which ends its connections";
    if *layout > LAYOUT_VERSION {
        bail!(
            "samport {name} was left by version {version}, whose maps have layout {layout}; this is \
             version {}, which knows {LAYOUT_VERSION}. Start that version, or a later one; or \
             {way_out}",
            env!("CARGO_PKG_VERSION")
        );
    }
    let oldest = known.first().copied().unwrap_or(LAYOUT_VERSION);
    bail!(
        "samport {name} was left by version {version}, whose maps have layout {layout}; this version \
         takes over from layouts {oldest} to {LAYOUT_VERSION}. {way_out}"
    )
}
