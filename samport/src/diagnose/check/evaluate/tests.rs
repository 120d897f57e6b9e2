use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::control::admission::ServiceConflict;
use crate::diagnose::check::exit_of;
use crate::diagnose::check::facts::{Collected, Limits};
use crate::diagnose::check::firewall::Inspector;
use crate::diagnose::check::nodes::{ClusterSeen, NodeSeen};
use crate::discovery::endpoint::Endpoint;
use crate::discovery::{Engine, Seen};
use crate::model::allow::Networks;
use crate::model::snapshots::Pages;
use crate::model::test::candidate;
use crate::model::{Egress, HostDevice, Reach};
use crate::net::netlink::LinkState;

const ETH0: u32 = 2;

/// A machine on which everything is well.
fn well() -> Facts {
    let addresses = ["198.51.100.7", "fe80::1", "2001:db8::7"].map(|addr| addr.parse().unwrap());
    let eth0 = Device { addresses: addresses.into(), ..Device::named(ETH0, "eth0") };
    let lo = Device { ifindex: 1, name: "lo".into(), is_ethernet: false, ..eth0.clone() };
    Facts {
        limits: Limits {
            allow: Networks::new(),
            max_backends: 16,
            conflict: ServiceConflict::Refuse,
        },
        kernel: Ok((6, 18)),
        btf: true,
        privileges: Ok(()),
        tcx: Tcx::Present,
        bpffs: Bpffs::Mounted,
        local: Ok(()),
        devices: BTreeMap::from([(1, lo), (ETH0, eth0)]),
        links: BTreeMap::from([(ETH0, LinkState { is_up: true, xdp: None })]),
        interfaces: vec!["eth0".into()],
        forwarding: [true; 2],
        strict: vec!["eth0".into()],
        not_strict: Ok(Vec::new()),
        at_tcx: BTreeMap::from([("eth0".into(), vec!["samport_forward".into()])]),
        at_xdp: BTreeMap::new(),
        engines: Vec::new(),
        ports: vec![("80".parse().unwrap(), Ok(()))],
        alone: Ok(()),
        sandbox: true,
        cluster: None,
        inspectors: Ok(Vec::new()),
        hash_seed: Ok(Look::There("/var/lib/samport/hash-seed".into())),
    }
}

fn lines(facts: &Facts) -> Vec<String> {
    evaluate(facts).iter().map(ToString::to_string).collect()
}

/// What is found on a machine that differs from a good one in one thing, all that is well left out.
fn about(change: impl FnOnce(&mut Facts)) -> (Vec<String>, Option<Exit>) {
    let mut facts = well();
    change(&mut facts);
    let findings = evaluate(&facts);
    let bad = findings.iter().filter(|finding| finding.level != Level::Good);
    (bad.map(ToString::to_string).collect(), exit_of(&findings))
}

/// Panics unless there is one line, which begins and ends like this, and the exit code is this.
fn assert_said(change: impl FnOnce(&mut Facts), begin: &str, end: &str, exit: Option<Exit>) {
    let (said, code) = about(change);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with(begin) && said[0].ends_with(end), "{said:?}");
    assert_eq!(code, exit, "{said:?}");
}

fn node(name: &str) -> NodeSeen {
    NodeSeen {
        name: name.into(),
        at: "192.0.2.2:6080".parse().unwrap(),
        has_own_end: true,
        answers: true,
        drains: false,
        path_mtu: Some(1_500),
    }
}

fn cluster(nodes: Collected<Vec<NodeSeen>>) -> ClusterSeen {
    ClusterSeen { own: "n1".into(), tunnel_port: ("6080/udp".parse().unwrap(), Ok(())), nodes }
}

