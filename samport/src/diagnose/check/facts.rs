//! What was found, before anybody says what it means.

use std::collections::BTreeMap;

use super::firewall::Inspector;
use super::nodes::ClusterSeen;
use crate::control::admission::ServiceConflict;
use crate::dataplane::{Bpffs, Tcx};
use crate::discovery::Seen;
use crate::model::allow::Networks;
use crate::model::ports::Listen;
use crate::net::netlink::{Devices, LinkState};
use crate::system::hash_seed::Look;

/// A sentence in place of an error: what is wrong, a semicolon, and the way out.
pub type Collected<T> = Result<T, String>;

/// By what containers are let in.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `--allow`.
    pub allow: Networks,
    /// `--max-backends`.
    pub max_backends: u32,
    /// `--service-conflict`.
    pub conflict: ServiceConflict,
}

/// Everything that is judged.
#[derive(Debug)]
pub struct Facts {
    /// Major and minor number of the running kernel.
    pub kernel: Collected<(u16, u8)>,
    /// Whether the kernel describes its own types.
    pub btf: bool,
    /// Whether we may do what `samport run` does.
    pub privileges: Collected<()>,
    /// How programs would be attached.
    pub tcx: Tcx,
    /// The file system pins are in.
    pub bpffs: Bpffs,
    /// Whether clients on the machine itself can be served.
    pub local: Collected<()>,
    /// All devices.
    pub devices: Devices,
    /// More about them, by index.
    pub links: BTreeMap<u32, LinkState>,
    /// `-i`.
    pub interfaces: Vec<String>,
    /// Whether the kernel looks routes up for programs, by family, IPv4 first: it does not where `lo` does not
    /// forward.
    pub forwarding: [bool; 2],
    /// Those of `-i` with strict reverse path filtering.
    pub strict: Vec<String>,
    /// Why samport cannot filter strictly, one sentence each.
    pub not_strict: Collected<Vec<String>>,
    /// The tcx programs on each of them, by name.
    pub at_tcx: BTreeMap<String, Vec<String>>,
    /// The XDP program on each of them that has one.
    pub at_xdp: BTreeMap<String, String>,
    /// The engines that are asked.
    pub engines: Vec<Collected<Seen>>,
    /// By what containers are let in.
    pub limits: Limits,
    /// `-p`, and who has it.
    pub ports: Vec<(Listen, Collected<()>)>,
    /// The cluster, if there is one.
    pub cluster: Option<ClusterSeen>,
    /// Whether another samport serves the same.
    pub alone: Collected<()>,
    /// The file of the seed of choices by hash.
    pub hash_seed: Collected<Look>,
    /// Whether `samport run` is to restrict itself.
    pub sandbox: bool,
    /// Who looks at what comes in for the host.
    pub inspectors: Collected<Vec<Inspector>>,
}
