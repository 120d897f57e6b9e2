//! The loop that keeps the kernel as it is wanted: whatever changes, the whole is looked at, a plan is
//! made and carried out. The only caller of `Dataplane::apply`.

mod adopt;
mod checks;
mod choice;
mod desire;
mod fronts;
mod operator;
mod records;
mod show;
mod suspects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use samport_common::layout::LAYOUT_VERSION;
use tokio::sync::{mpsc, oneshot, watch};

use crate::allow::Networks;
use crate::api::words::Limits;
use crate::dataplane::{Dataplane, Events, XdpMode};
use crate::draining::Drains;
use crate::health::Health;
use crate::instance::{BackendRecord, Instance, Record};
use crate::listening;
use crate::model::{Candidate, Condition, Snapshot, State};
use crate::netlink::Netlink;
use crate::orders::Orders;
use crate::plan::{self, Actual, BackendKey, Change, Desired, Ledger, Policy, Role, Share};
use crate::ports::{Listen, PortSpec};
use crate::routes::{Forward, Routes};
use crate::seat::Desk;
use crate::service::Pulse;
use crate::site;
use records::{backend_record, milliseconds_since_1970, service_records};

pub(crate) use checks::{check_families, check_interfaces};

/// Address and link changes come in bursts.
const NETLINK_PAUSE: Duration = Duration::from_millis(10);
/// Without any event: what was missed is found all the same.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long the first backends are waited for.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);
/// After a change failed.
const RETRY: Duration = Duration::from_secs(1);

/// What a run serves.
#[derive(Clone, Debug)]
pub struct Job {
    /// Interfaces clients come in by.
    pub interfaces: Vec<String>,
    /// Ports; empty if labels say which.
    pub ports: Vec<PortSpec>,
    /// How packets get to backends.
    pub forward: Forward,
    /// The control socket.
    pub socket: PathBuf,
    /// What holds as far as labels say nothing else.
    pub rules: Rules,
    /// How much is remembered, and for how long.
    pub limits: Limits,
    /// Inode of the network namespace.
    pub namespace: u64,
}

/// What may be changed while it runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who may use ports of which labels say nothing; empty for everybody.
    pub allow: Networks,
    /// How long a backend keeps its flows when it is to take no new ones.
    pub drain: Duration,
    /// How ports choose.
    pub policy: Policy,
}

/// Other rules for a run.
#[derive(Debug)]
pub struct NewRules {
    /// The rules.
    pub rules: Rules,
    /// Told when the kernel has them; dropped if that does not work at once.
    pub done: oneshot::Sender<()>,
}

/// The state of a run.
pub struct Reconciler {
    job: Job,
    netlink: Netlink,
    dataplane: Dataplane,
    events: Option<Events>,
    instance: Instance,
    actual: Actual,
    shown: BTreeMap<BackendKey, Share>,
    routes: Routes,
    orders: Orders,
    drains: Drains,
    desk: Desk,
    health: Health,
    /// Candidates that are not healthy yet, for the record.
    starting: Vec<BackendRecord>,
    complained: BTreeSet<String>,
    /// Loopback addresses where a server of the host was before us.
    left_alone: BTreeSet<(Listen, IpAddr)>,
    /// Ports whose addresses inside of the machine another samport keeps.
    ceded: BTreeSet<Listen>,
    written: Record,
    started_ms: u64,
}

impl Reconciler {
    /// Everything that is needed; nothing is attached yet.
    #[must_use]
    pub fn new(
        job: Job,
        netlink: Netlink,
        dataplane: Dataplane,
        instance: Instance,
        desk: Desk,
    ) -> Self {
        let actual = Actual::with_room_for(job.limits.max_backends);
        Self {
            job,
            netlink,
            dataplane,
            events: None,
            instance,
            actual,
            shown: BTreeMap::new(),
            routes: Routes::default(),
            orders: Orders::default(),
            drains: Drains::default(),
            desk,
            health: Health::default(),
            starting: Vec::new(),
            complained: BTreeSet::new(),
            left_alone: BTreeSet::new(),
            ceded: BTreeSet::new(),
            written: Record::default(),
            started_ms: milliseconds_since_1970(),
        }
    }

