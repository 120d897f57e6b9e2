//! samport as a container itself: the Dockerfile and the Compose file of dist/docker.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use samport_tests::daemon::samport_binary;
use samport_tests::docker::Dockerd;
use samport_tests::eventually;
use samport_tests::traces::{assert_traces, traces};

use samport::lab::output_of;

use crate::{ask_front, engine_of, names};

/// An image of nothing but the libraries the program is linked with: no image can be had from outside here.
const BASE: &str = "samport-libraries";

fn dist(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/docker").join(file)
}

fn run(command: &mut Command) -> String {
    output_of(command).unwrap_or_else(|e| panic!("{e:#}"))
}

/// The files the dynamic loader wants.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let said = run(Command::new("ldd").arg(program));
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

/// Builds the image as docs/guides/install.md says.
fn build(docker: &Dockerd, folder: &Path) {
    let program = folder.join("samport");
    // Its debugging information is ten times its size.
    run(Command::new("strip").arg("-o").arg(&program).arg(samport_binary()));
    let base = folder.join("base.tar");
    run(Command::new("tar").arg("-chf").arg(&base).args(libraries(&program)));
    docker.cli(&["import", base.to_str().unwrap(), BASE]);
    fs::remove_file(&base).unwrap();
    fs::copy(dist("Dockerfile"), folder.join("Dockerfile")).unwrap();
    let base = format!("BASE={BASE}");
    docker.cli(&["build", "-t", "samport", "--build-arg", &base, folder.to_str().unwrap()]);
}

/// The Compose file, with the other line of capabilities it names if this engine needs that, and what samport is to
/// have of them when it is ready.
fn compose_file(docker: &Dockerd) -> (String, u64) {
    let text = fs::read_to_string(dist("compose.yaml")).unwrap();
    let usual = "cap_add: [BPF, NET_ADMIN, PERFMON]";
    assert!(text.contains(usual) && text.contains("Docker before 23"), "{text}");
    let tried = docker.try_cli(&["create", "--cap-add", "BPF", "samport", "version"]);
    match tried {
        Ok(_) => (text, 1 << 39 | 1 << 12),
        Err(error) => {
            assert!(format!("{error:#}").contains("unknown capability"), "{error:#}");
            (text.replace(usual, "cap_add: [NET_ADMIN, SYS_ADMIN]"), 1 << 21 | 1 << 12)
        }
    }
}

/// With what the Compose file gives it, and nothing else, it balances other containers; it is healthy, has no more
/// privileges than outside of a container, and leaves nothing.
#[test]
fn in_a_container_of_the_compose_file_it_balances_others() {
    let docker = engine_of(&["foo", "bar"]);
    let before = traces(docker.lab().host());
    let folder = tempfile::Builder::new().prefix("lb").tempdir().unwrap();
    build(&docker, folder.path());
    let (compose, capabilities) = compose_file(&docker);
    fs::write(folder.path().join("docker-compose.yml"), compose).unwrap();
    let socket = docker.folder().join("d.sock");
    let settings =
        format!("SAMPORT_IFACE=eth0\nSAMPORT_PORT=80:9090\nDOCKER_SOCKET={}\n", socket.display());
    fs::write(folder.path().join(".env"), settings).unwrap();

    docker.compose(folder.path(), &["up", "-d", "--no-color"]);
    let id = docker.compose(folder.path(), &["ps", "-q", "samport"]);
    let id = id.trim();
    eventually("samport is ready", || {
        let said = docker.logs(id);
        assert!(!said.contains("error:"), "{said}");
        (said.contains("+ foo ") && said.contains("+ bar ")).then_some(())
    });
    assert_eq!(names(&ask_front(&docker, 100)), ["bar", "foo"]);
    eventually("it is healthy", || {
        (docker.cli(&["inspect", "-f", "{{.State.Health.Status}}", id]) == "healthy").then_some(())
    });
    let pid = docker.cli(&["inspect", "-f", "{{.State.Pid}}", id]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("CapEff:\t{capabilities:016x}\n")), "{status}");

    docker.compose(folder.path(), &["down"]);
    assert_traces(docker.lab().host(), &before);
}
