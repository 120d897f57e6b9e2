//! The control socket, and what its commands say when something is wrong.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use samport_tests::daemon::{Daemon, clean};
use samport_tests::load::ask;
use samport_tests::served::{Served, text};
use samport_tests::traces::undisturbed;
use serde_json::Value;

use crate::{ended, ended_with, lab};

/// Every command that needs a running samport.
const COMMANDS: [&[&str]; 5] = [
    &["drain", "web-1"],
    &["undrain", "web-1"],
    &["weight", "web-1", "2"],
    &["balance", "random"],
    &["backends"],
];

fn socket_of(served: &Served) -> PathBuf {
    Path::new("/run/samport").join(format!("{}.sock", text(&served.status().0, "name")))
}

/// What the socket answers: the status code and the document.
fn asked(socket: &Path, request: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    let head = "host: samport\r\nconnection: close\r\ncontent-type: application/json";
    let whole = format!("{request} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(whole.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, document) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).expect("a status code").parse().expect("a number");
    (code, serde_json::from_str(document).unwrap_or_else(|e| panic!("{e}: {document}")))
}

#[test]
fn the_socket_is_roots_alone_and_goes_with_its_samport() {
    let served = Served::start(lab(1), &[]);
    let socket = socket_of(&served);
    let metadata = fs::symlink_metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0));
    served.daemon.stop();
    assert!(!socket.exists());
}

/// Whoever may open the lock could hold it, and keep samport from being started, handed over and cleaned.
#[test]
fn locks_and_records_are_roots_alone() {
    let served = Served::start(lab(1), &[]);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    let name = served.status().0["name"].as_str().unwrap().to_owned();
    assert_eq!(mode(Path::new("/run/samport")), 0o700);
    for kind in ["lock", "json"] {
        let file = format!("/run/samport/{name}.{kind}");
        assert_eq!(mode(Path::new(&file)), 0o600, "{file}");
    }
    let nobody =
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"];
    for args in
        [&["healthcheck"][..], &["drain", "web-1"], &["status"], &["wait", "--healthy", "1"]]
    {
        ended_with(served.lab.host(), &nobody, args).assert(5, &["run it as root"]);
    }
}

#[test]
fn the_socket_of_a_killed_samport_is_replaced_by_the_next_and_removed_by_clean() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(1), &[]);
    let socket = socket_of(&served);
    served.daemon.kill9();
    assert!(socket.exists());
    let args = ["-i", "eth0", "-p", "80:9090", "--file", served.file.path()];
    let mut next = Daemon::start(&served.lab, &args);
    assert_eq!(asked(&socket, "GET /v1/status", "").0, 200);
    next.kill9();
    clean(served.lab.host(), &[]);
    assert!(!socket.exists());
}

#[test]
fn a_socket_of_ones_own_is_found_by_its_path_and_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let path = path.to_str().unwrap();
    let served = Served::start(lab(1), &["--socket", path]);
    for args in [&["wait", "--healthy", "1"][..], &["wait", "--healthy", "1", "--socket", path]] {
        assert_eq!(served.order(args), "1 healthy\n");
    }
    let args = ["run", "-i", "eth0", "-p", "81", "--backend", "172.30.0.10:9090", "--socket", path];
    ended(served.lab.host(), &args).assert(6, &[path, "--socket"]);
    assert_eq!(ask(&served.lab, served.fronts()[0], 5).total(), 5);
}

#[test]
fn a_name_that_means_nobody_is_named_and_so_are_those_there_are() {
    let served = Served::start(lab(2), &[]);
    for args in [&["drain", "web-9"][..], &["undrain", "web-9"], &["weight", "web-9", "1"]] {
        ended(served.lab.host(), args).assert(1, &["web-9", "web-1, web-2"]);
    }
    ended(served.lab.host(), &["balance", "random", "81"]).assert(1, &["\"81\"", "there are 80"]);
    ended(served.lab.host(), &["wait", "--healthy", "1", "81"]).assert(1, &["\"81\""]);
    for verb in ["drain", "undrain"] {
        ended(served.lab.host(), &[verb, "--this-node"])
            .assert(1, &["no other nodes", "--cluster"]);
    }
}

#[test]
fn wrong_usage_is_refused_before_anybody_is_asked() {
    let lab = lab(0);
    for (args, word) in [
        (&["weight", "web-1", "-1"][..], "'-1'"),
        (&["weight", "web-1", "heavy"], "heavy"),
        (&["drain", ""], "BACKEND"),
        (&["drain"], "--this-node"),
        (&["undrain", "web-1", "--this-node"], "--this-node"),
        (&["drain", "web-1", "--timeout", "5s"], "--wait"),
        (&["drain", "web-1", "--wait", "--timeout", "soon"], "soon"),
        (&["balance", "fair"], "source-hash"),
        (&["wait"], "--healthy"),
    ] {
        ended(lab.host(), args).assert(2, &[word]);
    }
}

#[test]
fn without_a_samport_there_is_an_answer_of_its_own() {
    let lab = lab(0);
    for args in COMMANDS {
        ended(lab.host(), args).assert(3, &["samport does not run"]);
        let nowhere = [args, &["--socket", "/run/nowhere.sock"]].concat();
        ended(lab.host(), &nowhere).assert(3, &["/run/nowhere.sock"]);
        let unknown = [args, &["--instance", "eth0:99@1"]].concat();
        ended(lab.host(), &unknown).assert(3, &["eth0:99@1"]);
    }
    ended(lab.host(), &["wait", "--healthy", "1", "--timeout", "0"]).assert(3, &["not run"]);
}

