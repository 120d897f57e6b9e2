//! What most tests begin with: a lab whose backends serve behind samport.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use samport::lab::{Lab, Namespace, Server};
use serde_json::Value;

use crate::daemon::{Backends, Daemon, samport};
use crate::{TIMEOUT, eventually};

/// The port clients dial.
pub const LISTEN: u16 = 80;
/// The port the backends listen on.
pub const TARGET: u16 = 9090;

/// Addresses of the host's second interface.
const SECOND_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SECOND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1);

/// A lab with a server in each backend, all of them, IPv4 and IPv6, in the file samport follows.
/// Fields are dropped in their order: samport before the lab.
pub struct Served {
    /// `samport run` in the lab's host.
    pub daemon: Daemon,
    /// Its backends.
    pub file: Backends,
    /// The servers.
    pub servers: Vec<Server>,
    /// The network.
    pub lab: Lab,
}

impl Served {
    /// Starts the servers, and `samport run -i eth0 -p 80:9090 --file FILE OPTIONS…`.
    #[must_use]
    pub fn start(lab: Lab, options: &[&str]) -> Self {
        let file = Backends::dual(&lab, TARGET);
        let servers = lab.serve(TARGET).expect("start the servers");
        let daemon = Self::daemon(&lab, &file, options);
        Self { daemon, file, servers, lab }
    }

    fn daemon(lab: &Lab, file: &Backends, options: &[&str]) -> Daemon {
        let port = format!("{LISTEN}:{TARGET}");
        let usual = ["-i", "eth0", "-p", &port, "--file", file.path()];
        Daemon::start(lab, &[&usual[..], options].concat())
    }

    /// Stops samport and starts another one, which knows nothing of the first one's flows.
    #[must_use]
    pub fn restart(self, options: &[&str]) -> Self {
        self.daemon.stop();
        let daemon = Self::daemon(&self.lab, &self.file, options);
        Self { daemon, ..self }
    }

    /// What clients dial: the host's IPv4 and IPv6 address.
    #[must_use]
    pub fn fronts(&self) -> [SocketAddr; 2] {
        [self.lab.front(LISTEN), self.lab.front_v6(LISTEN)]
    }

    /// Plugs in another backend with a server, not yet in the file; its name and addresses.
    pub fn add_backend(&mut self) -> (String, [SocketAddr; 2]) {
        let backend = self.lab.add_backend().expect("plug in a backend");
        let (name, addresses) =
            (backend.name().to_owned(), [backend.v4(TARGET), backend.v6(TARGET)]);
        self.servers.push(backend.serve(TARGET).expect("start a server"));
        (name, addresses)
    }

    /// The addresses of a backend.
    #[must_use]
    pub fn addresses_of(&self, name: &str) -> [SocketAddr; 2] {
        let backend = self.lab.backends().iter().find(|backend| backend.name() == name);
        let backend = backend.unwrap_or_else(|| panic!("there is no backend {name}"));
        [backend.v4(TARGET), backend.v6(TARGET)]
    }

    /// Changes the file and waits until samport has said so of both addresses of a backend: a line
    /// with `sign` (`+`, `-`, `~`), the backend, its address, and `word`.
    pub fn change(
        &mut self,
        (sign, name, word): (&str, &str, &str),
        change: impl FnOnce(&mut Backends),
    ) {
        let (mark, addresses) = (self.daemon.mark(), self.addresses_of(name));
        change(&mut self.file);
        for address in addresses {
            let begin = format!("{sign} {name} {address}");
            eventually(&format!("a line with {begin:?} and {word:?}"), || {
                let lines = self.daemon.lines();
                lines[mark..]
                    .iter()
                    .any(|line| line.text.contains(&begin) && line.text.contains(word))
                    .then_some(())
            });
        }
    }

