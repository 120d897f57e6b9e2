//! Everything goes wrong at random moments, several things at a time and under load: afterwards the kernel is as a
//! fresh start would make it, nothing is left after the end, and no request has failed that no fault explains.
//!
//! `SAMPORT_CHAOS_SECONDS` says for how long (30 without it), `SAMPORT_CHAOS_SEED` which faults come when: a run that
//! has failed prints its own. The faults are the same for the same seed, and when they come; what meets what is up to
//! the machine.

mod explain;
mod kernel;
mod requests;
mod schedule;
mod test_bed;

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use samport_tests::served::LISTEN;
use samport_tests::traces::{Objects, assert_traces, traces};
use samport_tests::{Lab, eventually, number_in, own_mounts, require_root};
use serde_json::Value;

use self::explain::{Request, unexplained};
use self::requests::Clients;
use self::schedule::{Fault, schedule, steps};
use self::test_bed::TestBed;

/// Between two looks at samport.
const LOOK: Duration = Duration::from_millis(20);
/// Answers in a row on each kind of connection after which the clients are content.
const CONTENT: usize = 20;

/// A number of the environment.
/// Cases 77 and 85.
#[test]
fn chaos_ends_in_what_a_fresh_start_would_make_and_no_failure_is_unexplained() {
    require_root();
    let seed = number_in("SAMPORT_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = Duration::from_secs(number_in("SAMPORT_CHAOS_SECONDS").unwrap_or(30));
    eprintln!("SAMPORT_CHAOS_SEED={seed} SAMPORT_CHAOS_SECONDS={}", length.as_secs());
    own_mounts::run(move || run(seed, length));
}

fn run(seed: u64, length: Duration) {
    let hook = if seed.is_multiple_of(2) { "tcx" } else { "tc" };
    let lab = Lab::builder().backends(3).build().unwrap();
    let planned = schedule(seed, length, lab.backends().len());
    eprintln!("{} faults, programs attached by {hook}", planned.len());
    let before = traces(lab.host());
    let mut test_bed = TestBed::start(lab, hook);
    let objects = Objects::of(test_bed.lab.host());
    let fronts = [test_bed.lab.front(LISTEN), test_bed.lab.front_v6(LISTEN)];
    let clients =
        Clients::start(&[(test_bed.lab.client(), false), (test_bed.lab.host(), true)], fronts);
    test_bed.begins(clients.begin);

    let mut skipped = Vec::new();
    for step in steps(&planned) {
        while clients.begin.elapsed() < step.at {
            test_bed.look();
            thread::sleep(LOOK);
        }
        let fault = planned[step.number].fault;
        // What was taken off is seen only by what lacks.
        let is_off = matches!(fault, Fault::TakenOff(_));
        if step.is_end {
            if !skipped.contains(&step.number) {
                test_bed.end(fault);
            }
        } else if is_off && test_bed.lacks_programs() {
            skipped.push(step.number);
        } else {
            test_bed.begin(fault);
        }
    }
    test_bed.wait_until_settled();
    eprintln!("{:9.3?} samport has settled", clients.begin.elapsed());
    eventually("all clients are answered again", || are_content(&clients.so_far()).then_some(()));
    let requests = clients.stop();
    check(&requests, &test_bed);
    assert!(test_bed.ended.is_empty(), "samport has ended by itself: {:#?}", test_bed.ended);

    let name = test_bed.instance();
    let state = |status: &Value| kernel::state(test_bed.lab.host(), &name, status).unwrap();
    let after_chaos = state(&test_bed.status().expect("samport runs"));
    let chaotic = Objects::of(test_bed.lab.host());
    let stopped = test_bed.stop();
    assert_traces(stopped.lab.host(), &before);
    objects.assert_gone();
    chaotic.assert_gone();

    let fresh = stopped.start_afresh();
    let wanted = after_fresh_start(&stopped, &name);
    let missing: Vec<_> = wanted.difference(&after_chaos).collect();
    let too_much: Vec<_> = after_chaos.difference(&wanted).collect();
    assert!(
        missing.is_empty() && too_much.is_empty(),
        "after chaos the kernel is not as after a fresh start\nlacks: {missing:#?}\nhas: {too_much:#?}"
    );
    fresh.stop();
    assert_traces(stopped.lab.host(), &before);
}

/// What a fresh start has made, once everybody is served.
fn after_fresh_start(stopped: &test_bed::Stopped, name: &str) -> kernel::State {
    let all = 2 * stopped.lab.backends().len();
    let status = eventually("a fresh samport serves everybody", || {
        let output = samport_tests::daemon::samport(stopped.lab.host(), &["status", "-o", "json"]);
        let document: Value = serde_json::from_slice(&output.stdout).ok()?;
        let status = document["instances"].as_array()?.iter().find(|one| one["name"] == name)?;
        let active =
            status["backends"].as_array()?.iter().filter(|one| one["state"] == "active").count();
        (active == all).then(|| status.clone())
    });
    kernel::state(stopped.lab.host(), name, &status).unwrap()
}

/// Whether the last requests of every client were answered.
fn are_content(requests: &[Request]) -> bool {
    let mut all = true;
    for is_host in [false, true] {
        for is_v6 in [false, true] {
            for is_held in [false, true] {
                let stream = explain::Stream { is_host, is_v6, is_held };
                let last = requests.iter().rev().filter(|one| one.stream == stream);
                let last: Vec<_> = last.take(CONTENT).collect();
                all &= last.len() == CONTENT && last.iter().all(|one| one.error.is_none());
            }
        }
    }
    all
}

/// Panics if a request has failed that no fault explains.
fn check(requests: &[Request], test_bed: &TestBed) {
    let failed = requests.iter().filter(|one| one.error.is_some()).count();
    let left = unexplained(requests, &test_bed.windows);
    eprintln!(
        "{} requests, {failed} of them failed, {} for no reason; {} faults",
        requests.len(),
        left.len(),
        test_bed.windows.len()
    );
    let mut text = String::new();
    for one in left.iter().take(20) {
        writeln!(text, "  {one:?}").unwrap();
    }
    assert!(left.is_empty(), "failed for no reason that is known:\n{text}");
}
