//! The loop's side of the control handle: orders come in, what is in force goes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{LOOK_AGAIN, RETRY, Reconciler};
use crate::control::commands::{self, CommandError, OperatorCommand};
use crate::control::draining::{self, Ending};
use crate::control::handle::{BackendRef, BackendView, ControlView, Request};
use crate::model::groups::{self, Group};
use crate::model::{Candidate, Condition, Reach, Snapshot, State};
use crate::plan::{BackendKey, Desired, Share};

/// An order that has been taken and is answered when the kernel has it.
pub(super) struct Pending {
    answer: oneshot::Sender<Result<Vec<BackendRef>, CommandError>>,
    about: Vec<BackendRef>,
}

impl Pending {
    /// Tells who gave the order. Whoever has gone away meanwhile does not want to know.
    pub(super) fn answer(self, outcome: &anyhow::Result<()>) {
        let Self { answer, about } = self;
        let _ = answer.send(match outcome {
            Ok(()) => Ok(about),
            Err(error) => Err(CommandError::Failed(format!("noted, not yet in force: {error:#}"))),
        });
    }
}

impl Reconciler {
    /// Takes an order. What is refused is answered immediately.
    pub(super) fn take(&mut self, request: Request) -> Option<Pending> {
        let Request { order, answer } = request;
        let is_about_node =
            matches!(order, OperatorCommand::DrainNode | OperatorCommand::UndrainNode);
        if is_about_node && self.config.cluster.is_none() {
            let why = "this samport has no other nodes: --cluster says where they are";
            let _ = answer.send(Err(CommandError::Unknown(why.to_owned())));
            return None;
        }
        let shown = self.receiver.shown();
        match self.orders.take(&order, &shown) {
            Ok(about) => {
                if let OperatorCommand::ResetAllow(name) = &order
                    && let Ok(listen) = commands::service_called(name, &shown)
                {
                    self.restricted.remove(&listen);
                }
                Some(Pending { answer, about })
            }
            Err(refusal) => {
                let _ = answer.send(Err(refusal));
                None
            }
        }
    }

    /// How long to wait if nothing happens.
    pub(super) fn pause(&self, failed: bool) -> Duration {
        match (failed, self.drains.any()) {
            (true, _) => RETRY,
            (false, true) => draining::LOOK,
            (false, false) => LOOK_AGAIN,
        }
    }

    /// Takes those out that have drained.
    pub(super) fn end_drains(&mut self, desired: &mut Desired, snapshot: &Snapshot) {
        let (orders, limit) = (&self.orders, self.config.rules.drain);
        let ending = |candidate: &Candidate, share: &Share| {
            // Active and draining all the same: its weight, or its group's, is 0.
            let is_ordered = orders.drains(candidate) || share.state == State::Active;
            let limit = candidate.drain.unwrap_or(limit);
            if is_ordered { Ending::EmptyOrAfter(limit) } else { Ending::Empty }
        };
        let open = |key: &BackendKey| self.dataplane.open_flows(self.actual.id_of(key)?.index).ok();
        let now = Instant::now();
        let gone = self.drains.settle(desired, &snapshot.candidates, ending, open, now);
        for (backend_ref, share) in gone {
            let place = backend_ref.listen.place();
            self.news.push(format!("- {} {} on {place} gone", share.name, backend_ref.endpoint));
        }
    }

    /// Shows the operator every backend there is.
    pub(super) fn show_at_desk(&self, desired: &Desired, snapshot: &Snapshot) {
        let served: BTreeMap<BackendRef, (&BackendKey, &Share)> = desired
            .backends
            .iter()
            .map(|(key, share)| (BackendRef::from(key), (key, share)))
            .collect();
        let (group_weights, _) = groups::weights(&snapshot.candidates, self.orders.group_weights());
        let active = desired.backends.iter().filter(|(_, share)| !share.drains());
        let active: BTreeSet<_> = active.map(|(key, _)| key.service()).collect();
        let is_last = |(key, share): (&BackendKey, &Share)| {
            share.drains() && !active.contains(&key.service())
        };
        let seated = |candidate: &Candidate| {
            let backend_ref = BackendRef::from(candidate);
            let served = served.get(&backend_ref).copied();
            let state = self.state_of(candidate, &backend_ref, served.map(|(_, share)| share));
            BackendView {
                name: candidate.name.clone(),
                service: candidate.hints.service.clone(),
                group: Group::of(candidate, &group_weights),
                weight: self.orders.weight_of(candidate),
                state,
                node: match candidate.place {
                    Some(Reach::Node(tunnel)) => Some(tunnel.ip()),
                    _ => None,
                },
                via: served.map(|(key, _)| key.route.name().to_owned()),
                route_back: candidate.egress.leads_out,
                index: served.and_then(|(key, _)| self.actual.id_of(key)).map(|id| id.index),
                drains_until: self.drains.until(&backend_ref),
                is_last: served.is_some_and(is_last),
                backend_ref,
            }
        };
        // A container may have addresses of a family its service has none of.
        let is_offered = |c: &&Candidate| c.listen.is_of_family(c.endpoint.is_ipv6());
        let offered = snapshot.candidates.iter().filter(is_offered);
        let mut backends: Vec<_> = offered.map(seated).collect();
        let order = |one: &BackendView| {
            (one.backend_ref.listen, one.name.clone(), one.backend_ref.endpoint)
        };
        backends.sort_by_key(order);
        let policy = |listen| desired.policies.get(listen).copied().unwrap_or_default();
        let services = desired.frontends.keys().map(|listen| (*listen, policy(listen).balance));
        let left_out = self.left_out.iter().map(|sentences| sentences.len() as u64).sum();
        self.receiver.show(ControlView {
            services: services.collect(),
            backends,
            left_out,
            node_drained: self.orders.drains_this_node(),
        });
    }

    fn state_of(
        &self,
        candidate: &Candidate,
        backend_ref: &BackendRef,
        served: Option<&Share>,
    ) -> State {
        match (served, &candidate.condition) {
            (Some(share), _) if share.drains() && share.state == State::Active => State::Draining,
            (Some(share), _) => share.state,
            (None, Condition::Starting | Condition::Checked(_))
                if !self.drains.down().contains_key(backend_ref) =>
            {
                State::Starting
            }
            (None, _) => State::Down,
        }
    }
}
