//! From the other nodes to candidates, as nodes come, change and go.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::health::Healths;
use super::node::{Node, offered};
use crate::model::ports::PortSpec;
use crate::model::{Candidate, Condition, Reach, Snapshot};
use crate::system::leaving::Leaving;
use crate::system::snapshots::{publish, sort};

/// What the nodes of a cluster offer.
pub(super) struct NodeOffer {
    nodes: watch::Receiver<Vec<Node>>,
    healths: watch::Receiver<Healths>,
    ports: Vec<PortSpec>,
    /// How long what has left keeps its connections.
    drain: Box<dyn Fn() -> Duration + Send>,
    current: Vec<Candidate>,
    leaving: Leaving,
    /// What was said of the nodes the last time.
    said: BTreeSet<String>,
    snapshots: watch::Sender<Snapshot>,
}

impl NodeOffer {
    /// Offers what the nodes of now have, and follows them until the last receiver is dropped.
    pub(super) fn start(
        nodes: watch::Receiver<Vec<Node>>,
        healths: watch::Receiver<Healths>,
        ports: Vec<PortSpec>,
        drain: Box<dyn Fn() -> Duration + Send>,
    ) -> watch::Receiver<Snapshot> {
        let (snapshots, receiver) = watch::channel(Snapshot::default());
        let (current, leaving, said) = (Vec::new(), Leaving::default(), BTreeSet::new());
        let mut offer = Self { nodes, healths, ports, drain, current, leaving, said, snapshots };
        offer.renew(Instant::now());
        tokio::spawn(offer.follow());
        receiver
    }

    async fn follow(mut self) {
        loop {
            tokio::select! {
                () = self.snapshots.closed() => return,
                changed = self.nodes.changed() => match changed {
                    Ok(()) => self.renew(Instant::now()),
                    Err(_) => return,
                },
                // Without probes there is no sender.
                Ok(()) = self.healths.changed() => self.renew(Instant::now()),
                () = self.leaving.next() => self.publish(Instant::now()),
            }
        }
    }

    /// Offers what the nodes have now, and drains what they have no longer.
    fn renew(&mut self, now: Instant) {
        let (mut new, notes) = offered(&self.nodes.borrow_and_update(), &self.ports);
        for candidate in &mut new {
            if let Some(condition) = self.condition_of(candidate) {
                candidate.condition = condition;
            }
        }
        self.healths.mark_unchanged();
        for note in notes.difference(&self.said) {
            tracing::warn!("{note}");
        }
        self.said = notes;
        sort(&mut new);
        let old = std::mem::replace(&mut self.current, new);
        self.leaving.replace(old, &self.current, now + (self.drain)());
        self.publish(now);
    }

    /// What a candidate's node does to it: it does not answer, or is drained.
    fn condition_of(&self, candidate: &Candidate) -> Option<Condition> {
        let Some(Reach::Node(tunnel)) = candidate.place else { return None };
        match self.healths.borrow().get(&tunnel.ip()) {
            Some(health) if !health.up => Some(Condition::Unhealthy),
            Some(health) => health.drains.then_some(Condition::Draining),
            // It was named just now, and is going to be asked; without probes there is no sender.
            None => self.healths.has_changed().is_ok().then_some(Condition::Unhealthy),
        }
    }

