//! What SIGKILL leaves: everything working, until the next run or `clean`.

use std::collections::BTreeSet;

use samport_tests::daemon::{clean, samport};
use samport_tests::load::{Connection, Load, ask};
use samport_tests::served::{Served, Status, text};
use samport_tests::traces::{Objects, alone, assert_traces, traces, undisturbed};
use samport_tests::{Lab, PATIENCE};

use crate::lab;

/// Traffic goes on after SIGKILL until `clean`, which leaves nothing.
fn assert_serves_until_clean(options: &[&str]) {
    let _undisturbed = undisturbed();
    let lab = lab(2);
    let before = traces(lab.host());
    let mut served = Served::start(lab, options);
    let mut kept =
        served.lab.client().run(|| served.fronts().map(|front| Connection::open(front).unwrap()));
    let backends = kept.each_mut().map(|one| one.get("/").unwrap().backend);
    let objects = Objects::of(served.lab.host());

    served.daemon.kill9();
    for front in served.fronts() {
        let tally = ask(&served.lab, front, 40);
        assert!(tally.of("web-1") > 0 && tally.of("web-2") > 0, "{tally}");
    }
    for (one, backend) in kept.iter_mut().zip(backends) {
        assert_eq!(one.get("/").unwrap().backend, backend);
    }
    let [status] = &Status::all_in(served.lab.host())[..] else { panic!("one instance is there") };
    assert_eq!(status.0["running"], false);

    assert_cleans(&served.lab, status);
    assert_traces(served.lab.host(), &before);
    objects.assert_gone();
    for front in served.fronts() {
        assert!(served.lab.get(front, "/").is_err());
    }
}

/// `clean --dry-run` names the instance and leaves it; `clean` names it and removes it.
fn assert_cleans(lab: &Lab, status: &Status) {
    let name = text(&status.0, "name");
    let found = traces(lab.host());
    for (args, word) in [(&["--dry-run"][..], "would remove"), (&[], "removed")] {
        assert_eq!(traces(lab.host()), found);
        let said = clean(lab.host(), args);
        let [line] = &said.lines().collect::<Vec<_>>()[..] else { panic!("not one line: {said}") };
        assert!(line.contains(name) && line.contains(word), "{said}");
    }
}

/// Case 85.
#[test]
fn a_killed_samport_serves_until_clean() {
    assert_serves_until_clean(&[]);
}

/// Case 85.
#[test]
fn a_killed_samport_serves_by_filters_until_clean() {
    assert_serves_until_clean(&["--hook", "tc"]);
}

/// Case 85.
#[test]
fn a_killed_samport_serves_through_the_stack_until_clean() {
    assert_serves_until_clean(&["--forward", "stack"]);
}

/// A run with other ports has another name. What the killed one has left would come first on the hook.
#[test]
fn a_run_with_more_ports_takes_the_place_of_a_killed_one() {
    let _undisturbed = undisturbed();
    let lab = lab(1);
    let before = traces(lab.host());
    let mut served = Served::start(lab, &[]);
    served.daemon.kill9();
    let Served { daemon: killed, file, servers, lab } = served;
    let mut args = vec!["-i", "eth0", "-p", "81:9090", "-p", "80:9090", "--file", file.path()];
    let daemon = samport_tests::daemon::Daemon::start(&lab, &args);
    killed.adopted();
    assert_eq!(ask(&lab, lab.front(80), 5).total(), 5);
    daemon.stop();
    assert_traces(lab.host(), &before);
    // In another order it is the same run: the place is taken.
    let first = samport_tests::daemon::Daemon::start(&lab, &args);
    args.swap(3, 5);
    let refused = samport(lab.host(), &[&["run"][..], &args].concat());
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    first.stop();
    drop(servers);
}

/// Without a name `clean` removes what is left in every network namespace, with one only that, and nothing if there is
/// none of that name.
#[test]
fn clean_removes_all_or_what_is_named() {
    let _alone = alone();
    let [mut one, mut other] = [Served::start(lab(1), &[]), Served::start(lab(1), &[])];
    for served in [&mut one, &mut other] {
        served.daemon.kill9();
    }
    let name = text(&Status::all_in(one.lab.host())[0].0, "name").to_owned();
    let found = traces(other.lab.host());
    let unknown = samport(one.lab.host(), &["clean", "--instance", &name, "--instance", "no-such"]);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no-such"), "{unknown:?}");
    assert!(!traces(one.lab.host()).is_empty());

    assert!(samport(one.lab.host(), &["clean", "--instance", &name]).status.success());
    assert_traces(one.lab.host(), &BTreeSet::new());
    assert_eq!(traces(other.lab.host()), found);
    assert!(samport(one.lab.host(), &["clean"]).status.success());
    assert_traces(other.lab.host(), &BTreeSet::new());
}

/// The next run takes the place of a killed one; a clean exit of that leaves nothing of either.
fn assert_runs_again(options: &[&str]) {
    let _undisturbed = undisturbed();
    let lab = lab(2);
    let before = traces(lab.host());
    let mut served = Served::start(lab, options);
    let first = Objects::of(served.lab.host());
    served.daemon.kill9();
    let Served { daemon: killed, file, servers, lab } = served;
    let port = format!("{}:{}", samport_tests::served::LISTEN, samport_tests::served::TARGET);
    let usual = ["-i", "eth0", "-p", &port, "--file", file.path()];
    let daemon = samport_tests::daemon::Daemon::start(&lab, &[&usual[..], options].concat());
    killed.adopted();
    let served = Served { daemon, file, servers, lab };
    for front in served.fronts() {
        let tally = ask(&served.lab, front, 40);
        assert!(tally.of("web-1") > 0 && tally.of("web-2") > 0, "{tally}");
    }
    assert_eq!(served.status().0["running"], true);
    let second = Objects::of(served.lab.host());
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
    first.assert_gone();
    second.assert_gone();
}

#[test]
fn a_run_after_a_killed_one_takes_its_place() {
    assert_runs_again(&[]);
}

#[test]
fn a_run_after_a_killed_one_takes_the_place_of_its_filters() {
    assert_runs_again(&["--hook", "tc"]);
}

/// Case 85: what runs is none of `clean`'s business.
#[test]
fn clean_leaves_a_running_instance_alone() {
    let _alone = alone();
    let served = Served::start(lab(2), &[]);
    let before = traces(served.lab.host());
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    let output = samport(served.lab.host(), &["clean"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(traces(served.lab.host()), before);
    assert!(load.wait_for_more(50, PATIENCE));
    load.stop().assert_no_failure();
}

/// Case 85: `clean` in one network namespace touches no device of another that has the same number.
#[test]
fn clean_in_another_namespace_touches_no_filter_there() {
    let _alone = alone();
    let mut served = Served::start(lab(1), &["--hook", "tc"]);
    // Its devices have the same numbers, and its filter the place ours has.
    let other = Served::start(lab(1), &["--hook", "tc"]);
    let before = traces(other.lab.host());
    served.daemon.kill9();
    let _ = samport(other.lab.host(), &["clean"]);
    assert_eq!(traces(other.lab.host()), before);
    assert_eq!(ask(&other.lab, other.fronts()[0], 5).total(), 5);
    // Whatever that one has done, this leaves nothing.
    assert!(samport(served.lab.host(), &["clean"]).status.success());
    assert_traces(served.lab.host(), &BTreeSet::new());
}
