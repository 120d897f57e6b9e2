//! Compose scales a service.

use std::fs;

use samport_tests::TIMEOUT;
use samport_tests::daemon::Daemon;
use samport_tests::docker::{Dockerd, SERVER_IMAGE};

use crate::rolling::command;
use crate::{assert_shares, engine, heard, load, start_samport, wait_for_more};

/// What `docker compose up` needs to know.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    /// One service whose containers go on serving for a moment once they are told to stop, as
    /// servers do that finish what they have begun.
    fn new() -> Self {
        // The project's name, and the containers' first word, is the folder's.
        let project = Self { folder: tempfile::Builder::new().prefix("shop").tempdir().unwrap() };
        project.write("LINGER_MS: '2000'");
        project
    }

    /// Writes the file, with this in the containers' environment.
    fn write(&self, environment: &str) {
        let text = format!(
            "version: '3'\n\
             services:\n  \
               app:\n    \
                 image: {SERVER_IMAGE}\n    \
                 command: [/server]\n    \
                 environment: {{{environment}}}\n    \
                 labels: {{samport.port: '80'}}\n"
        );
        fs::write(self.folder.path().join("docker-compose.yml"), text).unwrap();
    }

    /// Scales, and waits until samport has followed.
    fn scale(&self, docker: &Dockerd, samport: &Daemon, from: usize, to: usize) {
        let mark = samport.mark();
        let scale = format!("app={to}");
        docker.compose(self.folder.path(), &["up", "-d", "--no-color", "--scale", &scale]);
        let compose = docker.compose_version();
        let name = |number| compose.container_name(self.folder.path(), "app", number);
        for number in from + 1..=to {
            let line = heard(samport, mark, &[&format!("+ {} ", name(number)), " by "]);
            let figure = line.text.split("by peer, ").nth(1);
            println!(
                "{}: {}",
                name(number),
                figure.unwrap_or_else(|| panic!("no figure in {:?}", line.text))
            );
        }
        for number in to + 1..=from {
            let begin = format!("- {} ", name(number));
            heard(samport, mark, &[&begin, " draining"]);
            heard(samport, mark, &[&begin, " gone"]);
        }
    }
}

/// Cases 64 and 61, and the acceptance of the whole: a service of Compose is scaled up and down
/// under load and nobody notices, because stopping containers drain from the signal on.
#[test]
fn compose_scales_up_and_down_under_load_and_no_request_fails() {
    let docker = engine();
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    let project = Project::new();
    project.scale(&docker, &samport, 0, 1);

    let load = load(&docker);
    assert!(load.wait_for_more(100, TIMEOUT));
    for (from, to) in [(1, 5), (5, 2), (2, 3)] {
        project.scale(&docker, &samport, from, to);
        wait_for_more(&load);
        let so_far = load.so_far();
        println!("{from} → {to}: {so_far}");
        so_far.assert_no_failure();
        assert_shares(&docker, &vec![1.0; to]);
    }
    load.stop().assert_no_failure();
}

/// Case 62: a new version by the commands for Compose in docs/guides/rolling.md.
#[test]
fn compose_replaces_a_service_by_the_recipe_and_no_request_fails() {
    let docker = engine();
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    let project = Project::new();
    project.write("LINGER_MS: '0'");
    project.scale(&docker, &samport, 0, 2);
    let load = load(&docker);
    wait_for_more(&load);

    let old = docker.compose(project.folder.path(), &["ps", "-q", "app"]);
    project.write("LINGER_MS: '1'");
    let more = ["up", "-d", "--no-color", "--no-deps", "--no-recreate", "--scale", "app=4", "app"];
    docker.compose(project.folder.path(), &more);
    command(&docker, &["wait", "--healthy", "4", "80"]);
    for id in old.lines() {
        command(&docker, &["drain", id, "--wait"]);
    }
    docker.cli(&[&["stop"], &old.lines().collect::<Vec<_>>()[..]].concat());
    docker.cli(&[&["rm"], &old.lines().collect::<Vec<_>>()[..]].concat());
    wait_for_more(&load);
    load.stop().assert_no_failure();

    let new = docker.compose(project.folder.path(), &["ps", "-q", "app"]);
    assert_eq!(new.lines().count(), 2, "{new}");
    for id in new.lines() {
        let environment = docker.cli(&["inspect", "-f", "{{.Config.Env}}", id]);
        assert!(environment.contains("LINGER_MS=1"), "{environment}");
    }
    assert_shares(&docker, &[1.0; 2]);
    samport.stop();
}
