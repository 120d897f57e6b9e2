//! Hosts whose routes make a client's source look wrong although it is not: source validation must not drop these.
//!
//! Elsewhere: containers of all kinds under strict reverse path filtering in `matrix`, clients on the backends' bridge
//! in `inside`, macvlan backends in `containers/drivers.rs`
//! (`macvlan_containers_serve_whoever_comes_in_by_their_parent`).

use std::net::{IpAddr, SocketAddr, UdpSocket};

use samport::lab::{Backend, Bridge, CLIENT_V4, CLIENT_V6, Namespace};
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::datagrams::{Echo, ask_connected};
use samport_tests::served::{LISTEN, TARGET, fronts_of_second, second_client, wait_for_answer};
use samport_tests::socket::{ask_on, connect_between};
use samport_tests::{HOST_V4, HOST_V6, Lab, Server, TIMEOUT, require_root};

use crate::inside::{Inside, addresses};
use crate::matrix::assert_all_served;

/// Addresses of a client, IPv4 first, that are of no network the host is in.
pub const FAR: [&str; 2] = ["10.9.0.2", "2001:db8:9::2"];

/// What is served, where [`Inside`] is not used.
const PORTS: [&str; 4] = ["-p", "80:9090", "-p", "80:9090/udp"];

/// Flows that are opened from each address.
const FLOWS: usize = 3;

/// Asks over TCP and UDP from an address of a namespace, each time on a new flow.
fn assert_served_from(client: &Namespace, source: IpAddr, fronts: &[SocketAddr]) {
    let source = SocketAddr::new(source, 0);
    client.run(|| {
        for front in fronts.iter().filter(|front| front.is_ipv4() == source.is_ipv4()) {
            for _ in 0..FLOWS {
                let stream = connect_between(source, *front)
                    .unwrap_or_else(|e| panic!("{source} to {front}: {e}"));
                for _ in 0..2 {
                    let answer = ask_on(&stream, "/bytes/100000").unwrap();
                    assert_eq!((answer.client.ip(), answer.body.len()), (source.ip(), 100_000));
                }
                let socket = UdpSocket::bind(source).unwrap();
                socket.set_read_timeout(Some(TIMEOUT)).unwrap();
                socket.connect(front).unwrap();
                for _ in 0..2 {
                    ask_connected(&socket).unwrap_or_else(|e| panic!("{source} to {front}: {e}"));
                }
            }
        }
    });
}

/// The same from [`FAR`].
pub fn assert_far_served(client: &Namespace, fronts: &[SocketAddr]) {
    for source in FAR {
        assert_served_from(client, source.parse().unwrap(), fronts);
    }
}

fn outside() -> [IpAddr; 2] {
    [CLIENT_V4.into(), CLIENT_V6.into()]
}

/// Gives a namespace an address that is to be used in this moment: without `nodad` the kernel lets an address of IPv6 be
/// used only when a worker of its own has looked at it.
pub fn add_to_lo(namespace: &Namespace, address: &str) {
    let nodad = address.contains(':').then_some("nodad");
    let add = ["addr", "add", address, "dev", "lo"].into_iter().chain(nodad);
    namespace.ip(&add.collect::<Vec<_>>()).unwrap();
}

/// Gives a namespace the addresses of [`FAR`].
fn add_far(client: &Namespace) {
    for address in FAR {
        add_to_lo(client, address);
    }
}

pub fn set_rp_filter(host: &Namespace, value: &str) {
    host.sysctl("net/ipv4/conf/all/rp_filter", value).unwrap();
}

/// A lab whose rp_filter is strict before samport starts.
fn strict(tune: impl FnOnce(&Lab)) -> Inside {
    Inside::start_tuned(Lab::builder().backends(2), &[], |lab| {
        set_rp_filter(lab.host(), "1");
        tune(lab);
    })
}

/// Checks with rp_filter as it is, which is strict, and then with each other value while samport runs.
fn with_each_rp_filter(host: &Namespace, check: impl Fn()) {
    check();
    for value in ["2", "0"] {
        set_rp_filter(host, value);
        check();
    }
}

