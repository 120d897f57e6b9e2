//! The helpers themselves, without samport.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use samport::dataplane::program_run::harness::{Before, Harness, Traffic};
use samport::lab::{Footprint, NETNS_DIR, Watched, output_of};
use samport_common::harness::Order;
use samport_tests::docker::{Dockerd, Options, mounts_below, processes_below};
use samport_tests::load::{Connection, Load, get};
use samport_tests::packet::Segment;
use samport_tests::{Lab, Namespace, eventually, raw, require_root};

fn lab(backends: u8) -> Lab {
    require_root();
    Lab::builder().backends(backends).build().unwrap()
}

fn exists(namespace: &str) -> bool {
    Path::new(NETNS_DIR).join(namespace).exists()
}

#[test]
fn a_namespace_goes_also_when_its_owner_panics() {
    require_root();
    let namespace = Namespace::new("panic").unwrap();
    let name = namespace.name().to_owned();
    assert!(exists(&name));
    let ended = std::panic::catch_unwind(move || namespace.run(|| panic!("as planned")));
    assert_eq!(*ended.unwrap_err().downcast::<&str>().unwrap(), "as planned");
    assert!(!exists(&name));
}

#[test]
fn commands_and_threads_are_inside_and_sys_is_as_outside() {
    require_root();
    let namespace = Namespace::new("inside").unwrap();
    namespace.ip(&["link", "add", "only-here", "type", "bridge"]).unwrap();
    let devices = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert!(namespace.run(devices).contains("only-here"));
    assert!(namespace.spawn(devices).join().unwrap().contains("only-here"));
    assert!(!devices().contains("only-here"));

    let output = namespace.command("cat").arg("/proc/self/net/dev").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("only-here"));
    let mounts = namespace.command("cat").arg("/proc/self/mountinfo").output().unwrap();
    let of_sys = |mounts: &str| {
        let at = |line: &&str| line.split(' ').nth(4).is_some_and(|at| at.starts_with("/sys"));
        mounts.lines().filter(at).map(str::to_owned).collect::<Vec<_>>()
    };
    // Other tests name namespaces meanwhile, and each is a mount elsewhere.
    let inside = of_sys(&String::from_utf8(mounts.stdout).unwrap());
    assert!(!inside.is_empty());
    assert_eq!(inside, of_sys(&fs::read_to_string("/proc/self/mountinfo").unwrap()));

    let error = namespace.ip(&["link", "del", "no-such"]).unwrap_err().to_string();
    assert!(error.contains("link del no-such") && error.contains("Cannot find device"), "{error}");
}

#[test]
fn a_server_answers_its_name_and_the_clients_address() {
    let lab = lab(2);
    let _servers = lab.serve(9090).unwrap();
    for backend in lab.backends() {
        for address in [backend.v4(9090), backend.v6(9090)] {
            let response = lab.get(address, "/").unwrap();
            assert_eq!(response.status, 200);
            assert_eq!(response.backend, backend.name());
            assert_eq!(response.text(), format!("Hello from {}", backend.name()));
            assert_eq!(response.client, response.local_addr);
        }
    }
    assert_eq!(lab.get(lab.backends()[0].v4(9090), "/nothing").unwrap().status, 404);
}

#[test]
fn bytes_and_sink_carry_the_same_pattern() {
    const LENGTH: usize = 3_000_001;
    let lab = lab(1);
    let _servers = lab.serve(9090).unwrap();
    let address = lab.backends()[0].v4(9090);
    lab.client().run(|| {
        let mut connection = Connection::open(address).unwrap();
        let response = connection.get(&format!("/bytes/{LENGTH}")).unwrap();
        assert_eq!(response.body.len(), LENGTH);
        assert!(response.is_pattern());
        assert_eq!(connection.post(LENGTH).unwrap().text(), format!("ok {LENGTH}"));
        // The connection is kept, and other bytes are told apart.
        assert_eq!(connection.post_bytes(b"other bytes").unwrap().status, 500);
        let last = connection.get("/").unwrap();
        assert_eq!(last.client, connection.local_addr());
    });
}

