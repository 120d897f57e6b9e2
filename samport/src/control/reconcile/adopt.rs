//! The loop's side of taking over: it goes on with what another samport has left in the kernel.

use anyhow::Result;
use samport_common::layout::{DeviceSet, LAYOUT_VERSION};

use super::Reconciler;
use crate::model::State;
use crate::plan::{Actual, BackendId, Share};
use crate::system::instance::Record;

impl Reconciler {
    /// Goes on from where the samport of this record was: with its backends and their numbers, and with
    /// what its operator has ordered.
    ///
    /// # Errors
    /// If a map cannot be read, or what has no meaning cannot be removed.
    pub fn adopt(&mut self, record: Record) -> Result<()> {
        let found = self.dataplane.read_back(&record.ledger)?;
        let (actual, orphans) = Actual::adopt(&record.ledger, found);
        for orphan in &orphans {
            self.dataplane.undo(orphan)?;
        }
        let flows = self.dataplane.open_flows_of(actual.backends().map(|(_, id)| id))?;
        for (key, draining) in actual.draining_by_backend() {
            self.health.assume(key.id.clone(), key.endpoint, !draining);
        }
        self.routes.adopt(actual.backends().map(|(key, _)| key));
        let backends = actual.backends().count();
        let Record { pid, version, orders, .. } = &record;
        tracing::info!(
            "taking over from samport {version} (pid {pid}): {backends} backend{}, {flows} open flow{}",
            plural(backends as u64),
            plural(flows)
        );
        self.orders = orders.clone();
        self.restricted = record.restricted.iter().cloned().collect();
        self.shown =
            actual.backends().map(|(key, id)| (key.clone(), share_of(&record, id))).collect();
        for (key, share) in &self.shown {
            let (place, way) = (key.listen.place(), key.route.name());
            tracing::info!("= {} {} on {place} by {way}", share.name, key.endpoint);
        }
        self.actual = actual;
        // The maps have our layout by now.
        self.written = Record { layout: LAYOUT_VERSION, ..record };
        Ok(())
    }
}

/// What the one before has told its user of a backend.
fn share_of(record: &Record, id: BackendId) -> Share {
    let told = record.backends.iter().find(|one| one.id == id.index);
    let state = told.and_then(|one| State::named(&one.state));
    Share {
        name: told.map_or_else(|| format!("number {}", id.index), |one| one.name.clone()),
        weight: told.map_or(0, |one| one.weight),
        group: None,
        state: state.unwrap_or(State::Active),
        answers_on: DeviceSet::NONE,
        leaves_by: Vec::new(),
        route_back: None,
    }
}

const fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}
