use std::time::Duration;

use netlink_packet_core::DefaultNla;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::rule::RuleUidRange;

use super::*;
use crate::lab::Namespace;
use crate::system::resyncs::Resyncs;

fn by_index(devices: Vec<Device>) -> Devices {
    devices.into_iter().map(|device| (device.ifindex, device)).collect()
}

fn rule(priority: u32, attributes: Vec<RuleAttribute>) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = attributes;
    rule.attributes.extend([
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(5),
        RuleAttribute::SuppressPrefixLen(u32::MAX),
    ]);
    rule
}

fn marked(priority: u32) -> RuleMessage {
    rule(priority, vec![RuleAttribute::FwMark(1), RuleAttribute::FwMask(u32::MAX)])
}

#[test]
fn the_larger_of_both_settings_counts_and_what_is_neither_is_loose() {
    for (all, own, expected) in [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 1),
        (0, 2, 2),
        (2, 1, 2),
        (1, 2, 2),
        (0, 3, 2),
        (-1, 0, 0),
        (-1, -1, 2),
    ] {
        assert_eq!(applied(all, own), expected, "all {all}, own {own}");
    }
}

#[test]
fn rules_that_match_addresses_and_devices_can_be_followed() {
    let followed = [
        rule(0, vec![]),
        rule(1, vec![RuleAttribute::Source([192, 0, 2, 1].into())]),
        rule(2, vec![RuleAttribute::Iifname("eth0".into()), RuleAttribute::L3MDev(true)]),
        rule(3, vec![RuleAttribute::FwMark(7), RuleAttribute::FwMask(0)]),
        rule(4, vec![RuleAttribute::Other(DefaultNla::new(PAD, vec![]))]),
    ];
    assert_eq!(reason_of_rules(&followed), None);
}

#[test]
fn rules_that_match_more_are_named() {
    let mut wireguard =
        rule(32764, vec![RuleAttribute::FwMark(51820), RuleAttribute::FwMask(u32::MAX)]);
    wireguard.header.flags = RuleFlags::Invert;
    let mut tos = rule(1, vec![]);
    tos.header.tos = 0x10;
    tos.header.action = RuleAction::Blackhole;
    let ports = |start, end| RulePortRange { start, end };
    for (rule, expected) in [
        (wireguard, "32764 (not fwmark 0xca6c lookup 5)"),
        (tos, "1 (tos 0x10)"),
        (rule(2, vec![RuleAttribute::FwMask(0xff)]), "2 (fwmark 0x0/0xff lookup 5)"),
        (
            rule(
                3,
                vec![
                    RuleAttribute::IpProtocol(IpProtocol::Tcp),
                    RuleAttribute::SourcePortRange(ports(80, 80)),
                    RuleAttribute::DestinationPortRange(ports(1, 9)),
                ],
            ),
            "3 (ipproto 6 sport 80 dport 1-9 lookup 5)",
        ),
        (
            rule(4, vec![RuleAttribute::UidRange(RuleUidRange { start: 0, end: 9 })]),
            "4 (uidrange 0-9 lookup 5)",
        ),
        (rule(5, vec![RuleAttribute::TunId(7)]), "5 (tun_id 7 lookup 5)"),
        (
            rule(6, vec![RuleAttribute::Other(DefaultNla::new(DSCP, vec![4]))]),
            "6 (dscp 4 lookup 5)",
        ),
        (
            rule(7, vec![RuleAttribute::Other(DefaultNla::new(99, vec![]))]),
            "7 (attribute 99 lookup 5)",
        ),
    ] {
        let found = describe(&rule);
        assert_eq!(found.as_deref(), Some(expected));
        let reason = reason_of_rules(&[rule]).unwrap();
        assert!(reason.ends_with(&format!("cannot follow policy rule {expected}")), "{reason}");
    }
    let three = [marked(1), marked(2), marked(3)];
    let reason = reason_of_rules(&three).unwrap();
    assert!(reason.ends_with("3 (fwmark 0x1 lookup 5)"), "{reason}");
    let many = [&three[..], &[marked(4), marked(5)]].concat();
    let reason = reason_of_rules(&many).unwrap();
    assert!(reason.ends_with("3 (fwmark 0x1 lookup 5) and 2 more"), "{reason}");
}