#[test]
fn nodes_of_a_cluster_are_asked() {
    let mut facts = well();
    let wide = NodeSeen { path_mtu: Some(9_000), drains: true, ..node("n3") };
    let six = NodeSeen { at: "[2001:db8::2]:6080".parse().unwrap(), ..node("n4") };
    let unknown = NodeSeen { path_mtu: None, ..node("n5") };
    facts.cluster = Some(cluster(Ok(vec![node("n2"), wide, six, unknown])));
    let said = lines(&facts);
    for line in [
        "ok    this node: n1; others: n2, n3, n4, n5",
        "ok    node n2 (192.0.2.2:6080) answers; the path takes packets of 1500 bytes: those of containers fit up to 1472",
        "ok    node n3 (192.0.2.2:6080) answers, and is drained; the path takes packets of 9000 bytes",
        "ok    node n4 ([2001:db8::2]:6080) answers; the path takes packets of 1500 bytes: those of containers fit up to 1452",
        "ok    node n5 (192.0.2.2:6080) answers",
    ] {
        assert!(said.iter().any(|one| one == line), "no {line} in {said:#?}");
    }
}

#[test]
fn what_is_in_the_way_of_a_cluster_is_said() {
    let of =
        |seen: NodeSeen| move |facts: &mut Facts| facts.cluster = Some(cluster(Ok(vec![seen])));
    let silent = NodeSeen { answers: false, ..node("n2") };
    let way_out = "let 6080/udp pass from here, and 6080/udp from there";
    assert_said(
        of(silent),
        "warn  node n2 (192.0.2.2:6080) does not answer → start samport",
        way_out,
        None,
    );
    let other = NodeSeen { has_own_end: false, answers: false, ..node("n2") };
    assert_said(
        of(other),
        "warn  node n2 (192.0.2.2:6080): no interface of -i",
        "--node-address",
        None,
    );
    let old = |facts: &mut Facts| {
        facts.kernel = Ok((6, 1));
        facts.cluster = Some(cluster(Ok(vec![node("n2")])));
    };
    assert_said(
        old,
        "warn  connections over IPv6 that come from other nodes",
        "have clients use IPv4",
        None,
    );
    let bad = |facts: &mut Facts| facts.cluster = Some(cluster(Err("no file; write one".into())));
    assert_said(bad, "FAIL  no file", "write one", Some(Exit::Usage));
    let taken = |facts: &mut Facts| {
        facts.cluster = Some(cluster(Ok(Vec::new())));
        let seen = facts.cluster.as_mut().unwrap();
        seen.tunnel_port.1 =
            Err("port 6080/udp is taken by vpn (pid 7); stop it, or choose".into());
    };
    assert_said(
        taken,
        "warn  port 6080/udp is taken by vpn (pid 7); packets",
        "on all nodes",
        None,
    );
}

#[test]
fn a_good_machine_gets_five_good_lines() {
    assert_eq!(
        lines(&well()),
        [
            "ok    kernel 6.18 · BTF · tcx · CAP_BPF CAP_NET_ADMIN CAP_PERFMON · bpffs · cgroup2",
            "ok    eth0: Ethernet, up, 198.51.100.7 2001:db8::7",
            "ok    port 80 is free",
            "ok    hash seed: /var/lib/samport/hash-seed",
            "ok    no firewall rules for what comes in",
        ]
    );
}

#[test]
fn an_old_kernel_fails_and_one_without_tcx_is_fine() {
    let failed = Some(Exit::Kernel);
    assert_said(|f| f.kernel = Ok((5, 13)), "FAIL  kernel 5.13 ", "is needed", failed);
    assert_said(|f| f.kernel = Ok((5, 15)), "warn  kernel 5.15 may", "take a newer one", None);
    assert_eq!(about(|f| f.kernel = Ok((6, 1))).0, [""; 0]);
    let mut old = well();
    old.tcx = Tcx::Absent;
    assert!(lines(&old)[0].contains(" · clsact (no tcx"), "{:?}", lines(&old));
    assert_said(
        |f| f.tcx = Tcx::Unknown("EPERM".into()),
        "warn  cannot find out whether",
        "as root",
        None,
    );
}

#[test]
fn what_samport_can_do_without_is_a_warning() {
    assert_said(|f| f.btf = false, "warn  the kernel has no BTF", "their fields", None);
    assert_said(|f| f.bpffs = Bpffs::NotMounted, "warn  bpffs", "bpf /sys/fs/bpf", None);
    assert_said(|f| f.local = Err("no cgroup2".into()), "warn  clients on", "--no-local", None);
    assert_said(|f| f.sandbox = false, "warn  the sandbox is off", "please report that", None);
    let no_place = Bpffs::NoPlace("ENOENT".into());
    assert_said(|f| f.bpffs = no_place, "FAIL  there is no place", "with BPF", Some(Exit::Kernel));
}