/// A second link between the client and the host, `eth1` of both; the client is at [`FAR`]. Its link-local address is
/// the same on both, because samport's answers leave by the link that the questions come by, and IPv6 looks for the
/// gateway of the other link's route there.
pub fn add_second_link(lab: &Lab) {
    let client = lab.client();
    lab.host()
        .batch(&format!(
            "link add name eth1 type veth peer name eth1 netns {}\n\
             addr add 198.51.100.1/24 dev eth1\n\
             addr add 2001:db8:3::1/64 dev eth1 nodad\n\
             link set eth1 up\n",
            client.name()
        ))
        .unwrap();
    client
        .batch(
            "addr add 198.51.100.2/24 dev eth1\n\
             addr add 2001:db8:3::2/64 dev eth1 nodad\n\
             link set eth1 up\n\
             addr add fe80::2/64 dev eth0 nodad\n\
             addr add fe80::2/64 dev eth1 nodad\n",
        )
        .unwrap();
    add_far(client);
}

/// The host's routes to [`FAR`] lead out of `eth1` only; everything else out of `eth0`.
fn route_replies_by_eth1(lab: &Lab) {
    lab.host()
        .batch(&format!(
            "route add default via {CLIENT_V4} dev eth0\n\
             route add 10.9.0.0/24 via 198.51.100.2 dev eth1\n\
             route add ::/0 via fe80::2 dev eth0\n\
             route add 2001:db8:9::/64 via fe80::2 dev eth1\n"
        ))
        .unwrap();
}

/// What the client sends to the host's addresses leaves by `eth1`.
pub fn route_requests_by_eth1(client: &Namespace) {
    client
        .batch(&format!(
            "route add {HOST_V4}/32 via 198.51.100.1 dev eth1\n\
             route add {HOST_V6}/128 via 2001:db8:3::1 dev eth1\n"
        ))
        .unwrap();
}

/// A lab with two backends and both of the host's links to the client served.
pub fn start_with_two_links(tune: impl FnOnce(&Lab)) -> Inside {
    Inside::start_tuned(Lab::builder().backends(2), &["-i", "eth1"], |lab| {
        add_second_link(lab);
        tune(lab);
    })
}

/// Most other tests of this suite have none either.
#[test]
fn a_host_without_a_default_route_serves_who_is_on_its_link() {
    let inside = Inside::start_tuned(Lab::builder().backends(2), &[], |lab| {
        set_rp_filter(lab.host(), "0");
        add_far(lab.client());
    });
    let lab = inside.lab();
    for family in ["-4", "-6"] {
        assert_eq!(lab.host().ip(&[family, "route", "show", "default"]).unwrap(), "");
    }
    for own in outside() {
        assert_served_from(lab.client(), own, &inside.served.fronts());
    }
    // No route leads there. IPv4 takes the client for a neighbour then; IPv6 has no way to answer.
    assert_served_from(lab.client(), FAR[0].parse().unwrap(), &inside.served.fronts());
}

#[test]
fn a_client_that_is_reached_by_another_interface_than_it_comes_in_by_is_served() {
    let inside = start_with_two_links(|lab| {
        set_rp_filter(lab.host(), "2");
        route_replies_by_eth1(lab);
    });
    assert_far_served(inside.lab().client(), &inside.served.fronts());
    set_rp_filter(inside.lab().host(), "0");
    assert_far_served(inside.lab().client(), &inside.served.fronts());
}

#[test]
fn a_connection_goes_on_when_its_client_comes_in_by_another_interface() {
    for rp_filter in ["0", "2"] {
        let inside = start_with_two_links(|lab| {
            set_rp_filter(lab.host(), rp_filter);
            route_replies_by_eth1(lab);
        });
        let client = inside.lab().client();
        let open = inside.served.fronts().into_iter().zip(FAR).map(|(front, source)| {
            let source = SocketAddr::new(source.parse().unwrap(), 0);
            let stream = client.run(|| connect_between(source, front)).unwrap();
            let backend = ask_on(&stream, "/").unwrap().backend;
            (stream, backend)
        });
        let open: Vec<_> = open.collect();
        route_requests_by_eth1(client);
        for (stream, backend) in &open {
            assert_eq!(ask_on(stream, "/bytes/100000").unwrap().backend, *backend);
        }
    }
}

