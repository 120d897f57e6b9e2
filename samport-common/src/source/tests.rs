use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::family::{V4, V6};
use crate::layout::device;

const HERE: u32 = 7;
const BRIDGE: u32 = 5;
const OTHER: u32 = 9;

fn arrival(ingress: Ingress, rp_filter: u8, flags: u8) -> Arrival {
    let device =
        DeviceInfo { lookup_ifindex: 1, master: BRIDGE, side: 0, rp_filter, flags, pad: 0 };
    Arrival { ingress, ifindex: HERE, device }
}

const fn via(ifindex: u32) -> Route {
    Route::Via(ifindex, NextHop::OnLink)
}

/// Devices of the test by index: the other one and the bridge.
fn info(side: Option<Side>, flags: u8) -> Option<DeviceInfo> {
    side.map(|side| DeviceInfo { side: side as u8, flags, ..DeviceInfo::default() })
}

/// The judgement on an ordinary address; the other device of a route is on this side.
fn judged<P: Family>(
    of: Arrival,
    source: P::Addr,
    known: Known,
    route: Route,
    other: Option<DeviceInfo>,
) -> Validity {
    let device_of = |ifindex| match ifindex {
        OTHER => other,
        BRIDGE => info(Some(Side::Internal), 0),
        _ => panic!("{ifindex} is not asked about"),
    };
    validate::<P>(&source, known, &of, |_| route, device_of)
}

fn v4(of: Arrival, known: Known, route: Route, other: Option<Side>) -> Validity {
    judged::<V4>(of, [203, 0, 113, 9], known, route, info(other, 0))
}

fn v6(of: Arrival, known: Known, route: Route, other: Option<Side>) -> Validity {
    let source = "2001:db8::9".parse::<Ipv6Addr>().unwrap().octets();
    judged::<V6>(of, source, known, route, info(other, 0))
}

const INGRESSES: [Ingress; 3] = [Ingress::Interface, Ingress::Bridge, Ingress::Container];
const INTERNAL: [Ingress; 2] = [Ingress::Bridge, Ingress::Container];

#[test]
fn some_addresses_are_never_a_source_and_their_neighbours_are() {
    let is_never = |text: &str| match text.parse::<Ipv4Addr>() {
        Ok(addr) => V4::is_never_a_source(&addr.octets()),
        Err(_) => V6::is_never_a_source(&text.parse::<Ipv6Addr>().unwrap().octets()),
    };
    for never in [
        "0.0.0.0",
        "0.255.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:192.0.2.1",
        "ff02::1",
        "ff00::",
    ] {
        assert!(is_never(never), "{never}");
    }
    for may in [
        "1.0.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.254.0.1",
        "223.255.255.255",
        "240.0.0.1",
        "255.255.255.254",
        "::2",
        "::fffe:192.0.2.1",
        "::1:0:0:1",
        "fe80::1",
        "fdff::1",
        "2001:db8::1",
    ] {
        assert!(!is_never(may), "{may}");
    }
}

#[test]
fn link_local_is_fe80_with_ten_bits() {
    for (text, expected) in [
        ("fe80::1", true),
        ("febf:ffff::1", true),
        ("fec0::1", false),
        ("fe7f::1", false),
        ("2001:db8::1", false),
    ] {
        let addr = text.parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(V6::is_link_local(&addr), expected, "{text}");
    }
}

#[test]
fn what_is_known_of_an_address_needs_no_route() {
    for ingress in INGRESSES {
        for rp_filter in 0..=2 {
            let of = arrival(ingress, rp_filter, 0);
            let unasked = |known| {
                validate::<V4>(&[10, 0, 0, 1], known, &of, |_| panic!("asked"), |_| panic!("asked"))
            };
            assert_eq!(unasked(Known::OfHost), Validity::Refused);
            assert_eq!(unasked(Known::Elsewhere), Validity::Refused);
            assert_eq!(unasked(Known::Here), Validity::Proven);
        }
    }
}

