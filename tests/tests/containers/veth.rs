//! A container's veth goes and another comes.

use std::collections::BTreeSet;

use samport::dataplane::pins;
use samport_tests::docker::Dockerd;
use samport_tests::eventually;
use samport_tests::served::inode;
use samport_tests::traces::traces;

use crate::{
    LABEL, ask_front, engine, engine_of, load, names, serve, wait_for_more, wait_until_gone,
    wait_until_serving,
};

/// Index and name of the devices of the engine's host.
fn devices(docker: &Dockerd) -> Vec<(u64, String)> {
    let links = docker.lab().host().ip(&["-j", "link", "show"]).unwrap();
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    let links = links.as_array().unwrap().iter();
    links
        .map(|link| {
            (link["ifindex"].as_u64().unwrap(), link["ifname"].as_str().unwrap().to_owned())
        })
        .collect()
}

/// Waits until programs are attached to the outer interface, to the bridge and to each container's
/// veth, all of which exist, and to nothing else, be it only by a pin.
fn assert_attached_to_what_is_there(docker: &Dockerd, containers: usize) {
    let host = docker.lab().host();
    let suffix = format!("@{}", inode(host));
    let instance = pins::instances().into_iter().find(|name| name.ends_with(&suffix)).unwrap();
    let index = |pin: &str| pin.strip_prefix("link_")?.rsplit_once('_')?.1.parse().ok();
    eventually("samport's programs are where they belong and nowhere else", || {
        let pinned: BTreeSet<u64> =
            pins::pins_of(&instance).iter().filter_map(|pin| index(pin)).collect();
        let wanted: Vec<_> = devices(docker)
            .into_iter()
            .filter(|(_, name)| name == "eth0" || name == "docker0" || name.starts_with("veth"))
            .collect();
        let all = traces(host);
        let is_attached = |name: &str| {
            all.iter()
                .any(|trace| trace.starts_with("tcx ") && trace.contains(&format!(" of {name}:")))
        };
        (wanted.len() == containers + 2
            && wanted.iter().all(|(_, name)| is_attached(name))
            && pinned == wanted.iter().map(|(index, _)| *index).collect())
        .then_some(())
    });
}

/// Case 80: a container that is restarted, or taken out of its network and put back, has another
/// veth each time.
#[test]
fn a_container_serves_again_behind_its_new_veth_and_nothing_stays_on_the_old_one() {
    let docker = engine_of(&["one", "two"]);
    let samport = serve(&docker, &["one", "two"]);
    assert_attached_to_what_is_there(&docker, 2);
    let mut seen: BTreeSet<u64> = devices(&docker).into_iter().map(|(index, _)| index).collect();
    let steps: [&[&[&str]]; 2] = [
        &[&["restart", "-t", "8", "one"]],
        &[&["network", "disconnect", "bridge", "one"], &["network", "connect", "bridge", "one"]],
    ];
    for commands in steps {
        let mark = samport.mark();
        for command in commands {
            docker.cli(command);
        }
        wait_until_gone(&samport, mark, "one");
        wait_until_serving(&samport, mark, "one");
        let now: BTreeSet<u64> = devices(&docker).into_iter().map(|(index, _)| index).collect();
        assert!(!now.is_subset(&seen), "{commands:?} made no new veth");
        seen.extend(now);
        assert_attached_to_what_is_there(&docker, 2);
        assert_eq!(names(&ask_front(&docker, 60)), ["one", "two"]);
    }
    docker.cli(&["rm", "-f", "one"]);
    wait_until_gone(&samport, 0, "one");
    assert_attached_to_what_is_there(&docker, 1);
    samport.stop();
}

/// Case 80: one container after the other is restarted while requests go on.
#[test]
fn restarting_one_container_after_the_other_fails_no_request() {
    let docker = engine();
    for name in ["one", "two"] {
        docker.run_server(name, &[&LABEL[..], &["-e", "LINGER_MS=1000"]].concat());
    }
    let samport = serve(&docker, &["one", "two"]);
    let load = load(&docker);
    wait_for_more(&load);
    for name in ["one", "two"] {
        let mark = samport.mark();
        docker.cli(&["restart", "-t", "8", name]);
        println!("{}", wait_until_serving(&samport, mark, name).text);
        wait_for_more(&load);
    }
    load.stop().assert_no_failure();
    samport.stop();
}