    /// Brings the kernel to what the first snapshot wants.
    ///
    /// # Errors
    /// Anything that keeps an interface from being served.
    pub async fn start(&mut self, snapshot: &Snapshot) -> Result<()> {
        let devices = self.netlink.devices().await?;
        check_interfaces(&self.job.interfaces, &devices)?;
        let (first, _) = site::settle(snapshot, &devices, &self.job.interfaces);
        check_families(&self.job.interfaces, &first, &devices)?;
        let ports: Vec<_> = self.job.ports.iter().map(|port| port.listen).collect();
        for (listen, addr) in listening::on_loopback(&ports) {
            tracing::info!("{addr} port {} stays with the host's own server", listen.brief());
            self.left_alone.insert((listen, addr));
        }
        // Others must see early what we are about to serve.
        let frontends = self.job.ports.iter().map(|port| (port.listen, BTreeMap::new()));
        self.write_record(&Desired { frontends: frontends.collect(), ..Desired::default() })?;
        self.events = Some(self.dataplane.take_events()?);
        self.wait_for_first_answers(&first).await;
        self.sync(snapshot).await?;
        self.dataplane.settle_in();
        self.instance.keep(false);
        Ok(())
    }

    /// Containers that have run for long answer at once: with them we are ready, not without.
    async fn wait_for_first_answers(&mut self, snapshot: &Snapshot) {
        let deadline = tokio::time::Instant::now() + FIRST_ANSWERS;
        loop {
            let is_checked = |c: &&Candidate| matches!(c.condition, Condition::Checked(_));
            let to_check = snapshot.candidates.iter().filter(is_checked);
            // Not `any`: all are asked at once.
            let missing = to_check.filter(|c| self.health.state(c) == State::Starting).count();
            let changed = tokio::time::timeout_at(deadline, self.health.changed());
            if missing == 0 || changed.await.is_err() {
                return;
            }
        }
    }

    /// Follows all changes until `stop` resolves.
    pub async fn run(
        &mut self,
        mut snapshots: watch::Receiver<Snapshot>,
        mut network: watch::Receiver<u64>,
        mut rules: mpsc::Receiver<NewRules>,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        let mut failed = false;
        let mut said = String::new();
        let mut pulse = Pulse::of_environment();
        loop {
            pulse.beat(|| self.summary());
            let (mut pending, mut changed) = (None, None);
            let pause = self.pause(failed).min(pulse.rest());
            tokio::select! {
                () = &mut stop => return,
                request = self.desk.next() => pending = self.take(request),
                Ok(()) = snapshots.changed() => {}
                Some(change) = rules.recv() => {
                    self.job.limits.drain_seconds = change.rules.drain.as_secs();
                    self.job.rules = change.rules;
                    changed = Some(change.done);
                }
                Ok(()) = network.changed() => tokio::time::sleep(NETLINK_PAUSE).await,
                () = self.health.changed() => {}
                failure = suspects::next(&mut self.events) => {
                    self.report(failure);
                    continue;
                }
                () = tokio::time::sleep(pause) => {}
            }
            let snapshot = snapshots.borrow_and_update().clone();
            network.mark_unchanged();
            let outcome = self.sync(&snapshot).await;
            if let Some(pending) = pending {
                pending.answer(&outcome);
            }
            if let (Some(done), true) = (changed, outcome.is_ok()) {
                // Who has gone away meanwhile does not want to know.
                let _ = done.send(());
            }
            failed = match outcome {
                Ok(()) => {
                    said.clear();
                    false
                }
                Err(error) => {
                    // Tried again every second, said once.
                    let error = format!("{error:#}");
                    if error != said {
                        tracing::error!("{error}; trying again");
                        said = error;
                    }
                    true
                }
            };
        }
    }

    /// Removes everything, or leaves it working if `keep`.
    pub fn finish(mut self, keep: bool) -> Result<Vec<u64>> {
        let verdicts = self.dataplane.verdicts();
        if keep {
            self.instance.keep(true);
            self.dataplane.keep();
        } else {
            // The kernel's side before the lock, so that nobody takes our place too early.
            drop(self.dataplane);
            drop(self.instance);
        }
        verdicts
    }

