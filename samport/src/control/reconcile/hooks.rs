//! Programs that somebody else has taken off their hooks: found again, and attached again by the plan.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::Reconciler;
use crate::net::netlink::Devices;
use crate::plan::{Change, Role};

/// Hooks are not looked at more often than this, however often the network changes.
const APART: Duration = Duration::from_secs(1);

impl Reconciler {
    /// Looks whether all programs are where they were attached. Those that are not are wanted again. Those of devices
    /// that are gone are gone, too.
    pub(super) async fn look_at_hooks(&mut self, devices: &Devices) -> Result<()> {
        if self.hooks_seen.is_some_and(|seen| seen.elapsed() < APART) {
            return Ok(());
        }
        let mut lost = self.dataplane.detached();
        lost.extend(self.lost_filters().await?);
        self.hooks_seen = Some(Instant::now());
        for (role, ifindex) in lost {
            let Some(device) = devices.get(&ifindex) else { continue };
            tracing::warn!(
                "samport's program was taken off {} ({}) by somebody else; it is attached again",
                device.name,
                hook_of(role)
            );
            self.dataplane.forget(role, ifindex);
            self.actual.record(&Change::Detach(role, ifindex));
            self.progress.reattached(1);
        }
        let restored = self.dataplane.restore_xdp(|ifindex| devices.contains_key(&ifindex))?;
        if restored > 0 {
            tracing::warn!(
                "samport's XDP program was taken off by somebody else; it is attached again"
            );
            self.progress.reattached(restored);
        }
        let restored = self.dataplane.restore_local()?;
        if restored > 0 {
            tracing::warn!(
                "samport's programs for clients on this machine ({restored}) were taken off by somebody else; they \
                 are attached again"
            );
            self.progress.reattached(restored);
        }
        self.look_at_pins();
        Ok(())
    }

    /// Makes pins again that somebody else has removed. If that cannot be, everything works on for as long as samport
    /// runs, and it is logged once while that lasts.
    fn look_at_pins(&mut self) {
        let folder = self.dataplane.folder_of_pins().display().to_string();
        match self.dataplane.restore_pins() {
            Ok(restored) => {
                self.pins_are_missing = false;
                if restored > 0 {
                    tracing::warn!(
                        "pins in {folder} ({restored}) were removed by somebody else; they are made again"
                    );
                    self.progress.repinned(restored);
                }
            }
            Err(error) if !std::mem::replace(&mut self.pins_are_missing, true) => tracing::error!(
                "pins in {folder} were removed by somebody else, and cannot be made again: {error:#}; until then \
                 nothing of samport survives its end, and `samport status` cannot read its counters"
            ),
            Err(_) => {}
        }
    }

    /// Programs in filters that are not there any more.
    async fn lost_filters(&self) -> Result<Vec<(Role, u32)>> {
        let mut present: BTreeMap<(u32, bool), BTreeSet<(u16, u32)>> = BTreeMap::new();
        let mut lost = Vec::new();
        for filter in self.dataplane.filters() {
            let on_hook = match present.entry((filter.ifindex, filter.egress)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    unknown.insert(self.netlink.filters(filter.ifindex, filter.egress).await?)
                }
            };
            let is_there = on_hook.contains(&(filter.priority, filter.handle));
            lost.extend(filter.role.filter(|_| !is_there).map(|role| (role, filter.ifindex)));
        }
        Ok(lost)
    }
}

const fn hook_of(role: Role) -> &'static str {
    match role {
        Role::Egress | Role::Outbound => "egress",
        Role::Forward | Role::Reverse | Role::Device | Role::Inside => "ingress",
    }
}
