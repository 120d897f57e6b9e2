//! What `samport explain` and `samport trace` say of packets.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `samport explain`: what would become of a packet, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Explained {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = super::SCHEMA)))]
    pub schema: u32,
    /// The instance it was asked of.
    pub instance: String,
    /// Address and port of the client.
    #[cfg_attr(test, schemars(with = "String"))]
    pub client: SocketAddr,
    /// What it dials.
    #[cfg_attr(test, schemars(with = "String"))]
    pub dialled: SocketAddr,
    /// `tcp` or `udp`.
    #[cfg_attr(test, schemars(extend("enum" = ["tcp", "udp"])))]
    pub protocol: String,
    /// Where it comes in.
    pub entry: Entry,
    /// The service it is for; null if it is for none.
    pub service: Option<String>,
    /// Whether its client may use that service; null without one.
    pub allowed: Option<bool>,
    /// `forward`: to one of `backends`; `reset`: answered; `drop`; `pass`: left to this machine's own stack;
    /// `unseen`: no program of samport sees it.
    #[cfg_attr(test, schemars(extend("enum" = ["forward", "reset", "drop", "pass", "unseen"])))]
    pub fate: String,
    /// The verdict it is counted by; null if that is its backend's, or none.
    pub verdict: Option<String>,
    /// Why its source address is not valid on that device, if it leaves as `spoofed-source`.
    pub source_refused: Option<String>,
    /// `flow`, `affinity`, or the way backends are chosen; null if it goes to none.
    pub because: Option<String>,
    /// The flow it belongs to.
    pub flow: Option<OfFlow>,
    /// The backends that may get it; one alone is certain.
    pub backends: Vec<Way>,
    /// Name of the backend whose turn is next, if backends take turns.
    pub next: Option<String>,
    /// Backends that do not get it, and why.
    pub passed_over: Vec<PassedOver>,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// What is served, if this is not: address, port and protocol.
    pub served: Vec<String>,
}

/// Where a packet meets samport.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Entry {
    /// `interface`; `inside`, from a container; `tunnel`, from another node; `local`, a process of this machine; or `none`.
    #[cfg_attr(test, schemars(extend("enum" = ["interface", "inside", "tunnel", "local", "none"])))]
    pub kind: String,
    /// The device it comes in by.
    pub device: Option<String>,
    /// The hook there; null if samport has none.
    pub hook: Option<String>,
}

/// The flow a packet belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct OfFlow {
    /// Where it stands.
    #[cfg_attr(test, schemars(extend("enum" = super::schemas::FLOW_STATES)))]
    pub state: String,
    /// Seconds since its last packet.
    pub idle_s: u64,
}

/// A backend that may get a packet, and how.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Way {
    /// Its name.
    pub name: String,
    /// Address and port it answers on.
    #[cfg_attr(test, schemars(with = "String"))]
    pub address: SocketAddr,
    /// The state it was in when that was last written down.
    pub state: String,
    /// How probable it is, 0 to 1.
    #[cfg_attr(test, schemars(range(min = 0, max = 1)))]
    pub share: f64,
    /// `peer`, `neigh`, `stack`, `macvlan`, or `socket` for a process of this machine.
    #[cfg_attr(test, schemars(extend("enum" = ["peer", "neigh", "stack", "macvlan", "socket"])))]
    pub via: String,
    /// The device it is sent to; null for none.
    pub device: Option<String>,
    /// The verdict it is counted by then.
    pub verdict: String,
    /// Whether it goes past netfilter.
    pub skips_netfilter: bool,
}

/// A backend that does not get a packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct PassedOver {
    /// Its name.
    pub name: String,
    /// In words.
    pub why: String,
}

/// `samport trace`: a packet that has left, one a line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct TracedPacket {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = super::SCHEMA)))]
    pub schema: u32,
    /// When, in UTC.
    pub time: String,
    /// The verdict it has left by.
    pub verdict: String,
    /// `pass`, `redirect` or `drop`.
    #[cfg_attr(test, schemars(extend("enum" = ["pass", "redirect", "drop"])))]
    pub action: String,
    /// Which kind of hook has seen it: `call` is a system call of a process of this machine.
    #[cfg_attr(test, schemars(extend("enum" = [
        "call", "interface", "bridge", "container", "device", "egress", "xdp"
    ])))]
    pub seen: String,
    /// On which device.
    pub device: Option<String>,
    /// `tcp`, `udp`, `icmp` or a number in words; null for what is no IP, or broken.
    pub protocol: Option<String>,
    /// Flags of a TCP segment, as tcpdump writes them.
    pub flags: Option<String>,
    /// Sender, as it came; port 0 where it has no port.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub source: Option<SocketAddr>,
    /// Receiver, as it came.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub destination: Option<SocketAddr>,
    /// Sender, as it left.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub left_source: Option<SocketAddr>,
    /// Receiver, as it left.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub left_destination: Option<SocketAddr>,
    /// Name of the backend it went to, or came from.
    pub backend: Option<String>,
    /// Its length as it left, Ethernet header included.
    pub bytes: u32,
}
