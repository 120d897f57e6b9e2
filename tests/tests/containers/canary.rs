//! A canary by the commands of docs/guides/canary.md: two groups behind one port.

use std::fs;
use std::path::Path;

use samport::lab::output_of;
use samport_tests::daemon::{Daemon, samport_command};
use samport_tests::docker::{Dockerd, SERVER_IMAGE};
use samport_tests::eventually;
use samport_tests::load::{Connection, Tally};
use samport_tests::served::text;
use samport_tests::stats::within_four_sigma;
use serde_json::Value;

use crate::life::hold;
use crate::rolling::command;
use crate::{
    ask_front, engine, load, start_samport, wait_for_more, wait_until_gone, wait_until_serving,
};

const STABLE: [&str; 2] = ["stable-1", "stable-2"];
const CANARY: &str = "canary-1";
/// Requests whose shares are judged.
const SAMPLE: u32 = 3_000;

fn run(docker: &Dockerd, name: &str, group: &str, weight: u32, options: &[&str]) {
    let group = format!("--label=samport.group={group}");
    let weight = format!("--label=samport.group.weight={weight}");
    let labels = ["--label=samport.port=80", "--label=samport.service=shop", &group, &weight];
    docker.run_server(name, &[&labels[..], options].concat());
}

/// Two containers of the old version with 90 of 100, one of the new with 10.
fn start(canary_options: &[&str]) -> (Dockerd, Daemon) {
    let docker = engine();
    for name in STABLE {
        run(&docker, name, "stable", 90, &[]);
    }
    run(&docker, CANARY, "canary", 10, canary_options);
    let samport = start_samport(&docker, &["-p", "80:9090", "--drain", "1h"]);
    for name in STABLE.into_iter().chain([CANARY]) {
        wait_until_serving(&samport, 0, name);
    }
    (docker, samport)
}

/// Panics unless the canary has this share of new connections, and those of the old version the rest in
/// halves.
fn assert_shares(docker: &Dockerd, canary: f64) {
    let tally = ask_front(docker, SAMPLE);
    let stable = (1.0 - canary) / 2.0;
    for (name, share) in [(CANARY, canary), (STABLE[0], stable), (STABLE[1], stable)] {
        let is_fair = within_four_sigma(tally.of(name), SAMPLE, share);
        assert!(is_fair, "{name} should have {share} of\n{tally}");
    }
    println!("canary {canary:.3}:\n{tally}");
}

/// What the operator sees.
fn seen(docker: &Dockerd) -> Vec<Value> {
    let list = output_of(&mut samport_command(docker.lab().host(), &["backends", "-o", "json"]));
    let document: Value = serde_json::from_str(&list.unwrap()).unwrap();
    document["backends"].as_array().unwrap().clone()
}

/// The share a container should have, as `samport backends` says it.
fn expected_share(docker: &Dockerd, name: &str) -> f64 {
    let all = seen(docker);
    let one = all.iter().find(|one| text(one, "name") == name);
    one.unwrap_or_else(|| panic!("no {name} in {all:?}"))["share_expected"].as_f64().unwrap()
}

fn assert_expected_share(docker: &Dockerd, name: &str, share: f64) {
    let expected = expected_share(docker, name);
    assert!((expected - share).abs() < 1e-3, "{name} should have {share}, and has {expected}");
}

/// Case 46, for groups: weights are changed live, step by step to the new version and all the way back, and no
/// connection that is open notices.
#[test]
fn a_canary_gets_more_and_more_and_nothing_after_the_rollback() {
    let (docker, samport) = start(&[]);
    let load = load(&docker);
    let mut held = [hold(&docker, CANARY), hold(&docker, "stable-1")];
    let assert_kept = |held: &mut [Connection; 2]| {
        let answers = held.each_mut().map(|one| one.get("/").unwrap().backend);
        assert_eq!(answers, [CANARY, "stable-1"]);
    };
    assert_shares(&docker, 0.1);
    for (order, share) in [
        (["weight", "canary", "50"], 50.0 / 140.0),
        (["weight", "canary", "100"], 100.0 / 190.0),
        (["weight", "stable", "0"], 1.0),
        (["weight", "stable", "90"], 100.0 / 190.0),
        (["weight", "canary", "0"], 0.0),
    ] {
        command(&docker, &order);
        assert_expected_share(&docker, CANARY, share);
        assert_shares(&docker, share);
        assert_kept(&mut held);
    }
    command(&docker, &["weight", "canary", "10"]);
    assert_shares(&docker, 0.1);
    load.stop().assert_no_failure();
    samport.stop();
}

