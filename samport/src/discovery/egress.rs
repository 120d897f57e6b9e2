//! How packets leave a container: its links to this machine and its routes, as its network namespace has them.

use std::fs;

use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkMessage};

use super::locate::{kind, leads_to, other_end};
use crate::model::Egress;

/// Bits of the flags in `/proc/net/route` and `ipv6_route` (`RTF_*` in linux/route.h).
const UP: u32 = 0x1;
const GATEWAY: u32 = 0x2;
const REJECT: u32 = 0x200;

/// A route of a container, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    /// The container's device.
    device: String,
    /// Whether it is for every address.
    is_default: bool,
    metric: u32,
}

/// The routes of a process's network that lead out of the networks it is in, IPv4 and IPv6; `None` if they cannot be
/// read. Everybody may read them, of whatever namespace: netlink does not list another one's.
pub(super) fn routes_of(pid: u32) -> [Option<Vec<Route>>; 2] {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok();
    // A kernel without IPv6 has no such file, and no such addresses either.
    [read("route").map(|text| ipv4(&text)), read("ipv6_route").map(|text| ipv6(&text))]
}

/// From `/proc/net/route`: device, destination, gateway, flags, two counters, metric, mask.
fn ipv4(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, destination, _, flags, _, _, metric, mask, ..] = fields[..] else {
            return None;
        };
        let is_default = hex(destination)? == 0 && hex(mask)? == 0;
        leads_out(hex(flags)?, is_default).then_some(Route {
            device: device.to_owned(),
            is_default,
            metric: metric.parse().ok()?,
        })
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// From `/proc/net/ipv6_route`: destination, its length, source, its length, next hop, metric, two counters, flags,
/// device.
fn ipv6(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, length, _, _, _, metric, _, _, flags, device] = fields[..] else { return None };
        let is_default = hex(length)? == 0;
        leads_out(hex(flags)?, is_default).then_some(Route {
            device: device.to_owned(),
            is_default,
            metric: hex(metric)?,
        })
    };
    text.lines().filter_map(route).collect()
}

const fn leads_out(flags: u32, is_default: bool) -> bool {
    flags & UP != 0 && flags & REJECT == 0 && (flags & GATEWAY != 0 || is_default)
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 16).ok()
}

/// How packets of each family leave a container with these links and routes; `here` is the number it knows our
/// namespace by.
pub(super) fn egress(
    links: &[LinkMessage],
    routes: [Option<Vec<Route>>; 2],
    here: i32,
) -> [Egress; 2] {
    let of_kind = |wanted: InfoKind| {
        let ours = links.iter().filter(move |link| kind(link) == Some(&wanted));
        ours.filter(|link| leads_to(link, here)).filter_map(other_end).collect::<Vec<u32>>()
    };
    let (veths, parents) = (of_kind(InfoKind::Veth), of_kind(InfoKind::MacVlan));
    routes.map(|routes| {
        let best = routes.iter().flatten().filter(|route| route.is_default);
        let best = best.min_by_key(|route| route.metric);
        let link = best.and_then(|best| links.iter().find(|link| is_called(link, &best.device)));
        Egress {
            default_device: link.filter(|link| leads_to(link, here)).and_then(other_end),
            veths: veths.clone(),
            parents: parents.clone(),
            leads_out: routes.map(|routes| !routes.is_empty()),
        }
    })
}

fn is_called(link: &LinkMessage, wanted: &str) -> bool {
    let is_it = |one: &LinkAttribute| matches!(one, LinkAttribute::IfName(name) if name == wanted);
    link.attributes.iter().any(is_it)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkInfo;

    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
    /// `172.18.0.0/16 dev eth1`, `default via 172.17.0.1 dev eth0`.
    const ON_LINK: &str = "eth1\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
    const DEFAULT: &str = "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";

    fn route(device: &str, is_default: bool, metric: u32) -> Route {
        Route { device: device.to_owned(), is_default, metric }
    }

    #[test]
    fn routes_that_lead_out_of_the_containers_networks_are_found() {
        assert_eq!(ipv4(HEAD), []);
        assert_eq!(ipv4(&[HEAD, ON_LINK].concat()), []);
        assert_eq!(ipv4(&[HEAD, ON_LINK, DEFAULT].concat()), [route("eth0", true, 0)]);
        // Without a gateway; with one and to a network; and two that refuse.
        let lines = [
            "tun0\t00000000\t00000000\t0001\t0\t0\t100\t00000000\t0\t0\t0\n",
            "eth1\t0000000A\t010012AC\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n",
            "*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0\n",
            "*\t0000000A\t00000000\t0201\t0\t0\t0\t000000FF\t0\t0\t0\n",
        ];
        let found = ipv4(&[HEAD, &lines.concat()].concat());
        assert_eq!(found, [route("tun0", true, 100), route("eth1", false, 0)]);
    }

    #[test]
    fn ipv6_routes_are_read_as_well() {
        let any = "00000000000000000000000000000000";
        let hop = "20010db8000000770000000000000001";
        let line = |to: &str, length, hop: &str, flags, device: &str| {
            format!("{to} {length} {any} 00 {hop} 00000400 00000001 00000000 {flags} {device:>8}\n")
        };
        // What the kernel has without any route: lo refuses.
        let refused = line(any, "00", any, "00200200", "lo");
        let on_link = line("20010db8000000770000000000000000", "40", any, "00000001", "eth0");
        assert_eq!(ipv6(&[&refused[..], &on_link].concat()), []);
        let default = line(any, "00", hop, "00000003", "eth0");
        assert_eq!(ipv6(&[refused, on_link, default].concat()), [route("eth0", true, 0x400)]);
    }

    #[test]
    fn a_machine_of_ours_has_routes_or_none_but_never_no_answer() {
        let [ipv4, _] = routes_of(std::process::id());
        assert!(ipv4.is_some());
        assert_eq!(routes_of(u32::MAX), [None, None]);
    }

    fn link(index: u32, name: &str, kind: InfoKind, namespace: i32) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(index + 100),
            LinkAttribute::LinkNetNsId(namespace),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ];
        link
    }

    #[test]
    fn links_that_lead_here_are_named_by_their_other_ends() {
        let links = [
            link(1, "eth0", InfoKind::Veth, 5),
            link(2, "eth1", InfoKind::Veth, 5),
            link(3, "eth2", InfoKind::MacVlan, 5),
            link(4, "eth3", InfoKind::Veth, 6),
        ];
        let of = |v4: Option<Vec<Route>>, v6| egress(&links, [v4, v6], 5);
        let two = vec![route("eth0", true, 20), route("eth1", true, 10), route("eth2", false, 0)];
        let [ipv4, ipv6] = of(Some(two), None);
        assert_eq!((ipv4.veths, ipv4.parents), (vec![101, 102], vec![103]));
        assert_eq!((ipv4.default_device, ipv4.leads_out), (Some(102), Some(true)));
        assert_eq!((ipv6.default_device, ipv6.leads_out), (None, None));
        // No default route, another one; none at all; and one that leads elsewhere.
        for (routes, device, leads_out) in [
            (vec![route("eth2", false, 0)], None, true),
            (vec![], None, false),
            (vec![route("eth3", true, 0)], None, true),
            (vec![route("eth2", true, 0)], Some(103), true),
        ] {
            let [ipv4, _] = of(Some(routes), None);
            assert_eq!((ipv4.default_device, ipv4.leads_out), (device, Some(leads_out)));
        }
    }
}
