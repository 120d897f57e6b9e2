//! What the labels of containers say.

use samport_tests::load::ask;

use crate::{
    ask_front, assert_shares, engine, heard, names, said, start_samport, wait_until_serving,
};

/// `samport.enable`, `samport.weight`.
#[test]
fn labels_exclude_containers_and_weigh_the_others() {
    let docker = engine();
    for (name, labels) in [
        ("off", &["samport.port=80", "samport.enable=false"][..]),
        ("other", &["tier=web"]),
        ("idle", &["samport.port=80", "samport.weight=0"]),
        ("light", &["samport.port=80"]),
        ("solid", &["samport.port=80", "samport.weight=3"]),
    ] {
        let options = labels.iter().flat_map(|label| ["--label", label]).collect::<Vec<_>>();
        docker.run_server(name, &options);
    }
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    for name in ["idle", "light", "solid"] {
        wait_until_serving(&samport, 0, name);
    }
    assert_shares(&docker, &[1.0, 3.0]);
    assert_eq!(names(&ask_front(&docker, 60)), ["light", "solid"]);
    for name in ["off", "other"] {
        assert!(!said(&samport, 0, &format!(" {name} ")), "{name} is none of samport's");
    }
    samport.stop();
}

/// Without `-p`, labels say which ports there are and where they lead.
#[test]
fn labels_alone_open_ports() {
    let docker = engine();
    docker.run_server("both", &["--label", "samport.ports=80:9090,8080:9090/tcp"]);
    docker.run_server("one", &["--label", "samport.port=8080", "--label", "samport.target=9090"]);
    let samport = start_samport(&docker, &[]);
    for (name, port) in [("both", "80"), ("both", "8080"), ("one", "8080")] {
        heard(&samport, 0, &[&format!("+ {name} "), &format!(" on :{port} by ")]);
    }
    let lab = docker.lab();
    assert_eq!(names(&ask(lab, lab.front(80), 30)), ["both"]);
    assert_eq!(names(&ask(lab, lab.front(8080), 60)), ["both", "one"]);
    samport.stop();
}

/// Each container stands behind the port of its label.
#[test]
fn two_ports_lead_to_different_containers_by_label() {
    let docker = engine();
    docker.run_server("shop", &["--label", "samport.port=80"]);
    docker.run_server("admin", &["--label", "samport.port=81", "-e", "PORT=7070"]);
    let samport = start_samport(&docker, &["-p", "80:9090", "-p", "81:7070"]);
    for name in ["shop", "admin"] {
        wait_until_serving(&samport, 0, name);
    }
    let lab = docker.lab();
    assert_eq!(names(&ask(lab, lab.front(80), 30)), ["shop"]);
    assert_eq!(names(&ask(lab, lab.front(81), 30)), ["admin"]);
    samport.stop();
}

/// Case 87: a label that makes no sense is named with the container and the way out; the others
/// are served.
#[test]
fn a_wrong_label_is_named_and_keeps_nobody_else_out() {
    let docker = engine();
    docker.run_server("good", &["--label", "samport.port=80"]);
    docker.run_server("bad", &["--label", "samport.port=http"]);
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    heard(&samport, 0, &["\"bad\"", "samport.port=\"http\"", "expected 1-65535"]);
    wait_until_serving(&samport, 0, "good");
    assert_eq!(names(&ask_front(&docker, 30)), ["good"]);
    samport.stop();
}

/// `samport.group`, `samport.group.weight`, `samport.balance`, `samport.service`: shares are the groups',
/// in turns, whoever is in them, and an order to a group changes them.
#[test]
fn groups_have_their_share_however_many_are_in_them() {
    let docker = engine();
    for (name, group) in [("old-1", "stable"), ("old-2", "stable"), ("new-1", "canary")] {
        let weight = if group == "canary" { "1" } else { "4" };
        docker.run_server(
            name,
            &[
                "--label=samport.port=80",
                "--label=samport.service=shop",
                "--label=samport.balance=round-robin",
                &format!("--label=samport.group={group}"),
                &format!("--label=samport.group.weight={weight}"),
            ],
        );
    }
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    for name in ["old-1", "old-2", "new-1"] {
        wait_until_serving(&samport, 0, name);
    }
    let shares = || {
        let tally = ask_front(&docker, 60);
        ["old-1", "old-2", "new-1"].map(|name| tally.of(name))
    };
    assert_eq!(shares(), [24, 24, 12]);
    for (args, expected) in
        [(["weight", "canary", "4"], [15, 15, 30]), (["weight", "canary", "0"], [30, 30, 0])]
    {
        let said = samport_tests::daemon::samport(docker.lab().host(), &args);
        assert!(said.status.success(), "{said:?}");
        assert_eq!(shares(), expected, "{args:?}");
    }
    samport.stop();
}

/// Case 87: containers of one port that disagree on how it chooses are named, and the first one's word holds:
/// before the flag's, too.
#[test]
fn containers_that_disagree_about_their_port_are_named() {
    let docker = engine();
    for (name, balance) in [("first", "round-robin"), ("second", "random")] {
        let label = format!("--label=samport.balance={balance}");
        docker.run_server(name, &["--label=samport.port=80", &label]);
    }
    let samport = start_samport(&docker, &["-p", "80:9090", "--balance", "maglev"]);
    for name in ["first", "second"] {
        wait_until_serving(&samport, 0, name);
    }
    heard(&samport, 0, &["samport.balance", "\"first\"", "\"second\"", "round-robin holds"]);
    let tally = ask_front(&docker, 40);
    assert_eq!((tally.of("first"), tally.of("second")), (20, 20), "{tally}");
    samport.stop();
}
