//! `--hook xdp`: the forward path before there is an skb. Every device computes its checksums itself, so that
//! XDP has something to do.

use samport_tests::daemon::samport;
use samport_tests::load::ask;
use samport_tests::served::{Served, text};
use samport_tests::{Lab, require_root};

use crate::forwarding::assert_serves;

fn served(options: &[&str]) -> Served {
    require_root();
    let lab = Lab::builder().backends(2).tx_offload_off().build().unwrap();
    Served::start(lab, &[&["--hook", "xdp"], options].concat())
}

#[test]
fn generic_xdp_sends_into_the_containers() {
    let served = served(&["--xdp-mode", "generic"]);
    assert_serves(&served);
    let status = served.status();
    assert!(text(&status.0, "hook").ends_with(", xdp generic"), "{status:?}");
    assert!(status.verdict("forward-xdp") > 1_000, "{status:?}");
    // What it has forwarded, nobody has forwarded again. A finished checksum looks like one that is not once in
    // 65,536 packets; those are left to tc.
    assert!(status.verdict("forward-peer") < 4, "{status:?}");
}

/// Case 18, at XDP: what senders leave to their network cards is left to tc, where the kernel can tell.
#[test]
fn xdp_leaves_to_tc_what_has_no_checksum_yet() {
    require_root();
    let lab = Lab::builder().backends(2).build().unwrap();
    let served = Served::start(lab, &["--hook", "xdp", "--xdp-mode", "generic"]);
    assert_serves(&served);
    let status = served.status();
    assert_eq!(status.verdict("forward-xdp"), 0, "{status:?}");
    assert!(status.verdict("forward-peer") > 100, "{status:?}");
}

#[test]
fn native_xdp_leaves_to_tc_what_the_containers_do_not_poll_for() {
    let served = served(&[]);
    assert_serves(&served);
    let status = served.status();
    assert!(text(&status.0, "hook").ends_with(", xdp native"), "{status:?}");
    assert_eq!(status.verdict("forward-xdp"), 0, "{status:?}");
    assert!(status.verdict("forward-peer") > 0, "{status:?}");
}

/// Case 82: the allow-list at XDP too.
#[test]
fn xdp_drops_who_is_not_allowed() {
    for mode in ["native", "generic"] {
        let served = served(&["--xdp-mode", mode, "--allow", "198.51.100.0/24"]);
        let [front, _] = served.fronts();
        assert!(served.lab.get(front, "/").is_err(), "{mode}");
        assert!(served.status().verdict("not-allowed") > 0, "{mode}");
    }
}

/// Case 87: a device takes one XDP program: somebody else's is named and stays.
#[test]
fn another_xdp_program_is_in_the_way() {
    let served = served(&["--xdp-mode", "generic"]);
    let path = served.file.path();
    let args = ["run", "-i", "eth0", "-p", "81:9090", "--file", path, "--hook", "xdp"];
    let output = samport(served.lab.host(), &args);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("eth0 has an XDP program already"), "{said}");
    let [front, _] = served.fronts();
    assert_eq!(ask(&served.lab, front, 5).total(), 5);
}
