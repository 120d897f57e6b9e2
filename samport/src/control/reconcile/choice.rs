//! How each port chooses among its backends, and how much its groups count.

use super::{Reconciler, complain};
use crate::model::Snapshot;
use crate::model::groups::{self, Weights};
use crate::plan::Desired;
use crate::plan::policy;

impl Reconciler {
    /// How the wanted ports choose: as their labels say, else as the flags do; and as ordered, if anything
    /// is.
    pub(super) fn settle_policies(&mut self, desired: &mut Desired, snapshot: &Snapshot) {
        let ports = desired.frontends.keys();
        let (policies, complaints) =
            policy::policies(ports, self.config.rules.policy, &snapshot.candidates);
        desired.policies = policies;
        for about in complaints {
            complain(&mut self.complained, &about);
        }
        for (listen, balance) in self.orders.balance() {
            if let Some(policy) = desired.policies.get_mut(&listen) {
                policy.balance = balance;
            }
        }
    }

    /// The weights of all groups, as ordered or as labels say.
    pub(super) fn group_weights(&mut self, snapshot: &Snapshot) -> Weights {
        let orders = self.orders.group_weights();
        let (weights, complaints) = groups::weights(&snapshot.candidates, orders);
        for about in complaints {
            complain(&mut self.complained, &about);
        }
        weights
    }
}