#[test]
fn a_seed_that_cannot_be_used_fails_and_one_that_is_not_kept_is_a_warning() {
    let usage = Some(Exit::Usage);
    let no_good = |f: &mut Facts| f.hash_seed = Err("the file has mode 0644; chmod 600 it".into());
    assert_said(no_good, "FAIL  the file has mode 0644 →", "chmod 600 it", usage);
    let sentence = "it cannot be kept; make that folder writable".to_owned();
    let lost = Look::UntilReboot("/run/samport/hash-seed".into(), sentence);
    assert_said(|f| f.hash_seed = Ok(lost), "warn  it cannot be kept →", "writable", None);
    let mut new = well();
    new.hash_seed = Ok(Look::New("/a/b".into()));
    let line = "ok    hash seed: /a/b, which `samport run` will make".to_owned();
    assert!(lines(&new).contains(&line), "{:?}", lines(&new));
}

#[test]
fn missing_privileges_decide_the_exit_code() {
    let lacks = |f: &mut Facts| {
        f.privileges = Err("samport lacks CAP_BPF; run it as root".into());
        f.ports[0].1 = Err("port 80 is taken; stop it".into());
    };
    let (said, exit) = about(lacks);
    assert_eq!(said[0], "FAIL  samport lacks CAP_BPF → run it as root");
    assert_eq!((said.len(), exit), (2, Some(Exit::Privileges)));
}

#[test]
fn an_interface_must_be_there_and_speak_ethernet() {
    for name in ["eth7", "lo"] {
        let begin = if name == "lo" { "FAIL  lo carries" } else { "FAIL  there is no interface" };
        let end = if name == "lo" { "needs" } else { "this machine has lo, eth0" };
        assert_said(|f| f.interfaces = vec![name.into()], begin, end, Some(Exit::Kernel));
    }
}

#[test]
fn an_interface_that_is_down_or_has_only_link_local_addresses_is_a_warning() {
    let down = |f: &mut Facts| f.links.get_mut(&ETH0).unwrap().is_up = false;
    assert_said(down, "warn  eth0 is down", "ip link set eth0 up", None);
    let bare = |f: &mut Facts| {
        f.devices.get_mut(&ETH0).unwrap().addresses = BTreeSet::from(["fe80::1".parse().unwrap()]);
    };
    assert_said(bare, "warn  eth0 has no address", "will follow", None);
}

#[test]
fn without_forwarding_sources_of_containers_cannot_be_checked() {
    let begin = "warn  IPv4 forwarding is off (net.ipv4.conf.lo.forwarding): samport cannot check";
    let end = "are theirs → sysctl -w net.ipv4.conf.lo.forwarding=1";
    assert_said(|f| f.forwarding = [false, true], begin, end, None);
    let (begin, end) = ("warn  IPv6 forwarding is off", "where accept_ra is not 2");
    assert_said(|f| f.forwarding = [true, false], begin, end, None);
    let without_ipv6 = |f: &mut Facts| {
        f.forwarding = [true, false];
        let addresses = ["192.0.2.1", "fe80::1"].map(|addr| addr.parse().unwrap());
        f.devices.get_mut(&ETH0).unwrap().addresses = addresses.into();
    };
    assert_eq!(about(without_ipv6).0, [""; 0]);
}

#[test]
fn strict_filtering_that_samport_cannot_do_is_a_warning() {
    let reason = "samport cannot follow policy rule 9 (fwmark 0x1 lookup 5)";
    let marked = |f: &mut Facts| f.not_strict = Ok(vec![reason.into()]);
    let begin = format!("warn  {reason} → on eth0, use --allow");
    assert_said(marked, &begin, "who is served", None);
    let not_strict = |f: &mut Facts| {
        marked(f);
        f.strict.clear();
    };
    assert_eq!(about(not_strict).0, [""; 0]);
    let unseen = |f: &mut Facts| f.not_strict = Err("list routes: EPERM".into());
    assert_said(
        unseen,
        "warn  cannot find out whether strict rp_filter on eth0",
        "list routes: EPERM",
        None,
    );
}

