//! `GET /v1/status`, and `samport status -o json`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::control::progress::ControlLoop;
use crate::model::limits::Limits;
use crate::system::privileges::Privileges;

/// What runs on this machine, or was left there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Status {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = super::SCHEMA)))]
    pub schema: u32,
    /// The instances.
    pub instances: Vec<Instance>,
}

/// One samport.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Whether it runs, rather than having left this in the kernel.
    pub running: bool,
    /// Process id, also of one that is gone.
    pub pid: u32,
    /// Version of samport.
    pub version: String,
    /// When it was started, in milliseconds since 1970; 0 if that is not known.
    pub started_ms: u64,
    /// Interfaces clients come in by.
    pub interfaces: Vec<String>,
    /// Ports it serves, like `80/tcp`.
    pub ports: Vec<String>,
    /// How its programs are attached: `tcx` or `tc`, and XDP's mode if there is a program there.
    pub hook: String,
    /// Whether clients on the machine itself are served.
    pub local: bool,
    /// File of the seed that `maglev` and `source-hash` choose by; empty if it knows none.
    pub hash_seed_file: String,
    /// What its process may do; null if that is not known.
    #[serde(default)]
    pub privileges: Option<Privileges>,
    /// Its services.
    pub services: Vec<ServiceCount>,
    /// Backends that the kernel has, and those that are not ready yet; each address is one.
    pub backends: Vec<InstanceBackend>,
    /// This node's name; null if it has no cluster.
    #[serde(default)]
    pub node: Option<String>,
    /// Whether it is drained: `samport drain --this-node`.
    #[serde(default)]
    pub node_drained: bool,
    /// The other nodes; none of an instance that does not run.
    #[serde(default)]
    pub nodes: Vec<InstanceNode>,
    /// Containers that are left out for want of room, or because their port is another application's, and why.
    pub left_out: Vec<String>,
    /// Packets by what became of them.
    pub verdicts: BTreeMap<String, u64>,
    /// Packets that were dropped, by all verdicts that drop.
    pub drops: u64,
    /// The tables of flows.
    pub flow_table: FlowTable,
    /// How its control loop gets on.
    #[serde(default)]
    pub control_loop: ControlLoop,
    /// How much it remembers, and for how long.
    pub limits: Limits,
    /// Bytes of memory the kernel has locked for its maps.
    pub memory_bytes: u64,
    /// The kernel maps this is made of.
    pub maps: Vec<MapUse>,
}

/// Another node, as this one sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct InstanceNode {
    /// Its name.
    pub name: String,
    /// Where its tunnel ends: address and UDP port.
    #[cfg_attr(test, schemars(with = "String"))]
    pub address: SocketAddr,
    /// Whether it answers probes.
    pub up: bool,
    /// Whether it says that it is drained: `samport drain --this-node` there.
    pub drained: bool,
    /// Since when it does, or does not, in milliseconds since 1970; 0 for one that was not probed yet.
    pub since_ms: u64,
    /// Bytes of the largest IP packet that arrives there whole; null if that is not known.
    pub path_mtu: Option<u16>,
    /// Its ready containers by port, like `80/tcp`.
    pub services: BTreeMap<String, u32>,
}

/// What has come of a service. A backend with several addresses is one.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct ServiceCount {
    /// Like `80/tcp`.
    pub service: String,
    /// What its containers call it, if they do.
    pub service_name: Option<String>,
    /// `random`, `round-robin`, `least-conn`, `maglev` or `source-hash`.
    pub balance: String,
    /// Backends it has.
    pub backends: usize,
    /// Those that take new flows.
    pub active: usize,
    /// Those that keep their flows and take no new ones.
    pub draining: usize,
    /// Those that keep their flows and take no new ones because their check fails.
    pub unhealthy: usize,
    /// Those that are not ready yet.
    pub starting: usize,
    /// Flows that are open.
    pub open: u64,
    /// Flows ever opened by its backends of now.
    pub flows: u64,
    /// Connections its backends have refused.
    pub refused: u64,
    /// Connections its backends have left without an answer.
    pub silent: u64,
}

/// One address of a backend.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct InstanceBackend {
    /// Name of its container.
    pub name: String,
    /// Its service, like `80/tcp`.
    pub port: String,
    /// Address and port it answers on.
    pub endpoint: String,
    /// `starting`, `active`, `draining`, `unhealthy` or `down`.
    #[cfg_attr(test, schemars(extend("enum" = super::schemas::STATES)))]
    pub state: String,
    /// Relative to the others of its service, or of its group.
    pub weight: u32,
    /// `peer`, `neigh`, `stack` or `macvlan`; empty if the kernel does not have it.
    pub via: String,
    /// Flows that are open.
    pub open: u64,
    /// Flows ever opened.
    pub flows: u64,
    /// Connections it has refused.
    pub refused: u64,
    /// Connections it has left without an answer.
    pub silent: u64,
    /// Towards it.
    pub packets_in: u64,
    /// Towards it.
    pub bytes_in: u64,
    /// From it.
    pub packets_out: u64,
    /// From it.
    pub bytes_out: u64,
}

/// The tables of flows, for IPv4 and IPv6 together unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct FlowTable {
    /// Flows there is room for, for IPv4.
    pub capacity: u32,
    /// Flows there is room for, for IPv6.
    #[serde(default)]
    pub capacity6: u32,
    /// Flows for IPv4, to a few seconds.
    pub ipv4: u64,
    /// Flows for IPv6, to a few seconds.
    pub ipv6: u64,
    /// Entries ever made.
    pub inserted: u64,
    /// Entries taken out because they were over.
    pub expired: u64,
    /// Entries that had to make room for others.
    pub evicted: u64,
    /// Flows that found no room, and are kept in tables beside where the oldest make way, to a few seconds.
    #[serde(default)]
    pub overflow: u64,
    /// Flows in the tables whose client is not proven: half-open connections, datagrams without an answer.
    #[serde(default)]
    pub unproven: u64,
}

/// A kernel map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct MapUse {
    /// Its name.
    pub name: String,
    /// Most entries it holds.
    pub entries: u32,
    /// Bytes of memory the kernel has locked for it.
    pub bytes: u64,
}
