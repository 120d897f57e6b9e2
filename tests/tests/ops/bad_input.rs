//! Every line of "What bad input gets": an error that names the thing and the way out, an
//! exit code of its own, nothing half-attached.

use std::net::TcpListener;

use samport_tests::daemon::Backends;
use samport_tests::load::ask;
use samport_tests::served::{Served, TARGET};
use samport_tests::traces::{assert_traces, traces};
use samport_tests::{Lab, Server, TIMEOUT, eventually};

use crate::{ended, ended_with, lab};

/// `samport run` with a backend and these arguments ends with this code and names all of this, and
/// leaves nothing.
fn assert_refused(lab: &Lab, args: &[&str], code: i32, words: &[&str]) {
    let before = traces(lab.host());
    let args = [&["run", "--backend", "172.30.0.10:9090"], args].concat();
    ended(lab.host(), &args).assert(code, words);
    assert_traces(lab.host(), &before);
}

/// Case 87.
#[test]
fn an_unknown_interface_is_named_and_so_are_those_that_exist() {
    let lab = lab(1);
    assert_refused(&lab, &["-i", "eth7", "-p", "80"], 1, &["eth7", "eth0", "br0"]);
}

/// Case 87.
#[test]
fn what_is_no_port_is_named() {
    let lab = lab(1);
    for port in ["0", "65536", "80:x", "80:0", "-1", "http", "80:81:82", ""] {
        let option = format!("--port={port}");
        let words = [&format!("{port:?}"), "--port"];
        assert_refused(&lab, &["-i", "eth0", &option], 2, &words.map(|word| word as &str));
    }
    assert_refused(&lab, &["-i", "eth0", "-p", "65536"], 2, &["expected 1-65535"]);
}

/// Case 87: an address before the port that is none is named, and the right form shown.
#[test]
fn what_is_no_address_before_a_port_is_named() {
    let lab = lab(1);
    for port in ["1.2.3:80", "[::1:80", "::1:80", "2001:db8::7:80", "host:80:81"] {
        let words = [&format!("{port:?}"), "198.51.100.7:80", "[2001:db8::7]:80", "--port"];
        let option = format!("--port={port}");
        assert_refused(&lab, &["-i", "eth0", &option], 2, &words.map(|word| word as &str));
    }
    assert_refused(&lab, &["-i", "eth0", "-p", "1.2.3.4:"], 2, &["1.2.3.4:", "expected 1-65535"]);
    assert_refused(&lab, &["-i", "eth0", "-p", "0.0.0.0:80"], 2, &["0.0.0.0:80", "use 80"]);
    // The backend is IPv4.
    assert_refused(&lab, &["-i", "eth0", "-p", "[::1]:80"], 1, &["[::1]:80", "IPv4"]);
}

/// Case 87.
#[test]
fn a_protocol_that_cannot_be_balanced_is_named() {
    let lab = lab(1);
    assert_refused(&lab, &["-i", "eth0", "-p", "80/sctp"], 2, &["80/sctp", "tcp or udp"]);
}

/// Case 87: two services on one port and protocol.
#[test]
fn a_port_given_twice_is_named() {
    let lab = lab(1);
    assert_refused(&lab, &["-i", "eth0", "-p", "80", "-p", "80"], 2, &["port 80/tcp", "twice"]);
    assert_refused(&lab, &["-i", "eth0", "-p", "80:1,80:2"], 2, &["port 80/tcp", "twice"]);
    assert_refused(&lab, &["-i", "eth0", "-p", "53/udp,53:1/udp"], 2, &["port 53/udp", "twice"]);
    assert_refused(&lab, &["-i", "eth0", "-i", "eth0", "-p", "80"], 2, &["eth0", "twice"]);
}

/// Case 87.
#[test]
fn a_backend_that_is_no_address_is_named() {
    let lab = lab(1);
    for backend in ["web-1", "172.30.0", "172.30.0.10:x", "172.30.0.10@x", "[::1", "a:80"] {
        let args = ["-i", "eth0", "-p", "80", "--backend", backend];
        assert_refused(&lab, &args, 2, &[backend, "--backend"]);
    }
    let args = ["-i", "eth0", "-p", "80", "--backend", "172.30.0.10:9090"];
    assert_refused(&lab, &args, 1, &["172.30.0.10:9090", "twice"]);
}

