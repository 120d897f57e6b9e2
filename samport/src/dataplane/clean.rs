//! Removing what a killed instance has left.

use anyhow::Result;

use super::attach::{self, Filter};
use super::pins;
use crate::instance::FilterRecord;

/// Detaches netlink filters that a record names.
pub fn remove_filters(filters: &[FilterRecord]) -> Result<()> {
    for filter in filters {
        let FilterRecord { ifindex, egress, priority, handle, made_qdisc } = *filter;
        attach::detach_filter(Filter { ifindex, egress, priority, handle, made_qdisc })?;
    }
    Ok(())
}

/// Removes everything an instance has pinned.
pub fn remove_pins(instance: &str) -> Result<()> {
    pins::remove_instance(instance)
}
