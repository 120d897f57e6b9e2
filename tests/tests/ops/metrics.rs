//! `--metrics` with an address that cannot be served.

use std::io::ErrorKind;

use samport_tests::daemon::Backends;
use samport_tests::http;
use samport_tests::load::ask;
use samport_tests::served::{Served, TARGET};
use samport_tests::traces::{assert_traces, traces};

use crate::{ended, lab};

#[test]
fn an_address_that_cannot_be_served_is_named_before_anything_is_attached() {
    let lab = lab(1);
    let file = Backends::of(&lab, TARGET);
    let usual = ["run", "-i", "eth0", "-p", "80:9090", "--file", file.path(), "--metrics"];
    let before = traces(lab.host());
    let taken = lab.host().run(|| std::net::TcpListener::bind("127.0.0.1:9464")).unwrap();
    for (address, code, words) in [
        ("127.0.0.1:9464", 6, &["127.0.0.1:9464", "another program"][..]),
        ("192.0.2.77:9464", 1, &["192.0.2.77:9464", "no such address"]),
        // It would get none of its own clients: they are given to backends.
        ("0.0.0.0:80", 6, &["port 80", "samport"]),
        ("9464", 2, &["9464"]),
        ("localhost:9464", 2, &["localhost:9464"]),
    ] {
        ended(lab.host(), &[&usual[..], &[address]].concat()).assert(code, words);
        assert_traces(lab.host(), &before);
    }
    drop(taken);
}

#[test]
fn metrics_go_with_their_samport() {
    let address = "127.0.0.1:9464";
    let served = Served::start(lab(1), &["--metrics", address]);
    let served = served.restart(&["--metrics", address]);
    assert_eq!(ask(&served.lab, served.fronts()[0], 3).total(), 3);
    let host = served.lab.host();
    let ask = |path: &str| host.run(|| http::get(address.parse().unwrap(), path));
    assert_eq!((ask("/metrics").unwrap().status, ask("/").unwrap().status), (200, 404));
    served.daemon.stop();
    assert_eq!(ask("/metrics").unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
