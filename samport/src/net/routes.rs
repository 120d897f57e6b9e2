//! How packets get to each backend: found out once, kept until a device on the way disappears, the
//! kernel's route leads to another one, or the backend's address is heard of somewhere else.
//!
//! The kernel is asked by tasks beside the loop, about all backends at a time: it may take a while to hear from a
//! neighbour, and nothing else waits for it.

mod adopted;
mod find;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;

use self::adopted::Adopted;
use self::find::{FoundRoute, Outcome, Question, given};
use crate::model::Candidate;
use crate::model::target::{Target, target};
use crate::net::netlink::{self, Known, Netlink};
use crate::net::reply_devices::{Namespaces, ReplyDevices, reply_devices};
use crate::plan::{BackendKey, Route};

/// How long a round waits for routes that are looked for: those that are known to the kernel are found sooner.
pub const BRIEFLY: Duration = Duration::from_millis(150);

/// When a backend is looked for again that was not found, if nothing has changed.
const AGAIN: Duration = Duration::from_secs(5);

/// How packets are to get to backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forward {
    /// By `Peer` where the backend's veth is known, by `Neighbour` elsewhere.
    Auto,
    /// Straight into the container.
    Peer,
    /// By the neighbour table.
    Neighbour,
    /// Through the host's stack.
    Stack,
}

/// The routes found so far.
#[derive(Default)]
pub struct Routes {
    found: BTreeMap<Target, FoundRoute>,
    failed: BTreeMap<Target, Failed>,
    /// Where another samport has left them.
    adopted: Adopted,
    /// Addresses that may have moved.
    moved: BTreeSet<IpAddr>,
    tasks: JoinSet<(Target, Outcome)>,
    /// Who is looked for, by the task that does.
    looked_for: BTreeMap<Id, Target>,
    /// Whether something new has been found that was not fetched yet.
    has_news: bool,
}

/// What routes are found by.
#[derive(Clone)]
pub struct Network {
    /// How packets are to get to backends.
    pub forward: Forward,
    /// The interfaces clients come in by.
    pub interfaces: Arc<[String]>,
    /// The kernel.
    pub netlink: Netlink,
    /// All devices.
    pub devices: Arc<netlink::Devices>,
    /// Which of them lead into one network namespace.
    pub namespaces: Arc<Namespaces>,
}

/// How packets get to a backend, and how its replies come back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendPath {
    /// Where they are sent.
    pub route: Route,
    /// Where replies are recognised.
    pub replies: ReplyDevices,
}

/// A backend that packets cannot be sent to.
struct Failed {
    why: String,
    /// How many changes the kernel had told of then.
    at: u64,
    /// When it is tried again all the same.
    again: Instant,
}

