//! The words the parts of the loader talk in: what providers offer and what is wanted of the kernel.

pub(crate) mod allow;
pub mod check;
pub(crate) mod duration;
pub mod encode;
pub mod groups;
pub mod limits;
pub mod overrides;
pub mod ports;
#[cfg(test)]
pub(crate) mod snapshots;
pub mod target;

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use samport_common::choose::Balance;
use serde::{Deserialize, Serialize};

use crate::model::allow::Networks;
use crate::model::check::Check;
use crate::model::ports::Listen;

/// A backend as a provider sees it. A container with an IPv4 and an IPv6 address, or behind two
/// ports, makes several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// What tells it from all others, also from a later one of the same name and address: the
    /// container's id, or what stands for it.
    pub id: String,
    /// Name of the container, or what stands for it. May change.
    pub name: String,
    /// What it serves on the host.
    pub listen: Listen,
    /// Where it answers.
    pub endpoint: SocketAddr,
    /// Its share relative to the others; 0 takes no new flows.
    pub weight: u32,
    /// How long it may keep its flows when it leaves, if it has a say in that itself.
    pub drain: Option<Duration>,
    /// What the provider thinks of it.
    pub condition: Condition,
    /// Who may use what it serves, if it has a say in that itself.
    pub allow: Networks,
    /// What else it says about its service.
    pub hints: ServiceHints,
    /// How its packets reach it, where the provider knows better than the routing table.
    pub place: Option<Reach>,
    /// How its own packets leave it, as far as the provider knows.
    pub egress: Egress,
    /// When it was started, if that was just now: for the line that says how long it took.
    pub started: Option<SystemTime>,
}

/// What a container's labels say about its service, beyond itself.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ServiceHints {
    /// Whose it is, if its own labels say which port it serves.
    pub application: Application,
    /// The name of its service, if it is not called after its port.
    pub service: Option<String>,
    /// The group whose share of its service it has a part of.
    pub group: Option<String>,
    /// That group's weight.
    pub group_weight: Option<u32>,
    /// How its service chooses among its backends.
    pub balance: Option<Balance>,
    /// Seconds for which clients stay with their backend; 0 for not at all.
    pub affinity: Option<u32>,
    /// Which containers its service's connections are shared out to.
    pub spread: Option<Spread>,
}

/// What containers belong to that claim a port by their labels. Two are of one application if they have a service
/// or a project in common; one that has neither is of any.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Application {
    /// Its label `samport.service`.
    pub service: Option<String>,
    /// The project of Compose, or the stack, that it was started in.
    pub project: Option<String>,
    /// Its image without tag and digest, where that says anything.
    pub image: Option<String>,
}

/// Which containers a service's connections are shared out to, where there are other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Spread {
    /// Those of all nodes, alike.
    #[default]
    All,
    /// This node's, while it has any that is ready; then the other nodes'.
    LocalFirst,
    /// This node's only.
    Local,
}

impl Spread {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::All, Self::LocalFirst, Self::Local];

    /// The name users know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::LocalFirst => "local-first",
            Self::Local => "local",
        }
    }
}

impl FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|spread| spread.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("invalid spread {text:?}: expected one of {names}")
        })
    }
}

/// What a provider thinks of a candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// May serve immediately; may be asked when there is evidence that it fails.
    Ready,
    /// May serve immediately, and is never asked by us: the user wants it so, or we cannot reach it.
    Unchecked,
    /// May serve while this check of ours passes.
    Checked(Check),
    /// Must not serve yet: its own health check has not passed.
    Starting,
    /// Gets no new flows while others can: its own health check fails.
    Unhealthy,
    /// Gets no new flows, keeps the ones it has: stopping or paused.
    Draining,
}

/// Where a backend is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Not ready yet: its health check has not passed, or it does not listen.
    Starting,
    /// Takes new flows.
    Active,
    /// Keeps its flows, takes no new ones: it is stopping, or was told to.
    Draining,
    /// As draining, because its health check fails.
    Unhealthy,
    /// Its flows are refused.
    Down,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Starting, Self::Active, Self::Draining, Self::Unhealthy, Self::Down];

    /// The state of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// The name users know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
            Self::Down => "down",
        }
    }
}

/// How a backend is connected to this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reach {
    /// By a veth.
    Veth(HostDevice),
    /// By a macvlan child of an interface: that is the place's.
    Macvlan(HostDevice),
    /// By an ipvlan child of an interface.
    Ipvlan,
    /// It is in this machine's own network namespace, with all its addresses; its candidates have
    /// none until [`crate::net::placement::settle`] gives them one.
    Host,
    /// To another network namespace than ours.
    Elsewhere,
    /// It is another node, which selects one of its containers: where the tunnel to it ends.
    Node(SocketAddr),
}

/// Where a backend's packets go in and come out: the host's end of its veth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct HostDevice {
    /// Index of the host's end of the veth, in the host's network namespace.
    pub ifindex: u32,
    /// MAC of the container's end.
    pub mac: [u8; 6],
    /// Whether the container's end is known to poll, and thus takes bare frames that XDP redirects.
    pub polls: bool,
}

/// How packets leave a container, by its own links and routes; nothing is known by default.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Egress {
    /// This machine's end of the link that its default route leads out by: the other end of a veth, or the
    /// parent of a macvlan child.
    pub default_device: Option<u32>,
    /// This machine's ends of its veths.
    pub veths: Vec<u32>,
    /// The parents of its macvlan links.
    pub parents: Vec<u32>,
    /// Whether a route leads out of the networks it is in: without one, answers reach no client outside of this
    /// machine. `None` where that is not known, or [`crate::net::placement::settle`] has found that it does not matter.
    pub leads_out: Option<bool>,
}

/// Everything a provider offers at one moment. Each snapshot replaces the one before.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Snapshot {
    /// The candidates, in a stable order.
    pub candidates: Vec<Candidate>,
    /// The [`crate::discovery::ProviderSettings::generation`] they are offered on.
    pub generation: u64,
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;

    /// A candidate that says nothing but its name.
    pub(crate) fn candidate(name: &str) -> Candidate {
        Candidate {
            id: name.to_owned(),
            name: name.to_owned(),
            listen: Listen::tcp(80),
            endpoint: ([172, 17, 0, 2], 80).into(),
            weight: 1,
            drain: None,
            condition: Condition::Ready,
            allow: Networks::new(),
            hints: ServiceHints::default(),
            place: None,
            egress: Egress::default(),
            started: None,
        }
    }
}