#[test]
fn what_takes_too_long_has_an_exit_code_of_its_own() {
    let served = Served::start(lab(2), &["--drain", "1000"]);
    let host = served.lab.host();
    ended(host, &["wait", "--healthy", "3", "--timeout", "0"]).assert(7, &["2 of 3"]);
    // Who waits for longer than a second is told how far it is.
    let words = ["2 of 3 are healthy …", "2 of 3 are healthy after 3s"];
    ended(host, &["wait", "--healthy", "3", "--timeout", "3s"]).assert(7, &words);
    // Nobody else takes what is new once both drain: neither ever goes down.
    served.order(&["drain", "web-1"]);
    ended(host, &["drain", "web-2", "--wait", "--timeout", "0"]).assert(7, &["web-2", "no other"]);
}

/// Whoever may not steer is told so.
#[test]
fn only_root_may_steer() {
    let served = Served::start(lab(1), &[]);
    let drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534"];
    for args in COMMANDS {
        ended_with(served.lab.host(), &drop, args).assert(5, &["root"]);
    }
    assert_eq!(served.states_of("web-1"), ["active", "active"]);
}

#[test]
fn of_several_samports_one_has_to_be_named() {
    let served = Served::start(lab(1), &[]);
    let args = ["-i", "eth0", "-p", "81:9090", "--file", served.file.path()];
    let other = Daemon::start(&served.lab, &args);
    let suffix = format!("@{}", samport_tests::served::inode(served.lab.host()));
    let names = ["eth0:80", "eth0:81"].map(|name| format!("{name}{suffix}"));
    let host = served.lab.host();
    ended(host, &["drain", "web-1"]).assert(2, &[&names[0], &names[1], "--instance"]);
    served.order(&["drain", "web-1", "--instance", &names[1]]);
    let shown = served.order(&["backends", "--instance", &names[0]]);
    assert!(shown.contains("active") && !shown.contains("draining"), "{shown}");
    other.stop();
    assert_eq!(served.states_of("web-1"), ["active", "active"]);
}

/// The document of docs/reference/api.md.
#[test]
fn the_socket_speaks_http_and_json() {
    let served = Served::start(lab(2), &["--drain", "100"]);
    let socket = socket_of(&served);
    let ask = |request: &str, body: &str| asked(&socket, request, body);
    for path in ["/v1/status", "/v1/backends", "/v1/services", "/v1/health?healthy=2"] {
        let (code, document) = ask(&format!("GET {path}"), "");
        assert_eq!((code, &document["schema"]), (200, &1.into()), "{path}: {document:#}");
    }
    assert_eq!(ask("GET /v1/status", "").1["instances"][0]["pid"], served.daemon.pid());
    let (code, document) = ask("GET /v1/health?healthy=3&service=80", "");
    assert_eq!((code, &document["healthy"], &document["ok"]), (503, &2.into(), &false.into()));

    let (code, document) = ask("PUT /v1/weights/web-1", r#"{"weight": 3}"#);
    assert_eq!((code, &document["backends"][0]["weight"]), (200, &3.into()), "{document:#}");
    assert_eq!(document["backends"][0]["share_expected"], 0.75);
    let (code, document) = ask("POST /v1/backends/web-2/drain", "");
    assert_eq!((code, &document["backends"][1]["state"]), (200, &"draining".into()));
    let (code, document) = ask("PUT /v1/services/80%2Ftcp/balance", r#"{"balance": "maglev"}"#);
    assert_eq!(code, 200, "{document:#}");
    assert_eq!(ask("GET /v1/services", "").1["services"][0]["balance"], "maglev");
}

#[test]
fn what_the_socket_cannot_do_it_says_as_json() {
    let served = Served::start(lab(1), &[]);
    let socket = socket_of(&served);
    for (request, body, code, word) in [
        ("GET /v2/backends", "", 404, "not found"),
        ("DELETE /v1/backends", "", 405, "not allowed"),
        ("POST /v1/backends/web-9/drain", "", 404, "web-9"),
        ("PUT /v1/weights/web-1", r#"{"weight": -1}"#, 422, "weight"),
        ("PUT /v1/weights/web-1", r#"{"weight": 1, "wieght": 1}"#, 422, "wieght"),
        ("PUT /v1/weights/web-1", "heavy", 400, "JSON"),
        ("PUT /v1/services/80/balance", r#"{"balance": "fair"}"#, 400, "source-hash"),
        ("PUT /v1/services/81/balance", r#"{"balance": "maglev"}"#, 404, "81"),
        ("GET /v1/health", "", 400, "healthy"),
        ("GET /v1/health?healthy=1&service=81", "", 404, "81"),
    ] {
        let (answered, document) = asked(&socket, request, body);
        assert_eq!(answered, code, "{request}: {document:#}");
        assert!(text(&document, "error").contains(word), "{request}: {document:#}");
    }
}

/// What a killed samport has left is shown as such.
#[test]
fn backends_of_a_killed_samport_are_shown_from_what_it_left() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(2), &[]);
    assert_eq!(ask(&served.lab, served.fronts()[0], 20).total(), 20);
    served.daemon.kill9();
    let document: Value = serde_json::from_str(&served.order(&["backends", "-o", "json"])).unwrap();
    assert_eq!(document["running"], false);
    let flows = |one: &Value| one["counters"]["flows"].as_u64().unwrap();
    assert_eq!(document["backends"].as_array().unwrap().iter().map(flows).sum::<u64>(), 20);
    assert!(served.order(&["backends"]).contains("web-2"));
    // Said apart from the listing: scripts read that.
    for list in [&["backends"][..], &["backends", "-o", "json"], &["status"], &["flows"]] {
        ended(served.lab.host(), list).assert(0, &["samport is not running"]);
    }
    ended(served.lab.host(), &["drain", "web-1"]).assert(3, &["does not run"]);
}