#[test]
fn a_set_of_devices_says_where_an_address_belongs() {
    assert_eq!(Known::of(None, HERE), Known::Nothing);
    assert_eq!(Known::of(Some(&DeviceSet::NONE), HERE), Known::OfHost);
    for places in 1..=8u32 {
        let devices: DeviceSet = (100..100 + places).collect();
        for ifindex in 100..100 + places {
            assert_eq!(Known::of(Some(&devices), ifindex), Known::Here);
        }
        assert_eq!(Known::of(Some(&devices), 100 + places), Known::Elsewhere);
    }
}

/// The rules of the kernel's filter, and that no outside packet has the address of something inside.
#[test]
fn outside_sources_follow_rp_filter() {
    use Validity::{Proven, Refused, Unproven};
    for (rp_filter, route, other, expected) in [
        (0, via(HERE), None, Proven),
        (1, via(HERE), None, Proven),
        (2, via(HERE), None, Proven),
        (1, Route::Via(HERE, NextHop::Gateway(Known::Nothing)), None, Proven),
        (0, via(BRIDGE), None, Proven),
        (1, via(BRIDGE), None, Proven),
        (0, via(OTHER), None, Proven),
        (1, via(OTHER), None, Refused),
        (2, via(OTHER), None, Proven),
        (0, via(OTHER), Some(Side::External), Proven),
        (1, via(OTHER), Some(Side::External), Refused),
        (2, via(OTHER), Some(Side::External), Proven),
        (0, via(OTHER), Some(Side::Internal), Refused),
        (1, via(OTHER), Some(Side::Internal), Refused),
        (2, via(OTHER), Some(Side::Internal), Refused),
        (0, Route::None, None, Proven),
        (1, Route::None, None, Refused),
        (2, Route::None, None, Refused),
        (0, Route::Unknown, None, Unproven),
        (1, Route::Unknown, None, Unproven),
        (2, Route::Unknown, None, Unproven),
    ] {
        let of = arrival(Ingress::Interface, rp_filter, 0);
        let found = v4(of, Known::Nothing, route, other);
        assert_eq!(found, expected, "{rp_filter} {route:?} {other:?}");
        // IPv6 has no rp_filter; what is inside stays inside.
        let is_refused = v6(of, Known::Nothing, route, other) == Refused;
        assert_eq!(is_refused, other == Some(Side::Internal), "{route:?} {other:?}");
    }
}

/// A look-up names one of several next hops, and the kernel's filter takes all of them; of the same family, and
/// where both devices are next hops of such routes.
#[test]
fn several_next_hops_are_not_held_against_an_outside_source() {
    let strict = |flags, other| {
        let of = arrival(Ingress::Interface, 1, flags);
        judged::<V4>(of, [203, 0, 113, 9], Known::Nothing, via(OTHER), other)
    };
    let outside = Some(Side::External);
    let both = device::MULTIPATH4 | device::MULTIPATH6;
    for (own, other, expected) in [
        (device::MULTIPATH4, info(outside, device::MULTIPATH4), Validity::Proven),
        (both, info(outside, both), Validity::Proven),
        (device::MULTIPATH4, None, Validity::Proven),
        (device::MULTIPATH4, info(outside, 0), Validity::Refused),
        (device::MULTIPATH4, info(outside, device::MULTIPATH6), Validity::Refused),
        (device::MULTIPATH6, info(outside, both), Validity::Refused),
        (0, info(outside, both), Validity::Refused),
        (both, info(Some(Side::Internal), both), Validity::Refused),
    ] {
        assert_eq!(strict(own, other), expected, "{own} {other:?}");
    }
}

#[test]
fn several_next_hops_inside_do_not_open_the_inside_to_what_is_routed_outside() {
    for ingress in INTERNAL {
        let of = arrival(ingress, 0, device::MULTIPATH4);
        let judged = |other| judged::<V4>(of, [203, 0, 113, 9], Known::Nothing, via(OTHER), other);
        assert_eq!(judged(info(Some(Side::Internal), device::MULTIPATH4)), Validity::Proven);
        assert_eq!(judged(info(Some(Side::Internal), 0)), Validity::Refused);
        assert_eq!(judged(info(Some(Side::External), device::MULTIPATH4)), Validity::Refused);
        assert_eq!(judged(None), Validity::Refused);
    }
}

