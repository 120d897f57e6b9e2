//! `samport status` says what has happened.

use samport_tests::daemon::samport;
use samport_tests::load::ask;
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
    served.daemon.wait_for_line("no backend yet", samport_tests::PATIENCE);
    for front in served.fronts() {
        let error = served.lab.get(front, "/").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{front}");
    }
    assert_eq!(served.status().verdict("no-backend-reset"), 2);
}

#[test]
fn the_table_shows_backends_shares_and_verdicts() {
    let mut served = Served::start(lab(2), &["--drain", "100"]);
    assert_eq!(ask(&served.lab, served.fronts()[0], 20).total(), 20);
    served.change(("-", "web-2", "draining"), |file| file.remove("web-2"));
    let name = text(&served.status().0, "name").to_owned();
    let table = eventually("samport status", || {
        let output = samport(served.lab.host(), &["status"]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    let ours = table.split(&name).nth(1).unwrap_or_else(|| panic!("no {name} in\n{table}"));
    for word in ["CONNECTIONS", "SHARE", "web-1", "172.30.0.10:9090", "active", "forward-peer"] {
        assert!(ours.contains(word), "no {word} in\n{table}");
    }
    let web_2 = ours.lines().find(|line| line.contains("172.30.0.11:9090")).unwrap();
    assert!(web_2.contains("draining"), "{web_2}");
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