/// The host's routes to [`FAR`] are in table 100 only.
fn route_replies_by_table_100(lab: &Lab) {
    let routes = format!(
        "route add 10.9.0.0/24 via {CLIENT_V4} dev eth0 table 100\n\
         route add 2001:db8:9::/64 via {CLIENT_V6} dev eth0 table 100\n"
    );
    lab.host().batch(&routes).unwrap();
}

/// Source routing, as on a host with two providers: the address of a reply selects the table it is routed by.
#[test]
fn a_client_that_only_a_rule_for_the_services_address_leads_to_is_served() {
    let inside = strict(|lab| {
        add_far(lab.client());
        for (family, vip) in [("-4", HOST_V4.to_string()), ("-6", HOST_V6.to_string())] {
            let rule = [family, "rule", "add", "from", &vip, "lookup", "100"];
            lab.host().ip(&rule).unwrap();
        }
        route_replies_by_table_100(lab);
    });
    with_each_rp_filter(inside.lab().host(), || {
        assert_far_served(inside.lab().client(), &inside.served.fronts());
    });
}

/// Where the kernel has VRFs; otherwise it must say that it knows no such device.
#[test]
fn an_interface_in_a_vrf_is_served() {
    require_root();
    let probe = Namespace::new("vrf").unwrap();
    let vrf = ["link", "add", "vrf0", "type", "vrf", "table", "100"];
    if let Err(error) = probe.ip(&vrf) {
        println!("this kernel has no VRFs: {error:#}");
        assert!(error.to_string().contains("Unknown device type"), "{error:#}");
        return;
    }
    let inside = strict(|lab| {
        add_far(lab.client());
        lab.host().ip(&vrf).unwrap();
        // An IPv6 address is gone when its device changes the VRF.
        let enslave = format!(
            "link set vrf0 up\n\
             link set eth0 master vrf0\n\
             addr replace {HOST_V6}/64 dev eth0 nodad\n"
        );
        lab.host().batch(&enslave).unwrap();
        route_replies_by_table_100(lab);
    });
    let client = inside.lab().client();
    with_each_rp_filter(inside.lab().host(), || {
        for own in outside() {
            assert_served_from(client, own, &inside.served.fronts());
        }
        assert_far_served(client, &inside.served.fronts());
    });
}

/// An address that comes and goes, as VRRP's and a cluster's do.
#[test]
fn an_address_that_is_added_as_a_host_route_is_served_as_long_as_it_is_there() {
    let inside = strict(|_| ());
    let lab = inside.lab();
    with_each_rp_filter(lab.host(), || {
        for (vip, length) in [("192.0.2.200", "32"), ("2001:db8:1::200", "128")] {
            let address = format!("{vip}/{length}");
            let front = SocketAddr::new(vip.parse().unwrap(), LISTEN);
            lab.host().ip(&["addr", "add", &address, "dev", "eth0", "nodad"]).unwrap();
            wait_for_answer(lab, front);
            for own in outside() {
                assert_served_from(lab.client(), own, &[front]);
            }
            lab.host().ip(&["addr", "del", &address, "dev", "eth0"]).unwrap();
        }
    });
}

/// Links a namespace to a switch.
fn plug_into(switch: &Namespace, port: &str, namespace: &Namespace, device: &str) {
    let script = format!(
        "link add name {port} type veth peer name {device} netns {}\n\
         link set {port} master switch up\n",
        namespace.name()
    );
    switch.batch(&script).unwrap();
    namespace.ip(&["link", "set", device, "up"]).unwrap();
}

