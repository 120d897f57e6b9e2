//! What hosts are made of and what is left on them.

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use samport::lab::cluster::{Cluster, Options, Routers};
use samport::lab::{Footprint, Namespace, output_of};
use samport_tests::require_root;
use samport_tests::served::LISTEN;

use super::Nodes;

/// Kinds of sockets, as `/proc/net` has them, and which words of a line say what a socket is.
const SOCKETS: [(&str, &[usize]); 9] = [
    ("tcp", &[1, 2, 3]),
    ("tcp6", &[1, 2, 3]),
    ("udp", &[1, 2]),
    ("udp6", &[1, 2]),
    ("raw", &[1, 2]),
    ("raw6", &[1, 2]),
    ("packet", &[2, 3, 4]),
    ("netlink", &[1, 2]),
    ("unix", &[5, 7]),
];
/// A TCP connection that is over, in hexadecimal: nobody has it any more.
const TIME_WAIT: &str = "06";

/// The sockets of all processes in a namespace, each as one line.
fn sockets(namespace: &Namespace) -> BTreeSet<String> {
    let of_kind = |(kind, words): &(&str, &[usize])| {
        let path = format!("/proc/thread-self/net/{kind}");
        let text = namespace.run(|| fs::read_to_string(&path)).unwrap_or_else(|error| {
            panic!("{path}: {error}");
        });
        let lines = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let is_over = |line: &Vec<&str>| kind.starts_with("tcp") && line[3] == TIME_WAIT;
        let shown = |line: Vec<&str>| {
            let known = words.iter().filter_map(|at| line.get(*at)).copied();
            format!("{kind} {}", known.collect::<Vec<_>>().join(" "))
        };
        lines.filter(|line| !is_over(line)).map(shown).collect::<Vec<_>>()
    };
    SOCKETS.iter().flat_map(of_kind).collect()
}

/// After the end of all samports nothing of them is left on any host: no program, map, pin, record, qdisc, filter or socket.
#[test]
fn nothing_is_left_on_any_host() {
    let mut nodes = Nodes::build(Options { hosts: 2, backends: 1, ..Options::default() });
    let prefix = nodes.cluster.prefix().to_owned();
    let mut before = Vec::new();
    for host in nodes.cluster.hosts() {
        let mut footprint = Footprint::with_prefix(&prefix);
        footprint.look_before(host.namespace()).unwrap();
        before.push((footprint, host.namespace().traces().unwrap(), sockets(host.namespace())));
    }
    nodes.run(&[]);
    for (host, (footprint, traces, sockets_before)) in nodes.cluster.hosts().iter().zip(&mut before)
    {
        footprint.look(host.namespace()).unwrap();
        let traces = &host.namespace().traces().unwrap() - traces;
        for begin in ["/sys/fs/bpf/samport/", "/run/samport/", "tcx ingress of eth0"] {
            assert!(traces.iter().any(|one| one.starts_with(begin)), "no {begin} in {traces:#?}");
        }
        let more = &sockets(host.namespace()) - sockets_before;
        for kind in ["udp", "netlink", "unix"] {
            assert!(more.iter().any(|one| one.starts_with(kind)), "no {kind} in {more:#?}");
        }
        for front in host.fronts(LISTEN) {
            assert_eq!(nodes.ask(front, 20).len(), 2);
        }
        footprint.look(host.namespace()).unwrap();
        println!("{}: {footprint}", host.name());
    }
    thread::scope(|scope| {
        for daemon in nodes.daemons.drain(..) {
            scope.spawn(|| daemon.stop());
        }
    });
    for (host, (footprint, _, sockets_before)) in nodes.cluster.hosts().iter().zip(&before) {
        footprint.wait_for_samport(host.namespace()).unwrap();
        let left = &sockets(host.namespace()) - sockets_before;
        assert!(left.is_empty(), "sockets that are left on {}: {left:#?}", host.name());
    }
    drop(nodes);
    before[0].0.wait_for_lab().unwrap();
}

/// What `ethtool -k` says of a device.
fn offloads(namespace: &Namespace, device: &str) -> String {
    output_of(namespace.command("ethtool").args(["-k", device])).unwrap()
}

/// The devices of a namespace but `lo`, each with the name that the lab has given it.
fn devices(namespace: &Namespace) -> Vec<(String, String)> {
    let devices = namespace.ip(&["-j", "link", "show"]).unwrap();
    let devices: serde_json::Value = serde_json::from_str(&devices).unwrap();
    let text =
        |device: &serde_json::Value, key: &str| device[key].as_str().unwrap_or_default().to_owned();
    let all = devices.as_array().unwrap().iter();
    let but_lo = all.filter(|device| device["ifname"] != "lo");
    but_lo.map(|device| (text(device, "ifname"), text(device, "ifalias"))).collect()
}

/// Devices of the host, of the bridge, of the switch, of routers and of containers: all of them.
#[test]
fn offload_is_off_on_all_devices() {
    require_root();
    let routers = Some(Routers { mtu: 1_400, are_silent: false });
    let options =
        Options { hosts: 2, backends: 1, offload_off: true, routers, ..Options::default() };
    let cluster = Cluster::build(options).unwrap();
    let mut all = 0;
    for namespace in cluster.namespaces() {
        for (device, alias) in devices(namespace) {
            all += 1;
            assert!(alias.starts_with(cluster.prefix()), "{device} of {}", namespace.name());
            let offloads = offloads(namespace, &device);
            for kind in [
                "tx-checksumming",
                "tcp-segmentation-offload",
                "generic-segmentation-offload",
                "generic-receive-offload",
            ] {
                let is_off = offloads.contains(&format!("\n{kind}: off"));
                assert!(is_off, "{kind} of {device} of {}:\n{offloads}", namespace.name());
            }
        }
    }
    // Of each host: eth0, br0, and both ends of a container's veth. Of each router: two. The client's, two bridges of
    // the switch, and its ports of five.
    assert_eq!(all, 2 * 4 + 2 * 2 + 1 + 2 + 5);
}

#[test]
fn hosts_forward_nothing_by_themselves() {
    require_root();
    let cluster = Cluster::build(Options { hosts: 1, ..Options::default() }).unwrap();
    let host = cluster.hosts()[0].namespace();
    for program in ["iptables", "ip6tables"] {
        let rules = output_of(host.command(program).args(["-w", "-S", "FORWARD"])).unwrap();
        assert_eq!(rules.trim(), "-P FORWARD DROP", "{program}");
    }
}
