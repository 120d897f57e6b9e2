//! Docker's socket: absent, in the way, refused, silent.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use samport_tests::daemon::samport;
use samport_tests::fake_engine::FakeEngine;
use samport_tests::own_mounts;
use samport_tests::traces::{assert_traces, traces};

use crate::{ended, ended_with, lab};

/// What ends `samport run` without an engine.
const RUN: [&str; 6] = ["run", "-i", "eth0", "-p", "80", "--endpoint"];

fn url(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Case 87: absent.
#[test]
fn an_absent_docker_socket_is_named() {
    let lab = lab(0);
    let before = traces(lab.host());
    let endpoint = "unix:///nowhere/docker.sock";
    let words = [endpoint, "no such socket", "--endpoint", "DOCKER_HOST"];
    ended(lab.host(), &[&RUN[..], &[endpoint]].concat()).assert(3, &words);
    assert_traces(lab.host(), &before);
    // The same by Docker's own variable.
    let wrapper = ["env", "DOCKER_HOST=unix:///elsewhere/d.sock"];
    ended_with(lab.host(), &wrapper, &RUN[..5]).assert(3, &["/elsewhere/d.sock"]);
}

/// Case 87: something else is in its place.
#[test]
fn a_file_in_the_place_of_the_docker_socket_is_named() {
    let lab = lab(0);
    let file = tempfile::NamedTempFile::new().unwrap();
    let endpoint = url(file.path());
    ended(lab.host(), &[&RUN[..], &[&endpoint]].concat()).assert(3, &[&endpoint, "no socket"]);
}

/// Case 87: nobody listens, at a socket or at a port.
#[test]
fn a_docker_socket_nobody_listens_on_is_named() {
    let lab = lab(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.sock");
    drop(UnixListener::bind(&path).unwrap());
    for endpoint in [&url(&path), "tcp://127.0.0.1:2375"] {
        let words = [endpoint, "nothing listens"];
        ended(lab.host(), &[&RUN[..], &[endpoint]].concat()).assert(3, &words);
    }
}

/// Case 87: refused: a user with the capabilities, who may not open the socket.
#[test]
fn a_docker_socket_that_may_not_be_opened_is_named() {
    own_mounts::run(|| {
        let lab = lab(0);
        let folder = tempfile::tempdir().unwrap();
        // The user must get as far as the socket, and to the binary.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = folder.path().join("d.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let user = [
            "setpriv",
            "--reuid=65534",
            "--inh-caps=+net_admin,+bpf,+perfmon",
            "--ambient-caps=+net_admin,+bpf,+perfmon",
        ];
        let own = folder.path().join("own");
        let seed = own.join("hash-seed").display().to_string();
        let endpoint = url(&path);
        let args = [&RUN[..], &[&endpoint, "--hash-seed-file", &seed]].concat();
        // Without folders of its own it does not get as far.
        let words = ["/run/samport", "Permission denied", "root"];
        ended_with(lab.host(), &user, &args).assert(5, &words);
        for folder in [Path::new("/run/samport"), Path::new("/sys/fs/bpf/samport"), &own] {
            std::fs::create_dir(folder).unwrap();
            std::os::unix::fs::chown(folder, Some(65_534), None).unwrap();
        }
        ended_with(lab.host(), &user, &args).assert(3, &[&endpoint, "permission denied"]);
    });
}

/// Case 87: a rootless engine's socket: root has given up what it would take to open it, which `check` knows too.
#[test]
fn a_socket_of_another_user_is_refused_to_root_in_true_words_by_run_and_check_alike() {
    let lab = lab(0);
    let owner = Some(12_345);
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let engine = FakeEngine::start();
    for (folder_mode, socket_mode, whose) in [(0o700, 0o666, "closed"), (0o755, 0o600, "d.sock")] {
        let runtime = folder.path().join(format!("runtime-{whose}"));
        std::fs::create_dir(&runtime).unwrap();
        let path = runtime.join("d.sock");
        // Another name of a socket that answers.
        std::fs::hard_link(engine.socket(), &path).unwrap();
        for (one, mode) in [(&path, socket_mode), (&runtime, folder_mode)] {
            std::fs::set_permissions(one, PermissionsExt::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(one, owner, owner).unwrap();
        }
        let endpoint = url(&path);
        let words =
            [&endpoint, "permission denied", whose, "user 12345's", "CAP_DAC_OVERRIDE", "as root"];
        let run = ended(lab.host(), &[&RUN[..], &[&endpoint]].concat());
        run.assert(3, &words);
        assert!(!run.said.contains("run samport as root"), "{}", run.said);
        let check =
            samport(lab.host(), &["check", "-i", "eth0", "-p", "80", "--endpoint", &endpoint]);
        assert_eq!(check.status.code(), Some(3), "{check:?}");
        let said = String::from_utf8_lossy(&check.stdout);
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

/// Case 87: what answers is no engine.
#[test]
fn what_answers_and_is_no_docker_is_named() {
    let lab = lab(0);
    let _server = lab.host().run(|| samport_tests::Server::bind("no-docker", 2375)).unwrap();
    let endpoint = "tcp://127.0.0.1:2375";
    ended(lab.host(), &[&RUN[..], &[endpoint]].concat()).assert(3, &[endpoint]);
}

/// Case 87: a connection that is closed at once.
#[test]
fn what_hangs_up_is_named() {
    let lab = lab(0);
    let listener = lab.host().run(|| TcpListener::bind("127.0.0.1:2375")).unwrap();
    let hang_up = std::thread::spawn(move || listener.accept().map(drop));
    let endpoint = "tcp://127.0.0.1:2375";
    ended(lab.host(), &[&RUN[..], &[endpoint]].concat()).assert(3, &[endpoint]);
    hang_up.join().unwrap().unwrap();
}

/// Case 87: an address that is none.
#[test]
fn an_engines_address_that_is_none_is_named() {
    let lab = lab(0);
    for endpoint in ["docker.sock", "unix://docker.sock", "ftp://a:1", "tcp://a", "https://a:1"] {
        let words = [endpoint, "--endpoint", "unix:///PATH"];
        ended(lab.host(), &[&RUN[..], &[endpoint]].concat()).assert(2, &words);
    }
}