#[test]
fn programs_of_others_are_named_and_our_own_are_not() {
    let xdp = |name: &str| BTreeMap::from([("eth0".to_owned(), name.to_owned())]);
    assert_said(
        |f| f.at_xdp = xdp("guard"),
        "warn  eth0 has an XDP program, guard",
        "beside it",
        None,
    );
    assert_eq!(about(|f| f.at_xdp = xdp("samport_xdp")).0, [""; 0]);
    let cilium = |f: &mut Facts| f.at_tcx.get_mut("eth0").unwrap().push("cil_from_netdev".into());
    assert_said(cilium, "warn  eth0 has other programs", "nothing else", None);
    assert!(about(cilium).0[0].contains(": cil_from_netdev →"));
}

/// Case 87: a container whose answers reach no client outside of this machine.
#[test]
fn a_container_without_a_route_back_is_named_once() {
    let place = HostDevice { ifindex: 9, mac: [2; 6], polls: false };
    let of = |port: &str, leads_out| Candidate {
        listen: port.parse().unwrap(),
        place: Some(Reach::Veth(place)),
        egress: Egress { leads_out: Some(leads_out), ..Egress::default() },
        ..candidate("web")
    };
    let seen = |candidates: &[Candidate]| Seen {
        engine: Engine::Docker,
        version: "29".into(),
        endpoint: Endpoint::find(Engine::Docker, Some("unix:///run/d.sock"), None).unwrap(),
        rootless: false,
        published: BTreeMap::new(),
        candidates: candidates.to_vec(),
        refused: Vec::new(),
    };
    let both = [of("80", false), of("443", false)];
    let begin = "warn  web has no IPv4 route to clients outside";
    assert_said(|f| f.engines = vec![Ok(seen(&both))], begin, "are served)", None);
    let (said, _) = about(|f| f.engines = vec![Ok(seen(&[of("80", true)]))]);
    assert!(said.is_empty(), "{said:?}");
}

/// Case 87: who would be left out by a run is left out in words here.
#[test]
fn containers_that_would_be_left_out_are_named_with_the_reason() {
    let of = |name: &str, port: &str| {
        let mut one = Candidate { listen: port.parse().unwrap(), ..candidate(name) };
        one.endpoint.set_port(9_000 + one.listen.port);
        one
    };
    let seen = |candidates: Vec<Candidate>| Seen {
        engine: Engine::Docker,
        version: "29".into(),
        endpoint: Endpoint::find(Engine::Docker, Some("unix:///run/d.sock"), None).unwrap(),
        rootless: false,
        published: BTreeMap::new(),
        candidates,
        refused: vec!["web-9 claims port 7000; --label-ports opens it".into()],
    };
    let one = |f: &mut Facts| {
        f.limits.max_backends = 1;
        f.engines = vec![Ok(seen(vec![of("a", "80"), of("b", "80"), of("c", "80")]))];
    };
    let begin = "warn  c is left out on port 80: more than 2 containers for each of the 1 backends";
    let (said, _) = about(one);
    assert!(said.iter().any(|line| line.starts_with(begin)), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("warn  web-9 claims port 7000")), "{said:?}");
}

#[test]
fn an_engine_that_does_not_answer_is_3_unless_more_is_wrong() {
    let absent = |f: &mut Facts| f.engines = vec![Err("cannot reach Docker; start it".into())];
    let begin = "FAIL  cannot reach Docker";
    assert_said(absent, begin, "→ start it", Some(Exit::Unreachable));
    let more = |f: &mut Facts| {
        absent(f);
        f.alone = Err("port 80 on eth0 is served by samport x (pid 7); stop it".into());
    };
    let (said, exit) = about(more);
    assert_eq!((said.len(), exit), (2, Some(Exit::Kernel)));
    assert_eq!(said[1], "FAIL  port 80 on eth0 is served by samport x (pid 7) → stop it");
}