#[test]
fn a_graceful_stop_fails_no_request_and_a_drop_refuses_the_next() {
    let lab = lab(1);
    let address = lab.backends()[0].v4(9090);
    let server = lab.backends()[0].serve(9090).unwrap();
    let slow = lab.client().spawn(move || get(address, "/slow/300").map(|answer| answer.status));
    // The request must have arrived before the stop.
    std::thread::sleep(Duration::from_millis(100));
    server.stop();
    assert_eq!(slow.join().unwrap().unwrap(), 200);
    assert!(lab.get(address, "/").is_err());

    drop(lab.backends()[0].serve(9090).unwrap());
    let error = lab.get(address, "/").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn load_counts_answers_and_failures() {
    let lab = lab(1);
    let server = lab.backends()[0].serve(9090).unwrap();
    let load = Load::start(lab.client(), lab.backends()[0].v4(9090), 2);
    assert!(load.wait_for_more(100, Duration::from_secs(10)));
    assert!(load.so_far().failures.is_empty());
    drop(server);
    std::thread::sleep(Duration::from_millis(100));
    let report = load.stop();
    assert!(report.tally.of("web-1") >= 100);
    assert!(report.failures.last().unwrap().text.contains("refused"), "{report}");
}

#[test]
fn backends_come_and_go_and_every_option_builds() {
    require_root();
    let builder = Lab::builder().backends(1).mtu(1400).tx_offload_off().docker_like_firewall();
    let builder =
        builder.vip([192, 0, 2, 100]).vip("2001:db8:1::100".parse::<std::net::Ipv6Addr>().unwrap());
    let mut lab = builder.build().unwrap();
    assert!(lab.host().ip(&["addr", "show", "eth0"]).unwrap().contains("192.0.2.100/32"));
    assert!(lab.host().ip(&["link", "show", "br0"]).unwrap().contains("mtu 1400"));

    let second = lab.add_backend().unwrap();
    assert_eq!(second.name(), "web-2");
    let (address, server) = (second.v4(9090), second.serve(9090).unwrap());
    // Docker's policy: the client reaches no container by itself, the host does.
    let direct = lab
        .client()
        .run(|| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)));
    assert!(direct.is_err());
    assert_eq!(lab.host().run(|| get(address, "/")).unwrap().backend, "web-2");

    drop(server);
    lab.remove_backend("web-2").unwrap();
    assert_eq!(lab.backends().len(), 1);
    assert!(lab.host().ip(&["link", "show", "veth2"]).is_err());
}

#[test]
fn a_lab_leaves_nothing_behind() {
    require_root();
    let builder = Lab::builder().backends(1);
    let footprint = Footprint::of(&builder);
    let lab = builder.build().unwrap();
    let name = lab.host().name().to_owned();
    let there = footprint.left_by_lab().unwrap();
    assert!(there.contains(&format!("namespace {name}")), "{there:?}");
    drop(lab);
    footprint.wait_for_lab().unwrap();
    assert!(!exists(&name));
}

#[test]
fn labs_have_names_that_nobody_else_has() {
    require_root();
    let [one, other] = [lab(1), lab(1)];
    assert_ne!(one.host().name(), other.host().name());
    assert_ne!(one.backends()[0].namespace().name(), other.backends()[0].namespace().name());
}

#[test]
fn lines_of_a_child_are_waited_for() {
    require_root();
    let namespace = Namespace::new("child").unwrap();
    let mut command = namespace.command("sh");
    command.args(["-c", "echo first; sleep 0.1; echo second >&2; exec sleep 100"]);
    let mut child = Watched::spawn(command, None).unwrap();
    child.wait_for_line("first", Duration::from_secs(5)).unwrap();
    child.wait_for_line("second", Duration::from_secs(5)).unwrap();
    let error = child.wait_for_line("third", Duration::from_millis(50)).unwrap_err().to_string();
    assert!(error.contains("third") && error.contains("second"), "{error}");
    assert!(!child.stop().unwrap().success());
}

/// What the benchmark floods hosts with: the kernel makes the skbs, and TCP takes each of them, unless somebody drops
/// what arrives.
#[test]
fn a_flood_arrives_with_right_checksums_or_is_dropped_where_it_is_to() {
    const FRAMES: u32 = 1_000;
    for (drop_all, expected) in
        [(None, u64::from(FRAMES)), (Some(Before::Stack), 0), (Some(Before::Skb), 0)]
    {
        let lab = lab(0);
        let mut gro = lab.host().command("ethtool");
        output_of(gro.args(["-K", "eth0", "gro", "on"])).unwrap();
        lab.host().batch("route add 10.0.0.0/8 via 192.0.2.2\n").unwrap();
        let mut harness = Harness::open().unwrap();
        if let Some(before) = drop_all {
            lab.host().run(|| harness.drop_all("eth0", before)).unwrap();
        }
        let mut segment = Segment::syn("10.0.0.0:4000".parse().unwrap(), lab.front(81));
        segment.destination_mac = raw::mac(lab.host(), "eth0");
        let (frame, ifindex) = (segment.frame(), index_of_eth0(lab.client()));
        // Behind the first byte of the source address.
        let vary_at = 14 + 12 + 1;
        let order = Order::Each;
        let traffic = Traffic { frame: &frame, vary_at, clients: FRAMES, order, ifindex };
        lab.client().run(|| harness.flood(&traffic, FRAMES)).unwrap();
        eventually("all frames get to the host", || {
            (received_by_eth0(lab.host()) >= u64::from(FRAMES)).then_some(())
        });
        assert_eq!(taken_by_tcp(lab.host()), expected, "{drop_all:?}");
    }
}

