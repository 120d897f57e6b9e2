//! The ways to other nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{Reconciler, complain};
use crate::net::netlink::Devices;
use crate::plan::Tunnel;

/// The devices that the kernel's routes to nodes lead out of, and how many changes it had told of when it was asked.
#[derive(Default)]
pub(super) struct NodeRoutes {
    at: u64,
    devices: BTreeMap<IpAddr, u32>,
}

impl Reconciler {
    /// The ways to all other nodes, whether they are up or have containers or not: what they send is taken all the same.
    pub(super) async fn tunnels(&mut self, devices: &Devices) -> BTreeMap<SocketAddr, Tunnel> {
        let Some(cluster) = self.config.cluster.clone() else { return BTreeMap::new() };
        let (nodes, healths) = (self.config.nodes.current(), self.config.nodes.health());
        let at = self.netlink.changes();
        // Those of before are gone by where the kernel does not answer.
        let before = self.node_routes.devices.clone();
        if self.node_routes.at != at {
            self.node_routes = NodeRoutes { at, devices: BTreeMap::new() };
        }
        let mut tunnels = BTreeMap::new();
        for node in nodes {
            let known = self.node_routes.devices.get(&node.address).copied();
            let ifindex = match known {
                Some(ifindex) => Some(ifindex),
                None => match self.netlink.route(node.address).await {
                    Ok(leads) => leads.map(|leads| leads.device),
                    Err(error) => {
                        tracing::debug!("the route to node {}: {error:#}", node.name);
                        before.get(&node.address).copied()
                    }
                },
            };
            let own = cluster.own_end(node.address, &self.config.interfaces, devices);
            let device = ifindex.and_then(|ifindex| devices.get(&ifindex));
            let (Some(own), Some(device)) = (own, device) else {
                let (name, address) = (&node.name, node.address);
                let about = match own {
                    Some(_) => {
                        format!("node {name} gets no packets: there is no route to {address}")
                    }
                    None => format!(
                        "node {name} gets no packets: no interface of -i has an address of the family of {address}; \
                         say --node-address"
                    ),
                };
                complain(&mut self.complained, &about);
                continue;
            };
            self.node_routes.devices.insert(node.address, device.ifindex);
            let of_path = healths.get(&node.address).and_then(|health| health.path_mtu);
            let mtu = of_path.map_or(device.mtu, |of_path| device.mtu.min(of_path.into()));
            let own_drains = self.orders.drains_this_node();
            let tunnel = Tunnel { own, ifindex: device.ifindex, mtu, own_drains };
            tunnels.insert(node.tunnel(), tunnel);
        }
        tunnels
    }
}
