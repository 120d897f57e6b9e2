//! Containers in several networks, in none, and with IPv6.

use samport_tests::load::ask;

use crate::life::hold;
use crate::{
    LABEL, ask_front, engine, engine_of, heard, names, said, start_samport, wait_until_gone,
    wait_until_serving,
};

/// Which address is meant is not guessed.
#[test]
fn a_container_in_two_networks_is_served_in_the_one_its_label_names() {
    let docker = engine();
    for network in ["front", "back"] {
        docker.cli(&["network", "create", network]);
    }
    docker.run_server("unclear", &[&LABEL[..], &["--network", "front"]].concat());
    docker.cli(&["network", "connect", "back", "unclear"]);
    for name in ["clear", "wrong"] {
        let network = if name == "clear" { "back" } else { "side" };
        let label = format!("samport.network={network}");
        let options = [&LABEL[..], &["--network", "front", "--label", &label]].concat();
        docker.run_server(name, &options);
        docker.cli(&["network", "connect", "back", name]);
    }
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    heard(&samport, 0, &["\"unclear\"", "samport.network=NAME", "back, front"]);
    heard(&samport, 0, &["\"wrong\"", "samport.network=\"side\"", "back, front"]);
    let line = wait_until_serving(&samport, 0, "clear");
    let format = "{{.NetworkSettings.Networks.back.IPAddress}}:9090 ";
    let address = docker.cli(&["inspect", "-f", format, "clear"]);
    assert!(line.text.contains(&address), "not {address}: {}", line.text);
    assert_eq!(names(&ask_front(&docker, 30)), ["clear"]);

    // Taken out of one of them, there is no doubt left.
    docker.cli(&["network", "disconnect", "front", "unclear"]);
    wait_until_serving(&samport, 0, "unclear");
    assert_eq!(names(&ask_front(&docker, 60)), ["clear", "unclear"]);
    // And taken out of the one that counts, it is out.
    docker.cli(&["network", "disconnect", "back", "clear"]);
    wait_until_gone(&samport, 0, "clear");
    assert_eq!(names(&ask_front(&docker, 30)), ["unclear"]);
    samport.stop();
}

/// Case 58: an address that has passed to a container of another service.
#[test]
fn a_container_that_inherits_an_address_gets_nothing_meant_for_the_one_before() {
    let docker = engine();
    docker.cli(&["network", "create", "--subnet", "172.29.0.0/24", "fixed"]);
    let place = ["--network", "fixed", "--ip", "172.29.0.10"];
    docker.run_server("shop", &[&place[..], &["--label", "samport.port=80"]].concat());
    let samport = start_samport(&docker, &["-p", "80:9090", "-p", "81:9090"]);
    wait_until_serving(&samport, 0, "shop");
    let lab = docker.lab();
    let mut held = hold(&docker, "shop");

    docker.cli(&["rm", "-f", "shop"]);
    wait_until_gone(&samport, 0, "shop");
    docker.run_server("admin", &[&place[..], &["--label", "samport.port=81"]].concat());
    wait_until_serving(&samport, 0, "admin");
    assert_eq!(names(&ask(lab, lab.front(81), 30)), ["admin"]);
    let leaked = held.get("/");
    assert!(leaked.is_err(), "an old connection reached the new container: {leaked:?}");
    let refused = lab.get(lab.front(80), "/");
    assert!(refused.is_err(), "port 80 leads to the container of port 81: {refused:?}");
    samport.stop();
}

/// Case 87: containers that have no interface of their own.
#[test]
fn containers_without_a_network_of_their_own_are_named() {
    let docker = engine_of(&["good"]);
    docker.run_server("isolated", &[&LABEL[..], &["--network", "none"]].concat());
    let guest = ["run", "-d", "--name", "guest", "--network", "container:good", "-e", "PORT=7070"];
    docker.cli(&[&guest[..], &LABEL, &[samport_tests::docker::SERVER_IMAGE]].concat());
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    heard(&samport, 0, &["\"isolated\"", "--network none"]);
    heard(&samport, 0, &["\"guest\"", "uses the network of container"]);
    wait_until_serving(&samport, 0, "good");
    assert_eq!(names(&ask_front(&docker, 30)), ["good"]);
    assert!(!said(&samport, 0, "+ isolated"));
    samport.stop();
}

/// Case 89: clients of either family reach a container that has both.
#[test]
fn an_ipv6_network_serves_both_families() {
    let docker = engine();
    let subnet = ["--ipv6", "--subnet", "2001:db8:77::/64"];
    docker.cli(&[&["network", "create"], &subnet[..], &["dual"]].concat());
    for name in ["one", "two"] {
        docker.run_server(name, &[&LABEL[..], &["--network", "dual"]].concat());
    }
    docker.run_server("old", &LABEL);
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    for name in ["one", "two"] {
        heard(&samport, 0, &[&format!("+ {name} [2001:db8:77:"), " by "]);
        heard(&samport, 0, &[&format!("+ {name} 172."), " by "]);
    }
    wait_until_serving(&samport, 0, "old");
    let lab = docker.lab();
    assert_eq!(names(&ask(lab, lab.front_v6(80), 60)), ["one", "two"]);
    assert_eq!(names(&ask(lab, lab.front(80), 90)), ["old", "one", "two"]);
    samport.stop();
}
