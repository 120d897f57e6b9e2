//! When a container is fit to serve.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use samport::lab::output_of;
use samport_tests::docker::{Dockerd, server_image};
use samport_tests::eventually;
use samport_tests::load::Connection;
use samport_tests::served::{Status, text};

use crate::life::hold;
use crate::{
    LABEL, ask_front, engine, engine_of, heard, load, names, said, serve, wait_for_more,
    wait_until_serving,
};

/// The image of the server with a shell, which `docker run --health-cmd` needs.
const SHELL_IMAGE: &str = "samport-test-shell";

fn import_shell_image(docker: &Dockerd) {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    // Debian's busybox-static; a dynamic one would find no library in the container.
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    fs::copy(busybox.expect("busybox is there"), bin.join("busybox")).unwrap();
    for applet in ["sh", "test", "touch", "rm"] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let tar = root.path().join("image.tar");
    let run = |command: &mut Command| output_of(command).unwrap_or_else(|e| panic!("{e:#}"));
    run(Command::new("tar").arg("-xf").arg(server_image().unwrap()).arg("-C").arg(root.path()));
    run(Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(root.path())
        .args(["bin", "server"]));
    docker.cli(&["import", "--change", "CMD [\"/server\"]", tar.to_str().unwrap(), SHELL_IMAGE]);
}

/// Case 60: a container with a HEALTHCHECK serves while that passes, and not by listening alone.
#[test]
fn a_health_check_gates_traffic() {
    let docker = engine_of(&["plain"]);
    import_shell_image(&docker);
    let samport = serve(&docker, &["plain"]);
    let options = ["run", "-d", "--name", "checked", "-e", "INSTANCE=checked"];
    let check = ["--health-cmd", "test -e /fit", "--health-interval", "200ms"];
    // Failures in the start period leave it `starting`.
    let limits = ["--health-retries", "1", "--health-start-period", "1h"];
    docker.cli(&[&options[..], &LABEL, &check, &limits, &[SHELL_IMAGE]].concat());
    let address = docker.address("checked", 9090);
    eventually("its server listens", || {
        docker.lab().host().run(|| samport_tests::load::get(address, "/")).ok()
    });

    assert_eq!(docker.cli(&["inspect", "-f", "{{.State.Health.Status}}", "checked"]), "starting");
    assert_eq!(names(&ask_front(&docker, 60)), ["plain"]);
    assert!(!said(&samport, 0, "+ checked "));

    docker.cli(&["exec", "checked", "touch", "/fit"]);
    wait_until_serving(&samport, 0, "checked");
    assert_eq!(names(&ask_front(&docker, 60)), ["checked", "plain"]);

    let mut held = hold(&docker, "checked");
    docker.cli(&["exec", "checked", "rm", "/fit"]);
    heard(&samport, 0, &["- checked ", " unhealthy: its HEALTHCHECK fails"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["plain"]);
    assert_eq!(held.get("/").unwrap().backend, "checked");

    docker.cli(&["exec", "checked", "touch", "/fit"]);
    heard(&samport, 0, &["+ checked ", " healthy again"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["checked", "plain"]);
    assert_eq!(held.get("/").unwrap().backend, "checked");
    samport.stop();
}

/// Case 60: a page decides where a label says so, at first and later on, and how often it counts.
#[test]
fn a_page_named_by_a_label_gates_traffic_for_as_long_as_the_container_lives() {
    let docker = engine_of(&["plain"]);
    let samport = serve(&docker, &["plain"]);
    let labels = [
        "samport.port=80",
        "samport.health=http:/health",
        "samport.health.interval=100ms",
        "samport.health.fall=2",
    ];
    let labels = labels.iter().flat_map(|label| ["--label", label]);
    docker.run_server("paged", &labels.chain(["-e", "HEALTH=503"]).collect::<Vec<_>>());
    let address = docker.address("paged", 9090);
    let ask =
        |question: &str| docker.lab().host().run(|| Connection::open(address)?.ask(question)).ok();
    assert_eq!(eventually("it answers 503", || ask("GET /health")).status, 503);
    assert_eq!(names(&ask_front(&docker, 60)), ["plain"]);
    let status = Status::all_in(docker.lab().host()).pop().unwrap();
    let shown = status.backends().iter().map(|one| (text(one, "name"), text(one, "state")));
    assert!(shown.into_iter().any(|one| one == ("paged", "starting")), "{status:?}");
    assert!(!said(&samport, 0, "+ paged "));

    ask("POST /health/204").unwrap();
    wait_until_serving(&samport, 0, "paged");
    assert_eq!(names(&ask_front(&docker, 60)), ["paged", "plain"]);
    ask("POST /health/500").unwrap();
    heard(&samport, 0, &["- paged ", " unhealthy: answered 500 (2 times)"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["plain"]);
    ask("POST /health/200").unwrap();
    heard(&samport, 0, &["+ paged ", " healthy again"]);
    assert_eq!(names(&ask_front(&docker, 60)), ["paged", "plain"]);
    samport.stop();
}

/// Case 60: without a HEALTHCHECK, a container serves as soon as it accepts connections.
#[test]
fn a_container_that_listens_late_gets_no_request_before() {
    let docker = engine_of(&["early"]);
    let samport = serve(&docker, &["early"]);
    let load = load(&docker);
    docker.run_server("late", &[&LABEL[..], &["-e", "DELAY_MS=1500"]].concat());
    wait_for_more(&load);
    println!("{}", wait_until_serving(&samport, 0, "late").text);
    let before = load.so_far().tally;
    wait_for_more(&load);
    let report = load.stop();
    report.assert_no_failure();
    assert_eq!(names(&report.tally.since(&before)), ["early", "late"]);
    samport.stop();
}

/// The first container of all: until it listens, clients are refused by the host, as without us.
#[test]
fn a_container_that_is_the_only_one_serves_as_soon_as_it_listens() {
    let docker = engine();
    let samport = serve(&docker, &[]);
    samport.wait_for_line("no backend yet", samport_tests::TIMEOUT);
    docker.run_server("only", &LABEL);
    println!("{}", wait_until_serving(&samport, 0, "only").text);
    assert_eq!(names(&ask_front(&docker, 20)), ["only"]);
    samport.stop();
}
