//! `samport status` says what has happened.

use samport_tests::daemon::samport;
use samport_tests::load::{Load, ask};
use samport_tests::served::{Served, Status, text};
use samport_tests::{Lab, eventually};

use crate::lab;

/// The name, the ports and so on, as `run` was told them.
#[test]
fn status_shows_the_instance() {
    let served = Served::start(lab(2), &[]);
    let status = served.status().0;
    assert_eq!(status["running"], true);
    assert_eq!(status["pid"], served.daemon.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["interfaces"], serde_json::json!(["eth0"]));
    assert_eq!(status["ports"], serde_json::json!(["80/tcp"]));
    let backends = served.status();
    assert_eq!(backends.backends().len(), 4);
    for backend in backends.backends() {
        let (name, endpoint) = (text(backend, "name"), text(backend, "endpoint"));
        let known = served.addresses_of(name).map(|address| address.to_string());
        assert!(known.contains(&endpoint.to_owned()), "{backend}");
        assert_eq!((text(backend, "state"), &backend["port"]), ("active", &"80/tcp".into()));
        assert_eq!(backend["weight"], 1);
    }
}

#[test]
fn status_as_json_has_its_schemas_number() {
    let served = Served::start(lab(1), &[]);
    eventually("samport status -o json", || {
        // Instances of other tests come and go while it looks at them.
        let output = samport(served.lab.host(), &["status", "-o", "json"]);
        let document = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?;
        assert_eq!(document["schema"], 1);
        Some(())
    });
}

/// Connections of a backend's two addresses.
fn flows_of(status: &Status, name: &str) -> u64 {
    let of = status.backends().iter().filter(|one| text(one, "name") == name);
    of.map(|one| one["flows"].as_u64().unwrap()).sum()
}

#[test]
fn shares_and_verdicts_match_the_traffic() {
    const REQUESTS: u32 = 150;
    let served = Served::start(lab(3), &[]);
    let [v4, v6] = served.fronts().map(|front| ask(&served.lab, front, REQUESTS));
    let status = served.status();
    assert_eq!(status.sum("flows"), u64::from(2 * REQUESTS));
    for backend in served.lab.backends() {
        let name = backend.name();
        assert_eq!(flows_of(&status, name), u64::from(v4.of(name) + v6.of(name)), "{name}");
    }
    // Every packet that was carried has a verdict, and the other way round.
    assert_eq!(status.verdict("forward-peer"), status.sum("packets_in"));
    assert_eq!(status.verdict("reply"), status.sum("packets_out"));
    // SYN, ACK, request, FIN at least; each way.
    assert!(status.sum("packets_in") >= u64::from(2 * REQUESTS * 4));
    assert!(status.sum("packets_out") >= u64::from(2 * REQUESTS * 3));
    for never in ["flow-insert-failed", "rewrite-failed", "backend-unset", "mid-flow-miss"] {
        assert_eq!(status.verdict(never), 0, "{never}");
    }
}

#[test]
fn what_is_not_ours_is_counted_as_such() {
    let served = Served::start(lab(1), &[]);
    let before = served.status();
    let other = served.lab.front(81);
    for _ in 0..10 {
        assert!(served.lab.get(other, "/").is_err());
    }
    let after = served.status();
    assert!(after.verdict("not-ours") >= before.verdict("not-ours") + 10);
    assert_eq!(after.sum("flows"), 0);
}

#[test]
fn clients_without_any_backend_are_refused_and_counted() {
    let served = Served::start(lab(0), &[]);
    served.daemon.wait_for_line("no backend yet", samport_tests::TIMEOUT);
    for front in served.fronts() {
        let error = served.lab.get(front, "/").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{front}");
    }
    assert_eq!(served.status().verdict("no-backend-reset"), 2);
}

