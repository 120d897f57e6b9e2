//! Podman run by root: alone, and beside Docker.

use samport_tests::Lab;
use samport_tests::daemon::Daemon;
use samport_tests::load::{Connection, Load, ask, get};
use samport_tests::podman::Podman;
use samport_tests::require_root;

use crate::{
    LABEL, engine_of, heard, names, said, wait_for_more, wait_until_gone, wait_until_serving,
};

/// Case 74: rootful Podman's containers come and go as Docker's do.
#[test]
fn podmans_containers_serve_and_are_followed() {
    require_root();
    let lab = Lab::builder().backends(0).build().unwrap();
    let podman = Podman::start(&lab);
    podman.import_server_image();
    for name in ["one", "two"] {
        podman.run_server(name, &LABEL);
    }
    podman.run_server("guest", &[]);
    podman.run_server("isolated", &[LABEL[0], LABEL[1], "--network", "none"]);
    let at_home = ["--network", "host", "-e", "PORT=6060", "--label", "samport.port=80:6060"];
    podman.run_server("at-home", &at_home);
    let url = podman.url();
    let args = ["-i", "eth0", "-p", "80", "-p", "81", "--provider", "podman", "--endpoint", &url];
    let by_label = ["--label", "samport.port=81:9090"];
    podman.run_server("other", &by_label);
    let samport = Daemon::start(&lab, &args);
    heard(&samport, 0, &["\"isolated\"", "--network none"]);
    heard(&samport, 0, &["+ at-home 192.0.2.1:6060 ", " by stack"]);
    heard(&samport, 0, &["+ other 10.88.", " by peer"]);
    assert_eq!(names(&ask(&lab, lab.front(81), 20)), ["other"]);
    assert_eq!(names(&ask(&lab, lab.front(80), 20)), ["at-home"]);
    samport.stop();

    // By Docker's name, which it answers to as well.
    let args = ["-i", "eth0", "-p", "80:9090", "--provider", "docker", "--endpoint", &url];
    podman.cli(&["rm", "-f", "-t", "0", "at-home", "other"]);
    let samport = Daemon::start(&lab, &args);
    for name in ["one", "two"] {
        wait_until_serving(&samport, 0, name);
    }
    assert_eq!(names(&ask(&lab, lab.front(80), 60)), ["one", "two"]);
    let guest = podman.inside("guest", || get(lab.front(80), "/")).unwrap();
    assert_eq!(guest.client, guest.local_addr);
    lab.host().run(|| get("127.0.0.1:80".parse().unwrap(), "/")).unwrap();

    let mark = samport.mark();
    podman.cli(&["stop", "-t", "8", "one"]);
    wait_until_gone(&samport, mark, "one");
    assert_eq!(names(&ask(&lab, lab.front(80), 20)), ["two"]);
    podman.cli(&["start", "one"]);
    wait_until_serving(&samport, mark, "one");
    let mark = samport.mark();
    podman.cli(&["restart", "-t", "8", "two"]);
    wait_until_serving(&samport, mark, "two");
    assert_eq!(names(&ask(&lab, lab.front(80), 60)), ["one", "two"]);
    podman.cli(&["rm", "-f", "-t", "0", "two"]);
    wait_until_gone(&samport, mark, "two");
    assert_eq!(names(&ask(&lab, lab.front(80), 20)), ["one"]);
    samport.stop();
}

