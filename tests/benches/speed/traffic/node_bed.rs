//! Two hosts made for one measurement, with a container on each, and a way from the client to one of them.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context as _, Result, bail};
use samport::lab::cluster::{Cluster, Host, Options};
use samport::lab::{Backend, Namespace};
use samport_tests::daemon::Daemon;
use samport_tests::eventually;
use samport_tests::served::Status;
use tempfile::TempDir;

use super::contenders::{self, Contender};
use super::outcome::Outcome;
use super::proxies::{self, Place, Proxy};
use super::sample::Sample;
use super::test_bed::watch;
use super::{BACKEND_PORT, FRONT_PORT};
use crate::machine;

/// A network. Fields are dropped from first to last.
pub struct NodeBed<S> {
    /// Where the client connects to: the first host, or the container itself.
    pub target: SocketAddrV4,
    proxy: Option<Proxy>,
    _daemons: Vec<Daemon>,
    _folder: TempDir,
    _servers: S,
    pub cluster: Cluster,
}

/// The host of the container that a contender leads to.
pub fn host_of(cluster: &Cluster, contender: Contender) -> &Host {
    &cluster.hosts()[usize::from(contender != Contender::SamportLocal)]
}

impl<S> NodeBed<S> {
    /// Hosts without any rules, whose routes lead to each other's containers: nothing else is in the way of those who
    /// go by routes.
    pub fn new(contender: Contender, serve: impl FnOnce(&Namespace) -> Result<S>) -> Result<Self> {
        let options = Options {
            hosts: 2,
            backends: 1,
            is_strict: false,
            is_routed: true,
            ..Options::default()
        };
        let cluster = Cluster::build(options)?;
        let container = &host_of(&cluster, contender).backends()[0];
        let servers = serve(container.namespace())?;
        let folder = tempfile::tempdir().context("make a folder")?;
        let host = &cluster.hosts()[0];
        let mut target = SocketAddr::new(host.v4().into(), FRONT_PORT);
        let (mut proxy, mut daemons) = (None, Vec::new());
        match contender {
            Contender::Direct => target = container.v4(BACKEND_PORT),
            Contender::Haproxy => {
                let (host, client) = (host.namespace(), cluster.client());
                let place = Place { host, client, front: target };
                proxy = Some(proxies::haproxy(&place, &[container.v4(BACKEND_PORT)])?);
            }
            _ => daemons = start_samport(contender, &cluster, &folder)?,
        }
        let SocketAddr::V4(target) = target else { bail!("{target} is not IPv4") };
        Ok(Self { target, proxy, _daemons: daemons, _folder: folder, _servers: servers, cluster })
    }

    /// Puts a load on it, and looks at what else there is to see meanwhile.
    pub fn watch(&self, load: impl FnOnce() -> Result<Outcome>) -> Result<Sample> {
        let mut namespaces = vec![self.cluster.client()];
        for host in self.cluster.hosts() {
            namespaces.push(host.namespace());
            namespaces.extend(host.backends().iter().map(Backend::namespace));
        }
        let pids: Vec<u32> = self.proxy.iter().map(Proxy::pid).collect();
        watch(&namespaces, &pids, load)
    }

    /// Ends it all, and waits until the kernel has taken it apart.
    pub fn tear_down(self) -> Result<()> {
        drop(self);
        machine::wait_for_teardown()
    }
}

/// A samport on each host, of which one has a container; they know each other's ways.
fn start_samport(contender: Contender, cluster: &Cluster, folder: &TempDir) -> Result<Vec<Daemon>> {
    let serving = host_of(cluster, contender);
    let ready = |host: &Host| usize::from(host.name() == serving.name());
    let mut nodes = String::new();
    for host in cluster.hosts() {
        let (name, address, ready) = (host.name(), host.v4(), ready(host));
        let _ = writeln!(
            nodes,
            "[[node]]\nname = \"{name}\"\naddress = \"{address}\"\nservices = {{ \"{FRONT_PORT}\" = {ready} }}"
        );
    }
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        anyhow::Ok(file.display().to_string())
    };
    let nodes = write("nodes.toml", &nodes)?;
    let build = contenders::build_of(contender);
    let mut daemons = Vec::new();
    // The one that is dialled last: it has an answer of the other one with its first probe.
    for host in cluster.hosts().iter().rev() {
        let own = host.backends().iter().take(ready(host)).map(|backend| {
            format!("[[backend]]\nname = \"web\"\naddress = \"{}\"\n", backend.v4(BACKEND_PORT))
        });
        let own = write(&format!("{}.toml", host.name()), &own.collect::<String>())?;
        let (ports, name) = (format!("{FRONT_PORT}:{BACKEND_PORT}"), host.name());
        let args = [
            ["-i", "eth0", "-p", &ports, "--file", &own],
            ["--cluster", "file", "--cluster-file", &nodes, "--node", &name],
        ];
        daemons.push(Daemon::start_binary(&build, host.namespace(), &args.concat()));
    }
    let dialled = cluster.hosts()[0].namespace();
    eventually("the first host knows what the way to the second one carries", || {
        let status = Status::only_in(dialled);
        let is_known = |node: &serde_json::Value| node["up"] == true && node["path_mtu"].is_u64();
        status.nodes().iter().all(is_known).then_some(())
    });
    Ok(daemons)
}