    /// Number of backends that serve.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.shown.len()
    }

    /// Which frames the XDP program sees, if there is one.
    #[must_use]
    pub fn xdp(&self) -> Option<XdpMode> {
        self.dataplane.xdp()
    }

    /// How programs are attached, all of them.
    #[must_use]
    pub fn hooks(&self) -> String {
        match self.dataplane.xdp() {
            Some(mode) => format!("{}, xdp {}", self.hook(), mode.name()),
            None => self.hook().to_owned(),
        }
    }

    /// How programs are attached at tc.
    #[must_use]
    pub fn hook(&self) -> &'static str {
        self.dataplane.hook().name()
    }

    async fn sync(&mut self, snapshot: &Snapshot) -> Result<()> {
        let devices = self.netlink.devices().await?;
        let (snapshot, notes) = site::settle(snapshot, &devices, &self.job.interfaces);
        for note in notes {
            complain(&mut self.complained, &note);
        }
        let mut desired = self.desire(&snapshot, &devices).await;
        self.settle_policies(&mut desired, &snapshot);
        self.end_drains(&mut desired, &snapshot);
        loop {
            let changes = plan::plan(&desired, &mut self.actual)?;
            self.write_ahead(&changes)?;
            let Err((failed, error)) = self.carry_out(&changes, &desired) else { break };
            // A container or a network may be gone before its event has come. It must not keep the
            // others waiting.
            let Some(what) = leave_out(&mut desired, &failed) else { return Err(error) };
            complain(&mut self.complained, &format!("{what} is left out: {error:#}"));
        }
        self.show(&desired, &snapshot);
        self.show_at_desk(&desired, &snapshot);
        self.write_record(&desired)
    }

    /// Makes the changes, up to the first that fails.
    fn carry_out(
        &mut self,
        changes: &[Change],
        desired: &Desired,
    ) -> std::result::Result<(), (Change, anyhow::Error)> {
        for change in changes {
            let mut done = self.dataplane.apply(change);
            if done.is_ok() {
                self.actual.record(change);
                // Nothing but the record finds a netlink filter again.
                if matches!(change, Change::Attach(..)) && self.hook() == "tc" {
                    done = self.write_record(desired);
                }
            }
            done.map_err(|error| (change.clone(), error))?;
        }
        Ok(())
    }

    /// Tells `status` and `clean` how things are, if that has changed.
    fn write_record(&mut self, desired: &Desired) -> Result<()> {
        let record = Record {
            schema: 1,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT_VERSION,
            ledger: Ledger::of(&self.actual, &[]),
            orders: self.orders.clone(),
            namespace: self.job.namespace,
            interfaces: self.job.interfaces.clone(),
            ports: desired.frontends.keys().copied().collect(),
            inside: self.kept_inside(desired),
            hook: self.hooks(),
            local: self.dataplane.serves_local_clients(),
            socket: self.job.socket.clone(),
            started_ms: self.started_ms,
            limits: self.job.limits,
            services: service_records(desired, &self.desk.shown()),
            filters: self.dataplane.filters(),
            backends: self
                .actual
                .backends()
                .map(|(key, id)| backend_record(key, id.index, desired.backends.get(key)))
                .chain(self.starting.iter().cloned())
                .collect(),
        };
        self.write_if_new(record)
    }

    /// Whoever takes over from us in the middle of these changes must know every number they use.
    fn write_ahead(&mut self, changes: &[Change]) -> Result<()> {
        let ledger = Ledger::of(&self.actual, changes);
        if self.written.ledger.covers(&ledger) {
            return Ok(());
        }
        self.write_if_new(Record { ledger, ..self.written.clone() })
    }

    fn write_if_new(&mut self, record: Record) -> Result<()> {
        if record != self.written {
            self.instance.write(&record)?;
            self.written = record;
        }
        Ok(())
    }
}

/// Says what is wrong, once.
fn complain(complained: &mut BTreeSet<String>, about: &str) {
    if complained.insert(about.to_owned()) {
        tracing::warn!("{about}");
    }
}

/// Takes what a program could not be attached for out of what is wanted, if that is not an interface
/// clients come in by, and says what it was.
fn leave_out(desired: &mut Desired, failed: &Change) -> Option<&'static str> {
    match failed {
        Change::Attach(Role::Reverse | Role::Device, device) => {
            let before = desired.backends.len();
            desired.backends.retain(|key, _| key.route.answers_on() != Some(*device));
            (desired.backends.len() < before).then_some("a backend")
        }
        Change::Attach(Role::Inside | Role::Egress, device) => {
            desired.bridges.remove(device).then_some("a bridge")
        }
        _ => None,
    }
}
