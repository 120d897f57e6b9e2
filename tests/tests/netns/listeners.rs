//! Whoever connects to samport's own listeners, and says nothing, harms nobody.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use samport_tests::daemon::samport;
use samport_tests::eventually;
use samport_tests::load::ask;
use samport_tests::served::{Served, text};

use crate::lab;

const METRICS: &str = "127.0.0.1:9100";
/// Connections that are opened; 1,024 is what a process may have open unless it asks for more.
const IDLE: usize = 1_500;

fn scrape() -> String {
    let mut stream = TcpStream::connect(METRICS).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// So many that are open at once need a higher limit in this process too.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
}

fn assert_well(served: &Served) {
    let status = samport(served.lab.host(), &["status"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    assert_eq!(served.status().backends().len(), 4);
    for backend in served.status().backends() {
        assert_eq!(text(backend, "state"), "active");
    }
    let health = samport(served.lab.host(), &["healthcheck"]);
    assert!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
    assert_eq!(ask(&served.lab, served.fronts()[0], 50).total(), 50);
}

/// Case 85: idle connections, far more than are served, to the metrics and to the control socket.
#[test]
fn idle_connections_keep_nobody_from_asking_and_no_backend_from_serving() {
    raise_own_limit();
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control.sock").display().to_string();
    let checks = ["--health", "tcp", "--health-interval", "100ms", "--health-fall", "1"];
    let options = [&["--metrics", METRICS, "--socket", &control], &checks[..]].concat();
    let served = Served::start(lab(2), &options);
    let at: SocketAddr = METRICS.parse().unwrap();
    let mut to_metrics: Vec<_> =
        served.lab.host().run(|| (0..IDLE).map(|_| TcpStream::connect(at).unwrap()).collect());
    let to_control: Vec<_> =
        (0..IDLE).map(|_| UnixStream::connect(Path::new(&control)).unwrap()).collect();
    // Some of them begin to say something.
    for stream in to_metrics.iter_mut().rev().take(50) {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nX-").unwrap();
    }
    assert_well(&served);
    let answer = served.lab.host().run(scrape);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let open = fs::read_dir(format!("/proc/{}/fd", served.daemon.pid())).unwrap().count();
    assert!(open < 600, "{open} descriptors");
    drop((to_metrics, to_control));
    assert_well(&served);
    let lines = served.daemon.lines();
    assert!(lines.iter().all(|line| !line.text.contains("unhealthy")), "{lines:?}");
}

/// What a connection may take: a header beyond its size, and a body beyond its.
#[test]
fn headers_and_bodies_have_a_size() {
    let served = Served::start(lab(1), &["--metrics", METRICS]);
    let answer_to = |request: Vec<u8>| {
        served.lab.host().run(|| {
            let mut stream = TcpStream::connect(METRICS).unwrap();
            // It may be closed in the middle.
            let _ = stream.write_all(&request);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        })
    };
    let long =
        format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = answer_to(long.into_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer:.100}");
    assert!(
        answer_to(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec())
            .contains("# EOF")
    );
}

/// Whoever does not say what he wants is waited for no longer than so long.
#[test]
fn a_connection_on_which_nothing_comes_is_closed() {
    let served = Served::start(lab(1), &["--metrics", METRICS]);
    for begin in [&b""[..], b"GET /metr"] {
        served.lab.host().run(|| {
            let mut stream = TcpStream::connect(METRICS).unwrap();
            stream.set_read_timeout(Some(samport_tests::TIMEOUT)).unwrap();
            stream.write_all(begin).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(!answer.starts_with(b"HTTP/1.1 200"));
        });
    }
}

/// The program's own want of descriptors is no verdict on a backend.
#[test]
fn a_backend_is_not_unhealthy_for_want_of_descriptors() {
    let options = ["--health", "tcp", "--health-interval", "200ms", "--health-fall", "1"];
    let served = Served::start(lab(2), &options);
    let pid = Pid::from_raw(served.daemon.pid().cast_signed());
    let limit = |current| {
        let limit = Rlimit { current: Some(current), maximum: Some(4_096) };
        prlimit(pid, Resource::Nofile, limit).unwrap();
    };
    // Whatever it opens from now on is one too many.
    limit(3);
    served.daemon.wait_for_line("cannot be checked on", samport_tests::TIMEOUT);
    eventually("both are said", || {
        let lines = served.daemon.lines();
        (lines.iter().filter(|line| line.text.contains("cannot be checked")).count() >= 2)
            .then_some(())
    });
    assert_eq!(ask(&served.lab, served.fronts()[0], 50).total(), 50);
    assert!(served.daemon.lines().iter().all(|line| !line.text.contains("unhealthy")));
    limit(4_096);
    for backend in served.status().backends() {
        assert_eq!(text(backend, "state"), "active");
    }
}
