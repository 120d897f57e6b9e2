//! The instances of this network namespace, running or left behind.

use anyhow::{Error, Result};

use crate::dataplane::pins;
use crate::system::exit::{Exit, coded};
use crate::system::instance;

/// Those that are meant: the one of this name, or all.
///
/// # Errors
/// [`Exit::Unreachable`] if none exists, running or left behind.
pub(super) fn instances(meant: Option<&str>) -> Result<Vec<String>> {
    let here = instance::network_namespace()?;
    let is_here =
        |name: &str| instance::read_record(name).is_ok_and(|record| record.namespace == here);
    let mut names = pins::instances();
    names.retain(|name| match meant {
        Some(meant) => name == meant,
        None => is_here(name),
    });
    if names.is_empty() {
        return Err(match meant {
            Some(name) => not_found(name),
            None => coded(Exit::Unreachable, "samport does not run in this network namespace"),
        });
    }
    Ok(names)
}

/// There is no instance of this name.
pub(super) fn not_found(name: &str) -> Error {
    coded(Exit::Unreachable, format!("instance {name:?} not found"))
}
