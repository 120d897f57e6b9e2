//! An operator steers containers by their names and ids.

use samport_tests::daemon::samport;
use samport_tests::docker::Dockerd;
use samport_tests::served::{Status, text};
use samport_tests::{TIMEOUT, eventually};
use serde_json::Value;

use crate::life::hold;
use crate::{LABEL, ask_front, engine_of, names, serve, wait_until_serving};

/// Gives an order; panics unless it is carried out.
fn order(docker: &Dockerd, args: &[&str]) -> String {
    let output = samport(docker.lab().host(), args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "samport {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The state of a container, if samport knows it.
fn state_of(docker: &Dockerd, name: &str) -> Option<String> {
    let document = order(docker, &["backends", "-o", "json"]);
    let document: Value = serde_json::from_str(&document).unwrap();
    let mut all = document["backends"].as_array().unwrap().iter();
    all.find(|one| text(one, "name") == name).map(|one| text(one, "state").to_owned())
}

/// Case 54, by command: a container is drained by its name, and comes back by the beginning of its id.
#[test]
fn a_container_is_drained_by_name_and_undrained_by_id() {
    let docker = engine_of(&["one", "two"]);
    let samport = serve(&docker, &["one", "two"]);
    let mut held = hold(&docker, "two");
    order(&docker, &["drain", "two"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["one"]);
    assert_eq!(held.get("/").unwrap().backend, "two");
    let id = docker.cli(&["inspect", "-f", "{{.Id}}", "two"]);
    order(&docker, &["undrain", &id[..12]]);
    assert_eq!(names(&ask_front(&docker, 60)), ["one", "two"]);
    samport.stop();
}

/// A drain is the container's and outlives its restart; another container of that name serves. A weight
/// is the name's.
#[test]
fn a_drain_ends_with_the_container_and_a_weight_stays_with_its_name() {
    let docker = engine_of(&["one", "two"]);
    let samport = serve(&docker, &["one", "two"]);
    order(&docker, &["drain", "two"]);
    docker.cli(&["restart", "-t", "1", "two"]);
    eventually("two is back and drained", || {
        let state = state_of(&docker, "two")?;
        assert_ne!(state, "active");
        (state == "draining" || state == "down").then_some(())
    });
    assert_eq!(names(&ask_front(&docker, 60)), ["one"]);

    order(&docker, &["weight", "two", "5"]);
    docker.cli(&["rm", "-f", "two"]);
    let mark = samport.mark();
    docker.run_server("two", &LABEL);
    wait_until_serving(&samport, mark, "two");
    assert_eq!(names(&ask_front(&docker, 60)), ["one", "two"]);
    let status = Status::all_in(docker.lab().host());
    let weights: Vec<_> = status[0]
        .backends()
        .iter()
        .map(|one| (text(one, "name"), one["weight"].as_u64().unwrap()))
        .collect();
    assert!(weights.contains(&("two", 5)) && weights.contains(&("one", 1)), "{weights:?}");
    samport.stop();
}

/// The label's time to drain goes before the flag's.
#[test]
fn a_containers_own_time_to_drain_counts() {
    let docker = engine_of(&["one"]);
    docker.run_server("two", &[&LABEL[..], &["--label", "samport.drain=1s"]].concat());
    let samport = serve(&docker, &["one", "two"]);
    let mut held = hold(&docker, "two");
    order(&docker, &["drain", "two"]);
    samport.wait_for_line("- two", TIMEOUT);
    eventually("two is down", || (state_of(&docker, "two")? == "down").then_some(()));
    assert!(held.get("/").is_err());
    samport.stop();
}

/// The old and the new version behind one port, and from one to the other by command.
#[test]
fn a_group_is_given_its_weight_by_command() {
    let docker = engine_of(&[]);
    for name in ["blue", "green"] {
        let label = format!("samport.group={name}");
        docker.run_server(&format!("in-{name}"), &[&LABEL[..], &["--label", &label]].concat());
    }
    let samport = serve(&docker, &["in-blue", "in-green"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["in-blue", "in-green"]);
    order(&docker, &["weight", "blue", "0"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["in-green"]);
    order(&docker, &["weight", "blue", "1"]);
    order(&docker, &["weight", "green", "0"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["in-blue"]);
    samport.stop();
}
