//! The other nodes of the cluster: whether they answer, and what gets there.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use samport_common::encap::{OUTER_V4, OUTER_V6};
use samport_common::wire::protocol::Protocol;

use super::facts::{Collected, Facts};
use super::{Finding, Level};
use crate::cluster::{self, Cluster, ProbedFrom, Settings};
use crate::model::ports::Listen;
use crate::net::frontends;
use crate::net::netlink::{Devices, Netlink};
use crate::net::port_conflicts;
use crate::system::exit::Exit;
use crate::system::resyncs::Resyncs;

/// How long nodes are asked: three probes, with the time between them.
const ASKED: Duration = Duration::from_millis(2_500);

/// Bytes of an Ethernet network's packets: what containers send, whatever their hosts' network takes.
const USUAL_MTU: usize = 1_500;

/// What was found of a cluster.
#[derive(Debug)]
pub struct ClusterSeen {
    /// This node's name.
    pub own: String,
    /// Whether the port of the tunnels is free on this host, which is no condition.
    pub tunnel_port: (Listen, Collected<()>),
    /// The other nodes.
    pub nodes: Collected<Vec<NodeSeen>>,
}

/// Another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSeen {
    /// Its name.
    pub name: String,
    /// Where its tunnel ends.
    pub at: SocketAddr,
    /// Whether this host has an address that a tunnel there could begin at.
    pub has_own_end: bool,
    /// Whether it answers.
    pub answers: bool,
    /// Whether it is drained.
    pub drains: bool,
    /// Bytes of the largest packet that gets there, if that was found out.
    pub path_mtu: Option<u16>,
}

/// Asks all nodes.
pub(super) async fn look(
    settings: &Settings,
    interfaces: &[String],
    devices: &Devices,
    netlink: &Netlink,
) -> ClusterSeen {
    let tunnel = Listen { port: settings.tunnel_port, protocol: Protocol::Udp, addr: None };
    let free = port_conflicts::refuse_taken(&[tunnel]).map_err(|error| format!("{error:#}"));
    let probing = ProbedFrom { interfaces, used_before: BTreeSet::new() };
    let resyncs = Resyncs::default();
    let started =
        cluster::start(settings, &[], Duration::default, Some(probing), netlink, &resyncs).await;
    let nodes = match started {
        Ok(cluster) => Ok(asked(cluster, settings, interfaces, devices).await),
        Err(error) => Err(format!("{error:#}")),
    };
    ClusterSeen { own: settings.node.clone(), tunnel_port: (tunnel, free), nodes }
}

/// What is known of the nodes when all have answered that are going to.
async fn asked(
    mut cluster: Cluster,
    settings: &Settings,
    interfaces: &[String],
    devices: &Devices,
) -> Vec<NodeSeen> {
    let all_have_answered = async {
        loop {
            let healths = cluster.nodes.health();
            if healths.values().all(|one| one.up && one.path_mtu.is_some()) {
                return;
            }
            cluster.nodes.changed().await;
        }
    };
    let _ = tokio::time::timeout(ASKED, all_have_answered).await;
    let healths = cluster.nodes.health();
    let seen = |node: cluster::Node| {
        let health = healths.get(&node.address);
        NodeSeen {
            at: node.tunnel(),
            has_own_end: settings.own_end(node.address, interfaces, devices).is_some(),
            answers: health.is_some_and(|health| health.up),
            drains: health.is_some_and(|health| health.drains),
            path_mtu: health.and_then(|health| health.path_mtu),
            name: node.name,
        }
    };
    cluster.nodes.current().into_iter().map(seen).collect()
}

/// What that means.
pub(super) fn evaluate(facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(seen) = &facts.cluster else { return };
    let (tunnel, free) = &seen.tunnel_port;
    if let Err(sentence) = free {
        let (taken, _) = sentence.split_once(';').unwrap_or((sentence, ""));
        findings.push(Finding::warning(
            format!("{taken}; packets of nodes to that port go to samport"),
            "stop it, or use another --tunnel-port on all nodes",
        ));
    }
    let nodes = match &seen.nodes {
        Ok(nodes) => nodes,
        Err(sentence) => {
            findings.push(Finding::said(Level::Failure(Exit::Usage), sentence));
            return;
        }
    };
    let others: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    findings.push(Finding::good(format!("this node: {}; others: {others}", seen.own)));
    for node in nodes {
        findings.push(of_node(node, *tunnel));
    }
    if let Ok(version) = facts.kernel
        && let Some(sentence) = cluster::lacks(version, nodes.iter().any(|node| node.at.is_ipv4()))
        && frontends::serve_ipv6(&facts.interfaces, &facts.devices)
    {
        findings.push(Finding::said(Level::Warning, sentence));
    }
}

fn of_node(node: &NodeSeen, tunnel: Listen) -> Finding {
    let NodeSeen { name, at, has_own_end, answers, drains, path_mtu } = node;
    if !has_own_end {
        return Finding::warning(
            format!("node {name} ({at}): no interface of -i has an address of that family"),
            "use --node-address",
        );
    }
    if !answers {
        let port = tunnel.brief();
        return Finding::warning(
            format!("node {name} ({at}) does not answer"),
            format!(
                "start samport there, with this host among its nodes; let {} pass from here, and {port} from there",
                Listen { port: at.port(), ..tunnel }.brief()
            ),
        );
    }
    let drained = if *drains { ", and is drained" } else { "" };
    let headers = if at.is_ipv6() { OUTER_V6 } else { OUTER_V4 };
    let fit = |mtu: u16| usize::from(mtu).saturating_sub(headers);
    match path_mtu {
        Some(mtu) if fit(*mtu) < USUAL_MTU => Finding::good(format!(
            "node {name} ({at}) answers{drained}; the path takes packets of {mtu} bytes: those of containers fit up to {}",
            fit(*mtu)
        )),
        Some(mtu) => Finding::good(format!(
            "node {name} ({at}) answers{drained}; the path takes packets of {mtu} bytes"
        )),
        None => Finding::good(format!("node {name} ({at}) answers{drained}")),
    }
}
