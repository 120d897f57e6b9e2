//! Other nodes as the programs know them: `NODES` and `NODE_IDS`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use samport_common::layout::Node;

use super::maps::{MapCell, if_there, typed};
use crate::model::encode::wide;
use crate::plan::Tunnel;

/// Both maps, and what they hold.
pub(super) struct Nodes {
    by_index: Array<MapData, MapCell<Node>>,
    ids: HashMap<MapData, [u8; 16], u32>,
    known: BTreeMap<SocketAddr, (u32, Tunnel)>,
}

impl Nodes {
    /// Takes the maps out of the loaded object; nodes that they hold are known.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let by_index: Array<MapData, MapCell<Node>> = typed(ebpf, "NODES")?;
        let ids = typed(ebpf, "NODE_IDS")?;
        let mut known = BTreeMap::new();
        for (index, node) in (0u32..).zip(by_index.iter()) {
            let MapCell(node) = node?;
            if node.is_in_use() {
                let at = SocketAddr::new(narrow(node.addr), u16::from_be_bytes(node.port));
                let Node { ifindex, mtu, .. } = node;
                let (own, own_drains) = (narrow(node.own), node.own_drains());
                known.insert(at, (index, Tunnel { own, ifindex, mtu, own_drains }));
            }
        }
        Ok(Self { by_index, ids, known })
    }

    /// All that are known, with their indices.
    pub(super) fn all(&self) -> BTreeMap<SocketAddr, (u32, Tunnel)> {
        self.known.clone()
    }

    /// The index of the node whose end of the tunnel is there.
    pub(super) fn index_of(&self, at: SocketAddr) -> Option<u32> {
        self.known.get(&at).map(|(index, _)| *index)
    }

    pub(super) fn set(&mut self, at: SocketAddr, index: u32, tunnel: Tunnel) -> Result<()> {
        let addr = wide(at.ip());
        let node = Node {
            addr,
            own: wide(tunnel.own),
            ifindex: tunnel.ifindex,
            mtu: tunnel.mtu,
            port: at.port().to_be_bytes(),
            in_use: 1,
            own_drains: tunnel.own_drains.into(),
            pad: [0; 4],
        };
        self.by_index.set(index, MapCell(node), 0)?;
        self.ids.insert(addr, index, 0)?;
        self.known.insert(at, (index, tunnel));
        Ok(())
    }

    pub(super) fn remove(&mut self, at: SocketAddr, index: u32) -> Result<()> {
        let addr = wide(at.ip());
        // Its address may be that of another one by now, with another port.
        if self.ids.get(&addr, 0).ok() == Some(index) {
            if_there(self.ids.remove(&addr))?;
        }
        self.by_index.set(index, MapCell(Node::default()), 0)?;
        self.known.remove(&at);
        Ok(())
    }
}

fn narrow(addr: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(addr).to_canonical()
}
