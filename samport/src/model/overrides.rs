//! The orders of an operator that are in force, as the control loop follows them and the record keeps them.

use std::collections::{BTreeMap, BTreeSet};

use samport_common::choose::Balance;
use serde::{Deserialize, Serialize};

use super::Candidate;
use crate::model::ports::Listen;

/// The orders in force.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Overrides {
    /// By container id.
    pub(crate) drained: BTreeSet<(String, Listen)>,
    /// By name.
    pub(crate) weights: BTreeMap<(String, Listen), u32>,
    /// By name of a group.
    pub(crate) group_weights: BTreeMap<String, u32>,
    pub(crate) balance: BTreeMap<Listen, Balance>,
    /// Whether this node, in a cluster, is drained.
    pub(crate) this_node_drains: bool,
}

/// The orders as they are written down: JSON has only strings for keys.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    drained: Vec<(String, Listen)>,
    weights: Vec<(String, Listen, u32)>,
    group_weights: BTreeMap<String, u32>,
    balance: Vec<(Listen, String)>,
    this_node_drains: bool,
}

impl From<Written> for Overrides {
    fn from(written: Written) -> Self {
        let Written { drained, weights, group_weights, balance, this_node_drains } = written;
        let by_name = |(listen, name): (Listen, String)| {
            let balance = Balance::ALL.into_iter().find(|balance| balance.name() == name)?;
            Some((listen, balance))
        };
        Self {
            drained: drained.into_iter().collect(),
            weights: weights.into_iter().map(|(name, on, weight)| ((name, on), weight)).collect(),
            group_weights,
            balance: balance.into_iter().filter_map(by_name).collect(),
            this_node_drains,
        }
    }
}

impl From<Overrides> for Written {
    fn from(orders: Overrides) -> Self {
        let Overrides { drained, weights, group_weights, balance, this_node_drains } = orders;
        Self {
            drained: drained.into_iter().collect(),
            weights: weights.into_iter().map(|((name, on), weight)| (name, on, weight)).collect(),
            group_weights,
            balance: balance.into_iter().map(|(on, mode)| (on, mode.name().to_owned())).collect(),
            this_node_drains,
        }
    }
}

impl Overrides {
    /// The weights of groups that were ordered, by name.
    #[must_use]
    pub fn group_weights(&self) -> &BTreeMap<String, u32> {
        &self.group_weights
    }

    /// Whether a backend has been told to drain.
    #[must_use]
    pub fn drains(&self, candidate: &Candidate) -> bool {
        self.drained.contains(&(candidate.id.clone(), candidate.listen))
    }

    /// Whether this node has been told to drain.
    #[must_use]
    pub const fn drains_this_node(&self) -> bool {
        self.this_node_drains
    }

    /// A backend's weight: as ordered, or its own.
    #[must_use]
    pub fn weight_of(&self, candidate: &Candidate) -> u32 {
        let ordered = self.weights.get(&(candidate.name.clone(), candidate.listen));
        ordered.copied().unwrap_or(candidate.weight)
    }

    /// Services that choose as ordered.
    pub fn balance(&self) -> impl Iterator<Item = (Listen, Balance)> {
        self.balance.iter().map(|(listen, balance)| (*listen, *balance))
    }
}
