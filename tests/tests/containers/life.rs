//! What happens to a container between its start and its end.

use samport_tests::load::{Connection, Load};
use samport_tests::served::{Status, text};

use crate::{
    LABEL, ask_front, engine, engine_of, front, heard, load, names, said, serve, wait_for_more,
    wait_until_draining, wait_until_gone, wait_until_serving,
};

/// Case 61: `docker stop` on a server that finishes what it has begun.
#[test]
fn a_stopped_container_drains_from_the_signal_on_and_no_request_fails() {
    let docker = engine();
    docker.run_server("stays", &LABEL);
    docker.run_server("goes", &[&LABEL[..], &["-e", "LINGER_MS=2000"]].concat());
    let samport = serve(&docker, &["stays", "goes"]);
    let load = load(&docker);
    wait_for_more(&load);
    assert_eq!(names(&load.so_far().tally), ["goes", "stays"]);
    docker.cli(&["stop", "-t", "8", "goes"]);
    wait_until_draining(&samport, 0, "goes");
    wait_until_gone(&samport, 0, "goes");
    let before = load.so_far().tally;
    wait_for_more(&load);
    let report = load.stop();
    report.assert_no_failure();
    assert_eq!(names(&report.tally.since(&before)), ["stays"]);
    samport.stop();
}

/// A container that ends without a word takes its connections with it, but no later ones.
#[test]
fn a_killed_or_removed_container_gets_no_more_requests() {
    let docker = engine_of(&["stays", "killed", "removed"]);
    let samport = serve(&docker, &["stays", "killed", "removed"]);
    let load = load(&docker);
    wait_for_more(&load);
    for (command, name) in [(&["kill"][..], "killed"), (&["rm", "-f"], "removed")] {
        docker.cli(&[command, &[name]].concat());
        wait_until_gone(&samport, 0, name);
        let tally = ask_front(&docker, 100);
        assert_eq!(tally.of(name), 0, "{tally}");
    }
    // Whatever was on its way has been refused or answered: nobody hangs.
    wait_for_more(&load);
    println!("{}", load.stop());
    assert_eq!(names(&ask_front(&docker, 20)), ["stays"]);
    samport.stop();
}

/// A container that is killed takes with it what it was answering, which is one request for each thread of
/// the load at most. Nothing else fails, not even before Docker has told of it: refusals are held back.
#[test]
fn a_container_killed_under_load_fails_no_more_than_the_requests_it_was_answering() {
    const THREADS: usize = 4;
    let containers = ["one", "two", "three", "killed"];
    let docker = engine_of(&containers);
    let samport = serve(&docker, &containers);
    let load = Load::start(docker.lab().client(), front(&docker), THREADS);
    wait_for_more(&load);
    assert_eq!(names(&load.so_far().tally), ["killed", "one", "three", "two"]);
    load.so_far().assert_no_failure();
    docker.cli(&["kill", "-s", "KILL", "killed"]);
    wait_until_gone(&samport, 0, "killed");
    let tally = ask_front(&docker, 300);
    assert_eq!(names(&tally), ["one", "three", "two"]);
    wait_for_more(&load);
    let report = load.stop();
    println!("{report}");
    assert!(report.failures.len() <= THREADS, "{report}");
    samport.stop();
}

/// Case 62, with nothing but `docker stop`, for servers that go on for a moment: a new version,
/// container by container.
#[test]
fn containers_are_replaced_one_after_the_other_and_no_request_fails() {
    const ROUNDS: u32 = 12;
    let docker = engine();
    let run = |number: u32| {
        let options = [&LABEL[..], &["--rm", "-e", "LINGER_MS=500"]].concat();
        docker.run_server(&format!("v{number}"), &options);
    };
    run(0);
    run(1);
    let samport = serve(&docker, &["v0", "v1"]);
    let load = load(&docker);
    for number in 2..ROUNDS + 2 {
        run(number);
        wait_until_serving(&samport, 0, &format!("v{number}"));
        let old = format!("v{}", number - 2);
        docker.cli(&["stop", "-t", "8", &old]);
        wait_until_gone(&samport, 0, &old);
    }
    wait_for_more(&load);
    let report = load.stop();
    println!("{ROUNDS} replacements: {report}");
    report.assert_no_failure();
    assert_eq!(report.tally.iter().count(), ROUNDS as usize + 2, "{}", report.tally);
    samport.stop();
}

/// A signal is not always the end: many servers read their configuration again on SIGHUP.
#[test]
fn a_signal_that_does_not_stop_a_container_changes_nothing() {
    let docker = engine_of(&["one", "two"]);
    let samport = serve(&docker, &["one", "two"]);
    let mark = samport.mark();
    docker.cli(&["kill", "-s", "HUP", "one"]);
    // Events come in order: once this is heard, the signal has been.
    docker.cli(&["rename", "two", "three"]);
    heard(&samport, mark, &["three"]);
    assert!(!said(&samport, mark, "- one "));
    assert_eq!(names(&ask_front(&docker, 60)), ["one", "two"]);
    samport.stop();
}

/// A paused container is frozen with its connections: they go on when it does, others go elsewhere.
#[test]
fn a_paused_container_gets_no_new_connections_and_keeps_those_it_has() {
    let docker = engine_of(&["one", "two"]);
    let samport = serve(&docker, &["one", "two"]);
    let mut held = hold(&docker, "two");
    docker.cli(&["pause", "two"]);
    wait_until_draining(&samport, 0, "two");
    assert_eq!(names(&ask_front(&docker, 60)), ["one"]);
    docker.cli(&["unpause", "two"]);
    heard(&samport, 0, &["+ two ", " back"]);
    assert_eq!(held.get("/").unwrap().backend, "two");
    assert_eq!(names(&ask_front(&docker, 60)), ["one", "two"]);
    samport.stop();
}

/// A name is a name: connections have nothing to do with it.
#[test]
fn a_renamed_container_is_shown_by_its_new_name_and_keeps_its_connections() {
    let docker = engine_of(&["one", "two"]);
    let samport = serve(&docker, &["one", "two"]);
    let mut held = hold(&docker, "two");
    let load = load(&docker);
    wait_for_more(&load);
    docker.cli(&["rename", "two", "deux"]);
    heard(&samport, 0, &["deux"]);
    wait_for_more(&load);
    load.stop().assert_no_failure();
    assert_eq!(held.get("/").unwrap().backend, "two");
    let status = Status::all_in(docker.lab().host());
    let names: Vec<_> = status[0].backends().iter().map(|backend| text(backend, "name")).collect();
    assert!(names.contains(&"deux") && names.contains(&"one"), "{names:?}");
    samport.stop();
}

/// A connection to one of the containers, kept open.
pub fn hold(docker: &samport_tests::docker::Dockerd, name: &str) -> Connection {
    for _ in 0..100 {
        let mut connection = docker.lab().client().run(|| Connection::open(front(docker)).unwrap());
        if connection.get("/").unwrap().backend == name {
            return connection;
        }
    }
    panic!("{name} has answered none of 100 requests");
}
