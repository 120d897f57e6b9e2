//! The words of a plan: what is wanted, and the steps towards it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use samport_common::choose::Balance;
use samport_common::flow::{FlowWord, ServiceId};
use samport_common::layout::{BackendState, DeviceInfo, DeviceSet, Scope};
use samport_common::seed::Seed;
use samport_common::wire::protocol::Protocol;
use serde::{Deserialize, Serialize};

use crate::model::allow::Networks;
use crate::model::groups::Group;
use crate::model::ports::Listen;
use crate::model::{HostDevice, State};
use crate::plan::table::{Recipe, Region};

/// How packets get to a backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Route {
    /// Straight into the namespace behind a veth.
    Peer(HostDevice),
    /// By the neighbour table.
    Neighbour {
        /// The device packets leave by.
        ifindex: u32,
        /// The device answers come in by: the same, or a port of that bridge.
        answers_on: u32,
    },
    /// Through the host's stack.
    Stack,
    /// To a macvlan child of an interface clients come in by: the place's.
    Child(HostDevice),
    /// Unchanged, through the tunnel that ends there: at another node.
    Node(SocketAddr),
}

impl Route {
    /// The device answers come in by, if they come in by one we watch. They may come in by others too:
    /// [`Share::answers_on`].
    #[must_use]
    pub const fn answers_on(self) -> Option<u32> {
        match self {
            Self::Peer(place) => Some(place.ifindex),
            Self::Neighbour { answers_on, .. } => Some(answers_on),
            Self::Stack | Self::Child(_) | Self::Node(_) => None,
        }
    }

    /// The name users know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peer(_) => "peer",
            Self::Neighbour { .. } => "neigh",
            Self::Stack => "stack",
            Self::Child(_) => "macvlan",
            Self::Node(_) => "node",
        }
    }
}

/// What makes a backend that backend. If any of it changes it is another one, and no flow of the
/// old one is its.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BackendKey {
    /// What it serves on the host.
    pub listen: Listen,
    /// What tells it from all others.
    pub id: String,
    /// Where it answers.
    pub endpoint: SocketAddr,
    /// How packets get there.
    pub route: Route,
}

impl BackendKey {
    /// What its replies come from.
    #[must_use]
    pub const fn source(&self) -> Source {
        Source { endpoint: self.endpoint, protocol: self.listen.protocol }
    }

    /// The kernel service it is a backend of.
    #[must_use]
    pub const fn service(&self) -> ServiceKey {
        ServiceKey { listen: self.listen, v6: self.endpoint.is_ipv6() }
    }
}

/// What replies come from: a socket of a backend. Several services may lead to one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Source {
    /// Its address and port.
    pub endpoint: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What may change in a backend's life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Share {
    /// The name users know it by.
    pub name: String,
    /// Relative to the others, in its group if it has one; 0 takes no new flows.
    pub weight: u32,
    /// What it shares new flows with, if not with everybody.
    pub group: Option<Group>,
    /// Where it is in its life.
    pub state: State,
    /// The devices its replies may come in by.
    pub answers_on: DeviceSet,
    /// The parents of macvlan links its replies may leave by.
    pub leaves_by: Vec<u32>,
    /// Whether its answers find their way to outside clients, as far as that is known and matters.
    pub route_back: Option<bool>,
}

impl Share {
    /// The host's ends of the veths its replies may come in by, if it is behind this route.
    pub fn veths(&self, route: Route) -> impl Iterator<Item = u32> + use<> {
        let (own, is_by_veths, device) = match route {
            Route::Peer(place) => (Some(place.ifindex), true, None),
            // Another device than the one towards it is a bridge's port: its veth.
            Route::Neighbour { ifindex, answers_on } => {
                (Some(answers_on).filter(|own| *own != ifindex), true, Some(ifindex))
            }
            Route::Child(_) => (None, true, None),
            // They come out of the stack, or of the tunnel.
            Route::Stack | Route::Node(_) => (None, false, None),
        };
        let others = self.answers_on.iter().filter(move |other| {
            is_by_veths
                && *other != DeviceSet::HOST
                && Some(*other) != device
                && Some(*other) != own
        });
        own.into_iter().chain(others)
    }