/// Clients, host and backend on one segment: the host has one interface.
#[test]
fn a_host_with_one_interface_serves_clients_and_backends_of_the_same_segment() {
    require_root();
    let [switch, host, client, backend] =
        ["switch", "host", "client", "web"].map(|role| Namespace::new(role).unwrap());
    switch.batch("link add switch type bridge\nlink set switch up\n").unwrap();
    for (port, namespace) in [("p1", &host), ("p2", &client), ("p3", &backend)] {
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0").unwrap();
        plug_into(&switch, port, namespace, "eth0");
    }
    set_rp_filter(&host, "1");
    let on_link = |v4: IpAddr, v6: IpAddr| {
        format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n")
    };
    host.batch(&on_link(HOST_V4.into(), HOST_V6.into())).unwrap();
    client.batch(&on_link(CLIENT_V4.into(), CLIENT_V6.into())).unwrap();
    // It knows nobody but the host, so that its answers go there.
    let alone = format!(
        "addr add 192.0.2.50/32 dev eth0\n\
         route add {HOST_V4} dev eth0 src 192.0.2.50\n\
         route add default via {HOST_V4}\n\
         addr add 2001:db8:1::50/128 dev eth0 nodad\n\
         route add {HOST_V6} dev eth0\n\
         route add ::/0 via {HOST_V6}\n"
    );
    backend.batch(&alone).unwrap();
    let _server = backend.run(|| Server::bind("web", TARGET)).unwrap();
    let _echo = backend.run(|| Echo::bind("web", TARGET)).unwrap();
    let backends = ["--backend", "192.0.2.50", "--backend", "2001:db8:1::50"];
    let options = ["-i", "eth0", "--forward", "neigh"];
    let _daemon = Daemon::start_in(&host, &[&PORTS[..], &options, &backends].concat());
    let fronts = [HOST_V4.into(), HOST_V6.into()].map(|ip: IpAddr| SocketAddr::new(ip, LISTEN));
    with_each_rp_filter(&host, || {
        for own in outside() {
            assert_served_from(&client, own, &fronts);
        }
    });
}

/// The interface is a bridge, with the uplink and the containers as its ports. A container on it is a client of the
/// backends' own segment.
#[test]
fn a_bridge_that_is_uplink_and_the_backends_own_is_served() {
    require_root();
    for forward in ["auto", "neigh"] {
        let mut lab = Lab::builder().backends(2).build().unwrap();
        lab.add_container(Bridge::Backends).unwrap();
        lab.add_container(Bridge::Other).unwrap();
        set_rp_filter(lab.host(), "1");
        let uplink = format!(
            "addr flush dev eth0\n\
             link set eth0 master br0\n\
             addr add {HOST_V4}/24 dev br0\n\
             addr add {HOST_V6}/64 dev br0 nodad\n"
        );
        lab.host().batch(&uplink).unwrap();
        let _servers = lab.serve(TARGET).unwrap();
        let echo = |backend: &Backend| {
            backend.namespace().run(|| Echo::bind(backend.name(), TARGET)).unwrap()
        };
        let _echoes: Vec<_> = lab.backends().iter().map(echo).collect();
        let file = Backends::dual(&lab, TARGET);
        let options = ["-i", "br0", "--file", file.path(), "--forward", forward];
        let _daemon = Daemon::start(&lab, &[&PORTS[..], &options].concat());
        let fronts = [lab.front(LISTEN), lab.front_v6(LISTEN)];
        with_each_rp_filter(lab.host(), || {
            for own in outside() {
                assert_served_from(lab.client(), own, &fronts);
            }
            for container in lab.containers() {
                for own in [container.v4(0).ip(), container.v6(0).ip()] {
                    assert_served_from(container.namespace(), own, &fronts);
                }
            }
        });
    }
}

/// `bpf_fib_lookup` finds no route on a device that does not forward.
#[test]
fn a_host_that_does_not_forward_serves_everybody() {
    for options in [&[][..], &["--forward", "neigh"]] {
        assert_all_served(Lab::builder(), options, |lab| {
            lab.host().sysctl("net/ipv4/ip_forward", "0").unwrap();
            lab.host().sysctl("net/ipv6/conf/all/forwarding", "0").unwrap();
        });
    }
}

