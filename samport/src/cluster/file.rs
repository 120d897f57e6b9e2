//! `--cluster file`: the other nodes from a TOML file that is followed. All nodes may have the same one.
//!
//! ```toml
//! [[node]]
//! name = "n2"
//! address = "192.0.2.2"
//! port = 6080                             # --tunnel-port, if left out
//! services = { "80" = 3, "53/udp" = 1 }   # numbers of ready containers; 0 drains
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use tokio::sync::watch;

use super::node::{self, MAX_WEIGHT, Node, OwnNode};
use super::{OwnAddresses, Settings};
use crate::model::ports::Listen;
use crate::system::file_watch::FileWatch;
use crate::system::provider_status::ProviderStatus;
use crate::system::resyncs::Resyncs;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodesDocument {
    #[serde(default)]
    node: Vec<NodeEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeEntry {
    name: NodeName,
    address: NodeAddress,
    port: Option<NonZeroU16>,
    #[serde(default)]
    services: NodeServices,
}

// Parsed while the file is read, so that an error knows its line and column.

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct NodeName(String);

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct NodeAddress(IpAddr);

#[derive(Deserialize)]
#[serde(try_from = "i64")]
struct ReadyContainers(u32);

#[derive(Default)]
struct NodeServices(BTreeMap<Listen, u32>);

impl TryFrom<String> for NodeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        node::name(&text).map(Self)
    }
}

impl TryFrom<String> for NodeAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        node::address(&text).map(Self)
    }
}

impl TryFrom<i64> for ReadyContainers {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        let weight = u32::try_from(number).ok().filter(|weight| *weight <= MAX_WEIGHT);
        weight.map(Self).ok_or_else(|| format!("{number} containers, expected 0-{MAX_WEIGHT}"))
    }
}

impl<'de> Deserialize<'de> for NodeServices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ServicesVisitor)
    }
}

struct ServicesVisitor;

impl<'de> Visitor<'de> for ServicesVisitor {
    type Value = NodeServices;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table like { \"80\" = 3, \"53/udp\" = 1 }")
    }

    /// One port may be written in several ways, which a table takes for several keys.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NodeServices, A::Error> {
        let mut services = BTreeMap::new();
        while let Some(listen) = map.next_key::<Listen>()? {
            let ReadyContainers(weight) = map.next_value()?;
            if services.insert(listen, weight).is_some() {
                let port = listen.brief();
                return Err(A::Error::custom(format!("port {port} is given twice; keep one")));
            }
        }
        Ok(NodeServices(services))
    }
}

/// Reads the file, which must be good, and follows it from then on.
pub(super) async fn start(
    path: &Path,
    settings: &Settings,
    own_addresses: OwnAddresses,
    status: Arc<ProviderStatus>,
    resyncs: &Resyncs,
) -> Result<watch::Receiver<Vec<Node>>> {
    // Watched before it is read: a change in between is not lost.
    let watch = FileWatch::start(path, resyncs).await?;
    let text = read(path)?;
    let (sender, receiver) = watch::channel(Vec::new());
    let file = NodesFile {
        path: path.to_owned(),
        settings: settings.clone(),
        own_addresses,
        text,
        is_unreadable: false,
        nodes: sender,
        status,
    };
    let nodes = file.nodes_of(&file.text).await;
    let nodes = nodes.with_context(|| path.display().to_string())?;
    file.nodes.send_replace(nodes);
    file.status.synced();
    tokio::spawn(file.follow(watch));
    Ok(receiver)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The nodes of a file, this one among them. `port` is that of those that name none.
fn parse(text: &str, port: u16) -> Result<Vec<Node>> {
    let document: NodesDocument = toml::from_str(text)?;
    let node = |entry: NodeEntry| Node {
        name: entry.name.0,
        address: entry.address.0,
        port: entry.port.map_or(port, NonZeroU16::get),
        services: entry.services.0,
    };
    Ok(document.node.into_iter().map(node).collect())
}

struct NodesFile {
    path: PathBuf,
    settings: Settings,
    own_addresses: OwnAddresses,
    /// The last text read, good or bad: what is bad is complained about once.
    text: String,
    /// Whether it could not be read the last time, which is told once too.
    is_unreadable: bool,
    nodes: watch::Sender<Vec<Node>>,
    status: Arc<ProviderStatus>,
}

impl NodesFile {
    async fn follow(mut self, mut watch: FileWatch) {
        loop {
            tokio::select! {
                () = self.nodes.closed() => return,
                () = watch.touched() => self.reread().await,
            }
        }
    }

    /// The other nodes, as a text of the file has them.
    async fn nodes_of(&self, text: &str) -> Result<Vec<Node>> {
        let nodes = parse(text, self.settings.tunnel_port)?;
        let addresses = (self.own_addresses)().await?;
        OwnNode { settings: &self.settings, addresses: &addresses }.others(nodes)
    }

    async fn reread(&mut self) {
        let text = match read(&self.path) {
            Ok(text) => text,
            // Between an editor's unlink and its rename there is no file for a moment: if it stays away, that is
            // no reason to take nodes out of service.
            Err(error) => {
                self.status.lost();
                if !std::mem::replace(&mut self.is_unreadable, true) {
                    tracing::warn!("{error:#}; its nodes stay as they were");
                }
                return;
            }
        };
        let is_back = std::mem::take(&mut self.is_unreadable);
        if text == self.text {
            if is_back {
                self.status.synced();
            }
            return;
        }
        self.status.happened();
        match self.nodes_of(&text).await {
            Ok(nodes) => {
                self.status.synced();
                self.nodes.send_if_modified(|current| {
                    let differs = *current != nodes;
                    *current = nodes;
                    differs
                });
            }
            Err(error) => {
                self.status.lost();
                tracing::error!(
                    "{}: {}; its nodes stay as they were",
                    self.path.display(),
                    format!("{error:#}").trim_end()
                );
            }
        }
        self.text = text;
    }
}

#[cfg(test)]
mod tests;
