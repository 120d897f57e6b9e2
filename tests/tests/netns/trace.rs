//! `samport trace`: what becomes of single packets, told as it happens.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use samport::lab::Watched;
use samport_tests::bpf::Map;
use samport_tests::daemon::{samport, samport_command};
use samport_tests::load::{Connection, get};
use samport_tests::served::{Served, text};
use samport_tests::traces::undisturbed;
use samport_tests::{Lab, TIMEOUT, eventually, require_root};
use serde_json::Value;

use crate::lab;

/// A tracer that has begun.
fn trace(served: &Served, args: &[&str]) -> Watched {
    let args = [&["trace", "-o", "json"], args].concat();
    let tracer = Watched::spawn(samport_command(served.lab.host(), &args), None).unwrap();
    tracer.wait_for_line("tracing ", TIMEOUT).unwrap();
    tracer
}

/// The documents it has printed so far.
fn told(tracer: &Watched) -> Vec<Value> {
    tracer.lines().iter().filter_map(|line| serde_json::from_str(&line.text).ok()).collect()
}

fn wait_for(tracer: &Watched, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || told(tracer).into_iter().find(|one| is_it(one)))
}

/// `kill -9` once it does not matter any more what it says.
fn kill9(mut tracer: Watched) {
    tracer.kill9().unwrap();
}

/// A connection is told of from its first packet to its last, both ways, with its backend's name.
#[test]
fn a_connection_is_told_of_both_ways() {
    let served = Served::start(lab(2), &[]);
    for front in served.fronts() {
        let tracer = trace(&served, &["--port", "80"]);
        let (client, backend) = served.lab.client().run(|| {
            let mut connection = Connection::open(front).unwrap();
            (connection.local_addr(), connection.get("/").unwrap().backend)
        });
        let of_client = |one: &Value, key: &str| one[key] == client.to_string();
        let forward = wait_for(&tracer, "its SYN", |one| {
            one["verdict"] == "forward-peer" && one["flags"] == "[S]" && of_client(one, "source")
        });
        let address = served.addresses_of(&backend)[usize::from(front.is_ipv6())].to_string();
        for (key, value) in [
            ("destination", front.to_string()),
            ("left_destination", address.clone()),
            ("backend", backend.clone()),
            ("device", "eth0".to_owned()),
            ("seen", "interface".to_owned()),
            ("action", "redirect".to_owned()),
        ] {
            assert_eq!(text(&forward, key), value, "{forward:#}");
        }
        let reply = wait_for(&tracer, "the answer to it", |one| {
            one["verdict"] == "reply" && one["flags"] == "[S.]" && of_client(one, "destination")
        });
        for (key, value) in [
            ("source", address),
            ("left_source", front.to_string()),
            ("backend", backend),
            ("seen", "container".to_owned()),
        ] {
            assert_eq!(text(&reply, key), value, "{reply:#}");
        }
        wait_for(&tracer, "an established packet", |one| {
            one["verdict"] == "forward-peer" && one["flags"] == "[P.]" && of_client(one, "source")
        });
    }
}

