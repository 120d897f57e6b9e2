//! The instances of this network namespace, running or left behind.

use anyhow::Result;

use crate::dataplane::pins;
use crate::exit::{Exit, coded};
use crate::instance;

/// Those that are meant: the one of this name, or all.
///
/// # Errors
/// [`Exit::Unreachable`] if there is none, running or left behind.
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
        let message = match meant {
            Some(name) => format!("no samport {name} runs or has left anything"),
            None => "samport does not run in this network namespace".to_owned(),
        };
        return Err(coded(Exit::Unreachable, message));
    }
    Ok(names)
}
