//! The seed of choices by hash: who has it chooses alike, who has another does not, and open connections stay.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;

use samport_tests::daemon::{Daemon, samport};
use samport_tests::served::{LISTEN, Served, TARGET, text};
use samport_tests::socket::{ask_on, connect_between};
use samport_tests::{Lab, TIMEOUT};
use serde_json::Value;

use crate::lab;

const CLIENTS: u8 = 64;

fn clients() -> impl Iterator<Item = IpAddr> {
    (100..100 + CLIENTS).map(|last| [192, 0, 2, last].into())
}

/// A lab of four backends with many clients. Its addresses are those of every lab.
fn lab_of_many() -> Lab {
    let lab = lab(4);
    let addresses = clients().map(|client| format!("addr add {client}/24 dev eth0\n"));
    lab.client().batch(&addresses.collect::<Vec<_>>().concat()).unwrap();
    lab
}

/// Who answers each of the clients.
fn chosen(lab: &Lab) -> Vec<String> {
    let ask = |client| {
        let stream = connect_between(SocketAddr::new(client, 0), lab.front(LISTEN)).unwrap();
        ask_on(&stream, "/").unwrap().backend
    };
    lab.client().run(|| clients().map(ask).collect())
}

/// How many clients have the same backend in both. By chance it is a quarter, and 40 are 7 standard deviations
/// more.
fn alike(one: &[String], other: &[String]) -> usize {
    one.iter().zip(other).filter(|(one, other)| one == other).count()
}

const MOST_BY_CHANCE: usize = 40;

fn options(seed: &Path) -> [&str; 4] {
    ["--balance", "source-hash", "--hash-seed-file", seed.to_str().unwrap()]
}

#[test]
fn a_seed_outlives_a_restart_and_makes_two_hosts_choose_alike() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let served = Served::start(lab_of_many(), &options(&one));
    let first = chosen(&served.lab);
    let served = served.restart(&options(&one));
    assert_eq!(chosen(&served.lab), first, "after a restart");

    let copy = folder.path().join("copy");
    fs::copy(&one, &copy).unwrap();
    let second_host = Served::start(lab_of_many(), &options(&copy));
    assert_eq!(chosen(&second_host.lab), first, "on another host with the same seed");

    let served = served.restart(&options(&other));
    let differently = chosen(&served.lab);
    assert!(alike(&first, &differently) <= MOST_BY_CHANCE, "{first:?} {differently:?}");
}

/// The backend that is said to get a client's next connection.
fn explained(lab: &Lab, client: IpAddr) -> String {
    let client = SocketAddr::new(client, 50_000);
    let args = ["explain", &client.to_string(), &lab.front(LISTEN).to_string(), "-o", "json"];
    let output = samport(lab.host(), &args);
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let backends = document["backends"].as_array().expect("a list of backends");
    let [one] = &backends[..] else { panic!("more than one: {document:#}") };
    text(one, "name").to_owned()
}

/// Connections that are held, one of each client, and the backends they have.
struct Held(Vec<(TcpStream, String)>);

impl Held {
    fn open(lab: &Lab) -> Self {
        let open = |client| {
            let from = SocketAddr::new(client, 40_000);
            let stream = connect_between(from, lab.front(LISTEN)).unwrap();
            let backend = ask_on(&stream, "/").unwrap().backend;
            (stream, backend)
        };
        Self(lab.client().run(|| clients().map(open).collect()))
    }

    fn assert_answered(&self) {
        for (stream, backend) in &self.0 {
            assert_eq!(ask_on(stream, "/").expect("it is open").backend, *backend);
        }
    }
}

/// Kills samport, and starts another one in its place.
fn taken_over(mut served: Served, options: &[&str]) -> Served {
    served.daemon.kill9();
    let Served { daemon: killed, file, servers, lab } = served;
    let port = format!("{LISTEN}:{TARGET}");
    let usual = ["-i", "eth0", "-p", &port, "--file", file.path()];
    let daemon = Daemon::start(&lab, &[&usual[..], options].concat());
    killed.adopted();
    Served { daemon, file, servers, lab }
}

/// The kernel and `explain` go by the seed of the run, whatever becomes of the file.
#[test]
fn a_hand_over_with_another_seed_keeps_what_is_open_and_says_so() {
    const ANOTHER: &str = "the hash seed is not that of the run before";
    let folder = tempfile::tempdir().unwrap();
    let seed = folder.path().join("seed");
    let served = Served::start(lab_of_many(), &options(&seed));
    let first = chosen(&served.lab);
    let held = Held::open(&served.lab);
    let all_explained =
        |lab: &Lab| -> Vec<String> { clients().map(|client| explained(lab, client)).collect() };
    fs::write(&seed, "00112233445566778899aabbccddeeff\n").unwrap();
    assert_eq!(all_explained(&served.lab), first, "the file is read at the start only");

    let served = taken_over(served, &options(&seed));
    served.daemon.wait_for_line(ANOTHER, TIMEOUT);
    held.assert_answered();
    let second = chosen(&served.lab);
    assert!(alike(&first, &second) <= MOST_BY_CHANCE, "{first:?} {second:?}");
    assert_eq!(all_explained(&served.lab), second);

    let served = taken_over(served, &options(&seed));
    let lines = served.daemon.lines();
    assert!(lines.iter().all(|line| !line.text.contains(ANOTHER)), "{lines:?}");
    held.assert_answered();
    assert_eq!(chosen(&served.lab), second);
}
