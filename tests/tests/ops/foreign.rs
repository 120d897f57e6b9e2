//! Programs of others on the same hooks.

use samport_tests::bpf::{Foreign, Hook, programs_on};
use samport_tests::daemon::samport;
use samport_tests::load::ask;
use samport_tests::served::Served;
use samport_tests::traces::{assert_traces, tc, traces, undisturbed};
use samport_tests::{Lab, Server};

use crate::lab;

/// Case 79: Another tcx program on the hook: both run; each survives the other.
#[test]
fn a_tcx_program_that_was_there_runs_and_stays() {
    let lab = lab(1);
    let _foreign = Foreign::attach(lab.host(), "eth0");
    let before = traces(lab.host());
    let served = Served::start(lab, &[]);
    assert_eq!(programs_on(served.lab.host(), "eth0", Hook::Ingress).len(), 2);
    let [v4, v6] = served.fronts();
    assert_eq!(ask(&served.lab, v4, 20).total(), 20);
    // The other one drops TCP over IPv6, and it comes first.
    let error = served.lab.client().run(|| {
        let timeout = std::time::Duration::from_millis(500);
        std::net::TcpStream::connect_timeout(&v6, timeout).unwrap_err()
    });
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Case 79: one that comes later gets what is not ours, and its going does us no harm.
#[test]
fn a_tcx_program_that_comes_later_runs_behind_ours() {
    let served = Served::start(lab(1), &[]);
    let [v4, v6] = served.fronts();
    let foreign = Foreign::attach(served.lab.host(), "eth0");
    let _own = served.lab.host().run(|| Server::bind("host", 81)).unwrap();
    for front in [v4, v6] {
        assert_eq!(ask(&served.lab, front, 10).total(), 10);
    }
    assert_eq!(ask(&served.lab, served.lab.front(81), 10).of("host"), 10);
    let own_v6 = served.lab.front_v6(81);
    let timeout = std::time::Duration::from_millis(500);
    let tried = served.lab.client().run(|| std::net::TcpStream::connect_timeout(&own_v6, timeout));
    assert!(tried.is_err(), "the other program has not seen what we passed on");
    drop(foreign);
    assert_eq!(ask(&served.lab, own_v6, 10).of("host"), 10);
    assert_eq!(ask(&served.lab, v6, 10).total(), 10);
}

/// A filter of somebody else, in classic BPF (`return 0`), which every kernel with cls_bpf has.
fn add_filter(lab: &Lab, hook: &str) {
    let filter = ["filter", "add", "dev", "eth0", hook, "bpf", "bytecode", "1,6 0 0 0,"];
    tc(lab.host(), &[&filter[..], &["flowid", "1:1"]].concat());
}

/// The same under a clsact qdisc of its own.
fn add_foreign_filter(lab: &Lab) {
    tc(lab.host(), &["qdisc", "add", "dev", "eth0", "clsact"]);
    add_filter(lab, "ingress");
}

/// A clsact qdisc and a filter of others survive a clean exit.
fn assert_filter_survives(options: &[&str]) {
    let lab = lab(2);
    add_foreign_filter(&lab);
    let before = traces(lab.host());
    let served = Served::start(lab, options);
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 20).total(), 20);
    }
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Case 85.
#[test]
fn a_filter_of_others_survives_a_clean_exit_beside_tcx() {
    assert_filter_survives(&[]);
}

/// Case 85.
#[test]
fn a_filter_of_others_survives_a_clean_exit_beside_our_filters() {
    assert_filter_survives(&["--hook", "tc"]);
}

/// Case 85: the same for `clean` after SIGKILL.
#[test]
fn programs_and_filters_of_others_survive_clean() {
    for hook in ["tcx", "tc"] {
        let _undisturbed = undisturbed();
        let lab = lab(1);
        add_foreign_filter(&lab);
        let _foreign = Foreign::attach(lab.host(), "eth0");
        let before = traces(lab.host());
        let mut served = Served::start(lab, &["--hook", hook]);
        served.daemon.kill9();
        assert_ne!(traces(served.lab.host()), before);
        assert!(samport(served.lab.host(), &["clean"]).status.success());
        assert_traces(served.lab.host(), &before);
    }
}

/// A filter that others add under our qdisc keeps the qdisc: it would go with it.
#[test]
fn a_filter_that_comes_later_keeps_the_qdisc_we_made() {
    let served = Served::start(lab(1), &["--hook", "tc"]);
    add_filter(&served.lab, "egress");
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    let left = tc(lab.host(), &["filter", "show", "dev", "eth0", "egress"]);
    assert!(left.contains("bytecode"), "{left:?}");
    let left = tc(lab.host(), &["filter", "show", "dev", "eth0", "ingress"]);
    assert!(!left.contains("samport"), "{left:?}");
}
