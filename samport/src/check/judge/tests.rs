use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::check::exit_of;
use crate::check::firewall::Inspector;
use crate::netlink::LinkState;

const ETH0: u32 = 2;

/// A machine on which everything is well.
fn well() -> Facts {
    let addresses = ["198.51.100.7", "fe80::1", "2001:db8::7"].map(|addr| addr.parse().unwrap());
    let eth0 = Device {
        ifindex: ETH0,
        name: "eth0".into(),
        is_veth: false,
        is_bridge: false,
        is_ethernet: true,
        addresses: BTreeSet::from(addresses),
    };
    let lo = Device { ifindex: 1, name: "lo".into(), is_ethernet: false, ..eth0.clone() };
    Facts {
        kernel: Ok((6, 18)),
        btf: true,
        privileges: Ok(()),
        tcx: Tcx::Present,
        bpffs: Bpffs::Mounted,
        local: Ok(()),
        devices: BTreeMap::from([(1, lo), (ETH0, eth0)]),
        links: BTreeMap::from([(ETH0, LinkState { is_up: true, xdp: None })]),
        interfaces: vec!["eth0".into()],
        at_tcx: BTreeMap::from([("eth0".into(), vec!["samport_forward".into()])]),
        at_xdp: BTreeMap::new(),
        engines: Vec::new(),
        ports: vec![("80".parse().unwrap(), Ok(()))],
        alone: Ok(()),
        inspectors: Ok(Vec::new()),
    }
}

fn lines(facts: &Facts) -> Vec<String> {
    judge(facts).iter().map(ToString::to_string).collect()
}

/// What is said about a machine that differs from a good one in one thing, all that is well left out.
fn about(change: impl FnOnce(&mut Facts)) -> (Vec<String>, Option<Exit>) {
    let mut facts = well();
    change(&mut facts);
    let findings = judge(&facts);
    let bad = findings.iter().filter(|finding| finding.level != Level::Good);
    (bad.map(ToString::to_string).collect(), exit_of(&findings))
}

/// Panics unless one line is said that begins and ends like this, and the exit code is this.
fn assert_said(change: impl FnOnce(&mut Facts), begin: &str, end: &str, exit: Option<Exit>) {
    let (said, code) = about(change);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with(begin) && said[0].ends_with(end), "{said:?}");
    assert_eq!(code, exit, "{said:?}");
}

#[test]
fn a_good_machine_gets_four_good_lines() {
    assert_eq!(
        lines(&well()),
        [
            "ok    kernel 6.18 · BTF · tcx · CAP_BPF CAP_NET_ADMIN CAP_PERFMON · bpffs · cgroup2",
            "ok    eth0: Ethernet, up, 198.51.100.7 2001:db8::7",
            "ok    port 80 is free",
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
    assert_said(|f| f.tcx = Tcx::Unknown("EPERM".into()), "warn  whether", "as root", None);
}

#[test]
fn what_samport_can_do_without_is_a_warning() {
    assert_said(|f| f.btf = false, "warn  the kernel has no BTF", "their fields", None);
    assert_said(|f| f.bpffs = Bpffs::NotMounted, "warn  bpffs", "bpf /sys/fs/bpf", None);
    assert_said(|f| f.local = Err("no cgroup2".into()), "warn  clients on", "--no-local", None);
    let no_place = Bpffs::NoPlace("ENOENT".into());
    assert_said(|f| f.bpffs = no_place, "FAIL  there is no place", "with BPF", Some(Exit::Kernel));
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
fn programs_of_others_are_named_and_our_own_are_not() {
    let xdp = |name: &str| BTreeMap::from([("eth0".to_owned(), name.to_owned())]);
    assert_said(|f| f.at_xdp = xdp("guard"), "warn  eth0 has an XDP program, guard", "it", None);
    assert_eq!(about(|f| f.at_xdp = xdp("samport_xdp")).0, [""; 0]);
    let cilium = |f: &mut Facts| f.at_tcx.get_mut("eth0").unwrap().push("cil_from_netdev".into());
    assert_said(cilium, "warn  eth0 has other programs", "nothing else", None);
    assert!(about(cilium).0[0].contains(": cil_from_netdev →"));
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
    assert_said(unseen, "warn  whether there is a firewall", "bypass it: use --allow CIDR", None);
    assert!(about(unseen).0[0].contains("traffic on served ports"));
}
