//! Containers in several networks: whichever of them their replies take, and while networks come and go.

use std::net::IpAddr;
use std::process::Command;

use samport::lab::output_of;
use samport_tests::docker::Dockerd;
use samport_tests::eventually;
use samport_tests::load::get;

use crate::life::hold;
use crate::{
    LABEL, ask_front, engine, front, heard, load, names, said, serve, start_samport, wait_for_more,
    wait_until_gone, wait_until_serving,
};

/// Makes a container that is in all of these networks before it starts.
fn run_in_networks(docker: &Dockerd, name: &str, networks: &[&str], options: &[&str]) {
    let [first, others @ ..] = networks else { panic!("{name} is to be in no network") };
    docker.create_server(name, &[&LABEL[..], options, &["--network", first]].concat());
    for network in others {
        docker.cli(&["network", "connect", network, name]);
    }
    docker.cli(&["start", name]);
}

fn create_networks(docker: &Dockerd, networks: &[&str]) {
    for network in networks {
        docker.cli(&["network", "create", network]);
    }
}

/// The address a container has in a network.
fn address_in(docker: &Dockerd, container: &str, network: &str) -> IpAddr {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    let address = docker.cli(&["inspect", "-f", &format, container]);
    address.parse().unwrap_or_else(|e| panic!("address of {container} in {network}: {e}"))
}

/// The address that a container sends from to an outside client if nothing else says which: its default
/// route's.
fn default_source(docker: &Dockerd, container: &str) -> IpAddr {
    let route = docker.inside(container, || {
        output_of(Command::new("ip").args(["-j", "route", "get", "192.0.2.2"])).unwrap()
    });
    let route: serde_json::Value = serde_json::from_str(&route).unwrap();
    route[0]["prefsrc"].as_str().expect("a source").parse().unwrap()
}

/// An engine puts the default route into one network of a container, by priority or by name, and the
/// label may name another.
#[test]
fn a_container_is_served_in_whichever_of_its_networks_its_default_route_is() {
    let docker = engine();
    create_networks(&docker, &["alpha", "omega"]);
    for network in ["alpha", "omega"] {
        let label = format!("samport.network={network}");
        run_in_networks(&docker, network, &["alpha", "omega"], &["--label", &label]);
    }
    let by_another = ["alpha", "omega"]
        .into_iter()
        .filter(|name| default_source(&docker, name) != address_in(&docker, name, name));
    assert_eq!(by_another.count(), 1, "one of them answers by the other network");
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    for name in ["alpha", "omega"] {
        let line = wait_until_serving(&samport, 0, name);
        let address = address_in(&docker, name, name).to_string();
        assert!(line.text.contains(&address), "not {address}: {}", line.text);
    }
    assert_eq!(names(&ask_front(&docker, 60)), ["alpha", "omega"]);
    docker.lab().host().run(|| get("127.0.0.1:80".parse().unwrap(), "/")).unwrap();
    // Each may pick itself or the other.
    for name in ["alpha", "omega"] {
        for _ in 0..20 {
            docker.inside(name, || get(front(&docker), "/")).unwrap();
        }
    }
    samport.stop();
}

/// Docker 28 and newer put the default route where `gw_priority` says; older ones go by name only.
#[test]
fn a_container_is_served_whatever_the_priorities_of_its_networks_say() {
    let docker = engine();
    create_networks(&docker, &["alpha", "omega"]);
    let label = ["--label", "samport.network=alpha"];
    docker.create_server("web", &[&LABEL[..], &label, &["--network", "alpha"]].concat());
    let by_priority = ["network", "connect", "--gw-priority", "1", "omega", "web"];
    let gateway = match docker.try_cli(&by_priority) {
        Ok(_) => "omega",
        Err(error) => {
            assert!(format!("{error:#}").contains("unknown flag"), "{error:#}");
            docker.cli(&["network", "connect", "omega", "web"]);
            "alpha"
        }
    };
    println!("the default route is in {gateway}");
    docker.cli(&["start", "web"]);
    assert_eq!(default_source(&docker, "web"), address_in(&docker, "web", gateway));
    let samport = serve(&docker, &["web"]);
    assert_eq!(names(&ask_front(&docker, 20)), ["web"]);
    // And there while it serves.
    docker.cli(&["network", "disconnect", "omega", "web"]);
    assert_eq!(names(&ask_front(&docker, 20)), ["web"]);
    if gateway == "omega" {
        docker.cli(&by_priority);
        assert_eq!(default_source(&docker, "web"), address_in(&docker, "web", "omega"));
        assert_eq!(names(&ask_front(&docker, 20)), ["web"]);
    }
    samport.stop();
}