/// Case 74: networks that are connected and disconnected while a container serves, whichever its default route is in.
#[test]
fn podmans_networks_come_and_go_while_a_container_serves() {
    require_root();
    let lab = Lab::builder().backends(0).build().unwrap();
    let podman = Podman::start(&lab);
    podman.import_server_image();
    for network in ["alpha", "middle", "omega"] {
        podman.cli(&["network", "create", "--disable-dns", network]);
    }
    podman.run_server("web", &[LABEL[0], LABEL[1], "--network", "middle"]);
    // In two from the start.
    for network in ["alpha", "omega"] {
        let label = format!("samport.network={network}");
        let options = ["--label", "samport.port=81:9090", "--label", &label];
        podman.run_server(network, &[&options[..], &["--network", "alpha,omega"]].concat());
    }
    let url = podman.url();
    let args = ["-i", "eth0", "-p", "80:9090", "-p", "81:9090", "--provider", "podman"];
    let samport = Daemon::start(&lab, &[&args[..], &["--endpoint", &url]].concat());
    for name in ["alpha", "omega", "web"] {
        wait_until_serving(&samport, 0, name);
    }
    assert_eq!(names(&ask(&lab, lab.front(81), 60)), ["alpha", "omega"]);
    let load = Load::start(lab.client(), lab.front(80), 2);
    let mut held = lab.client().run(|| Connection::open(lab.front(80)).unwrap());
    held.get("/").unwrap();
    for command in ["connect", "disconnect"] {
        for network in ["alpha", "omega"] {
            podman.cli(&["network", command, network, "web"]);
            wait_for_more(&load);
            held.get("/").unwrap_or_else(|e| panic!("after {command} {network}: {e}"));
        }
    }
    load.stop().assert_no_failure();
    assert!(!said(&samport, 0, "- web"), "it was taken out");
    samport.stop();
}

/// Case 74: a container whose only network is taken from it and given back.
#[test]
fn a_podman_container_is_followed_out_of_its_network_and_back() {
    require_root();
    let lab = Lab::builder().backends(0).build().unwrap();
    let podman = Podman::start(&lab);
    podman.import_server_image();
    podman.cli(&["network", "create", "--disable-dns", "front"]);
    for name in ["stays", "moves"] {
        podman.run_server(name, &[LABEL[0], LABEL[1], "--network", "front"]);
    }
    let url = podman.url();
    let args = ["-i", "eth0", "-p", "80:9090", "--provider", "podman", "--endpoint", &url];
    let samport = Daemon::start(&lab, &args);
    for name in ["stays", "moves"] {
        wait_until_serving(&samport, 0, name);
    }
    let mark = samport.mark();
    podman.cli(&["network", "disconnect", "front", "moves"]);
    wait_until_gone(&samport, mark, "moves");
    assert_eq!(names(&ask(&lab, lab.front(80), 20)), ["stays"]);
    podman.cli(&["network", "connect", "front", "moves"]);
    wait_until_serving(&samport, mark, "moves");
    assert_eq!(names(&ask(&lab, lab.front(80), 60)), ["moves", "stays"]);
    samport.stop();
}

/// Case 74: one port for the containers of both.
#[test]
fn podmans_and_dockers_containers_serve_one_port() {
    let docker = engine_of(&["of-docker"]);
    let podman = Podman::start(docker.lab());
    podman.import_server_image();
    podman.run_server("of-podman", &LABEL);
    let (docker_url, podman_url) = (docker.url(), podman.url());
    let args = ["-i", "eth0", "-p", "80:9090", "--provider", "docker", "--provider", "podman"];
    let samport = Daemon::start_with(
        docker.lab().host(),
        &args,
        &[("DOCKER_HOST", &docker_url), ("CONTAINER_HOST", &podman_url)],
    );
    for name in ["of-docker", "of-podman"] {
        wait_until_serving(&samport, 0, name);
    }
    let lab = docker.lab();
    assert_eq!(names(&ask(lab, lab.front(80), 60)), ["of-docker", "of-podman"]);
    let mark = samport.mark();
    podman.cli(&["rm", "-f", "-t", "0", "of-podman"]);
    wait_until_gone(&samport, mark, "of-podman");
    docker.run_server("second", &LABEL);
    wait_until_serving(&samport, mark, "second");
    assert_eq!(names(&ask(lab, lab.front(80), 60)), ["of-docker", "second"]);
    samport.stop();
}