/// Only what is asked for is told.
#[test]
fn filters_leave_out_everything_else() {
    let served = Served::start(lab(2), &[]);
    let front = served.fronts()[0];
    let (client, ask) = (served.lab.client(), |front| get(front, "/").map(|answer| answer.backend));
    let tracer = trace(&served, &["--verdict", "not-ours,forward-peer", "--client", "192.0.2.2"]);
    client.run(|| {
        ask(front).unwrap();
        ask(served.fronts()[1]).unwrap();
        let other = SocketAddr::new(front.ip(), 81);
        assert_eq!(TcpStream::connect(other).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
    wait_for(&tracer, "the packet to port 81", |one| one["verdict"] == "not-ours");
    for one in told(&tracer) {
        assert!(["not-ours", "forward-peer"].contains(&text(&one, "verdict")), "{one:#}");
        assert!(text(&one, "source").starts_with("192.0.2.2:"), "{one:#}");
    }
    kill9(tracer);

    let tracer = trace(&served, &["--backend", "web-2"]);
    let asked: Vec<_> = client.run(|| (0..40).map(|_| ask(front).unwrap()).collect());
    assert!(asked.contains(&"web-1".to_owned()) && asked.contains(&"web-2".to_owned()));
    wait_for(&tracer, "a reply of web-2", |one| one["verdict"] == "reply");
    for one in told(&tracer) {
        assert_eq!(one["backend"], "web-2", "{one:#}");
    }
}

/// Clients on the machine itself have no packets here: their system calls are told of.
#[test]
fn a_connection_of_the_machine_itself_is_told_of() {
    let served = Served::start(lab(1), &[]);
    let tracer = trace(&served, &["--verdict", "local-forward"]);
    let loopback: SocketAddr = "127.0.0.1:80".parse().unwrap();
    served.lab.host().run(|| get(loopback, "/").unwrap());
    let call = wait_for(&tracer, "its connect", |one| one["verdict"] == "local-forward");
    assert_eq!(
        [text(&call, "destination"), text(&call, "backend"), text(&call, "seen")],
        ["127.0.0.1:80", "web-1", "call"],
        "{call:#}"
    );
}

/// XDP sees packets before all others, and tells of those it does not leave to them.
#[test]
fn what_xdp_sends_is_told_of() {
    require_root();
    // Without, checksums are left to network cards, and XDP leaves such packets to tc.
    let lab = Lab::builder().backends(2).tx_offload_off().build().unwrap();
    let served = Served::start(lab, &["--hook", "xdp", "--xdp-mode", "generic"]);
    for front in served.fronts() {
        let tracer = trace(&served, &["--verdict", "forward-xdp"]);
        let backend = served.lab.client().run(|| get(front, "/").unwrap().backend);
        let sent = wait_for(&tracer, "a packet at XDP", |one| one["seen"] == "xdp");
        assert_eq!(
            [text(&sent, "destination"), text(&sent, "backend")],
            [&front.to_string(), &*backend],
            "{sent:#}"
        );
    }
}

#[test]
fn a_count_ends_it_and_another_one_may_begin() {
    let served = Served::start(lab(1), &[]);
    let front = served.fronts()[0];
    for _ in 0..2 {
        let mut tracer = trace(&served, &["--count", "3"]);
        served.lab.client().run(|| get(front, "/").unwrap());
        let status = tracer.wait(TIMEOUT).unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(told(&tracer).len(), 3);
    }
}

/// Whether the kernel is asked to tell anybody.
fn is_watched(served: &Served) -> bool {
    let name = text(&served.status().0, "name").to_owned();
    let pin = samport::dataplane::pins::map_of(&name, "TRACE_WATCH");
    let values = Map::open(&pin).unwrap().values().unwrap();
    values[0][..8] != [0; 8]
}

/// One at a time; and one that is killed costs nothing any more, and is in nobody's way.
#[test]
fn a_second_tracer_is_refused_and_a_killed_one_is_forgotten() {
    let _undisturbed = undisturbed();
    let served = Served::start(lab(1), &[]);
    let (front, client) = (served.fronts()[0], served.lab.client());
    assert!(!is_watched(&served));
    let tracer = trace(&served, &[]);
    assert!(is_watched(&served));
    let refused = samport(served.lab.host(), &["trace"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    kill9(tracer);
    eventually("the kernel has forgotten it", || {
        client.run(|| get(front, "/").unwrap());
        (!is_watched(&served)).then_some(())
    });
    let mut next = trace(&served, &["--count", "1"]);
    client.run(|| get(front, "/").unwrap());
    assert!(next.wait(TIMEOUT).unwrap().success());
    assert!(!is_watched(&served), "it has said that it ends");
    let mut stopped = trace(&served, &[]);
    assert!(stopped.stop().unwrap().success());
    assert!(!is_watched(&served));
}

/// Starts a tracer whose output nobody reads.
fn unread(served: &Served) -> Child {
    let mut command = samport_command(served.lab.host(), &["trace"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start samport")
}

/// What comes too fast is counted, and said.
#[test]
fn lost_packets_are_counted_and_the_traffic_goes_on() {
    let served = Served::start(lab(1), &[]);
    let front = served.fronts()[0];
    let mut tracer = unread(&served);
    eventually("it has begun", || is_watched(&served).then_some(()));
    // Its pipe takes 64 KiB, the ring four times that; far more comes.
    served.lab.client().run(|| {
        for _ in 0..600 {
            get(front, "/").unwrap();
        }
    });
    let mut output = tracer.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        output.read_to_end(&mut all).unwrap();
    });
    std::thread::sleep(Duration::from_millis(500));
    let pid = rustix::process::Pid::from_child(&tracer);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    reader.join().unwrap();
    let said = tracer.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("came too fast"), "{said}");
}