/// A group without anybody leaves its share to the other one, and has it again when somebody is back. The
/// share that was ordered is the group's, not the container's.
#[test]
fn a_group_whose_only_container_is_stopped_leaves_its_share_to_the_other() {
    let (docker, samport) = start(&["-e", "LINGER_MS=1000"]);
    command(&docker, &["weight", "canary", "50"]);
    let load = load(&docker);
    wait_for_more(&load);
    docker.cli(&["stop", "-t", "8", CANARY]);
    wait_until_gone(&samport, 0, CANARY);
    for name in STABLE {
        assert_expected_share(&docker, name, 0.5);
    }
    assert_shares(&docker, 0.0);
    let mark = samport.mark();
    docker.cli(&["start", CANARY]);
    wait_until_serving(&samport, mark, CANARY);
    assert_shares(&docker, 50.0 / 140.0);
    load.stop().assert_no_failure();
    samport.stop();
}

/// The Compose file of docs/guides/canary.md in a folder of its own.
struct Page(tempfile::TempDir);

impl Page {
    fn new() -> Self {
        let page = Self(tempfile::Builder::new().prefix("shop").tempdir().unwrap());
        page.write("");
        page
    }

    /// Writes the file with the lab's server for its images; the old version may have something more said
    /// of it.
    fn write(&self, of_app: &str) {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/canary.md");
        let page = fs::read_to_string(page).unwrap();
        let (_, rest) = page.split_once("```yaml\n").unwrap();
        let (file, _) = rest.split_once("```").unwrap();
        let server = format!("image: {SERVER_IMAGE}\n    command: [/server]");
        let app = format!("{server}{of_app}");
        let file = file.replace("image: shop:1", &app).replace("image: shop:2", &server);
        assert!(!file.contains("shop:"), "{file}");
        fs::write(self.0.path().join("docker-compose.yml"), file).unwrap();
    }

    fn up(&self, docker: &Dockerd) {
        let up = ["up", "-d", "--no-color", "--scale", "app=2", "--scale", "canary=1"];
        docker.compose(self.0.path(), &up);
    }

    /// How many requests a service has answered: as nothing names the server, by its container's id.
    fn answered(&self, docker: &Dockerd, service: &str, tally: &Tally) -> u32 {
        let ids = docker.compose(self.0.path(), &["ps", "-q", service]);
        ids.lines().map(|id| tally.of(&id[..12])).sum()
    }

    fn assert_canary_has(&self, docker: &Dockerd, share: f64) {
        let tally = ask_front(docker, SAMPLE);
        let [app, canary] = ["app", "canary"].map(|one| self.answered(docker, one, &tally));
        assert_eq!(app + canary, SAMPLE, "{tally}");
        assert!(within_four_sigma(canary, SAMPLE, share), "{canary} is not {share} of {SAMPLE}");
    }
}

fn wait_until_down(docker: &Dockerd, group: &str) {
    eventually(&format!("{group} is down"), || {
        let all = seen(docker);
        let mut members = all.iter().filter(|one| text(one, "group") == group);
        members.all(|one| text(one, "state") == "down").then_some(())
    });
}

/// Cases 46 and 62: the page's Compose file and commands, from a tenth to the new stable version, under load.
#[test]
fn the_canary_of_the_page_becomes_the_stable_version_and_no_request_fails() {
    let docker = engine();
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    let page = Page::new();
    page.up(&docker);
    command(&docker, &["wait", "--healthy", "3", "80"]);
    let load = load(&docker);
    page.assert_canary_has(&docker, 0.1);
    command(&docker, &["weight", "canary", "90"]);
    page.assert_canary_has(&docker, 0.5);

    command(&docker, &["weight", "stable", "0"]);
    wait_until_down(&docker, "stable");
    let old = docker.compose(page.0.path(), &["ps", "-q", "app"]);
    page.write("\n    environment: {VERSION: '2'}");
    page.up(&docker);
    assert_ne!(docker.compose(page.0.path(), &["ps", "-q", "app"]), old);
    page.assert_canary_has(&docker, 1.0);
    command(&docker, &["weight", "stable", "90"]);
    command(&docker, &["wait", "--healthy", "3", "80"]);
    page.assert_canary_has(&docker, 0.5);
    command(&docker, &["weight", "canary", "0"]);
    wait_until_down(&docker, "canary");
    docker.compose(page.0.path(), &["rm", "-sf", "canary"]);
    wait_for_more(&load);
    load.stop().assert_no_failure();
    page.assert_canary_has(&docker, 0.0);
    samport.stop();
}
