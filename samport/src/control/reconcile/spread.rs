//! Whether services stay on this node.

use super::{Reconciler, complain};
use crate::cluster::spread;
use crate::model::groups::{self, Group};
use crate::model::{Candidate, Snapshot, State};

impl Reconciler {
    /// The snapshot with candidates that stand for other nodes as services are spread.
    pub(super) fn spread(&mut self, snapshot: Snapshot) -> Snapshot {
        let (health, orders) = (&mut self.health, &self.orders);
        let (group_weights, _) = groups::weights(&snapshot.candidates, orders.group_weights());
        let takes_new = |candidate: &Candidate| {
            candidate.listen.is_of_family(candidate.endpoint.is_ipv6())
                && health.state(candidate) == State::Active
                && orders.weight_of(candidate) > 0
                && Group::of(candidate, &group_weights).is_none_or(|group| group.weight > 0)
                && !orders.drains(candidate)
        };
        let flag = self.config.rules.spread;
        let (candidates, complaints) = spread::apply(snapshot.candidates, flag, takes_new);
        for about in complaints {
            complain(&mut self.complained, &about);
        }
        Snapshot { candidates, ..snapshot }
    }
}