#[test]
fn inside_sources_must_be_routed_back_there_whatever_rp_filter_says() {
    for (ingress, rp_filter) in
        INTERNAL.into_iter().flat_map(|ingress| (0..=2).map(move |rp| (ingress, rp)))
    {
        let of = arrival(ingress, rp_filter, 0);
        for (route, expected) in [
            (via(HERE), Validity::Proven),
            (via(BRIDGE), Validity::Proven),
            (via(OTHER), Validity::Refused),
            (Route::None, Validity::Refused),
            (Route::Unknown, Validity::Unproven),
        ] {
            assert_eq!(v4(of, Known::Nothing, route, None), expected, "{route:?}");
            assert_eq!(v6(of, Known::Nothing, route, None), expected, "{route:?}");
        }
    }
}

/// Containers route for others: the gateway says which of them.
#[test]
fn what_is_behind_a_gateway_comes_by_the_gateways_own_veth() {
    let judged = |ingress, known, master| {
        let route = Route::Via(BRIDGE, NextHop::Gateway(known));
        let of = arrival(ingress, 0, 0);
        validate::<V4>(&[10, 8, 0, 2], Known::Nothing, &of, |_| route, |_| info(Some(master), 0))
    };
    for ingress in INTERNAL {
        for master in [Side::Internal, Side::External] {
            assert_eq!(judged(ingress, Known::Here, master), Validity::Proven);
            assert_eq!(judged(ingress, Known::Elsewhere, master), Validity::Refused);
        }
        assert_eq!(judged(ingress, Known::Nothing, Side::Internal), Validity::Proven);
    }
    // The gateway of an uplink bridge is the outside's.
    assert_eq!(judged(Ingress::Container, Known::Nothing, Side::External), Validity::Refused);
}

/// A rule may lead the replies of one of the host's addresses out of one interface, containers' among them.
#[test]
fn a_rule_for_the_services_address_is_not_held_against_containers() {
    for ingress in INGRESSES {
        let of = arrival(ingress, 1, 0);
        let route = |from| match from {
            From::Service => via(OTHER),
            From::Anywhere => via(HERE),
        };
        let found = validate::<V4>(&[10, 0, 0, 9], Known::Nothing, &of, route, |_| None);
        let is_inside = ingress != Ingress::Interface;
        assert_eq!(
            found,
            if is_inside { Validity::Proven } else { Validity::Refused },
            "{ingress:?}"
        );
    }
}

#[test]
fn a_link_local_source_is_on_any_link() {
    let addr = "fe80::9".parse::<Ipv6Addr>().unwrap().octets();
    for ingress in INGRESSES {
        let judged = |known| judged::<V6>(arrival(ingress, 1, 0), addr, known, via(OTHER), None);
        assert_eq!(judged(Known::Nothing), Validity::Unproven);
        assert_eq!(judged(Known::OfHost), Validity::Refused);
    }
}

fn detour(from: Side, to: Side) -> Detour {
    Detour {
        from,
        to,
        validity: Validity::Proven,
        is_link_local: false,
        is_unproven: false,
        opens: false,
        is_old_device_hooked: true,
        is_from_veth_to_bridge: false,
    }
}

#[test]
fn flows_move_on_one_side_only() {
    use Move::{Follow, Refuse, Stay};
    use Side::{External, Internal};
    for (from, to, is_old_device_hooked, expected) in [
        (External, External, true, Follow),
        (External, External, false, Follow),
        (Internal, Internal, true, Stay),
        (Internal, Internal, false, Follow),
        (External, Internal, true, Refuse),
        (External, Internal, false, Refuse),
        (Internal, External, true, Refuse),
        (Internal, External, false, Refuse),
    ] {
        let detour = Detour { is_old_device_hooked, ..detour(from, to) };
        assert_eq!(detour.decide(), expected, "{detour:?}");
        assert_eq!(Detour { validity: Validity::Refused, ..detour }.decide(), Refuse);
        let link_local = Detour { is_link_local: true, ..detour };
        assert_eq!(link_local.decide(), Refuse, "{link_local:?}");
    }
}

/// The bridge's neighbours say whose address it is; a veth does not.
#[test]
fn a_flow_moves_from_a_veth_to_a_bridge() {
    let inside = detour(Side::Internal, Side::Internal);
    let to_bridge = Detour { is_from_veth_to_bridge: true, ..inside };
    assert_eq!(to_bridge.decide(), Move::Follow);
    assert_eq!(inside.decide(), Move::Stay);
}