/// Case 87: IPv4 backend for an IPv6-only front.
#[test]
fn an_ipv4_backend_for_an_ipv6_only_front_is_named() {
    let lab = lab(1);
    lab.host().ip(&["-4", "addr", "flush", "dev", "eth0"]).unwrap();
    assert_refused(&lab, &["-i", "eth0", "-p", "80"], 1, &["172.30.0.10:9090", "IPv4", "eth0"]);
}

/// A backend that cannot be reached is named; the others serve.
#[test]
fn a_backend_without_a_route_is_named_and_the_others_serve() {
    let served = Served::start(lab(1), &[]);
    let mut file = served.file;
    file.add("nowhere", "203.0.113.1:80".parse().unwrap());
    served.daemon.wait_for_line("nowhere is not served", TIMEOUT);
    let line = served.daemon.wait_for_line("203.0.113.1", TIMEOUT);
    assert!(line.text.contains("route"), "{}", line.text);
    assert_eq!(ask(&served.lab, served.lab.front(80), 10).of("web-1"), 10);
}

/// Case 87: no privileges: which capability is missing.
#[test]
fn missing_capabilities_are_named() {
    let lab = lab(1);
    let args = ["run", "-i", "eth0", "-p", "80", "--backend", "172.30.0.10"];
    let before = traces(lab.host());
    let all = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534"];
    ended_with(lab.host(), &all, &args).assert(5, &["CAP_BPF and CAP_NET_ADMIN", "root"]);
    let one = ["setpriv", "--bounding-set=-net_admin"];
    let one = ended_with(lab.host(), &one, &args);
    one.assert(5, &["CAP_NET_ADMIN"]);
    assert!(!one.said.contains("CAP_BPF"), "{}", one.said);
    let two = ["setpriv", "--bounding-set=-bpf,-sys_admin"];
    let two = ended_with(lab.host(), &two, &args);
    two.assert(5, &["CAP_BPF"]);
    assert!(!two.said.contains("CAP_NET_ADMIN"), "{}", two.said);
    assert_traces(lab.host(), &before);
}

/// Case 87: port already listened on: the process is named.
#[test]
fn a_port_that_is_listened_on_is_refused_with_the_process_named() {
    let lab = lab(1);
    let pid = std::process::id().to_string();
    for address in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", "[2001:db8:1::1]:80"] {
        // Commands that other tests start hold the listener before for a moment, until their exec.
        let bind = || lab.host().run(|| TcpListener::bind(address)).ok();
        let _listener = eventually(&format!("{address} is free"), bind);
        assert_refused(&lab, &["-i", "eth0", "-p", "80"], 6, &["port 80", &pid, "-p"]);
        assert_refused(&lab, &["-i", "eth0", "-p", "79,80"], 6, &["port 80", &pid]);
    }
}

/// What listens on another port, on loopback alone, or in another namespace is in nobody's way.
#[test]
fn listeners_elsewhere_are_in_nobodys_way() {
    let lab = lab(1);
    let _elsewhere = lab.client().run(|| Server::bind("elsewhere", 80)).unwrap();
    let listen = |address: &'static str| lab.host().run(|| TcpListener::bind(address)).unwrap();
    let _listeners = ["0.0.0.0:81", "127.0.0.1:80", "[::1]:80"].map(listen);
    let served = Served::start(lab, &[]);
    assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
}

/// Case 87: an interface without Ethernet.
#[test]
fn lo_is_refused_with_the_reason() {
    let lab = lab(1);
    assert_refused(&lab, &["-i", "lo", "-p", "80"], 1, &["lo", "Ethernet"]);
}

