//! samport before an engine that lets it read, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use samport_tests::daemon::{Daemon, samport_command};
use samport_tests::proxy::ReadingProxy;

use crate::{LABEL, ask_front, engine_of, heard, names, wait_until_gone};

/// The requests docs/concepts/security.md says samport makes.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/concepts/security.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `GET "));
    rows.filter_map(|row| row.split_once('`')).map(|(path, _)| path.to_owned()).collect()
}

/// Containers come and go, their places are found, and `samport check` is content: all by reading what is documented.
#[test]
fn reading_the_documented_paths_is_all_it_takes() {
    let docker = engine_of(&["web-1"]);
    let host = docker.lab().host();
    let proxy = ReadingProxy::start(host, &docker.folder().join("d.sock"), documented());
    let url = proxy.url();
    let environment = [("DOCKER_HOST", url.as_str())];
    let samport = Daemon::start_with(host, &["-i", "eth0", "-p", "80:9090"], &environment);
    heard(&samport, 0, &["+ web-1 ", " by peer"]);
    docker.run_server("web-2", &LABEL);
    heard(&samport, 0, &["+ web-2 ", " by peer"]);
    assert_eq!(names(&ask_front(&docker, 50)), ["web-1", "web-2"]);
    let mark = samport.mark();
    docker.cli(&["stop", "web-1"]);
    wait_until_gone(&samport, mark, "web-1");
    assert_eq!(names(&ask_front(&docker, 20)), ["web-2"]);
    samport.stop();

    let mut check = samport_command(host, &["check", "-i", "eth0", "-p", "80"]);
    let check = check.env("DOCKER_HOST", &url).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("ok    Docker"), "{said}");

    assert_eq!(proxy.refused(), Vec::<String>::new());
    assert_eq!(proxy.passed(), documented());
}