    fn publish(&mut self, now: Instant) {
        self.leaving.pass(now);
        let candidates = self.leaving.and(&self.current);
        // No setting of a provider matters to it, so it is up to date with all of them.
        publish(&self.snapshots, Snapshot { candidates, generation: u64::MAX });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use crate::cluster::{NodeHealth, no_healths};
    use crate::model::ports::Listen;

    fn node(name: &str, address: [u8; 4], weight: u32) -> Node {
        let services = [(Listen::tcp(80), weight)].into();
        Node { name: name.to_owned(), address: address.into(), port: 6080, services }
    }

    fn shown(snapshot: &Snapshot) -> Vec<String> {
        let v4 = snapshot.candidates.iter().filter(|one| one.endpoint.is_ipv4());
        v4.map(|one| format!("{} {} {:?}", one.name, one.weight, one.condition)).collect()
    }

    async fn next(snapshots: &mut watch::Receiver<Snapshot>) -> Vec<String> {
        let changed = tokio::time::timeout(Duration::from_secs(5), snapshots.changed());
        changed.await.expect("a new snapshot within 5 s").unwrap();
        shown(&snapshots.borrow_and_update())
    }

    #[tokio::test]
    async fn what_a_node_has_no_longer_drains_and_then_goes() {
        let (n2, n3) = (node("n2", [192, 0, 2, 2], 1), node("n3", [192, 0, 2, 3], 2));
        let (nodes, receiver) = watch::channel(vec![n2.clone(), n3.clone()]);
        let drain = Duration::from_millis(150);
        let mut snapshots =
            NodeOffer::start(receiver, no_healths(), Vec::new(), Box::new(move || drain));
        assert_eq!(shown(&snapshots.borrow_and_update()), ["n2 1 Ready", "n3 2 Ready"]);
        let begin = Instant::now();
        nodes.send_replace(vec![Node { services: [].into(), ..n2.clone() }, n3.clone()]);
        assert_eq!(next(&mut snapshots).await, ["n2 1 Draining", "n3 2 Ready"]);
        assert_eq!(next(&mut snapshots).await, ["n3 2 Ready"]);
        assert!(begin.elapsed() >= drain, "{:?}", begin.elapsed());
        nodes.send_replace(vec![n3]);
        nodes.send_replace(vec![n2]);
        assert_eq!(next(&mut snapshots).await, ["n2 1 Ready", "n3 2 Draining"]);
    }

    #[tokio::test]
    async fn a_node_that_is_drained_drains_here() {
        let (_nodes, receiver) = watch::channel(vec![node("n2", [192, 0, 2, 2], 1)]);
        let health = |drains| {
            let health =
                NodeHealth { up: true, drains, path_mtu: None, since: SystemTime::UNIX_EPOCH };
            Healths::from([([192, 0, 2, 2].into(), health)])
        };
        let (healths, probed) = watch::channel(health(true));
        let mut snapshots =
            NodeOffer::start(receiver, probed, Vec::new(), Box::new(Duration::default));
        assert_eq!(shown(&snapshots.borrow_and_update()), ["n2 1 Draining"]);
        healths.send_replace(health(false));
        assert_eq!(next(&mut snapshots).await, ["n2 1 Ready"]);
    }

    #[tokio::test]
    async fn one_that_is_back_is_ready_immediately_with_its_new_weight() {
        let (nodes, receiver) = watch::channel(vec![node("n2", [192, 0, 2, 2], 1)]);
        let mut snapshots = NodeOffer::start(
            receiver,
            no_healths(),
            Vec::new(),
            Box::new(|| Duration::from_mins(1)),
        );
        assert_eq!(shown(&snapshots.borrow_and_update()), ["n2 1 Ready"]);
        nodes.send_replace(Vec::new());
        assert_eq!(next(&mut snapshots).await, ["n2 1 Draining"]);
        nodes.send_replace(vec![node("n2", [192, 0, 2, 2], 5)]);
        assert_eq!(next(&mut snapshots).await, ["n2 5 Ready"]);
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_unhealthy_until_it_does() {
        let both = vec![node("n2", [192, 0, 2, 2], 1), node("n3", [192, 0, 2, 3], 1)];
        let (_nodes, receiver) = watch::channel(both);
        let (healths, probed) = watch::channel(Healths::new());
        let mut snapshots =
            NodeOffer::start(receiver, probed, Vec::new(), Box::new(Duration::default));
        let health =
            |up| NodeHealth { up, drains: false, path_mtu: None, since: SystemTime::UNIX_EPOCH };
        let of = |last: u8, up| {
            healths.send_modify(|all| _ = all.insert([192, 0, 2, last].into(), health(up)));
        };
        let say = |up| of(2, up);
        assert_eq!(shown(&snapshots.borrow_and_update()), ["n2 1 Unhealthy", "n3 1 Unhealthy"]);
        say(true);
        assert_eq!(next(&mut snapshots).await, ["n2 1 Ready", "n3 1 Unhealthy"]);
        of(3, true);
        assert_eq!(next(&mut snapshots).await, ["n2 1 Ready", "n3 1 Ready"]);
        say(false);
        assert_eq!(next(&mut snapshots).await, ["n2 1 Unhealthy", "n3 1 Ready"]);
        say(true);
        assert_eq!(next(&mut snapshots).await, ["n2 1 Ready", "n3 1 Ready"]);
    }
}
