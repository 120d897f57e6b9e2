//! Several instances on one host.

use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{Load, ask, get};
use samport_tests::served::{Served, Status, TARGET, fronts_of_second, second_client, text};
use samport_tests::traces::{assert_traces, traces};

use crate::{ended, lab};

/// Another instance for the backends of `served`, whose lab has to outlive it.
fn second(served: &Served, args: &[&str]) -> Daemon {
    Daemon::start(&served.lab, &[&["--file", served.file.path()], args].concat())
}

/// Two instances on different ports side by side; each ends for itself.
fn assert_side_by_side(options: &[&str]) {
    let lab = lab(2);
    let before = traces(lab.host());
    let served = Served::start(lab, options);
    let only_first = traces(served.lab.host());
    let args = ["-i", "eth0", "-p", "81:9090"];
    let other = second(&served, &[&args[..], options].concat());
    let answers = |front| ask(&served.lab, front, 20).total();
    for front in served.fronts().into_iter().chain([served.lab.front(81), served.lab.front_v6(81)])
    {
        assert_eq!(answers(front), 20, "{front}");
    }
    assert_eq!(Status::all_in(served.lab.host()).len(), 2);
    other.stop();
    assert_traces(served.lab.host(), &only_first);
    assert_eq!(answers(served.fronts()[0]), 20);
    assert!(served.lab.get(served.lab.front(81), "/").is_err());

    // And the first one before the second.
    let other = second(&served, &[&args[..], options].concat());
    let Served { daemon, lab, servers: _servers, .. } = served;
    daemon.stop();
    assert_eq!(ask(&lab, lab.front(81), 20).total(), 20);
    assert!(lab.get(lab.front(80), "/").is_err());
    other.stop();
    assert_traces(lab.host(), &before);
}

/// Case 86.
#[test]
fn two_instances_serve_two_ports_of_one_interface() {
    assert_side_by_side(&[]);
}

/// Case 86.
#[test]
fn two_instances_serve_two_ports_of_one_interface_by_filters() {
    assert_side_by_side(&["--hook", "tc"]);
}

/// Case 86.
#[test]
fn two_instances_serve_two_ports_of_one_interface_through_the_stack() {
    assert_side_by_side(&["--forward", "stack"]);
}

/// Case 86: Two instances on different interfaces side by side, for the same port and backends.
#[test]
fn two_instances_serve_one_port_of_two_interfaces() {
    let lab = lab(2);
    let client = second_client(&lab);
    let before = traces(lab.host());
    let served = Served::start(lab, &[]);
    let other = second(&served, &["-i", "eth1", "-p", "80:9090"]);
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    for front in fronts_of_second() {
        for _ in 0..30 {
            let answer = client.run(|| get(front, "/")).unwrap();
            assert_eq!(answer.client, answer.local_addr);
        }
    }
    other.stop();
    for front in fronts_of_second() {
        assert!(client.run(|| get(front, "/")).is_err());
    }
    load.stop().assert_no_failure();
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Case 86: the same port is refused by name, with exit 6, whatever else is asked for.
#[test]
fn the_same_port_of_the_same_interface_is_refused_by_name() {
    let lab = lab(1);
    let client = second_client(&lab);
    let served = Served::start(lab, &[]);
    let before = traces(served.lab.host());
    let status = served.status();
    let (name, pid) = (text(&status.0, "name"), served.daemon.pid().to_string());
    let overlaps: [&[&str]; 4] = [
        &["-i", "eth0", "-p", "80"],
        &["-i", "eth0", "-p", "80:9090"],
        &["-i", "eth0", "-p", "79", "-p", "80"],
        &["-i", "eth1", "-i", "eth0", "-p", "80"],
    ];
    for overlap in overlaps {
        let args = [&["run", "--backend", "172.30.0.10"], overlap].concat();
        ended(served.lab.host(), &args).assert(6, &["80", name, &pid]);
        assert_traces(served.lab.host(), &before);
    }
    assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
    drop(client);
}

/// Case 86: another network namespace has ports and interfaces of its own.
#[test]
fn the_same_port_and_interface_of_another_namespace_is_another() {
    let first = Served::start(lab(1), &[]);
    let second = Served::start(lab(1), &[]);
    for served in [&first, &second] {
        assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
    }
}

/// Case 86: a port is free again as soon as its instance has ended.
#[test]
fn a_port_can_be_served_again_at_once() {
    let lab = lab(1);
    let _servers = lab.serve(TARGET).unwrap();
    let file = Backends::dual(&lab, TARGET);
    for _ in 0..5 {
        let args = ["-i", "eth0", "-p", "80", "--file", file.path()];
        let daemon = Daemon::start(&lab, &args);
        assert_eq!(ask(&lab, lab.front(80), 5).total(), 5);
        daemon.stop();
    }
}
