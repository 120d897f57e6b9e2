//! Removing what a killed instance has left.

use anyhow::Result;

use super::attach;
use super::pins;
use crate::system::instance::FilterRecord;

/// Detaches netlink filters that a record names.
pub fn remove_filters(filters: &[FilterRecord]) -> Result<()> {
    for filter in filters {
        attach::detach_filter(filter)?;
    }
    Ok(())
}

/// Removes everything an instance has pinned.
pub fn remove_pins(instance: &str) -> Result<()> {
    pins::remove_instance(instance)
}