/// Networks are connected to a container and disconnected while it serves. Its default route moves
/// there and back; neither an open connection nor a new one notices.
#[test]
fn networks_come_and_go_while_a_container_serves() {
    for label in [&[][..], &["--label", "samport.network=middle"]] {
        let docker = engine();
        create_networks(&docker, &["alpha", "middle", "omega"]);
        docker.run_server("web", &[&LABEL[..], label, &["--network", "middle"]].concat());
        let samport = serve(&docker, &["web"]);
        let mark = samport.mark();
        let address = address_in(&docker, "web", "middle");
        let mut held = hold(&docker, "web");
        let load = load(&docker);
        wait_for_more(&load);
        let mut has_moved = false;
        for _ in 0..3 {
            for command in ["connect", "disconnect"] {
                for network in ["alpha", "omega"] {
                    docker.cli(&["network", command, network, "web"]);
                    has_moved |= default_source(&docker, "web") != address;
                    wait_for_more(&load);
                    held.get("/").unwrap_or_else(|e| panic!("after {command} {network}: {e}"));
                }
            }
        }
        assert!(has_moved, "its default route was never in another network");
        load.stop().assert_no_failure();
        assert!(!said(&samport, mark, "- web"), "it was taken out");
        samport.stop();
    }
}

/// Out of the network it is served in, a container changes to the only other one. Where that is not clear, it is
/// taken out by name, and what has been served so far stays where it is over a restart of samport.
#[test]
fn a_container_that_leaves_the_network_it_is_served_in_changes_to_another() {
    let docker = engine();
    create_networks(&docker, &["alpha", "middle", "omega"]);
    docker.run_server("web", &[&LABEL[..], &["--network", "middle"]].concat());
    let mut samport = serve(&docker, &["web"]);
    docker.cli(&["network", "connect", "alpha", "web"]);
    let mark = samport.mark();
    docker.cli(&["network", "disconnect", "middle", "web"]);
    wait_until_gone(&samport, mark, "web");
    let line = wait_until_serving(&samport, mark, "web");
    let address = address_in(&docker, "web", "alpha").to_string();
    assert!(line.text.contains(&address), "not {address}: {}", line.text);
    assert_eq!(names(&ask_front(&docker, 20)), ["web"]);

    // Whoever takes over knows where it was served.
    docker.cli(&["network", "connect", "middle", "web"]);
    docker.cli(&["network", "connect", "omega", "web"]);
    let mut held = hold(&docker, "web");
    samport.kill9();
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    heard(&samport, 0, &["= web ", &address]);
    held.get("/").unwrap();
    assert_eq!(names(&ask_front(&docker, 20)), ["web"]);
    assert!(!said(&samport, 0, "- web"), "it was taken out");

    docker.cli(&["network", "disconnect", "alpha", "web"]);
    heard(&samport, 0, &["\"web\"", "samport.network=NAME", "middle, omega"]);
    wait_until_gone(&samport, 0, "web");
    samport.stop();
}