/// Whoever was there first with an address that may be anybody's does not keep its owner out.
#[test]
fn an_outside_client_takes_the_place_of_an_unproven_flow_from_inside() {
    let pairs = [(Side::Internal, Side::External), (Side::External, Side::Internal)];
    for (from, to) in pairs {
        for (is_unproven, opens) in [(false, false), (false, true), (true, false), (true, true)] {
            for is_link_local in [false, true] {
                let detour = Detour { is_link_local, is_unproven, opens, ..detour(from, to) };
                let takes = to == Side::External && is_unproven && opens;
                let expected = if takes { Move::Reopen } else { Move::Refuse };
                assert_eq!(detour.decide(), expected, "{detour:?}");
                assert_eq!(Detour { validity: Validity::Refused, ..detour }.decide(), Move::Refuse);
            }
        }
    }
}

#[test]
fn answers_of_the_look_up_are_read_as_the_kernel_means_them() {
    let hop = || NextHop::Gateway(Known::Here);
    for answer in [0, 7, 8] {
        let found = Route::of_fib_lookup(answer, 3, hop);
        assert_eq!(found, Route::Via(3, NextHop::Gateway(Known::Here)), "{answer}");
    }
    for answer in 1..=4 {
        assert_eq!(Route::of_fib_lookup(answer, 3, hop), Route::None, "{answer}");
    }
    for answer in [5, 6, 9, 10, -22, -19] {
        assert_eq!(Route::of_fib_lookup(answer, 3, hop), Route::Unknown, "{answer}");
    }
}

#[test]
fn a_move_is_what_its_number_says() {
    for moved in [Move::Refuse, Move::Stay, Move::Follow, Move::Reopen] {
        assert_eq!(Move::from_number(moved as u32), moved);
    }
    assert_eq!(Move::from_number(4), Move::Refuse);
}

#[test]
fn a_flow_is_marked_by_its_clients_side_and_by_what_is_not_known() {
    use Side::{External, Internal};
    let marks = |validity: Validity, side| validity.marks(side);
    assert_eq!(marks(Validity::Proven, External), 0);
    assert_eq!(marks(Validity::Proven, Internal), u32::from(marks::INTERNAL));
    assert_eq!(marks(Validity::Unproven, External), u32::from(marks::UNPROVEN));
    let both = marks::INTERNAL | marks::UNPROVEN;
    assert_eq!(marks(Validity::Unproven, Internal), u32::from(both));
    for side in [External, Internal] {
        assert_eq!(marks(Validity::Refused, side), REFUSED);
    }
}

fn ingress() -> impl Strategy<Value = Ingress> {
    prop_oneof![Just(Ingress::Interface), Just(Ingress::Bridge), Just(Ingress::Container)]
}

proptest! {
    /// Whoever cannot tell drops nothing that an address alone does not forbid.
    #[test]
    fn not_to_know_is_no_reason_to_drop(source: [u8; 4], ingress in ingress(), rp_filter in 0u8..3, flags in 0u8..4) {
        let of = arrival(ingress, rp_filter, flags);
        let found = judged::<V4>(of, source, Known::Nothing, Route::Unknown, None);
        prop_assert_eq!(found == Validity::Refused, V4::is_never_a_source(&source));
    }

    /// What is valid under a stricter rp_filter is valid under a looser one: 1, 2, 0.
    #[test]
    fn a_looser_filter_takes_whatever_a_stricter_one_takes(
        source: [u8; 4], ingress in ingress(), flags in 0u8..4,
        route in prop_oneof![Just(Route::Unknown), Just(Route::None), Just(via(HERE)), Just(via(OTHER))],
        other in prop::option::of(prop_oneof![Just(Side::External), Just(Side::Internal)]),
    ) {
        let is_valid = |rp_filter| {
            let of = arrival(ingress, rp_filter, flags);
            judged::<V4>(of, source, Known::Nothing, route, info(other, flags)) != Validity::Refused
        };
        prop_assert!(!is_valid(1) || is_valid(2));
        prop_assert!(!is_valid(2) || is_valid(0));
    }
}
