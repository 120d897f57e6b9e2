//! Who is a backend of what, looked up once for a whole plan.

use std::collections::{BTreeMap, BTreeSet};

use samport_common::choose::Balance;
use samport_common::layout::BackendState;
use samport_common::seed::Seed;

use super::change::{BackendId, BackendKey, Desired, Route, ServiceKey, Share, Source};
use crate::model::State;
use crate::model::groups;
use crate::plan::table::{Member, Recipe, room_for_each};

/// A backend with its share of new flows relative to the others of its service.
struct Part<'a> {
    key: &'a BackendKey,
    /// Its place among all wanted backends.
    index: usize,
    share: u32,
}

/// A backend and its place among all.
type Entry<'a> = (usize, &'a BackendKey, &'a Share);

/// The backends of one service.
#[derive(Default)]
struct Parts<'a> {
    /// Those that take new flows.
    active: Vec<Part<'a>>,
    /// Those that keep the flows they have.
    draining: Vec<Part<'a>>,
}

/// All wanted backends, by service.
pub(super) struct Roster<'a> {
    services: BTreeMap<ServiceKey, Parts<'a>>,
    /// Shares that are not the backend's own weight, because of groups.
    in_groups: BTreeMap<&'a BackendKey, u32>,
    /// What answers for several services.
    shared: BTreeSet<Source>,
    /// What choices by hash are keyed by.
    hash_seed: Seed,
    /// Whether some service has a table of the backends of this machine alone.
    has_nodes: bool,
    /// Whether backends of this machine get new connections only from nodes that do not know better, while others can.
    is_drained: bool,
}

impl<'a> Roster<'a> {
    pub(super) fn of(desired: &'a Desired) -> Self {
        let mut entries: BTreeMap<ServiceKey, [Vec<Entry<'_>>; 2]> = BTreeMap::new();
        let mut service_at: BTreeMap<Source, ServiceKey> = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for (index, (key, share)) in desired.backends.iter().enumerate() {
            let (source, service) = (key.source(), key.service());
            let of_service = entries.entry(service).or_default();
            of_service[usize::from(share.drains())].push((index, key, share));
            // A node is no socket of anybody's.
            if is_node(key) {
                continue;
            }
            if *service_at.entry(source).or_insert(service) != service {
                shared.insert(source);
            }
        }
        let mut in_groups = BTreeMap::new();
        let mut services = BTreeMap::new();
        for (service, entries) in entries {
            let [active, draining] = entries.map(|entries| parts(&entries, &mut in_groups));
            services.insert(service, Parts { active, draining });
        }
        let has_nodes = desired.backends.keys().any(is_node);
        let (hash_seed, is_drained) = (desired.hash_seed, desired.is_drained);
        Self { services, in_groups, shared, hash_seed, has_nodes, is_drained }
    }

    /// Tables there may be.
    fn tables(&self) -> usize {
        if self.has_nodes { 2 * self.services.len() } else { self.services.len() }
    }

    /// What the kernel is to know of a backend's life.
    pub(super) fn backend_state_of(&self, key: &BackendKey, share: &Share) -> BackendState {
        let has_others =
            || self.services.get(&key.service()).is_some_and(|parts| !parts.active.is_empty());
        if (is_node(key) || !self.is_left_to_nodes(key.service())) && !share.drains() {
            BackendState::Serving
        } else if share.state == State::Unhealthy && has_others() {
            BackendState::Unhealthy
        } else {
            BackendState::Draining
        }
    }

    /// A backend's share, if that is not its own weight.
    pub(super) fn share_of(&self, key: &BackendKey) -> Option<u32> {
        self.in_groups.get(key).copied()
    }

    /// Whether a backend answers for other services too.
    pub(super) fn is_shared(&self, key: &BackendKey) -> bool {
        self.shared.contains(&key.source())
    }

    /// Whether some backend of a service does.
    pub(super) fn has_shared(&self, service: ServiceKey) -> bool {
        let parts = self.services.get(&service).into_iter();
        let mut parts = parts.flat_map(|parts| parts.active.iter().chain(&parts.draining));
        parts.any(|part| self.is_shared(part.key))
    }

    /// A service's table: the backends that take new flows, or, without any, those that drain:
    /// better served by a leaving backend than not at all. `ids` are those of all wanted backends, in order; whoever
    /// has none yet takes no part.
    pub(super) fn recipe(
        &self,
        service: ServiceKey,
        balance: Balance,
        ids: &[(&BackendKey, Option<BackendId>)],
    ) -> Recipe {
        let Some(Parts { active, draining }) = self.services.get(&service) else {
            return Recipe::NOTHING;
        };
        let only_nodes = self.is_left_to_nodes(service);
        let parts = if active.is_empty() { draining } else { active };
        self.recipe_of(parts, balance, ids, |part| !only_nodes || is_node(part.key))
    }

    /// Whether a service's new connections are for other nodes only: this one is drained, and others take them.
    fn is_left_to_nodes(&self, service: ServiceKey) -> bool {
        let parts = self.services.get(&service);
        self.is_drained
            && parts.is_some_and(|parts| parts.active.iter().any(|part| is_node(part.key)))
    }

    /// The same of the backends of this machine alone; `None` if there are no others.
    pub(super) fn local_recipe(
        &self,
        service: ServiceKey,
        balance: Balance,
        ids: &[(&BackendKey, Option<BackendId>)],
    ) -> Option<Recipe> {
        let Parts { active, draining } = self.services.get(&service)?;
        let of_node = |part: &Part<'_>| is_node(part.key);
        if !active.iter().chain(draining).any(of_node) {
            return None;
        }
        let parts = if active.iter().all(of_node) { draining } else { active };
        Some(self.recipe_of(parts, balance, ids, |part| !of_node(part)))
    }

    fn recipe_of(
        &self,
        parts: &[Part<'_>],
        balance: Balance,
        ids: &[(&BackendKey, Option<BackendId>)],
        takes_part: impl Fn(&Part<'_>) -> bool,
    ) -> Recipe {
        let member = |part: &Part<'_>| {
            let (_, id) = ids.get(part.index)?;
            let id = (*id)?;
            Some(Member { id: id.index, endpoint: part.key.endpoint, weight: part.share })
        };
        let members = parts.iter().filter(|part| takes_part(part)).filter_map(member).collect();
        Recipe::new(balance, members, room_for_each(self.tables()), self.hash_seed)
    }
}

const fn is_node(key: &BackendKey) -> bool {
    matches!(key.route, Route::Node(_))
}

/// The shares of backends that are in the same table.
fn parts<'a>(
    entries: &[Entry<'a>],
    in_groups: &mut BTreeMap<&'a BackendKey, u32>,
) -> Vec<Part<'a>> {
    let weights: Vec<_> =
        entries.iter().map(|(_, _, share)| (share.weight, share.group.as_ref())).collect();
    let shares = groups::shares(&weights).into_iter().zip(entries);
    shares
        .map(|(share, (index, key, own))| {
            if share != own.weight {
                in_groups.insert(key, share);
            }
            Part { key, index: *index, share }
        })
        .collect()
}