/// Case 87: a container without a default route, as one in a network without a gateway has none. It is named, and
/// serves the clients that it can answer.
#[test]
fn a_container_that_cannot_answer_outside_clients_is_named() {
    let docker = engine();
    docker.cli(&["network", "create", "--internal", "inner"]);
    docker.run_server("inner", &[&LABEL[..], &["--network", "inner"]].concat());
    docker.run_server("cut-off", &["--label", "samport.port=81"]);
    docker.inside("cut-off", || {
        output_of(Command::new("ip").args(["route", "del", "default"])).unwrap();
    });
    let has_route = docker.inside("inner", || {
        let routes = output_of(Command::new("ip").args(["route", "show", "default"])).unwrap();
        !routes.is_empty()
    });
    let samport = start_samport(&docker, &["-p", "80:9090", "-p", "81:9090"]);
    wait_until_serving(&samport, 0, "cut-off");
    heard(&samport, 0, &["cut-off has no IPv4 route", "connect it to a network with a gateway"]);
    let host = docker.lab().host();
    let served = host.run(|| get("127.0.0.1:81".parse().unwrap(), "/")).unwrap();
    assert_eq!(served.backend, "cut-off");
    // What an engine calls internal has a gateway in some versions, and then samport's clients are answered.
    wait_until_serving(&samport, 0, "inner");
    assert_eq!(said(&samport, 0, "inner has no IPv4 route"), !has_route);
    if has_route {
        assert_eq!(names(&ask_front(&docker, 20)), ["inner"]);
    }

    let route_back = |name: &str| {
        let backends = samport_in(host, &["backends", "-o", "json"]);
        let backends: serde_json::Value = serde_json::from_str(&backends).unwrap();
        let all = backends["backends"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap()["route_back"].clone()
    };
    assert_eq!(route_back("cut-off"), serde_json::json!(false));
    assert_eq!(route_back("inner"), serde_json::json!(has_route));
    let shown = samport_in(host, &["backends"]);
    assert!(shown.contains("active (no route back)"), "{shown}");
    let explained = samport_in(host, &["explain", "192.0.2.2:40000", "192.0.2.1:81"]);
    assert!(explained.contains("cut-off has no route back"), "{explained}");
    let url = docker.url();
    let checked = samport_in(host, &["check", "-i", "eth0", "--endpoint", &url]);
    assert!(checked.contains("warn  cut-off has no IPv4 route"), "{checked}");

    // With a default route by another network it is a backend like any other.
    docker.cli(&["network", "create", "outer"]);
    docker.cli(&["network", "connect", "outer", "cut-off"]);
    let format = "{{.NetworkSettings.Networks.outer.Gateway}}";
    let gateway = docker.cli(&["inspect", "-f", format, "cut-off"]);
    docker.inside("cut-off", || {
        let add = ["route", "replace", "default", "via", &gateway];
        output_of(Command::new("ip").args(add)).unwrap();
    });
    assert_eq!(docker.lab().get(docker.lab().front(81), "/").unwrap().backend, "cut-off");
    // Routes are looked at again when the engine tells of the container.
    docker.cli(&["update", "--restart", "no", "cut-off"]);
    eventually("backends no longer says so", || {
        (route_back("cut-off") == serde_json::json!(true)).then_some(())
    });
    samport.stop();
}

/// More links than samport watches for replies: the first are served by, and the others named.
#[test]
fn a_container_with_more_links_than_are_watched_is_served_and_they_are_named() {
    let docker = engine();
    let networks: Vec<String> = (1..=9).map(|number| format!("net-{number}")).collect();
    let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
    create_networks(&docker, &networks);
    let label = ["--label", "samport.network=net-9"];
    run_in_networks(&docker, "web", &networks, &label);
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    heard(&samport, 0, &["web has more than 8 links", "not recognised on: veth"]);
    wait_until_serving(&samport, 0, "web");
    assert_eq!(names(&ask_front(&docker, 20)), ["web"]);
    samport.stop();
}

/// What `samport ARGS…` prints in this namespace.
fn samport_in(host: &samport::lab::Namespace, args: &[&str]) -> String {
    let output = samport_tests::daemon::samport(host, args);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}
