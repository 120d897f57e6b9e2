//! Devices as the kernel's messages describe them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};

/// A network device.
#[expect(clippy::struct_excessive_bools, reason = "what kind a device is are separate questions")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// Whether its frames begin with an Ethernet header.
    pub is_ethernet: bool,
    /// Whether it can send: it is switched on and has a carrier, which a veth has while its other end is switched on.
    pub is_running: bool,
    /// The largest packet it takes, in bytes, link header not counted.
    pub mtu: u32,
    /// Whether it is a VRF: its ports' routes are in a separate table.
    pub is_vrf: bool,
    /// The device it is a port of: a bridge, a VRF, a bond.
    pub master: Option<u32>,
    /// The number of the network namespace that a veth's other end is in, if that is another than ours.
    pub peer_namespace: Option<i32>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The broadcast addresses of its IPv4 subnets.
    pub broadcasts: BTreeSet<IpAddr>,
}

#[cfg(test)]
impl Device {
    /// One with a name, for tests: Ethernet, no port of anything, without addresses.
    pub(crate) fn named(ifindex: u32, name: &str) -> Self {
        Self {
            ifindex,
            name: name.to_owned(),
            is_veth: false,
            is_bridge: false,
            is_ethernet: true,
            is_running: true,
            mtu: 1_500,
            is_vrf: false,
            master: None,
            peer_namespace: None,
            addresses: BTreeSet::new(),
            broadcasts: BTreeSet::new(),
        }
    }
}

/// What may change about a device without samport doing anything about it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LinkState {
    /// Whether it is switched on.
    pub is_up: bool,
    /// The kernel's number of the XDP program on it.
    pub xdp: Option<u32>,
}

/// All devices of this network namespace, by index.
pub type Devices = BTreeMap<u32, Device>;

pub(super) fn device(link: &LinkMessage) -> Device {
    let kind = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.clone()),
            _ => None,
        }),
        _ => None,
    });
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let master = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(ifindex) => Some(*ifindex),
        _ => None,
    });
    let peer_namespace = link.attributes.iter().find_map(|attribute| match attribute {
        // -1 while that namespace is being removed.
        LinkAttribute::LinkNetNsId(id) => Some(*id).filter(|id| *id >= 0),
        _ => None,
    });
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Device {
        ifindex: link.header.index,
        name: name.unwrap_or_default(),
        is_veth: kind == Some(InfoKind::Veth),
        is_bridge: kind == Some(InfoKind::Bridge),
        is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        is_running: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        mtu: mtu.unwrap_or(u32::MAX),
        is_vrf: kind == Some(InfoKind::Vrf),
        master,
        peer_namespace,
        addresses: BTreeSet::new(),
        broadcasts: BTreeSet::new(),
    }
}

/// Adds an address to its device, and the broadcast addresses that the kernel makes routes for: the one
/// that was given, and the last of the subnet.
pub(super) fn add_address(device: &mut Device, message: &AddressMessage) {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            AddressAttribute::Broadcast(addr) => {
                device.broadcasts.insert(IpAddr::V4(*addr));
            }
            _ => {}
        }
    }
    device.addresses.extend(local.or(address));
    // The subnet is the peer's where there is one, and that is in the other attribute.
    if let Some(IpAddr::V4(addr)) = address.or(local)
        && let Some(hosts) = u32::MAX.checked_shr(message.header.prefix_len.into())
        && message.header.prefix_len <= 30
    {
        device.broadcasts.insert(IpAddr::V4((addr.to_bits() | hosts).into()));
    }
}

pub(super) fn state(link: &LinkMessage) -> LinkState {
    let mut xdp = link.attributes.iter().flat_map(|attribute| match attribute {
        LinkAttribute::Xdp(about) => &about[..],
        _ => &[],
    });
    let xdp = xdp.find_map(|about| match about {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    LinkState { is_up: link.header.flags.contains(LinkFlags::Up), xdp }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_address(prefix_len: u8, attributes: Vec<AddressAttribute>) -> Device {
        let mut device = device(&LinkMessage::default());
        let mut message = AddressMessage::default();
        message.header.prefix_len = prefix_len;
        message.attributes = attributes;
        add_address(&mut device, &message);
        device
    }

    fn shown(addresses: &BTreeSet<IpAddr>) -> String {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_subnet_has_the_broadcast_addresses_the_kernel_gives_it() {
        use AddressAttribute::{Address, Broadcast, Local};
        let addr = |text: &str| -> IpAddr { text.parse().unwrap() };
        let own = [Address(addr("10.1.1.1")), Local(addr("10.1.1.1"))];
        for (prefix_len, expected) in
            [(24, "10.1.1.255"), (30, "10.1.1.3"), (31, ""), (32, ""), (0, "255.255.255.255")]
        {
            let device = with_address(prefix_len, own.to_vec());
            assert_eq!(shown(&device.addresses), "10.1.1.1");
            assert_eq!(shown(&device.broadcasts), expected, "of a /{prefix_len}");
        }
        let given = [&own[..], &[Broadcast([10, 1, 1, 200].into())]].concat();
        assert_eq!(shown(&with_address(24, given).broadcasts), "10.1.1.200 10.1.1.255");
        let with_peer = vec![Address(addr("10.9.9.9")), Local(addr("10.1.1.1"))];
        let device = with_address(24, with_peer);
        assert_eq!(shown(&device.addresses), "10.1.1.1");
        assert_eq!(shown(&device.broadcasts), "10.9.9.255");
        let v6 = with_address(64, vec![Address(addr("2001:db8::1"))]);
        assert_eq!(
            (shown(&v6.addresses), shown(&v6.broadcasts)),
            ("2001:db8::1".into(), String::new())
        );
    }

    #[test]
    fn a_port_names_its_master_and_a_vrf_says_that_it_is_one() {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::Controller(7));
        let port = device(&link);
        assert_eq!((port.master, port.is_vrf, port.peer_namespace), (Some(7), false, None));
        for (id, expected) in [(3, Some(3)), (0, Some(0)), (-1, None)] {
            link.attributes = vec![LinkAttribute::LinkNetNsId(id)];
            assert_eq!(device(&link).peer_namespace, expected);
        }
        link.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vrf)])];
        let vrf = device(&link);
        assert_eq!((vrf.master, vrf.is_vrf), (None, true));
    }
}