/// The kernel accepts a source from any next hop of the route to it.
#[test]
fn a_client_with_two_equal_routes_to_it_is_served_by_both_where_rp_filter_is_strict() {
    let inside = start_with_two_links(|lab| {
        set_rp_filter(lab.host(), "1");
        let routes = format!(
            "route add 10.9.0.0/24 nexthop via {CLIENT_V4} dev eth0 nexthop via 198.51.100.2 dev eth1\n\
             route add 2001:db8:9::/64 nexthop via fe80::2 dev eth0 nexthop via fe80::2 dev eth1\n"
        );
        lab.host().batch(&routes).unwrap();
    });
    let client = inside.lab().client();
    assert_far_served(client, &inside.served.fronts());
    route_requests_by_eth1(client);
    assert_far_served(client, &inside.served.fronts());
}

/// A client in the network 10.8.N.0/24 behind a container that routes, like a VPN's server.
fn client_behind(router: &Backend, host: &Namespace, (bridge, net): (&str, u8)) -> Namespace {
    let client = Namespace::new("behind").unwrap();
    let [v4, v6] = [format!("10.8.{net}"), format!("2001:db8:8:{net}:")];
    client.sysctl("net/ipv6/conf/default/accept_dad", "0").unwrap();
    router.namespace().sysctl("net/ipv4/ip_forward", "1").unwrap();
    router.namespace().sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    let router_end = format!(
        "link add name tun0 type veth peer name eth0 netns {}\n\
         addr add {v4}.1/24 dev tun0\n\
         addr add {v6}:1/64 dev tun0 nodad\n\
         link set tun0 up\n",
        client.name()
    );
    router.namespace().batch(&router_end).unwrap();
    let client_end = format!(
        "addr add {v4}.2/24 dev eth0\n\
         addr add {v6}:2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {v4}.1\n\
         route add ::/0 via {v6}:1\n"
    );
    client.batch(&client_end).unwrap();
    let host_routes = format!(
        "route add {v4}.0/24 via {} dev {bridge}\n\
         route add {v6}:/64 via {} dev {bridge}\n",
        router.v4(0).ip(),
        router.v6(0).ip()
    );
    host.batch(&host_routes).unwrap();
    client
}

#[test]
fn clients_behind_a_container_that_routes_are_served() {
    let mut inside = strict(|_| ());
    // A backend that routes would answer these clients itself, past the host: another backend is to.
    inside.served.change(("~", "web-1", "weight 0"), |file| file.set_weight("web-1", 0));
    let lab = inside.lab();
    let routers =
        [(inside.neighbour(), "br0"), (inside.stranger(), "br1"), (&lab.backends()[0], "br0")];
    let clients = routers.into_iter().zip(1..).map(|((router, bridge), net)| {
        let own = [format!("10.8.{net}.2"), format!("2001:db8:8:{net}::2")];
        (client_behind(router, lab.host(), (bridge, net)), own)
    });
    let clients: Vec<_> = clients.collect();
    with_each_rp_filter(lab.host(), || {
        for (client, own) in &clients {
            for own in own {
                assert_served_from(client, own.parse().unwrap(), &addresses());
            }
        }
    });
}

/// Replies of the second interface's address leave by that interface, as on a machine with two uplinks in the cloud;
/// containers that dial it are routed to as ever.
#[test]
fn containers_that_dial_an_address_with_rules_of_its_own_are_served() {
    let mut second = None;
    let inside = Inside::start_tuned(Lab::builder().backends(2), &["-i", "eth1"], |lab| {
        second = Some(second_client(lab));
        let host = lab.host();
        host.ip(&["rule", "add", "from", "198.51.100.1", "lookup", "100"]).unwrap();
        let default = ["route", "add", "default", "via", "198.51.100.2", "dev", "eth1"];
        host.ip(&[&default[..], &["table", "100"]].concat()).unwrap();
    });
    // IPv6 would ask on the bridge for the gateway that the rule leads replies to: they are lost.
    let [front, _] = fronts_of_second();
    for container in inside.lab().containers() {
        assert_served_from(container.namespace(), container.v4(0).ip(), &[front]);
    }
}