/// Case 87: wrong usage: exit 2, and where the help is.
#[test]
fn unknown_flags_verbs_and_values_are_named() {
    let lab = lab(0);
    let cases: [(&[&str], &str); 20] = [
        (&["run", "-i", "eth0", "--no-such"], "--no-such"),
        (&["no-such"], "no-such"),
        (&["run", "-p", "80"], "--iface"),
        (&["run", "-i", "eth0", "-p", "80", "--forward", "fast"], "fast"),
        (&["run", "-i", "eth0", "-p", "80", "--hook", "netfilter"], "netfilter"),
        (&["run", "-i", "eth0", "-p", "80", "--flows", "1"], "--flows"),
        (&["run", "-i", "eth0", "-p", "80", "--balance", "fair"], "round-robin"),
        (&["run", "-i", "eth0", "-p", "80", "--affinity", "soon"], "invalid time \"soon\""),
        (&["run", "-i", "eth0", "-p", "80", "--connect-failover", "yes"], "on, off"),
        (&["run", "-i", "eth0", "-p", "80", "--no-backend", "ignore"], "reject, drop"),
        (&["run", "-i", "eth0", "-p", "80", "--max-backends", "16385"], "16384"),
        (&["run", "-i", "eth0", "-p", "80", "--drain", "soon"], "soon"),
        (&["run", "-i", "eth0", "-p", "80", "--udp-timeout", "31d"], "30d at most"),
        (&["run", "-i", "eth0", "-p", "80", "--allow", "office"], "invalid network \"office\""),
        (
            &["run", "-i", "eth0", "-p", "80", "--health", "http"],
            "expected a path, e.g. http:/health",
        ),
        (
            &["run", "-i", "eth0", "-p", "80", "--health", "http:x"],
            "expected a path, e.g. http:/health",
        ),
        (&["run", "-i", "eth0", "-p", "80", "--health-interval", "0"], "100ms at least"),
        (&["run", "-i", "eth0", "-p", "80", "--health-rise", "0"], "expected 1-1000"),
        (&["status", "-o", "xml"], "xml"),
        (&["run", "-q", "-v", "-i", "eth0"], "--quiet"),
    ];
    for (args, word) in cases {
        ended(lab.host(), args).assert(2, &[word]);
    }
    ended(lab.host(), &[]).assert(2, &["Usage"]);
}

/// Case 87: flags that contradict each other.
#[test]
fn flags_that_do_not_go_together_are_named() {
    let lab = lab(0);
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--provider", "static", "-p", "80"], &["--backend"]),
        (&["--provider", "file", "-p", "80"], &["--file"]),
        (&["--backend", "10.0.0.1"], &["-p"]),
        (&["--file", "/nowhere"], &["-p"]),
        (&["--provider", "docker", "--backend", "10.0.0.1"], &["--backend", "static"]),
        (&["--provider", "static", "--file", "/nowhere"], &["--file"]),
    ];
    for (args, words) in cases {
        ended(lab.host(), &[&["run", "-i", "eth0"], args].concat()).assert(2, words);
    }
}

/// Case 87: the file of backends: missing, or with an unknown key: line and column.
#[test]
fn a_bad_file_of_backends_is_refused_with_line_and_column() {
    let lab = lab(0);
    let run = ["run", "-i", "eth0", "-p", "80", "--file"];
    let missing = "/nowhere/backends.toml";
    ended(lab.host(), &[&run[..], &[missing]].concat()).assert(1, &["/nowhere"]);
    let file = Backends::none();
    for (text, words) in [
        ("[[backend]]\naddress = \"10.0.0.1\"\nport = 80\n", ["port", "line 3, column 1"]),
        ("[[backend]]\naddress = \"web-1\"\n", ["web-1", "line 2, column 11"]),
        ("[[backends]]\n", ["backends", "line 1, column 3"]),
        ("[[backend]\n", ["TOML", "line 1, column 11"]),
    ] {
        file.write_text(text);
        let before = traces(lab.host());
        let args = [&run[..], &[file.path()]].concat();
        ended(lab.host(), &args).assert(1, &[words[0], words[1], file.path()]);
        assert_traces(lab.host(), &before);
    }
}

/// Case 88, as far as there is a file: good applied, bad refused, old kept.
#[test]
fn a_file_that_goes_bad_is_named_and_the_old_backends_stay() {
    let served = Served::start(lab(2), &["--drain", "100"]);
    let [front, _] = served.fronts();
    let (mut file, lab) = (served.file, &served.lab);
    let bad = [
        ("[[backend]]\naddress = \"10.0.0.1\"\nport = 80\n", "line 3, column 1"),
        ("nonsense", "line 1, column 9"),
        ("[[backend]]\naddress = \"10.0.0.1\"\nlisten = 443\n", "port 443"),
    ];
    for (text, word) in bad {
        let mark = served.daemon.mark();
        file.write_text(text);
        served.daemon.wait_for_line_after(mark, word, TIMEOUT);
        served.daemon.wait_for_line_after(mark, "stay as they were", TIMEOUT);
        let tally = ask(lab, front, 40);
        assert!(tally.of("web-1") > 0 && tally.of("web-2") > 0, "{tally}");
    }
    file.remove("web-2");
    served.daemon.wait_for_line(&format!("- web-2 {}", lab.backends()[1].v4(TARGET)), TIMEOUT);
    assert_eq!(ask(lab, front, 40).of("web-1"), 40);
}
