//! What SIGKILL leaves: everything working, until the next run or `clean`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use samport_tests::daemon::{Backends, Daemon, clean, samport, samport_binary};
use samport_tests::load::{Connection, Load, ask};
use samport_tests::served::{Served, Status, TARGET, text};
use samport_tests::traces::{Objects, alone, assert_traces, traces, undisturbed};
use samport_tests::{Lab, TIMEOUT, number_in, own_mounts};

use crate::lab;
use crate::takeover::{OpenConnections, taken_over};

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
    let daemon = Daemon::start(&lab, &args);
    killed.adopted();
    assert_eq!(ask(&lab, lab.front(80), 5).total(), 5);
    daemon.stop();
    assert_traces(lab.host(), &before);
    // In another order it is the same run: the place is taken.
    let first = Daemon::start(&lab, &args);
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
    let daemon = Daemon::start(&lab, &[&usual[..], options].concat());
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
    assert!(load.wait_for_more(50, TIMEOUT));
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

/// The kernel breaks off verifying a program when a signal comes: then it is verified once more.
#[test]
fn signals_while_programs_are_verified_do_not_end_the_start() {
    let lab = lab(1);
    let before = traces(lab.host());
    let _servers = lab.serve(TARGET).unwrap();
    let file = Backends::of(&lab, TARGET);
    let daemon =
        Daemon::launch(lab.host(), &["-i", "eth0", "-p", "80:9090", "--file", file.path()]);
    // Longer each time: a slow machine must get through the largest program too.
    for pause in (100..).step_by(10) {
        let lines = daemon.lines();
        assert!(lines.iter().all(|line| !line.text.starts_with("error")));
        if lines.iter().any(|line| line.text.contains("ready: ")) {
            break;
        }
        daemon.signal(Signal::STOP);
        daemon.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(pause));
    }
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Filters under qdiscs of samport's: they are exchanged without a word, and the qdiscs go with the last.
#[test]
fn qdiscs_of_filters_that_were_taken_over_are_removed_at_the_end() {
    let _undisturbed = undisturbed();
    let lab = lab(4);
    let before = traces(lab.host());
    let mut served = Served::start(lab, &["--hook", "tc"]);
    for _ in 0..3 {
        served = taken_over(served, &samport_binary(), &["--hook", "tc"]);
        let lines = served.daemon.lines();
        let failed = lines.iter().find(|line| line.text.contains("could not be removed"));
        assert!(failed.is_none(), "{failed:?}");
    }
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// The next one cannot write down which filters are its own: then it leaves none, and the killed one's work on.
#[test]
fn a_run_that_cannot_write_its_record_leaves_the_killed_ones_filters_and_none_of_its_own() {
    own_mounts::run(|| {
        let _undisturbed = undisturbed();
        let lab = lab(2);
        let before = traces(lab.host());
        let mut served = Served::start(lab, &["--hook", "tc"]);
        let mut kept = OpenConnections::open(&served, 5);
        served.daemon.kill9();
        let found = programs_in_filters(&served);
        own_mounts::fill();
        let usual = ["run", "-i", "eth0", "-p", "80:9090", "--file", served.file.path()];
        let refused = samport(served.lab.host(), &[&usual[..], &["--hook", "tc"]].concat());
        own_mounts::empty();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("No space left"), "{said}");
        assert_eq!(programs_in_filters(&served), found);
        kept.assert_answered("nobody has taken over");
        let served = taken_over(served, &samport_binary(), &["--hook", "tc"]);
        kept.assert_answered("taken over");
        assert_eq!(programs_in_filters(&served).len(), found.len());
        let Served { daemon, lab, .. } = served;
        daemon.stop();
        assert_traces(lab.host(), &before);
    });
}

/// A line for each of samport's filters.
fn programs_in_filters(served: &Served) -> BTreeSet<String> {
    let is_filter = |trace: &String| trace.starts_with("tc ") && trace.contains("samport_");
    traces(served.lab.host()).into_iter().filter(is_filter).collect()
}

/// How often samport is killed: `SAMPORT_KILLS`, or few enough for every run of all tests.
fn kills() -> u32 {
    number_in("SAMPORT_KILLS").unwrap_or(12)
}

/// A run that has ended, by SIGKILL.
struct Killed {
    after: Duration,
    was_ready: bool,
}

/// Cases 76 and 77: killed at any moment of its start, of a round and of the take-over from the one before.
#[test]
fn traffic_does_not_stop_whenever_samport_is_killed_and_the_next_one_adopts() {
    let _undisturbed = undisturbed();
    let seed = std::env::var("SAMPORT_KILL_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("SAMPORT_KILL_SEED={seed} SAMPORT_KILLS={}", kills());
    let mut random = fastrand::Rng::with_seed(seed);
    for hook in ["tcx", "tc"] {
        let lab = lab(3);
        let before = traces(lab.host());
        let begin = Instant::now();
        let mut served = Served::start(lab, &["--hook", hook]);
        // As long as a start takes here, and a bit: a third of the kills come while it runs.
        let longest = begin.elapsed() * 3 / 2;
        let mut kept = OpenConnections::open(&served, 5);
        let loads = served.fronts().map(|front| Load::start(served.lab.client(), front, 1));
        let mut killed: Vec<Killed> = Vec::new();
        for _ in 0..kills() / 2 {
            served = killed_and_started(served, hook, &mut random, longest, &mut killed);
            kept.assert_answered(&format!("after {} kills", killed.len()));
        }
        // The last one has the time to be ready.
        served.daemon.wait_for_line("taking over from samport ", TIMEOUT);
        served.daemon.wait_for_line("ready: ", 3 * TIMEOUT);
        for load in loads {
            assert!(load.wait_for_more(20, TIMEOUT));
            load.stop().assert_no_failure();
        }
        kept.assert_answered("at the end");
        let ready = killed.iter().filter(|one| one.was_ready).count();
        let last = killed.iter().map(|one| one.after).max();
        eprintln!(
            "{hook}: {} kills up to {last:?} after the start, {ready} of them of one at work",
            killed.len()
        );
        let objects = Objects::of(served.lab.host());
        let Served { daemon, lab, .. } = served;
        daemon.stop();
        assert_traces(lab.host(), &before);
        objects.assert_gone();
    }
}

/// Kills the running one at a random moment, and starts the next one. Meanwhile the backends change, so that there is
/// something to do for who comes next.
fn killed_and_started(
    mut served: Served,
    hook: &str,
    random: &mut fastrand::Rng,
    longest: Duration,
    killed: &mut Vec<Killed>,
) -> Served {
    let after = longest.mul_f64(random.f64());
    std::thread::sleep(after / 2);
    served.file.set_weight("web-2", random.u32(1..9));
    std::thread::sleep(after / 2);
    let was_ready = served.daemon.lines().iter().any(|line| line.text.contains("ready: "));
    assert!(served.daemon.is_running(), "samport has ended by itself");
    served.daemon.kill9();
    killed.push(Killed { after, was_ready });
    let Served { daemon, file, servers, lab } = served;
    let port = format!("{}:{}", samport_tests::served::LISTEN, TARGET);
    let args = ["-i", "eth0", "-p", &port, "--file", file.path(), "--hook", hook];
    let next = Daemon::launch(lab.host(), &args);
    daemon.adopted();
    Served { daemon: next, file, servers, lab }
}
