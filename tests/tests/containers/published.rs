//! Ports that Docker serves itself.

use samport_tests::daemon::samport_binary;
use samport_tests::docker::{Dockerd, Options};
use samport_tests::load::get;
use samport_tests::traces::{assert_traces, traces};

use crate::{LABEL, ask_front, engine_of, engine_with, names, serve};

/// Runs samport, which is to end by itself with 6; what it has said.
fn refused(docker: &Dockerd) -> String {
    let host = docker.lab().host();
    let before = traces(host);
    let mut command = host.command("timeout");
    command.arg("20").arg(samport_binary());
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
