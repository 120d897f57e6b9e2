//! Compose scales a service.

use std::fs;

use samport_tests::PATIENCE;
use samport_tests::daemon::Daemon;
use samport_tests::docker::{Dockerd, SERVER_IMAGE};

use crate::{assert_shares, engine, heard, load, start_samport, wait_for_more};

/// What `docker-compose up` needs to know.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    /// One service whose containers go on serving for a moment once they are told to stop, as
    /// servers do that finish what they have begun.
    fn new() -> Self {
        // The project's name, and the containers' first word, is the folder's.
        let folder = tempfile::Builder::new().prefix("shop").tempdir().unwrap();
        let text = format!(
            "version: '3'\n\
             services:\n  \
               app:\n    \
                 image: {SERVER_IMAGE}\n    \
                 command: [/server]\n    \
                 environment: {{LINGER_MS: '2000'}}\n    \
                 labels: {{samport.port: '80'}}\n"
        );
        fs::write(folder.path().join("docker-compose.yml"), text).unwrap();
        Self { folder }
    }

    /// Scales, and waits until samport has followed.
    fn scale(&self, docker: &Dockerd, samport: &Daemon, from: usize, to: usize) {
        let mark = samport.mark();
        let scale = format!("app={to}");
        docker.compose(self.folder.path(), &["up", "-d", "--no-color", "--scale", &scale]);
        for number in from + 1..=to {
            let line = heard(samport, mark, &["+ shop", &format!("_app_{number} "), " by "]);
            let figure = line.text.split("by peer, ").nth(1);
            println!(
                "app_{number}: {}",
                figure.unwrap_or_else(|| panic!("no figure in {:?}", line.text))
            );
        }
        for number in to + 1..=from {
            let name = format!("_app_{number} ");
            heard(samport, mark, &["- shop", &name, " draining"]);
            heard(samport, mark, &["- shop", &name, " gone"]);
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
    assert!(load.wait_for_more(100, PATIENCE));
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