#[test]
fn strict_is_loose_where_samport_cannot_look_up_as_the_kernel_does() {
    let devices =
        by_index(vec![Device::named(1, "lo"), Device::named(2, "eth0"), Device::named(3, "eth1")]);
    let rp_filters = [(1, 0), (2, STRICT), (3, LOOSE)].into();
    let of = |rules: &[RuleMessage], next_hops: &NextHops| {
        let found = resolve(&devices, &rp_filters, rules, next_hops);
        (found.of.values().map(|one| one.rp_filter).collect::<Vec<_>>(), found.reasons.len())
    };
    let hidden = NextHops { are_hidden: true, ..NextHops::default() };
    assert_eq!(of(&[], &NextHops::default()), (vec![0, 1, 2], 0));
    assert_eq!(of(&[marked(9)], &NextHops::default()), (vec![0, 2, 2], 1));
    assert_eq!(of(&[], &hidden), (vec![0, 2, 2], 1));
    assert_eq!(of(&[marked(9)], &hidden), (vec![0, 2, 2], 2));
    let loose = [(2, LOOSE)].into();
    assert_eq!(resolve(&devices, &loose, &[marked(9)], &hidden).reasons, [""; 0]);
}

#[test]
fn ports_of_a_vrf_are_asked_from_and_ports_of_a_bridge_are_not() {
    let vrf = Device { is_vrf: true, ..Device::named(2, "vrf0") };
    let bridge = Device { is_bridge: true, master: Some(2), ..Device::named(3, "br0") };
    let port = Device { is_veth: true, master: Some(3), ..Device::named(4, "veth0") };
    let lost = Device { master: Some(99), ..Device::named(5, "eth1") };
    let devices = by_index(vec![Device::named(1, "eth0"), vrf, bridge, port, lost]);
    let found = resolve(&devices, &BTreeMap::new(), &[], &NextHops::default());
    let in_vrf: Vec<u32> =
        found.of.iter().filter(|(_, one)| one.in_vrf).map(|(ifindex, _)| *ifindex).collect();
    assert_eq!(in_vrf, [2, 3]);
}

#[test]
fn routes_are_asked_for_where_another_devices_route_would_be_a_reason() {
    let strict = [(1, STRICT), (2, STRICT), (3, 0), (4, 0)].into();
    let tunnel = Device { is_ethernet: false, ..Device::named(1, "tun0") };
    let veth = Device { is_veth: true, ..Device::named(3, "veth0") };
    assert!(!needs_routes(&tunnel, &strict));
    assert!(needs_routes(&Device::named(2, "eth0"), &strict));
    assert!(needs_routes(&veth, &strict));
    assert!(!needs_routes(&Device::named(4, "eth1"), &strict));
    assert!(!needs_routes(&Device::named(5, "new"), &strict));
}

/// What a kernel says about devices of these names.
struct Kernel {
    netlink: Netlink,
    changes: tokio::sync::watch::Receiver<u64>,
}

impl Kernel {
    async fn find(&self) -> (BTreeMap<String, ReversePath>, Vec<String>) {
        let devices = self.netlink.devices().await.unwrap();
        let found = ReversePaths::find(&self.netlink, &devices).await.unwrap();
        let of = devices.values().map(|device| (device.name.clone(), found.of[&device.ifindex]));
        (of.collect(), found.reasons)
    }

    /// Waits for what a change wakes the loop with.
    async fn assert_told(&mut self, what: &str) {
        let told = tokio::time::timeout(Duration::from_secs(30), self.changes.changed()).await;
        assert!(told.is_ok_and(|told| told.is_ok()), "not told of {what}");
        // What else it has to say of this change must not be taken for the next one.
        while let Ok(Ok(())) =
            tokio::time::timeout(Duration::from_millis(200), self.changes.changed()).await
        {}
    }
}