/// A container of the bridge that is the uplink becomes a backend, and stops being one, with connections open.
#[test]
fn a_clients_connections_outlive_its_becoming_a_backend_on_the_uplink() {
    require_root();
    let mut lab = Lab::builder().backends(1).build().unwrap();
    lab.add_container(Bridge::Backends).unwrap();
    let uplink = format!(
        "addr flush dev eth0\n\
         link set eth0 master br0\n\
         addr add {HOST_V4}/24 dev br0\n"
    );
    lab.host().batch(&uplink).unwrap();
    let _servers = lab.serve(TARGET).unwrap();
    let app = &lab.containers()[0];
    let _server = app.serve(TARGET).unwrap();
    let mut file = Backends::dual(&lab, TARGET);
    let options = ["-i", "br0", "-p", "80:9090", "--file", file.path(), "--drain", "0"];
    let daemon = Daemon::start(&lab, &options);
    let front = lab.front(LISTEN);
    // Of web-1: the container's own connections to itself end with it.
    let open = || {
        let one = || {
            let stream = connect_between(SocketAddr::new(app.v4(0).ip(), 0), front).unwrap();
            let by = ask_on(&stream, "/").unwrap().backend;
            (stream, by)
        };
        let found = || std::iter::repeat_with(one).take(100).find(|(_, by)| by == "web-1");
        app.namespace().run(found).expect("one in two is answered by web-1").0
    };
    let before = open();
    let mark = daemon.mark();
    file.add("app-1", app.v4(TARGET));
    daemon.wait_for_line_after(mark, "+ app-1", TIMEOUT);
    ask_on(&before, "/").expect("it goes on when its client has become a backend");
    let meanwhile = open();
    let mark = daemon.mark();
    file.remove("app-1");
    daemon.wait_for_line_after(mark, "- app-1", TIMEOUT);
    ask_on(&meanwhile, "/").expect("it goes on when its client is none any more");
}

/// Two links to another machine: requests go by the one, and answers come by the other.
#[test]
fn a_backend_on_another_machine_may_answer_by_another_interface() {
    require_root();
    for forward in ["neigh", "stack"] {
        let lab = Lab::builder().backends(1).build().unwrap();
        let remote = Namespace::new("remote").unwrap();
        set_rp_filter(lab.host(), "0");
        set_rp_filter(&remote, "0");
        for (device, net) in [("eth2", 2), ("eth3", 3)] {
            let link = format!(
                "link add name {device} type veth peer name {device} netns {}\n\
                 addr add 10.77.{net}.1/24 dev {device}\n\
                 link set {device} up\n",
                remote.name()
            );
            lab.host().batch(&link).unwrap();
            let far = format!("addr add 10.77.{net}.2/24 dev {device}\nlink set {device} up\n");
            remote.batch(&far).unwrap();
            for namespace in [lab.host(), &remote] {
                namespace.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0").unwrap();
            }
        }
        remote.ip(&["route", "add", "default", "via", "10.77.2.1"]).unwrap();
        let _server = remote.run(|| Server::bind("remote", TARGET)).unwrap();
        let options = ["-p", "80:9090", "-i", "eth0", "--forward", forward];
        let backends = ["--backend", "10.77.3.2", "--backend", "10.77.2.2"];
        let _daemon = Daemon::start_in(lab.host(), &[&options[..], &backends].concat());
        let front = lab.front(LISTEN);
        wait_for_answer(&lab, front);
        lab.client().run(|| {
            for number in 0..20 {
                let stream = connect_between(SocketAddr::new(CLIENT_V4.into(), 0), front)
                    .unwrap_or_else(|e| panic!("{forward}, connection {number}: {e}"));
                ask_on(&stream, "/").unwrap();
            }
        });
    }
}