    /// Whether it keeps its flows, but takes no new ones.
    #[must_use]
    pub fn drains(&self) -> bool {
        self.state != State::Active || self.is_off()
    }

    /// Whether it is to take no new flows whatever its state: its weight, or its group's, is 0.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.weight == 0 || self.group.as_ref().is_some_and(|group| group.weight == 0)
    }

    /// Whether it drains until it is removed: one that is unhealthy may become healthy again.
    #[must_use]
    pub fn leaves(&self) -> bool {
        self.drains() && !matches!(self.state, State::Unhealthy)
    }
}

/// What is wanted of the kernel.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// Ports, the addresses each is served on, and to whom.
    pub frontends: BTreeMap<Listen, BTreeMap<IpAddr, Scope>>,
    /// Networks whose clients may use a port. One that is missing is everybody's; one that names none serves
    /// this machine only.
    pub allowed: BTreeMap<Listen, Networks>,
    /// How services choose, where that is not the default.
    pub policies: BTreeMap<Listen, Policy>,
    /// Backends.
    pub backends: BTreeMap<BackendKey, Share>,
    /// This node is drained: a service that other nodes have leaves its own backends the connections they have.
    pub is_drained: bool,
    /// Interfaces clients come in by.
    pub interfaces: BTreeSet<u32>,
    /// Bridges that containers of this host are on, in addition to the interfaces.
    pub bridges: BTreeSet<u32>,
    /// Devices that take less than one that clients come in by.
    pub narrow: BTreeSet<u32>,
    /// What is known of the machine's devices, by index; their side is found out here.
    pub devices: BTreeMap<u32, DeviceInfo>,
    /// What choices by hash are keyed by.
    pub hash_seed: Seed,
    /// Addresses that are the host's own, and those of broadcasts: never the source of a packet that comes in.
    pub own: BTreeSet<IpAddr>,
    /// The UDP port of this machine's end of the tunnel, if there is a cluster.
    pub tunnel_port: Option<u16>,
    /// Other nodes, by where the tunnels to them end.
    pub nodes: BTreeMap<SocketAddr, Tunnel>,
}

/// The way to another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// The address of this machine that packets there come from.
    pub own: IpAddr,
    /// The device that the route there leads out of.
    pub ifindex: u32,
    /// The largest IP packet that gets there, in bytes.
    pub mtu: u32,
    /// Whether that node is told to send this one no new connections.
    pub own_drains: bool,
}

/// Where a program is attached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Forward, at ingress of an interface clients come in by.
    Forward,
    /// Reverse, at ingress of the host's side of a backend's veth; forward for what that backend
    /// dials itself.
    Reverse,
    /// Reverse, at ingress of another device that backends answer from.
    Device,
    /// Reverse, at egress of a device clients come in by.
    Egress,
    /// Forward for containers of this host, at ingress of their bridge.
    Inside,
    /// At egress of a device clients come in by: remembers what is begun from a served port.
    Outbound,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Forward, Self::Reverse, Self::Device, Self::Egress, Self::Inside, Self::Outbound];

    /// A word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reverse => "reverse",
            Self::Device => "device",
            Self::Egress => "egress",
            Self::Inside => "inside",
            Self::Outbound => "outbound",
        }
    }

    /// Whether packets of clients come in here.
    #[must_use]
    pub const fn is_entrance(self) -> bool {
        matches!(self, Self::Forward | Self::Inside)
    }
}

/// A kernel service: one port of one protocol for one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServiceKey {
    /// What clients dial.
    pub listen: Listen,
    /// IPv6 rather than IPv4.
    pub v6: bool,
}

/// The tables of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Of all backends.
    All,
    /// Of those of this machine, for what other nodes send; only a service with nodes has one.
    Local,
}

