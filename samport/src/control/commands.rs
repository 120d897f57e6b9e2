//! What the operator has ordered while samport runs, and whom a name means. Pure.
//!
//! Orders live as long as the instance, and a samport that takes over from a killed one keeps them. A container's drain is that container's: it holds when it is
//! started again, and ends with its id. A weight is the name's: a container that takes the place of
//! another one of that name takes over its weight. So it is with groups.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use samport_common::choose::Balance;

use crate::control::handle::{BackendRef, BackendView, ControlView};
use crate::model::overrides::Overrides;
use crate::model::ports::Listen;

/// Orders of one kind that are kept; beyond, those about backends that are not there are dropped.
const KEPT: usize = 8_192;
/// Shortest id of a container that a prefix may stand for: names that look like ids are none.
const SHORTEST_ID: usize = 12;

/// One thing an operator may order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OperatorCommand {
    /// No new flows to a backend.
    Drain(String),
    /// As if it had never been drained.
    Undrain(String),
    /// No new flows to this node's backends while other nodes have the service, which are told to send none.
    DrainNode,
    /// As if it had never been.
    UndrainNode,
    /// A backend's share relative to the others, or a group's relative to other groups.
    Weight(String, u32),
    /// How a service chooses.
    Balance(String, Balance),
    /// A service is restricted only as the labels of its containers say now.
    ResetAllow(String),
}

/// Why an order was not carried out, in words for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// Nothing has that name.
    Unknown(String),
    /// Several have.
    Ambiguous(String),
    /// It could not be done, yet.
    Failed(String),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unknown(why) | Self::Ambiguous(why) | Self::Failed(why)) = self;
        f.write_str(why)
    }
}

impl Overrides {
    /// Takes an order and says whom it is about.
    ///
    /// # Errors
    /// When the name means no backend, or several.
    pub fn take(
        &mut self,
        order: &OperatorCommand,
        view: &ControlView,
    ) -> Result<Vec<BackendRef>, CommandError> {
        let meant = match order {
            OperatorCommand::Drain(name) => {
                let meant = backends_called(name, &view.backends)?;
                self.drained.extend(meant.iter().map(|one| by_id(&one.backend_ref)));
                meant
            }
            OperatorCommand::Undrain(name) => {
                let meant = backends_called(name, &view.backends)?;
                for one in &meant {
                    self.drained.remove(&by_id(&one.backend_ref));
                }
                meant
            }
            OperatorCommand::DrainNode | OperatorCommand::UndrainNode => {
                self.this_node_drains = matches!(order, OperatorCommand::DrainNode);
                view.backends.iter().filter(|one| one.node.is_none()).collect()
            }
            OperatorCommand::Weight(name, weight) => self.weigh(name, *weight, &view.backends)?,
            OperatorCommand::Balance(name, balance) => {
                let listen = service_called(name, view)?;
                self.balance.insert(listen, *balance);
                view.backends.iter().filter(|one| one.backend_ref.listen == listen).collect()
            }
            // What is to be forgotten the loop remembers.
            OperatorCommand::ResetAllow(name) => {
                let listen = service_called(name, view)?;
                view.backends.iter().filter(|one| one.backend_ref.listen == listen).collect()
            }
        };
        self.forget(&view.backends);
        Ok(meant.into_iter().map(|one| one.backend_ref.clone()).collect())
    }