    /// Gives an order, like `drain web-1`; panics unless it is carried out. What it has printed.
    pub fn order(&self, args: &[&str]) -> String {
        let output = samport(self.lab.host(), args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "samport {args:?} ended with {}: {said}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    /// The states of a backend's two addresses, as `samport backends -o json` says them.
    #[must_use]
    pub fn states_of(&self, name: &str) -> Vec<String> {
        let document: Value =
            serde_json::from_str(&self.order(&["backends", "-o", "json"])).expect("JSON");
        let all = document["backends"].as_array().expect("a list of backends");
        let ours = all.iter().filter(|one| text(one, "name") == name);
        ours.map(|one| text(one, "state").to_owned()).collect()
    }

    /// What `samport status -o json` says of this instance.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::only_in(self.lab.host())
    }
}

/// One instance in the JSON of `samport status`.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// All instances of a network namespace.
    #[must_use]
    pub fn all_in(namespace: &Namespace) -> Vec<Self> {
        let suffix = format!("@{}", inode(namespace));
        let document = document(namespace);
        let instances = document["instances"].as_array().expect("a list of instances");
        let ours = instances.iter().filter(|one| text(one, "name").ends_with(&suffix));
        ours.cloned().map(Self).collect()
    }

    /// The one instance of a network namespace. `samport status` shows the machine's, those of tests that
    /// run at the same time too.
    #[must_use]
    pub fn only_in(namespace: &Namespace) -> Self {
        let mut all = Self::all_in(namespace);
        assert_eq!(all.len(), 1, "one instance runs in the namespace: {all:?}");
        all.remove(0)
    }

    /// How many packets have left by a verdict.
    #[must_use]
    pub fn verdict(&self, name: &str) -> u64 {
        let count = &self.0["verdicts"][name];
        count.as_u64().unwrap_or_else(|| panic!("no verdict {name} in {:#}", self.0))
    }

    /// The other nodes of the cluster.
    #[must_use]
    pub fn nodes(&self) -> &[Value] {
        self.0["nodes"].as_array().expect("a list of nodes")
    }

    /// The backends.
    #[must_use]
    pub fn backends(&self) -> &[Value] {
        self.0["backends"].as_array().expect("a list of backends")
    }

    /// The sum of a number over all backends.
    #[must_use]
    pub fn sum(&self, key: &str) -> u64 {
        let number = |backend: &Value| backend[key].as_u64().expect("a number");
        self.backends().iter().map(number).sum()
    }
}

/// The text under a key.
#[must_use]
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key:?} in {value:#}"))
}

/// The JSON of `samport status`, once it can be had: instances of other tests come and go.
fn document(namespace: &Namespace) -> Value {
    eventually("samport status -o json succeeds", || {
        let output = samport(namespace, &["status", "-o", "json"]);
        if !output.status.success() {
            eprintln!("samport status: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(serde_json::from_slice(&output.stdout).expect("JSON on standard output"))
    })
}

/// Inode of a network namespace, which is part of the instances' names.
#[must_use]
pub fn inode(namespace: &Namespace) -> u64 {
    namespace.inode().unwrap_or_else(|e| panic!("{e:#}"))
}

/// Waits until an address answers as backend; the way to know that a change has arrived which
/// samport does not tell of.
pub fn wait_for_answer(lab: &Lab, address: SocketAddr) {
    let what = format!("{address} answers within {TIMEOUT:?}");
    eventually(&what, || lab.get(address, "/").ok());
}

/// Another client, on an interface `eth1` of the lab's host.
#[must_use]
pub fn second_client(lab: &Lab) -> Namespace {
    let client = Namespace::new("client2").expect("make a namespace");
    let host_end = format!(
        "link add name eth1 type veth peer name eth0 netns {}\n\
         addr add {SECOND_V4}/24 dev eth1\n\
         addr add {SECOND_V6}/64 dev eth1 nodad\n\
         link set eth1 up\n",
        client.name()
    );
    let client_end = format!(
        "addr add 198.51.100.2/24 dev eth0\n\
         addr add 2001:db8:3::2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {SECOND_V4}\n\
         route add ::/0 via {SECOND_V6}\n"
    );
    lab.host().batch(&host_end).expect("plug the second client in");
    client.batch(&client_end).expect("set the second client up");
    client
}

/// What a second client dials: the addresses of `eth1`.
#[must_use]
pub fn fronts_of_second() -> [SocketAddr; 2] {
    [SECOND_V4.into(), SECOND_V6.into()].map(|ip| SocketAddr::new(ip, LISTEN))
}
