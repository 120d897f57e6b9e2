//! What goes over the control socket, and what `-o json` prints. The names stay: scripts read them.

mod lists;
mod packets;
#[cfg(test)]
mod schemas;
mod status;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use crate::control::progress::ControlLoop;
pub use crate::model::limits::Limits;
pub use crate::system::privileges::Privileges;
pub use lists::{Check, Cleaned, Cleaning, Event, Finding, Flow, Flows, Version};
pub use packets::{Entry, Explained, OfFlow, PassedOver, TracedPacket, Way};
pub use status::{
    FlowTable, Instance, InstanceBackend, InstanceNode, MapUse, ServiceCount, Status,
};

/// Version of all of it.
pub const SCHEMA: u32 = 1;

/// The answer to a question about backends, or to an order about some.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Backends {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = SCHEMA)))]
    pub schema: u32,
    /// Name of the instance.
    pub instance: String,
    /// Whether it runs, rather than having left this in the kernel.
    pub running: bool,
    /// The backends.
    pub backends: Vec<Backend>,
}

/// One backend of one service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Backend {
    /// Like `80/tcp`.
    pub service: String,
    /// What its containers call it, if they do.
    pub service_name: Option<String>,
    /// The group it shares its service's flows with, if not with everybody.
    pub group: Option<String>,
    /// That group's share relative to other groups.
    pub group_weight: Option<u32>,
    /// Name of its container.
    pub name: String,
    /// The container's id, or what stands for it.
    pub id: String,
    /// Address and port it answers on.
    pub address: String,
    /// `starting`, `active`, `draining`, `unhealthy` or `down`.
    #[cfg_attr(test, schemars(extend("enum" = schemas::STATES)))]
    pub state: String,
    /// Relative to the others of its service, or of its group.
    pub weight: u32,
    /// `peer`, `neigh`, `stack` or `macvlan`; null if the kernel does not have it.
    pub via: Option<String>,
    /// Where its tunnel ends, if it is another node; null if it is not.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub node: Option<IpAddr>,
    /// Whether its answers find a route to clients outside of this machine; null if that is not known, or does not
    /// matter because they are on its own network.
    pub route_back: Option<bool>,
    /// The part of new flows it should get, 0 to 1.
    #[cfg_attr(test, schemars(range(min = 0, max = 1)))]
    pub share_expected: f64,
    /// The part of its service's flows that it received so far.
    #[cfg_attr(test, schemars(range(min = 0, max = 1)))]
    pub share_actual: f64,
    /// It should take no new flows, but does: no other backend of its service is there.
    pub is_last: bool,
    /// Milliseconds until its flows are refused, if it drains and that is known.
    pub drain_left_ms: Option<u64>,
    /// What the kernel has counted; null if the kernel does not have it.
    pub counters: Option<Counters>,
}

/// What the kernel counts of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Counters {
    /// Flows that are open now, if that is counted.
    pub open: Option<u64>,
    /// Flows ever opened.
    pub flows: u64,
    /// Connections it has refused.
    pub refused: u64,
    /// Connections it has left without an answer.
    pub silent: u64,
    /// Connections of which an ICMP error has said that it cannot be reached.
    pub unreachable: u64,
    /// Of `refused` and `silent`, those whose SYN has asked for what only one certain peer can give.
    pub for_one_peer: u64,
    /// Checks that have confirmed that it fails, after connections of several clients had failed.
    pub evidence_confirmed: u64,
    /// Such checks that it has passed.
    pub evidence_refuted: u64,
    /// Towards it.
    pub packets_in: u64,
    /// Towards it.
    pub bytes_in: u64,
    /// From it.
    pub packets_out: u64,
    /// From it.
    pub bytes_out: u64,
    /// Half of its connections were answered within this many microseconds.
    pub handshake_p50_us: Option<u64>,
    /// 99 of 100 were.
    pub handshake_p99_us: Option<u64>,
}

/// The answer to which services there are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Services {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The services.
    pub services: Vec<Service>,
}

/// One service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Like `80/tcp`.
    pub service: String,
    /// How it chooses: `random`, `round-robin`, `least-conn`, `maglev` or `source-hash`.
    pub balance: String,
}

/// The answer to whether enough backends serve.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Health {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Containers that take new flows, in the service that has the fewest.
    pub healthy: usize,
    /// How many were asked for.
    pub wanted: usize,
    /// Whether that is enough, and the control loop is well.
    pub ok: bool,
    /// Whether this node is drained: clients should dial another one.
    #[serde(default)]
    pub node_drained: bool,
    /// Why the control loop is not well: it has not completed a round for 30 seconds. Null if it is.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// An order about a weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// From 0 up.
    pub weight: u32,
}

/// An order about how a service chooses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// `random`, `round-robin`, `least-conn`, `maglev` or `source-hash`.
    pub balance: String,
}

/// Why something could not be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// In words.
    pub error: String,
}
