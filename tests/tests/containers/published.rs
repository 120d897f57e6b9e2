//! Ports that Docker serves itself.

use samport_tests::daemon::{HASH_SEED_FILE, hash_seed_file, samport_binary};
use samport_tests::docker::{Dockerd, Options};
use samport_tests::load::get;
use samport_tests::traces::{assert_traces, traces};

use crate::{LABEL, ask_front, engine_of, engine_with, heard, names, serve, wait_until_serving};

/// Runs samport, which is to end by itself with 6; what it has said.
fn refused(docker: &Dockerd) -> String {
    let host = docker.lab().host();
    let before = traces(host);
    let mut command = host.command("timeout");
    command.arg("20").arg(samport_binary()).env(HASH_SEED_FILE, hash_seed_file());
    command.args(["run", "-i", "eth0", "-p", "80:9090", "--endpoint", &docker.url()]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert_traces(host, &before);
    said
}

/// Case 87: the port is published by another container.
#[test]
fn a_port_that_another_container_publishes_is_refused() {
    let docker = engine_of(&["good"]);
    docker.run_server("old-web", &["-p", "80:9090"]);
    let said = refused(&docker);
    assert!(said.contains("port 80 ") && said.contains("\"old-web\""), "{said}");
    assert!(said.contains("`ports:`"), "says no way out: {said}");
}

/// Runs `samport check`; how it ended, and what it printed.
fn checked(docker: &Dockerd, port: &str) -> (Option<i32>, String) {
    let host = docker.lab().host();
    let before = traces(host);
    let mut command = host.command(samport_binary());
    let output = command.args(["check", "-i", "eth0", "--endpoint", &docker.url(), "-p", port]);
    let output = output.output().unwrap();
    assert_traces(host, &before);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn check_names_the_engine_and_the_container_that_publishes_the_port() {
    let docker = engine_of(&["good"]);
    docker.run_server("old-web", &["-p", "80:9090"]);
    let (code, printed) = checked(&docker, "80:9090");
    assert_eq!(code, Some(4), "{printed}");
    let engine = format!(" at {}", docker.url());
    let answers = |line: &str| line.starts_with("ok    Docker ") && line.ends_with(&engine);
    assert!(printed.lines().any(answers), "{printed}");
    let taken = "FAIL  port 80 is already published by container \"old-web\" → remove its `ports:`";
    assert!(printed.contains(taken), "{printed}");
    let (code, printed) = checked(&docker, "81");
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("ok    port 81 is free"), "{printed}");
}

/// Case 87: the same where the engine is told to do without docker-proxy.
#[test]
fn a_port_that_is_published_without_docker_proxy_is_refused() {
    let more = vec!["--userland-proxy=false".to_owned()];
    let docker = engine_with(Options { more, ..Options::default() });
    docker.run_server("good", &LABEL);
    docker.run_server("old-web", &["-p", "80:9090"]);
    let said = refused(&docker);
    assert!(said.contains("port 80 ") && said.contains("\"old-web\""), "{said}");
}

/// Case 87: a container that publishes the port while samport serves it is named, once, and takes nothing.
#[test]
fn a_container_that_publishes_a_served_port_later_is_named_once() {
    let docker = engine_of(&["good"]);
    let samport = serve(&docker, &["good"]);
    docker.run_server("late", &["-p", "80:9090"]);
    heard(&samport, 0, &["\"late\" publishes port 80,", "`ports:`"]);
    docker.run_server("elsewhere", &["-p", "81:9090"]);
    docker.cli(&["restart", "-t", "1", "late"]);
    let mark = samport.mark();
    docker.run_server("good-too", &LABEL);
    wait_until_serving(&samport, mark, "good-too");
    let about = |name: &str| {
        let text = format!("{name:?} publishes");
        samport.lines().iter().filter(|line| line.text.contains(&text)).count()
    };
    assert_eq!((about("late"), about("elsewhere")), (1, 0));
    assert_eq!(names(&ask_front(&docker, 60)), ["good", "good-too"]);
    samport.stop();
}

/// A port that is published to the host alone has nothing to do with the interface clients come in by.
#[test]
fn a_port_that_is_published_on_loopback_is_no_obstacle() {
    let docker = engine_of(&["good"]);
    docker.run_server("local", &["-p", "127.0.0.1:80:9090"]);
    let samport = serve(&docker, &["good"]);
    assert_eq!(names(&ask_front(&docker, 30)), ["good"]);
    let local = docker.lab().host().run(|| get(([127, 0, 0, 1], 80).into(), "/")).unwrap();
    assert_eq!(local.backend, "local");
    samport.stop();
}