    /// A name that is a backend's and a group's is the backend's.
    fn weigh<'a>(
        &mut self,
        name: &str,
        weight: u32,
        all: &'a [BackendView],
    ) -> Result<Vec<&'a BackendView>, CommandError> {
        let group: Vec<_> = all
            .iter()
            .filter(|one| one.group.as_ref().is_some_and(|group| group.name == name))
            .collect();
        match backends_called(name, all) {
            Err(CommandError::Unknown(_)) if !group.is_empty() => {
                self.group_weights.insert(name.to_owned(), weight);
                Ok(group)
            }
            Ok(meant) => {
                let entry =
                    |one: &&BackendView| ((one.name.clone(), one.backend_ref.listen), weight);
                self.weights.extend(meant.iter().map(entry));
                Ok(meant)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Keeps the memory small where containers come and go for years.
    fn forget(&mut self, present: &[BackendView]) {
        if self.drained.len() > KEPT {
            let ids: BTreeSet<_> = present.iter().map(|one| by_id(&one.backend_ref)).collect();
            self.drained.retain(|key| ids.contains(key));
        }
        if self.weights.len() > KEPT {
            let names: BTreeSet<_> =
                present.iter().map(|one| (one.name.clone(), one.backend_ref.listen)).collect();
            self.weights.retain(|key, _| names.contains(key));
        }
        if self.group_weights.len() > KEPT {
            let names: BTreeSet<_> =
                present.iter().filter_map(|one| Some(&one.group.as_ref()?.name)).collect();
            self.group_weights.retain(|key, _| names.contains(key));
        }
    }
}

fn by_id(backend_ref: &BackendRef) -> (String, Listen) {
    (backend_ref.id.clone(), backend_ref.listen)
}

/// Whom a name means: the container of that name, else the endpoint, else the container whose id begins
/// so. Several are meant only if they are one container's. An endpoint means its container as far as it
/// serves that endpoint's port of the host, by all its addresses.
///
/// # Errors
/// When that is no container, or several.
pub fn backends_called<'a>(
    name: &str,
    all: &'a [BackendView],
) -> Result<Vec<&'a BackendView>, CommandError> {
    let endpoint: Option<SocketAddr> = name.parse().ok();
    let ways: [&dyn Fn(&BackendView) -> bool; 3] =
        [&|one| one.name == name, &|one| Some(one.backend_ref.endpoint) == endpoint, &|one| {
            is_container_id(&one.backend_ref.id)
                && !name.is_empty()
                && one.backend_ref.id.starts_with(name)
        }];
    let found = ways.into_iter().map(|way| all.iter().filter(|one| way(one)).collect::<Vec<_>>());
    let Some(meant) = found.into_iter().find(|meant| !meant.is_empty()) else {
        let names: BTreeSet<_> = all.iter().map(|one| one.name.as_str()).collect();
        let there = if names.is_empty() {
            "there are none".to_owned()
        } else {
            format!("there are {}", names.into_iter().collect::<Vec<_>>().join(", "))
        };
        return Err(CommandError::Unknown(format!("there is no backend {name:?}; {there}")));
    };
    if meant.windows(2).all(|pair| are_one_container(pair[0], pair[1])) {
        // Orders are about a container's port, by whichever of its addresses it was named.
        let keys: BTreeSet<_> = meant.iter().map(|one| by_id(&one.backend_ref)).collect();
        return Ok(all.iter().filter(|one| keys.contains(&by_id(&one.backend_ref))).collect());
    }
    let each = |one: &&BackendView| {
        format!("{} {} on {}", one.name, one.backend_ref.endpoint, one.backend_ref.listen.place())
    };
    let all = meant.iter().map(each).collect::<Vec<_>>().join(", ");
    Err(CommandError::Ambiguous(format!(
        "{name:?} means several: {all}; name one by its address and port"
    )))
}

/// Backends of the command line have an id for each port, and one name.
fn are_one_container(a: &BackendView, b: &BackendView) -> bool {
    let is_at_same_address = a.backend_ref.endpoint.ip() == b.backend_ref.endpoint.ip();
    a.backend_ref.id == b.backend_ref.id || (a.name == b.name && is_at_same_address)
}

fn is_container_id(id: &str) -> bool {
    id.len() >= SHORTEST_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The service of a name: its port, as `run` or `status` write it, or what its containers call it.
///
/// # Errors
/// When no service has that name.
pub fn service_called(name: &str, view: &ControlView) -> Result<Listen, CommandError> {
    let ports = view.services.keys().copied();
    let by_port = ports.clone().find(|one| one.brief() == name || one.to_string() == name);
    let called = view.backends.iter().filter(|one| one.service.as_deref() == Some(name));
    let called: BTreeSet<Listen> = match by_port {
        Some(port) => [port].into(),
        None => called.map(|one| one.backend_ref.listen).collect(),
    };
    let list = |ports: &mut dyn Iterator<Item = Listen>| {
        ports.map(Listen::brief).collect::<Vec<_>>().join(", ")
    };
    match (called.first(), called.len()) {
        (Some(only), 1) => Ok(*only),
        (None, _) if view.services.is_empty() => Err(CommandError::Unknown(format!(
            "there is no service {name:?}; no service exists yet"
        ))),
        (None, _) => {
            let all = list(&mut ports.clone());
            Err(CommandError::Unknown(format!("there is no service {name:?}; there are {all}")))
        }
        (Some(_), _) => {
            let all = list(&mut called.iter().copied());
            Err(CommandError::Ambiguous(format!(
                "{name:?} means several: {all}; name one by its port"
            )))
        }
    }
}

#[cfg(test)]
mod tests;