/// One step from what is there to what is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Writes a backend that is not referred to yet, or what may change of one.
    SetBackend {
        /// Who it is.
        key: BackendKey,
        /// Under which id and generation.
        id: BackendId,
        /// Whether other services use the same endpoint.
        shared: bool,
        /// Its share relative to the others.
        weight: u32,
        /// Whether it takes new flows, and keeps which.
        state: BackendState,
        /// The devices its replies may come in by.
        answers_on: DeviceSet,
    },
    /// Says how another node is reached, or that this has changed.
    SetNode {
        /// Where the tunnel to it ends.
        at: SocketAddr,
        /// Its index in `NODES`.
        index: u32,
        /// The way there.
        tunnel: Tunnel,
    },
    /// Forgets a node, and frees its index.
    RemoveNode {
        /// Where the tunnel to it ended.
        at: SocketAddr,
        /// Its index.
        index: u32,
    },
    /// Says what is known of a device with a hook, by its index.
    SetDevice(u32, DeviceInfo),
    /// Forgets it.
    RemoveDevice(u32),
    /// Says which devices packets with a source may come in by; none for the host's own addresses.
    SetSource(IpAddr, DeviceSet),
    /// Forgets it: routes say so again.
    RemoveSource(IpAddr),
    /// Says whose replies come from a socket.
    SetReverseNat {
        /// The socket.
        source: Source,
        /// Its services and backend ids.
        reverse_nat: Vec<ServiceBackend>,
    },
    /// Attaches a program.
    Attach(Role, u32),
    /// Writes a table into a region that is not read.
    WriteTable {
        /// The service it is for.
        service: ServiceKey,
        /// Which of its tables it is.
        part: Part,
        /// Where it is written.
        region: Region,
        /// Backend ids.
        slots: Vec<u32>,
        /// What they follow from.
        recipe: Recipe,
    },
    /// Lets clients of a network use a service, if it is restricted.
    Allow {
        /// The service.
        service: ServiceKey,
        /// Its id.
        id: ServiceId,
        /// The network.
        net: IpNet,
    },
    /// Stops that.
    Disallow {
        /// The service.
        service: ServiceKey,
        /// Its id.
        id: ServiceId,
        /// The network.
        net: IpNet,
    },
    /// Waits until no running program can still read a region that was given back, or a backend that was retired.
    Settle,
    /// Points an address and port to a service's current table.
    SetFrontend {
        /// The address.
        addr: IpAddr,
        /// The port, without an address.
        listen: Listen,
        /// The service, and who may dial it there.
        to: Frontend,
    },
    /// Lets packets to a port be looked at, on whatever address.
    OpenPort(Listen),
    /// Stops that.
    ClosePort(Listen),
    /// Stops serving a port on an address.
    RemoveFrontend {
        /// The address.
        addr: IpAddr,
        /// The port, without an address.
        listen: Listen,
    },
    /// Forgets the replies of a socket.
    RemoveReverseNat(Source),
    /// Refuses a backend's flows from now on, and frees its id: the generation that the kernel then has is no
    /// backend's.
    RetireBackend {
        /// Who it was.
        key: BackendKey,
        /// Under which id.
        id: BackendId,
    },
    /// Detaches a program.
    Detach(Role, u32),
}

/// Where an address and port lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// The service's id.
    pub id: ServiceId,
    /// Its table.
    pub region: Region,
    /// Where clients may be.
    pub scope: Scope,
    /// Whether only clients of allowed networks are served.
    pub restricted: bool,
    /// Whether some backend's endpoint is other services' too.
    pub shared: bool,
    /// Whether some backend is another node.
    pub nodes: bool,
    /// How backends are chosen.
    pub policy: Policy,
}

/// How a service chooses its backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// For a new flow.
    pub balance: Balance,
    /// Seconds for which a client's address stays with its backend; 0 for not at all.
    pub affinity: u32,
    /// Whether a backend that refuses or is silent is exchanged for another.
    pub failover: bool,
    /// Whether clients are left without an answer while there is no backend.
    pub drop: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { balance: Balance::Random, affinity: 0, failover: true, drop: false }
    }
}

/// A service and the id a backend has in it.
pub type ServiceBackend = (ServiceId, BackendId);
/// Services and backends by the socket that answers for them.
pub type ReverseNatTable = BTreeMap<Source, Vec<ServiceBackend>>;

/// Index into `BACKENDS` and how often it has been used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BackendId {
    /// The index, above 0.
    pub index: u32,
    /// The generation, 24 bits.
    pub generation: u32,
}

impl BackendId {
    /// The same index in the next generation.
    #[must_use]
    pub const fn next(self) -> Self {
        let generation = (self.generation + 1) & FlowWord::MAX_GENERATION;
        Self { generation, ..self }
    }
}