/// In a network namespace, so as root.
#[test]
fn the_kernels_settings_rules_and_routes_are_found_and_followed() {
    let namespace = Namespace::new("rpf").unwrap();
    // Addresses that come by themselves would be changes that the test has not made.
    namespace.sysctl("net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
    namespace
        .batch(
            "link add name eth0.7 type veth peer name far0\n\
             link add name eth1 type veth peer name far1\n\
             link add name br0 type bridge\n\
             link set far1 master br0\n\
             link set eth0.7 up\n\
             link set far0 up\n\
             link set eth1 up\n\
             link set far1 up\n\
             addr add 10.7.0.1/24 dev eth0.7\n\
             addr add 10.8.0.1/24 brd 10.8.0.99 dev eth1\n\
             addr add 2001:db8:7::1/64 dev eth0.7 nodad\n\
             addr add 2001:db8:8::1/64 dev eth1 nodad\n",
        )
        .unwrap();
    let sysctl = |key: &str, value: &str| namespace.sysctl(&format!("net/{key}"), value).unwrap();
    let ip = |words: &str| {
        namespace.ip(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
    };
    sysctl("ipv4/conf/all/rp_filter", "0");
    for name in ["eth0.7", "eth1", "br0", "lo"] {
        sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
    }
    let work = async || {
        let (netlink, mut changes) = Netlink::connect(&Resyncs::default()).unwrap();
        changes.mark_unchanged();
        let mut kernel = Kernel { netlink, changes };
        let devices = kernel.netlink.devices().await.unwrap();
        let named = |name: &str| devices.values().find(|device| device.name == name).unwrap();
        assert_eq!(named("far1").master, Some(named("br0").ifindex));
        assert_eq!(named("far0").master, None);
        let broadcasts = ["10.8.0.99", "10.8.0.255"].map(|addr| addr.parse().unwrap());
        assert_eq!(named("eth1").broadcasts, broadcasts.into());
        let (of, reasons) = kernel.find().await;
        assert!(of.values().all(|one| *one == ReversePath::default()), "{of:?}");
        assert_eq!(reasons, [""; 0]);

        sysctl("ipv4/conf/eth0.7/rp_filter", "1");
        kernel.assert_told("rp_filter").await;
        let (of, reasons) = kernel.find().await;
        assert_eq!((of["eth0.7"].rp_filter, of["eth1"].rp_filter, reasons.len()), (1, 0, 0));
        sysctl("ipv4/conf/all/rp_filter", "1");
        kernel.assert_told("rp_filter of all").await;
        assert_eq!(kernel.find().await.0["eth1"].rp_filter, 1);

        for (route, several) in [
            ("10.9.0.0/16 nexthop via 10.7.0.2 nexthop via 10.7.0.3", false),
            ("10.9.0.0/16 nexthop via 10.7.0.2 nexthop via 10.8.0.2", true),
            ("2001:db8:9::/48 nexthop via 2001:db8:7::2 nexthop via 2001:db8:8::2", true),
            ("10.9.0.0/16 table 77 nexthop via 10.7.0.2 nexthop via 10.8.0.2", true),
        ] {
            ip(&format!("route add {route}"));
            kernel.assert_told("a route").await;
            let (of, _) = kernel.find().await;
            let multipath = ["eth0.7", "eth1", "far0"].map(|name| of[name].multipath);
            let family = [false, true].map(|v6| several && route.starts_with("2001:") == v6);
            assert_eq!(multipath, [family, family, [false; 2]], "{route}");
            ip(&format!("route del {route}"));
            kernel.assert_told("a route's end").await;
            assert!(
                kernel.find().await.0.values().all(|one| one.multipath == [false; 2]),
                "{route}"
            );
        }

        ip("nexthop add id 1 via 10.7.0.2 dev eth0.7");
        kernel.assert_told("a next hop object").await;
        ip("nexthop add id 2 via 10.8.0.2 dev eth1");
        ip("nexthop add id 3 group 1/2");
        ip("route add 10.9.0.0/16 nhid 3");
        kernel.assert_told("a route by a group").await;
        assert_eq!(kernel.find().await.0["eth1"].multipath, [true, false]);
        ip("nexthop replace id 3 group 1");
        kernel.assert_told("a smaller group").await;
        assert_eq!(kernel.find().await.0["eth1"].multipath, [false; 2]);
        sysctl("ipv4/nexthop_compat_mode", "0");
        ip("route add 10.10.0.0/16 nhid 3");
        kernel.assert_told("a route by a group").await;
        let (of, reasons) = kernel.find().await;
        assert_eq!(of["eth1"].rp_filter, 2);
        assert!(reasons[0].contains("nexthop_compat_mode"), "{reasons:?}");
        ip("route flush 10.9.0.0/16");
        ip("route flush 10.10.0.0/16");
        kernel.assert_told("routes' end").await;
        assert_eq!(kernel.find().await.1, [""; 0]);

        ip("rule add not fwmark 51820 table 51820 priority 32764");
        kernel.assert_told("a rule").await;
        let (of, reasons) = kernel.find().await;
        assert_eq!((of["eth0.7"].rp_filter, of["eth1"].rp_filter), (2, 2));
        assert_eq!(reasons.len(), 1);
        let rule = "policy rule 32764 (not fwmark 0xca6c lookup 51820)";
        assert!(reasons[0].ends_with(rule), "{reasons:?}");

        ip("link del eth0.7");
        let gone = ReversePaths::find(&kernel.netlink, &devices).await.unwrap();
        assert_eq!(gone.of.len(), devices.len(), "a vanished device is no error");
    };
    namespace.run(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(work());
    });
}