impl Routes {
    /// Goes on with the ways of another samport's backends.
    pub fn adopt<'a>(&mut self, backends: impl Iterator<Item = &'a BackendKey>) {
        self.adopted = Adopted::of(backends);
    }

    /// Begins a round: forgets whatever is not among `candidates`, and hears which of them may have moved.
    pub fn begin(&mut self, candidates: &[Candidate], netlink: &Netlink) {
        let wanted: BTreeSet<_> = candidates.iter().map(target).collect();
        self.found.retain(|target, _| wanted.contains(target));
        self.failed.retain(|target, _| wanted.contains(target));
        let known: BTreeSet<_> = wanted.iter().map(|(id, at, _)| (id.as_str(), *at)).collect();
        self.adopted.keep_only(|id, endpoint| known.contains(&(id, endpoint)));
        let addresses = candidates.iter().map(|one| one.endpoint.ip()).collect();
        netlink.neighbours().keep_only(&addresses);
        self.moved.extend(netlink.neighbours().take_moved());
        self.moved.retain(|addr| addresses.contains(addr));
    }

    /// Has looked for whoever is not found yet, or may be somewhere else now.
    pub fn look_for<'a>(
        &mut self,
        candidates: impl Iterator<Item = &'a Candidate>,
        network: &Network,
    ) {
        let at = network.netlink.changes();
        let mut asked: BTreeSet<Target> = self.looked_for.values().cloned().collect();
        let busy: BTreeSet<IpAddr> = asked.iter().map(|target| target.1.ip()).collect();
        let mut heard = BTreeSet::new();
        for candidate in candidates {
            let target = target(candidate);
            if asked.contains(&target) {
                continue;
            }
            heard.insert(target.1.ip());
            if let Some(question) = self.question(candidate, &target, at, network) {
                asked.insert(target.clone());
                let (target, of, network) = (target.clone(), target, network.clone());
                let task = self.tasks.spawn(async move { (of, question.answer(&network).await) });
                self.looked_for.insert(task.id(), target);
            }
        }
        // An answer that is under way may be of before it moved.
        self.moved.retain(|addr| busy.contains(addr) || !heard.contains(addr));
    }

    /// What the kernel has to be asked about a candidate, if anything.
    fn question(
        &mut self,
        candidate: &Candidate,
        target: &Target,
        at: u64,
        network: &Network,
    ) -> Option<Question> {
        let (addr, reach) = (candidate.endpoint.ip(), candidate.place);
        let known =
            self.found.get_mut(target).filter(|found| is_there(found.route, &network.devices));
        if let Some(found) = known {
            let may_have_moved = found.place.is_some() && self.moved.contains(&addr);
            let is_routed_anew = found.follows_routes() && (found.at != at || found.held.is_some());
            if !may_have_moved && !is_routed_anew {
                found.at = at;
                return None;
            }
            return Some(Question { addr, reach, known: Some(*found), may_have_moved, at });
        }
        if let Some(found) = given(reach, at, network) {
            self.found.insert(target.clone(), found);
            return None;
        }
        if let Some(found) = self.adopted.take(target, at, network) {
            self.found.insert(target.clone(), found);
            let may_have_moved = found.place.is_some();
            return Some(Question { addr, reach, known: Some(found), may_have_moved, at });
        }
        let has_just_failed = |failed: &Failed| failed.at == at && Instant::now() < failed.again;
        if self.failed.get(target).is_some_and(has_just_failed) {
            return None;
        }
        Some(Question { addr, reach, known: None, may_have_moved: false, at })
    }

    /// Waits until all are found that are looked for, but not for longer than this.
    pub async fn wait(&mut self, netlink: &Netlink, limit: Duration) {
        let all = async {
            while let Some(done) = self.tasks.join_next_with_id().await {
                self.take(done, netlink);
            }
        };
        // Those that take longer are heard of by `news`.
        let _ = timeout(limit, all).await;
    }

    /// Whether anybody is looked for.
    #[must_use]
    pub fn are_looked_for(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Waits until there is more to know than at the last round.
    pub async fn news(&mut self, netlink: &Netlink) {
        while !self.has_news {
            match self.tasks.join_next_with_id().await {
                Some(done) => self.take(done, netlink),
                None => std::future::pending().await,
            }
        }
        while let Some(done) = self.tasks.try_join_next_with_id() {
            self.take(done, netlink);
        }
    }

    fn take(&mut self, done: Result<(Id, (Target, Outcome)), JoinError>, netlink: &Netlink) {
        let (target, outcome) = match done {
            Ok((id, done)) => {
                self.looked_for.remove(&id);
                done
            }
            // It has panicked, and said so.
            Err(error) => {
                self.looked_for.remove(&error.id());
                return;
            }
        };
        match outcome {
            Outcome::Found(found) => {
                if let (Some(device), Some(place)) = (found.device, found.place) {
                    netlink.neighbours().watch(target.1.ip(), Known { device, place });
                }
                self.failed.remove(&target);
                let before = self.found.insert(target, found);
                self.has_news |= before.is_none_or(|before| before.route != found.route);
            }
            Outcome::Failed { why, at } => {
                let again = Instant::now() + AGAIN;
                let gone = self.found.remove(&target).is_some();
                let failed = Failed { why: why.clone(), at, again };
                let before = self.failed.insert(target, failed);
                self.has_news |= gone || before.is_none_or(|before| before.why != why);
            }
            // No answer about one that is known: it stays where it is, and is asked about again.
            Outcome::Unknown => {}
        }
    }

    /// How packets get to a candidate; none while that is looked for.
    ///
    /// # Errors
    /// Why they cannot, for the user.
    pub fn to(&self, candidate: &Candidate, network: &Network) -> Result<Option<BackendPath>> {
        let target = target(candidate);
        let found = self.found.get(&target);
        if let Some(found) = found.filter(|found| is_there(found.route, &network.devices)) {
            return Ok(Some(found.way(candidate, network)));
        }
        match self.failed.get(&target) {
            Some(failed) => Err(anyhow!("{}", failed.why)),
            None => Ok(None),
        }
    }

    /// Ends a round: what is found from now on is news.
    pub fn end(&mut self) {
        self.has_news = false;
    }
}

impl FoundRoute {
    /// With the devices of its replies: links may come and go while the way there stays.
    fn way(&self, candidate: &Candidate, network: &Network) -> BackendPath {
        let Network { devices, namespaces, .. } = network;
        let (reach, egress) = (candidate.place, &candidate.egress);
        let replies = reply_devices(self.route, self.device, reach, egress, devices, namespaces);
        BackendPath { route: self.route, replies }
    }
}

/// Whether the devices a route needs still exist.
fn is_there(route: Route, devices: &netlink::Devices) -> bool {
    match route {
        Route::Peer(place) | Route::Child(place) => devices.contains_key(&place.ifindex),
        Route::Neighbour { ifindex, answers_on } => {
            devices.contains_key(&ifindex) && devices.contains_key(&answers_on)
        }
        Route::Stack | Route::Node(_) => true,
    }
}
