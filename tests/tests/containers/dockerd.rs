//! The engine itself goes away and comes back.

use rustix::process::{Pid, Signal, kill_process};
use samport_tests::docker::Options;

use crate::{
    LABEL, ask_front, engine_with, load, names, serve, wait_for_more, wait_until_gone,
    wait_until_serving,
};

/// Cases 81 and 87: dockerd is killed and started again, and no request fails meanwhile; what starts
/// afterwards is found, and what has ended while nobody told us is found out.
#[test]
fn a_killed_dockerd_is_not_noticed_by_clients_and_what_it_missed_is_caught_up_with() {
    let mut docker = engine_with(Options { live_restore: true, ..Options::default() });
    for name in ["one", "two"] {
        docker.run_server(name, &LABEL);
    }
    let samport = serve(&docker, &["one", "two"]);

    let load = load(&docker);
    wait_for_more(&load);
    docker.kill9_daemon();
    samport.wait_for_line("lost Docker", samport_tests::TIMEOUT);
    wait_for_more(&load);
    docker.restart_daemon();
    samport.wait_for_line("is back", samport_tests::TIMEOUT);
    docker.run_server("three", &LABEL);
    println!("{}", wait_until_serving(&samport, 0, "three").text);
    wait_for_more(&load);
    let report = load.stop();
    report.assert_no_failure();
    assert_eq!(names(&report.tally), ["one", "three", "two"]);

    let process = docker.cli(&["inspect", "-f", "{{.State.Pid}}", "two"]);
    let mark = samport.mark();
    docker.kill9_daemon();
    samport.wait_for_line_after(mark, "lost Docker", samport_tests::TIMEOUT);
    let process = process.parse().ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(process, Signal::KILL).unwrap();
    docker.restart_daemon();
    wait_until_gone(&samport, mark, "two");
    assert_eq!(names(&ask_front(&docker, 100)), ["one", "three"]);
    samport.stop();
}
