//! Native XDP into real containers.

use samport::lab::output_of;
use samport_tests::served::Status;

use crate::{ask_front, engine_of, names, start_samport, wait_until_serving};

/// Only one of two containers polls: it gets its share as bare frames, the other by tc.
#[test]
fn native_xdp_sends_into_the_containers_that_poll() {
    let docker = engine_of(&["one", "two"]);
    let lab = docker.lab();
    // As a real network card's driver: the checksums of what comes in are complete.
    output_of(lab.client().command("ethtool").args(["-K", "eth0", "tx", "off"])).unwrap();
    let pid = docker.cli(&["inspect", "--format", "{{.State.Pid}}", "one"]);
    let inside = format!("--net=/proc/{}/ns/net", pid.trim());
    let mut gro = std::process::Command::new("nsenter");
    output_of(gro.args([&inside, "ethtool", "-K", "eth0", "gro", "on"])).unwrap();

    let options = ["-p", "80:9090", "--hook", "xdp", "--xdp-mode", "native"];
    let samport = start_samport(&docker, &options);
    for name in ["one", "two"] {
        wait_until_serving(&samport, 0, name);
    }
    let tally = ask_front(&docker, 200);
    assert_eq!((tally.total(), names(&tally)), (200, vec!["one", "two"]));
    let status = Status::all_in(lab.host()).remove(0);
    assert!(status.verdict("forward-xdp") > 100, "{status:?}");
    assert!(status.verdict("forward-peer") > 100, "{status:?}");
}
