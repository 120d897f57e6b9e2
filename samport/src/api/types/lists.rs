//! What `-o json` of the other commands prints.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `samport flows`: connections that are open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Flows {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = super::SCHEMA)))]
    pub schema: u32,
    /// How many there are, those that `--limit` leaves out included.
    pub total: usize,
    /// The flows.
    pub flows: Vec<Flow>,
}

/// A connection, or an exchange of datagrams.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Flow {
    /// The instance that balances it.
    pub instance: String,
    /// `tcp` or `udp`.
    #[cfg_attr(test, schemars(extend("enum" = ["tcp", "udp"])))]
    pub protocol: String,
    /// Address and port of the client.
    #[cfg_attr(test, schemars(with = "String"))]
    pub client: SocketAddr,
    /// What it has dialled.
    #[cfg_attr(test, schemars(with = "String"))]
    pub vip: SocketAddr,
    /// Name of its backend; null if that is gone.
    pub backend: Option<String>,
    /// Where its backend answers; null if that is gone.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub address: Option<SocketAddr>,
    /// `syn-sent`, `syn-received`, `established`, `client-finishing`, `client-finished`,
    /// `backend-finished`, `finishing`, `client-reset`, `unverified`, `unanswered`, `answered`,
    /// `assured` or the like.
    #[cfg_attr(test, schemars(extend("enum" = super::schemas::FLOW_STATES)))]
    pub state: String,
    /// Since it was opened; null if that is longer ago than is counted, 73 minutes.
    pub age_ms: Option<u64>,
    /// Since its last packet, to about a second.
    pub idle_ms: u64,
}

/// `samport flows --follow`: a line for each change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Version of this document.
    pub schema: u32,
    /// `opened` or `closed`.
    pub event: String,
    /// The flow, as it was seen last.
    #[serde(flatten)]
    pub flow: Flow,
}

/// `samport check`: whether `samport run` would work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Check {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = super::SCHEMA)))]
    pub schema: u32,
    /// Whether it would.
    pub ok: bool,
    /// What was looked at.
    pub findings: Vec<Finding>,
}

/// How one thing is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Finding {
    /// `ok`, `warn` or `fail`.
    #[cfg_attr(test, schemars(extend("enum" = ["ok", "warn", "fail"])))]
    pub level: String,
    /// What was found.
    pub what: String,
    /// What to do about it, if it is not well.
    pub way_out: Option<String>,
}

/// `samport clean`: what killed instances have left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Cleaning {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = super::SCHEMA)))]
    pub schema: u32,
    /// Every instance there is, or was.
    pub instances: Vec<Cleaned>,
}

/// What was done about an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Cleaned {
    /// Its name.
    pub name: String,
    /// `removed`; `would-remove` with `--dry-run`; `running`, which is left alone; or `elsewhere`: its tc
    /// filters are in another network namespace.
    #[cfg_attr(test, schemars(extend("enum" = ["removed", "would-remove", "running", "elsewhere"])))]
    pub outcome: String,
    /// Names of its pins in the BPF file system.
    pub pins: Vec<String>,
    /// Its tc filters here.
    pub filters: usize,
    /// What to do about it, if it is elsewhere.
    pub way_out: Option<String>,
}

/// `samport version`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Version {
    /// Version of this document.
    #[cfg_attr(test, schemars(extend("const" = super::SCHEMA)))]
    pub schema: u32,
    /// Version of samport.
    pub version: String,
    /// Version of the kernel maps' layout.
    pub map_layout: u32,
}