/// What `samport status` prints of the instance.
fn printed(served: &Served, args: &[&str]) -> String {
    let name = text(&served.status().0, "name").to_owned();
    let all = eventually("samport status", || {
        let output = samport(served.lab.host(), &[&["status"], args].concat());
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    let ours = all.split(&name).nth(1).unwrap_or_else(|| panic!("no {name} in\n{all}"));
    // Instances of other tests come after it.
    ours.split("\n\n").next().unwrap_or_default().to_owned()
}

#[test]
fn the_table_shows_services_rates_and_verdicts() {
    let mut served = Served::start(lab(3), &["--drain", "100"]);
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    served.change(("-", "web-2", "draining"), |file| file.remove("web-2"));
    assert!(load.wait_for_more(20, samport_tests::TIMEOUT));
    let shown = printed(&served, &[]);
    load.stop().assert_no_failure();
    let line = |begin: &str| -> Vec<String> {
        let line = shown.lines().find(|line| line.trim_start().starts_with(begin));
        let line = line.unwrap_or_else(|| panic!("no {begin} in\n{shown}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    let heads = ["SERVICE", "LISTEN", "BALANCE", "BACKENDS", "FLOWS", "CONN/S", "DROPS"];
    assert_eq!(line("SERVICE"), heads);
    let service = line("80 ");
    let [listen, balance, backends] = [1, 2, 3].map(|at| service[at].as_str());
    assert_eq!((listen, balance), ("eth0:80/tcp", "random"), "{shown}");
    // The one that drains is there as long as it has connections.
    assert!(["2/3", "2/2"].contains(&backends), "{shown}");
    let [rate, drops] = [2, 1].map(|from_end| service[service.len() - from_end].as_str());
    assert!(rate.parse::<f64>().unwrap() > 0.0, "{shown}");
    assert_eq!(drops, "0", "{shown}");
    assert!(line("forward-peer")[1].parse::<u32>().unwrap() > 0);
}

#[test]
fn wide_shows_limits_and_memory_as_they_are() {
    let options = [
        "--flows",
        "2000",
        "--flows6",
        "1500",
        "--max-backends",
        "77",
        "--tcp-timeout",
        "90s",
        "--drain",
        "7",
        "--service-share",
        "30",
    ];
    let served = Served::start(lab(1), &options);
    let shown = printed(&served, &["-o", "wide"]);
    for part in [
        "2000 flows for IPv4, 1500 for IPv6, 500 (375 for IPv6) half-open or unanswered, 30 % for a service when \
         others need room, 77 backends",
        "half-open or unanswered: 0; in the overflow tables: 0",
        "0 of 1500 for IPv6",
        "tcp 1m30s",
        "drain 7s",
        "FLOWS6",
    ] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    let status = served.status().0;
    assert_eq!(status["limits"]["tcp_syn_seconds"], 20);
    let memory = |of: &serde_json::Value| of.as_u64().expect("a number of bytes");
    let maps = status["maps"].as_array().expect("a list of maps");
    let sum = maps.iter().map(|map| memory(&map["bytes"])).sum::<u64>();
    assert_eq!(memory(&status["memory_bytes"]), sum);
    for (name, room) in [("FLOWS4", 2_000), ("FLOWS6", 1_500), ("OVERFLOW4", 4_096)] {
        let flows = maps.iter().find(|map| text(map, "name") == name).expect("a table of flows");
        assert_eq!(flows["entries"], room);
        // A flow is more than its key.
        assert!(memory(&flows["bytes"]) > room * 16, "{flows}");
    }
}

#[test]
fn a_service_counts_its_containers_by_state() {
    let served = Served::start(lab(3), &["--drain", "100"]);
    let services = || {
        let status = served.status().0;
        let [service] = &status["services"].as_array().expect("services")[..] else { panic!() };
        ["backends", "active", "draining"].map(|key| service[key].as_u64().unwrap())
    };
    assert_eq!(services(), [3, 3, 0]);
    let flow = samport_tests::served::wait_for_answer;
    flow(&served.lab, served.fronts()[0]);
    served.order(&["weight", "web-3", "0"]);
    eventually("it counts as draining, or has drained", || {
        [[3, 2, 1], [2, 2, 0]].contains(&services()).then_some(())
    });
}

/// One instance that starts, ends or is broken hides no other.
#[test]
fn an_instance_that_is_half_there_hides_no_other() {
    let served = Served::start(lab(1), &[]);
    let ghost = format!("/sys/fs/bpf/samport/ghost:1@{}", std::process::id());
    std::fs::create_dir(&ghost).unwrap();
    let output = samport(served.lab.host(), &["status", "-o", "json"]);
    std::fs::remove_dir(&ghost).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let own = samport_tests::served::inode(served.lab.host()).to_string();
    assert!(String::from_utf8_lossy(&output.stdout).contains(&own));
}

/// Without root there is an answer too: what is missing.
#[test]
fn status_without_privileges_says_which_are_missing() {
    let lab: Lab = lab(0);
    let drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534"];
    let ended = crate::ended_with(lab.host(), &drop, &["status"]);
    ended.assert(5, &["CAP_BPF", "CAP_NET_ADMIN"]);
}