#[test]
fn ports_that_are_taken_or_whose_address_is_nobodys_are_named() {
    let taken = |f: &mut Facts| f.ports[0].1 = Err("port 80 is taken; remove its `ports:`".into());
    assert_said(taken, "FAIL  port 80", "→ remove its `ports:`", Some(Exit::Kernel));
    let elsewhere = |f: &mut Facts| f.ports = vec![("192.0.2.1:80".parse().unwrap(), Ok(()))];
    assert_said(elsewhere, "warn  192.0.2.1:80 is not served", "when one gets it", None);
}

#[test]
fn a_firewall_is_named_once_with_the_ports_that_bypass_it() {
    let ufw = Inspector { name: "ufw".into(), drops: true };
    let both_families = |f: &mut Facts| f.inspectors = Ok(vec![ufw.clone(), ufw.clone()]);
    assert_said(
        both_families,
        "warn  ufw (it drops",
        "use --allow CIDR to say who is served",
        None,
    );
    assert!(about(both_families).0[0].contains("traffic on :80 will bypass it"));
    let unseen = |f: &mut Facts| {
        f.inspectors = Err("EPERM".into());
        f.ports.clear();
    };
    assert_said(
        unseen,
        "warn  cannot find out whether there is a firewall",
        "bypass it: use --allow CIDR",
        None,
    );
    assert!(about(unseen).0[0].contains("traffic on served ports"));
}

#[test]
fn what_is_said_of_machines_is_as_it_was() {
    type Change = (&'static str, fn(&mut Facts));
    let changes: [Change; 22] = [
        ("kernel 5.13", |f| f.kernel = Ok((5, 13))),
        ("kernel 5.15", |f| f.kernel = Ok((5, 15))),
        ("no BTF", |f| f.btf = false),
        ("no tcx", |f| f.tcx = Tcx::Absent),
        ("tcx not known", |f| f.tcx = Tcx::Unknown("EPERM".into())),
        ("no bpffs", |f| f.bpffs = Bpffs::NotMounted),
        ("no sysfs", |f| f.bpffs = Bpffs::NoPlace("ENOENT".into())),
        ("no cgroup2", |f| f.local = Err("no cgroup2".into())),
        ("--sandbox off", |f| f.sandbox = false),
        ("hash seed missing", |f| f.hash_seed = Ok(Look::New("/a/b".into()))),
        ("no interface eth7", |f| f.interfaces = vec!["eth7".into()]),
        ("interface lo", |f| f.interfaces = vec!["lo".into()]),
        ("eth0 down", |f| f.links.get_mut(&ETH0).unwrap().is_up = false),
        ("eth0 without address", |f| f.devices.get_mut(&ETH0).unwrap().addresses.clear()),
        ("no forwarding", |f| f.forwarding = [false; 2]),
        ("rp_filter", |f| f.not_strict = Ok(vec!["samport cannot follow policy rule 9".into()])),
        ("rp_filter not known", |f| f.not_strict = Err("list routes: EPERM".into())),
        ("XDP program", |f| f.at_xdp = BTreeMap::from([("eth0".into(), "guard".into())])),
        ("tcx program", |f| f.at_tcx.get_mut("eth0").unwrap().push("cil_from_netdev".into())),
        ("address of no device", |f| f.ports = vec![("192.0.2.1:80".parse().unwrap(), Ok(()))]),
        ("ufw", |f| f.inspectors = Ok(vec![Inspector { name: "ufw".into(), drops: true }])),
        ("firewall not known", |f| f.inspectors = Err("EPERM".into())),
    ];
    let mut pages = Pages::default();
    pages.add("samport check -i eth0 -p 80", &lines(&well()).join("\n"));
    for (name, change) in changes {
        let mut facts = well();
        change(&mut facts);
        let of_well = lines(&well());
        let said: Vec<_> = lines(&facts).into_iter().filter(|one| !of_well.contains(one)).collect();
        pages.add(name, &said.join("\n"));
    }
    pages.assert("check");
}
