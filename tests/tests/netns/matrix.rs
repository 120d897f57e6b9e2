//! What works anywhere works under every setting a host may have: clients outside, in containers, in
//! backends and on the host; TCP and UDP, IPv4 and IPv6.

use std::net::{IpAddr, SocketAddr};

use samport::lab::{Builder, output_of};
use samport_tests::datagrams::ask_whom;
use samport_tests::load::get;
use samport_tests::{Lab, served::LISTEN};

use crate::inside::{Inside, addresses, assert_served};

/// All clients under one setting.
pub fn assert_all_served(builder: Builder, options: &[&str], tune: impl FnOnce(&Lab)) {
    let inside = Inside::start_tuned(builder.backends(2), options, tune);
    let lab = inside.lab();
    assert_served(lab.client(), None, &inside.served.fronts());
    for container in lab.containers() {
        assert_served(container.namespace(), None, &addresses());
    }
    for backend in lab.backends() {
        assert_served(backend.namespace(), Some(backend.name()), &addresses());
    }
    let local: [SocketAddr; 2] =
        ["127.0.0.1", "::1"].map(|ip| (ip.parse::<IpAddr>().unwrap(), LISTEN).into());
    lab.host().run(|| {
        for front in inside.served.fronts().into_iter().chain(local) {
            for _ in 0..5 {
                get(front, "/").unwrap_or_else(|e| panic!("TCP to {front} on the host: {e}"));
                ask_whom(front).unwrap_or_else(|e| panic!("UDP to {front} on the host: {e}"));
            }
        }
    });
}

/// Sets whether the firewall sees what crosses the bridges.
fn firewall_on_bridges(lab: &Lab, setting: &str) {
    for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        lab.host().sysctl(&format!("net/bridge/{key}"), setting).unwrap();
    }
}

/// What Docker sets: nothing is forwarded but within a bridge, and conntrack is in use.
fn docker_like_rules(lab: &Lab) {
    for tables in ["iptables", "ip6tables"] {
        let mut rules = vec!["-P FORWARD DROP".to_owned()];
        rules.push("-A FORWARD -m conntrack --ctstate INVALID -j DROP".to_owned());
        rules.push("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned());
        for bridge in ["br0", "br1"] {
            rules.push(format!("-A FORWARD -i {bridge} -o {bridge} -j ACCEPT"));
        }
        for rule in rules {
            let mut command = lab.host().command(tables);
            output_of(command.arg("-w").args(rule.split(' '))).unwrap();
        }
    }
}

/// The source of what comes in must be reachable by the device it came in by, everywhere.
fn strict_reverse_path_filtering(lab: &Lab) {
    let inside =
        lab.backends().iter().chain(lab.containers()).map(samport::lab::Backend::namespace);
    for namespace in inside.chain([lab.client(), lab.host()]) {
        // The stricter of this one and the device's own counts.
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "1").unwrap();
    }
}

/// Case 71: bridge-nf-call 0.
#[test]
fn everybody_is_served_with_the_firewall_off_the_bridges() {
    assert_all_served(Lab::builder(), &[], |lab| firewall_on_bridges(lab, "0"));
}

/// Case 71: bridge-nf-call 1.
#[test]
fn everybody_is_served_with_the_firewall_on_the_bridges() {
    assert_all_served(Lab::builder(), &[], |lab| firewall_on_bridges(lab, "1"));
}

/// Cases 71 and 73, without Docker.
#[test]
fn everybody_is_served_with_docker_like_rules_off_the_bridges() {
    assert_all_served(Lab::builder(), &[], |lab| {
        firewall_on_bridges(lab, "0");
        docker_like_rules(lab);
    });
}

/// Cases 71 and 73, without Docker, as Docker leaves a host.
#[test]
fn everybody_is_served_with_docker_like_rules_on_the_bridges() {
    assert_all_served(Lab::builder(), &[], |lab| {
        firewall_on_bridges(lab, "1");
        docker_like_rules(lab);
    });
}

/// Case 72: rp_filter strict.
#[test]
fn everybody_is_served_with_strict_reverse_path_filtering() {
    assert_all_served(Lab::builder(), &[], strict_reverse_path_filtering);
}

/// Case 18, for all clients: tx offload off everywhere.
#[test]
fn everybody_is_served_without_checksum_offload() {
    assert_all_served(Lab::builder().tx_offload_off(), &[], |_| ());
}

/// By the neighbour table, with all of it at once.
#[test]
fn everybody_is_served_by_the_neighbour_table_under_all_of_it_at_once() {
    assert_all_served(Lab::builder().tx_offload_off(), &["--forward", "neigh"], |lab| {
        firewall_on_bridges(lab, "1");
        docker_like_rules(lab);
        strict_reverse_path_filtering(lab);
    });
}

/// By tc filters instead of tcx links.
#[test]
fn everybody_is_served_by_tc_filters() {
    assert_all_served(Lab::builder(), &["--hook", "tc"], |_| ());
}