fn index_of_eth0(namespace: &Namespace) -> u32 {
    let shown = namespace.ip(&["-o", "link", "show", "dev", "eth0"]).unwrap();
    shown.split(':').next().and_then(|index| index.parse().ok()).unwrap()
}

fn received_by_eth0(namespace: &Namespace) -> u64 {
    let devices = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
    line.split_whitespace().nth(1).and_then(|packets| packets.parse().ok()).unwrap()
}

/// Segments that TCP has seen, those with wrong checksums left out.
fn taken_by_tcp(namespace: &Namespace) -> u64 {
    let counters = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let mut lines = counters.lines().filter(|line| line.starts_with("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let value = |wanted: &str| -> u64 {
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse().ok()).unwrap()
    };
    value("InSegs") - value("InCsumErrors")
}

/// The folder after the daemon has gone: no mount, no process, no file.
fn assert_gone(folder: &Path) {
    assert_eq!(mounts_below(folder).unwrap(), Vec::<std::path::PathBuf>::new());
    assert!(processes_below(folder).unwrap().is_empty());
    assert!(!folder.exists());
}

#[test]
fn dockerd_runs_servers_and_leaves_nothing() {
    require_root();
    let docker = Dockerd::start(Options::default());
    let (folder, host) = (docker.folder().to_owned(), docker.lab().host().name().to_owned());
    docker.import_server_image();
    for name in ["one", "two"] {
        docker.run_server(name, &[]);
        let address = docker.address(name, 9090);
        let response = docker.lab().host().run(|| get_when_up(address));
        assert_eq!(response.backend, name);
    }
    // SIGTERM reaches the server although it is process 1.
    let begin = std::time::Instant::now();
    docker.cli(&["stop", "-t", "8", "one"]);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(docker.cli(&["inspect", "-f", "{{.State.ExitCode}}", "one"]), "0");
    drop(docker);
    assert_gone(&folder);
    assert!(!exists(&host));
}

#[test]
fn compose_scales_the_server() {
    require_root();
    let docker = Dockerd::start(Options::default());
    let image = docker.import_server_image();
    let folder = tempfile::tempdir().unwrap();
    let text =
        format!("version: '3'\nservices:\n  app:\n    image: {image}\n    command: [/server]\n");
    fs::write(folder.path().join("docker-compose.yml"), text).unwrap();
    for scale in [3, 1] {
        docker.compose(folder.path(), &["up", "-d", "--scale", &format!("app={scale}")]);
        let name = |number| docker.compose_version().container_name(folder.path(), "app", number);
        let names = docker.cli(&["ps", "--format", "{{.Names}}"]);
        let names: BTreeSet<_> = names.lines().map(str::to_owned).collect();
        assert_eq!(names, (1..=scale).map(name).collect());
    }
}

#[test]
fn containers_outlive_a_killed_dockerd_and_are_cleaned_up_all_the_same() {
    require_root();
    let mut docker = Dockerd::start(Options { live_restore: true, ..Options::default() });
    let folder = docker.folder().to_owned();
    docker.import_server_image();
    docker.run_server("web", &[]);
    let address = docker.address("web", 9090);
    docker.lab().host().run(|| get_when_up(address));

    docker.kill9_daemon();
    assert_eq!(docker.lab().host().run(|| get(address, "/")).unwrap().backend, "web");
    docker.restart_daemon();
    assert_eq!(docker.cli(&["ps", "--format", "{{.Names}}"]), "web");
    assert_eq!(docker.lab().host().run(|| get(address, "/")).unwrap().backend, "web");

    docker.kill9_daemon();
    drop(docker);
    assert_gone(&folder);
}

/// A container takes a moment to listen.
fn get_when_up(address: std::net::SocketAddr) -> samport_tests::load::Response {
    let begin = std::time::Instant::now();
    loop {
        match get(address, "/") {
            Ok(response) => return response,
            Err(error) if begin.elapsed() > Duration::from_secs(5) => panic!("{address}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
