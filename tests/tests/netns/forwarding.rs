//! Every way to a backend, every hook, and the host's own rules about forwarding.

use samport::lab::Builder;
use samport_tests::load::{Connection, ask};
use samport_tests::served::{Served, text};
use samport_tests::{Lab, require_root};

/// Bytes carried each way.
const LENGTH: usize = 1_000_000;

fn two() -> Builder {
    require_root();
    Lab::builder().backends(2)
}

/// Requests and 1 MB each way through both fronts.
pub fn assert_serves(served: &Served) {
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 20).total(), 20);
        served.lab.client().run(|| {
            let mut connection = Connection::open(front).unwrap();
            assert!(connection.get(&format!("/bytes/{LENGTH}")).unwrap().is_pattern(), "{front}");
            assert_eq!(connection.post(LENGTH).unwrap().status, 200, "{front}");
        });
    }
}

/// The same, and every backend is reached the expected way by the expected hook.
fn assert_serves_by(builder: Builder, options: &[&str], (via, hook): (&str, &str)) {
    let served = Served::start(builder.build().unwrap(), options);
    assert_serves(&served);
    let status = served.status();
    assert_eq!(text(&status.0, "hook"), hook);
    for backend in status.backends() {
        assert_eq!(text(backend, "via"), via, "{backend}");
    }
}

#[test]
fn forward_auto_goes_straight_into_the_veth_by_tcx() {
    assert_serves_by(two(), &[], ("peer", "tcx"));
}

#[test]
fn forward_neigh_goes_by_the_neighbour_table() {
    assert_serves_by(two(), &["--forward", "neigh"], ("neigh", "tcx"));
}

#[test]
fn forward_stack_goes_through_the_hosts_stack() {
    assert_serves_by(two(), &["--forward", "stack"], ("stack", "tcx"));
}

#[test]
fn hook_tc_serves_by_filters() {
    assert_serves_by(two(), &["--hook", "tc"], ("peer", "tc"));
}

#[test]
fn hook_tcx_serves_by_links() {
    assert_serves_by(two(), &["--hook", "tcx"], ("peer", "tcx"));
}

#[test]
fn hook_tc_and_forward_neigh_go_together() {
    assert_serves_by(two(), &["--hook", "tc", "--forward", "neigh"], ("neigh", "tc"));
}

#[test]
fn hook_tc_and_forward_stack_go_together() {
    assert_serves_by(two(), &["--hook", "tc", "--forward", "stack"], ("stack", "tc"));
}

#[test]
fn every_way_works_without_checksum_offload() {
    for forward in ["peer", "neigh", "stack"] {
        assert_serves_by(two().tx_offload_off(), &["--forward", forward], (forward, "tcx"));
    }
}

/// Case 73, without Docker: its FORWARD policy stops neither way past the stack.
#[test]
fn peer_and_neigh_work_where_the_firewall_forwards_nothing() {
    for forward in ["peer", "neigh"] {
        assert_serves_by(two().docker_like_firewall(), &["--forward", forward], (forward, "tcx"));
    }
}

/// What goes through the stack is the firewall's to judge.
#[test]
fn forward_stack_obeys_the_firewall() {
    let served =
        Served::start(two().docker_like_firewall().build().unwrap(), &["--forward", "stack"]);
    let front = served.fronts()[0];
    let timeout = std::time::Duration::from_secs(1);
    let tried = served.lab.client().run(|| std::net::TcpStream::connect_timeout(&front, timeout));
    assert_eq!(tried.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert!(served.status().verdict("forward-stack") > 0);
}

/// Case 71: bridge-nf-call 0 and 1.
#[test]
fn every_way_works_with_and_without_the_firewall_on_the_bridge() {
    for setting in ["0", "1"] {
        for forward in ["peer", "neigh", "stack"] {
            let lab = two().build().unwrap();
            for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
                lab.host().sysctl(&format!("net/bridge/{key}"), setting).unwrap();
            }
            assert_serves(&Served::start(lab, &["--forward", forward]));
        }
    }
}

/// Cases 71 and 73: both at once, as Docker leaves a host.
#[test]
fn peer_and_neigh_work_where_the_firewall_is_on_the_bridge_and_forwards_nothing() {
    for forward in ["peer", "neigh"] {
        let lab = two().docker_like_firewall().build().unwrap();
        lab.host().sysctl("net/bridge/bridge-nf-call-iptables", "1").unwrap();
        assert_serves(&Served::start(lab, &["--forward", forward]));
    }
}

/// Case 72: rp_filter strict.
#[test]
fn every_way_works_with_strict_reverse_path_filtering() {
    for forward in ["peer", "neigh", "stack"] {
        let lab = two().build().unwrap();
        for device in ["all", "default", "eth0", "br0"] {
            lab.host().sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1").unwrap();
        }
        assert_serves(&Served::start(lab, &["--forward", forward]));
    }
}
