//! Which nodes answer, and what the paths to them carry: each is probed once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use rustix::rand::GetRandomFlags;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::node::Node;
use super::probe::{Answers, Probes, Probing};
use super::probe_socket::ProbeSocket;

/// Between two probes of a node.
const EVERY: Duration = Duration::from_secs(1);

/// The socket of a node that is down is opened again after this many probes.
const OPEN_AGAIN: u32 = 5;

/// How a node is, as this one sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeHealth {
    /// Whether its kernel programs answer.
    pub up: bool,
    /// Whether it is drained: it is to get no new connections.
    pub drains: bool,
    /// The size of the largest IP packet that arrives there whole: the tunnel's own headers are a part of it.
    pub path_mtu: Option<u16>,
    /// Since when it is up, or down.
    pub since: SystemTime,
}

/// By the nodes' addresses.
pub(super) type Healths = BTreeMap<IpAddr, NodeHealth>;

/// Finds where this node's end of the tunnel to an address is, if it has an address of that family.
pub(super) type OwnEnd = Arc<dyn Fn(IpAddr) -> BoxFuture<'static, Option<IpAddr>> + Send + Sync>;

/// Probes nodes as they come and go, until the last receiver of nodes' health is dropped. Nodes at the addresses in
/// `used_before` are up until they do not answer: they have connections. Others are when they answer.
pub(super) fn start(
    nodes: watch::Receiver<Vec<Node>>,
    own: OwnEnd,
    used_before: BTreeSet<IpAddr>,
) -> watch::Receiver<Healths> {
    start_every(EVERY, nodes, own, used_before)
}

fn start_every(
    every: Duration,
    nodes: watch::Receiver<Vec<Node>>,
    own: OwnEnd,
    used_before: BTreeSet<IpAddr>,
) -> watch::Receiver<Healths> {
    let (healths, receiver) = watch::channel(Healths::new());
    let (healths, tasks) = (Arc::new(healths), BTreeMap::new());
    let mut probed = ProbedNodes { every, own, healths, tasks, used_before };
    // Before anything is offered of them.
    probed.settle(&nodes.borrow());
    probed.used_before.clear();
    tokio::spawn(probed.follow(nodes));
    receiver
}

/// The nodes that are probed, each by a task.
struct ProbedNodes {
    every: Duration,
    own: OwnEnd,
    healths: Arc<watch::Sender<Healths>>,
    tasks: BTreeMap<SocketAddr, JoinHandle<()>>,
    /// Nodes that are up until they do not answer.
    used_before: BTreeSet<IpAddr>,
}

impl ProbedNodes {
    async fn follow(mut self, mut nodes: watch::Receiver<Vec<Node>>) {
        loop {
            tokio::select! {
                () = self.healths.closed() => return,
                changed = nodes.changed() => if changed.is_err() { return },
            }
            self.settle(&nodes.borrow_and_update());
        }
    }

    /// Probes these nodes, and no others.
    fn settle(&mut self, nodes: &[Node]) {
        let wanted: BTreeMap<SocketAddr, &Node> =
            nodes.iter().map(|node| (node.tunnel(), node)).collect();
        let gone: Vec<_> = self.tasks.extract_if(.., |at, _| !wanted.contains_key(at)).collect();
        for (at, task) in gone {
            task.abort();
            // If it is there at another port now, that is another tunnel.
            self.healths.send_modify(|healths| _ = healths.remove(&at.ip()));
        }
        for (at, node) in wanted {
            self.tasks.entry(at).or_insert_with(|| {
                let up = self.used_before.contains(&at.ip());
                let health =
                    NodeHealth { up, drains: false, path_mtu: None, since: SystemTime::now() };
                self.healths.send_modify(|healths| _ = healths.insert(at.ip(), health));
                let probe = NodeProbe {
                    name: node.name.clone(),
                    at,
                    every: self.every,
                    own: Arc::clone(&self.own),
                    healths: Arc::clone(&self.healths),
                };
                tokio::spawn(probe.run())
            });
        }
    }
}

impl Drop for ProbedNodes {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

/// The task that probes one node.
struct NodeProbe {
    name: String,
    at: SocketAddr,
    every: Duration,
    own: OwnEnd,
    healths: Arc<watch::Sender<Healths>>,
}

impl NodeProbe {
    async fn run(self) {
        let mut probing = Probing::of(self.at.is_ipv6());
        let mut said = (Answers::NotYet, false);
        let (mut socket, mut age): (Option<ProbeSocket>, u32) = (None, 0);
        let mut ticks = interval(self.every);
        // Whoever was stopped for a while does not make up for it.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let received = async {
                match &socket {
                    Some(socket) => socket.receive().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                // What has come before the tick is looked at before it.
                biased;
                bytes = received => { probing.take(&bytes); }
                _ = ticks.tick() => {
                    age += 1;
                    // Addresses and routes may be others by now.
                    if socket.is_none() || (probing.answers() == Answers::No && age >= OPEN_AGAIN) {
                        socket = self.open().await;
                        age = 0;
                    }
                    if !self.tick(&mut probing, socket.as_ref()).await {
                        socket = None;
                    }
                }
            }
            self.publish(&probing);
            let now = (probing.answers(), probing.drains());
            self.say(said, now);
            said = now;
        }
    }

    async fn open(&self) -> Option<ProbeSocket> {
        let opened = ProbeSocket::open(self.at, (self.own)(self.at.ip()).await).await;
        opened.inspect_err(|error| tracing::debug!("no probe of node {}: {error}", self.name)).ok()
    }

    /// Sends what is to be sent now. Says whether the socket is good.
    async fn tick(&self, probing: &mut Probing, socket: Option<&ProbeSocket>) -> bool {
        let Probes { small, large } = probing.tick(socket.and_then(ProbeSocket::mtu), nonce);
        let Some(socket) = socket else { return false };
        let mut sent = socket.send(&small).await;
        if sent.is_ok()
            && let Some(large) = large
        {
            sent = socket.send(&large).await;
        }
        if let Ok(false) = sent
            && let Some(mtu) = socket.mtu()
        {
            probing.refused(mtu);
        }
        sent.is_ok()
    }

    fn publish(&self, probing: &Probing) {
        let path_mtu = probing.path_mtu();
        self.healths.send_if_modified(|healths| {
            // Without one it has left just now.
            let Some(health) = healths.get_mut(&self.at.ip()) else { return false };
            let before = *health;
            let up = match probing.answers() {
                Answers::NotYet => before.up,
                Answers::Yes => true,
                Answers::No => false,
            };
            let since = if before.up == up { before.since } else { SystemTime::now() };
            *health = NodeHealth { up, drains: probing.drains(), path_mtu, since };
            before != *health
        });
    }

    fn say(&self, before: (Answers, bool), now: (Answers, bool)) {
        let (name, at) = (&self.name, self.at);
        match (before.0, now.0) {
            (Answers::NotYet, Answers::Yes) => tracing::info!("node {name} ({at}) is up"),
            (Answers::No, Answers::Yes) => tracing::info!("node {name} ({at}) is up again"),
            (Answers::NotYet | Answers::Yes, Answers::No) => tracing::warn!(
                "node {name} ({at}) is down: it does not answer; new connections go elsewhere"
            ),
            _ => {}
        }
        match (before.1, now.1) {
            (false, true) => {
                tracing::info!("node {name} ({at}) is drained: new connections go elsewhere");
            }
            (true, false) => tracing::info!("node {name} ({at}) is not drained any more"),
            _ => {}
        }
    }
}

/// What an answer cannot be guessed by.
fn nonce() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => fastrand::u64(..),
    }
}

#[cfg(test)]
mod tests;
