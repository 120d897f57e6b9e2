//! `samport explain` and `samport trace`: what bad input gets, and whose they are.

use samport_tests::daemon::{Backends, Daemon};
use samport_tests::served::{Served, second_client};

use crate::{ended, ended_with, lab};

/// Case 87.
#[test]
fn what_cannot_be_explained_is_named() {
    let lab = lab(0);
    for (args, words) in [
        (&["web:80", "192.0.2.1:80"][..], &["\"web:80\"", "198.51.100.7:80"][..]),
        (&["192.0.2.2", "192.0.2.1:80"], &["\"192.0.2.2\"", "[2001:db8::7]:80"]),
        (&["192.0.2.2:1", "192.0.2.1:0"], &["\"192.0.2.1:0\"", "port 0"]),
        (&["192.0.2.2:1", "192.0.2.1:80/sctp"], &["\"sctp\"", "tcp or udp"]),
        (&["192.0.2.2:1", "[2001:db8::7]:80"], &["differ in family"]),
        (&["192.0.2.2:1", "192.0.2.1:80/tcp", "--udp"], &["/tcp", "--udp"]),
        (&["192.0.2.2:1"], &["HOST:PORT"]),
    ] {
        ended(lab.host(), &[&["explain"], args].concat()).assert(2, words);
    }
}

/// Case 87.
#[test]
fn what_cannot_be_traced_is_named() {
    let lab = lab(0);
    for (args, words) in [
        (&["--client", "10.0.0.0/33"][..], &["\"10.0.0.0/33\"", "10.0.0.0/8"][..]),
        (&["--port", "0"], &["0", "--port"]),
        (&["--verdict", "lost"], &["\"lost\"", "forward-peer"]),
        (&["--count", "0"], &["--count"]),
    ] {
        ended(lab.host(), &[&["trace"], args].concat()).assert(2, words);
    }
}

const EXPLAIN: [&str; 3] = ["explain", "192.0.2.2:20000", "192.0.2.1:80"];

#[test]
fn without_a_samport_there_is_nothing_to_explain_or_trace() {
    let lab = lab(0);
    for args in [&EXPLAIN[..], &["trace"]] {
        ended(lab.host(), args).assert(3, &["samport does not run in this network namespace"]);
        let named = [args, &["--instance", "eth0:99@1"]].concat();
        ended(lab.host(), &named).assert(3, &["eth0:99@1"]);
        let nobody = ["setpriv", "--reuid=65534", "--inh-caps=-all", "--bounding-set=-all"];
        ended_with(lab.host(), &nobody, args).assert(5, &["CAP_NET_ADMIN", "root"]);
    }
}

#[test]
fn a_backend_that_does_not_exist_is_not_traced() {
    let served = Served::start(lab(2), &[]);
    let args = ["trace", "--backend", "web-9"];
    ended(served.lab.host(), &args).assert(1, &["\"web-9\"", "web-1, web-2"]);
}

/// Two instances: who serves what is dialled is asked; a tracer is told to say which.
#[test]
fn of_two_instances_the_one_that_serves_it_explains() {
    let lab = lab(1);
    let _second = second_client(&lab);
    let _servers = lab.serve(9090).unwrap();
    let file = Backends::of(&lab, 9090);
    let first = Daemon::start(&lab, &["-i", "eth0", "-p", "80:9090", "--file", file.path()]);
    let other = Daemon::start(&lab, &["-i", "eth1", "-p", "81:9090", "--file", file.path()]);
    for (port, interface) in [("80", "eth0"), ("81", "eth1")] {
        let front = if port == "80" { "192.0.2.1" } else { "198.51.100.1" };
        let client = if port == "80" { "192.0.2.2:20000" } else { "198.51.100.2:20000" };
        let args = ["explain", client, &format!("{front}:{port}")];
        let output = samport_tests::daemon::samport(lab.host(), &args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("{interface} ingress")) && said.contains("web-1"), "{said}");
    }
    ended(lab.host(), &["trace"]).assert(2, &["--instance", "eth0:80", "eth1:81"]);
    first.stop();
    other.stop();
}
