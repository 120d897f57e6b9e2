//! The loop that keeps the kernel as it is wanted: whatever changes, the whole is looked at, a plan is
//! made and carried out. The only caller of `Dataplane::apply`.

mod admit;
mod adopt;
mod burst;
mod checks;
mod choice;
mod desire;
mod failed;
mod fronts;
mod hooks;
mod operator;
mod passive_health;
mod ports;
mod records;
mod show;
mod spread;
mod tunnels;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use samport_common::layout::LAYOUT_VERSION;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::cluster::{self, NodeList};
use crate::control::admission::ServiceConflict;
use crate::control::draining::Drains;
use crate::control::handle::CommandReceiver;
use crate::control::progress::{Progress, Watching};
use crate::dataplane::{Dataplane, Events, XdpMode};
use crate::discovery::health::HealthChecks;
use crate::model::allow::Networks;
use crate::model::limits::Limits;
use crate::model::overrides::Overrides;
use crate::model::ports::{Listen, PortSpec};
use crate::model::{Candidate, Condition, Snapshot, Spread, State};
use crate::net::frontends;
use crate::net::netlink::Netlink;
use crate::net::placement;
use crate::net::port_conflicts;
use crate::net::routes::{Forward, Routes};
use crate::plan::{self, Actual, BackendKey, Change, Desired, IdManifest, Policy, Share};
use crate::system::hash_seed::SeedFile;
use crate::system::instance::{self, BackendRecord, Instance, Record};
use crate::system::privileges;
use crate::system::sd_notify::Watchdog;
use burst::Burst;
use failed::{complain, leave_out};
use passive_health::Confirmations;
use ports::PortWatch;
use records::{backend_record, milliseconds_since_1970, node_records, service_records};
use tunnels::NodeRoutes;
use waiting::Waiting;

pub(crate) use checks::{check_families, check_interfaces};

/// Without any event: what was missed is found all the same.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long the first backends are waited for.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);
/// How long backends are waited for at the start whose places the kernel has to be asked for.
const FIRST_PLACES: Duration = Duration::from_secs(3);
/// After a change failed.
const RETRY: Duration = Duration::from_secs(1);

/// Plans that are carried out in one pass: one does it all, unless the new waits for the room of the old.
const PLANS: usize = 64;

/// What a run serves.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Interfaces clients come in by.
    pub interfaces: Vec<String>,
    /// Ports; empty if labels say which.
    pub ports: Vec<PortSpec>,
    /// How packets get to backends.
    pub forward: Forward,
    /// What this node is told of its cluster, if it has one.
    pub cluster: Option<cluster::Settings>,
    /// The other nodes.
    pub nodes: NodeList,
    /// The control socket.
    pub socket: PathBuf,
    /// What holds as far as labels say nothing else.
    pub rules: LoopSettings,
    /// How much is remembered, and for how long.
    pub limits: Limits,
    /// What choices by hash are keyed by.
    pub hash_seed: SeedFile,
    /// Inode of the network namespace.
    pub namespace: u64,
}

/// What may be changed while it runs.
#[derive(Clone, Debug)]
pub struct LoopSettings {
    /// Who may use ports, however labels narrow that; empty for everybody.
    pub allow: Networks,
    /// What becomes of applications that claim one port.
    pub service_conflict: ServiceConflict,
    /// How long a backend keeps its flows when it is to take no new ones.
    pub drain: Duration,
    /// How ports choose.
    pub policy: Policy,
    /// Which nodes' containers get connections.
    pub spread: Spread,
}

/// Other rules for a run.
#[derive(Debug)]
pub struct NewRules {
    /// The rules.
    pub rules: LoopSettings,
    /// The [`crate::discovery::AdmissionRules::generation`] that came with them.
    pub generation: u64,
    /// Told when the kernel has them, and backends on these terms, and everything that shows them does;
    /// dropped if that does not work the first time.
    pub done: oneshot::Sender<()>,
}

/// The state of a run.
pub struct Reconciler {
    config: RunConfig,
    netlink: Netlink,
    progress: Progress,
    _port_watch: PortWatch,
    /// When it was last looked whether programs are on their hooks.
    hooks_seen: Option<Instant>,
    /// Pins were removed and cannot be made again, which was said.
    pins_are_missing: bool,
    /// Before the instance: it writes into a file of that.
    watching: Watching,
    /// How many changes of the network the programs have been told of.
    told_of: Option<u64>,
    dataplane: Dataplane,
    events: Option<Events>,
    instance: Instance,
    actual: Actual,
    shown: BTreeMap<BackendKey, Share>,
    routes: Routes,
    node_routes: NodeRoutes,
    /// Changes when a backend may be somewhere else than it was. None before the start.
    moves: Option<watch::Receiver<u64>>,
    orders: Overrides,
    drains: Drains,
    receiver: CommandReceiver,
    health: HealthChecks,
    confirmations: Confirmations,
    /// Candidates that are not healthy yet, for the record.
    starting: Vec<BackendRecord>,
    complained: BTreeSet<String>,
    /// Who was left out the last time, in words: before anything was looked for, and for want of room among backends.
    left_out: [BTreeSet<String>; 2],
    /// What labels restrict ports to.
    restricted: BTreeMap<Listen, Networks>,
    /// What is to be said once everything that shows it does.
    news: Vec<String>,
    /// Loopback addresses where a server of the host was before us.
    left_alone: BTreeSet<(Listen, IpAddr)>,
    /// Ports whose addresses inside of the machine another samport keeps.
    yielded: BTreeSet<Listen>,
    written: Record,
    started_ms: u64,
}

impl Reconciler {
    /// Everything that is needed; nothing is attached yet.
    #[must_use]
    pub fn new(
        config: RunConfig,
        netlink: Netlink,
        dataplane: Dataplane,
        instance: Instance,
        receiver: CommandReceiver,
        progress: Progress,
    ) -> Self {
        let actual = Actual::with_room_for(config.limits.max_backends);
        let watching = progress.watch(instance::progress_path(instance.name()));
        Self {
            config,
            netlink,
            progress,
            _port_watch: PortWatch::begin(receiver.subscribe()),
            hooks_seen: None,
            pins_are_missing: false,
            watching,
            told_of: None,
            dataplane,
            events: None,
            instance,
            actual,
            shown: BTreeMap::new(),
            routes: Routes::default(),
            node_routes: NodeRoutes::default(),
            moves: None,
            orders: Overrides::default(),
            drains: Drains::default(),
            receiver,
            health: HealthChecks::default(),
            confirmations: Confirmations::default(),
            starting: Vec::new(),
            complained: BTreeSet::new(),
            left_out: Default::default(),
            restricted: BTreeMap::new(),
            news: Vec::new(),
            left_alone: BTreeSet::new(),
            yielded: BTreeSet::new(),
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
        check_interfaces(&self.config.interfaces, &devices)?;
        let (first, _) = placement::settle(snapshot, &devices, &self.config.interfaces);
        check_families(&self.config.interfaces, &first, &devices)?;
        let ports: Vec<_> = self.config.ports.iter().map(|port| port.listen).collect();
        let all = ports.iter().copied().collect();
        frontends::check_room(&devices, &self.config.interfaces, &all)?;
        let first = self.admit(&first, &devices);
        for (listen, addr) in port_conflicts::on_loopback(&ports) {
            tracing::info!("{addr} port {} stays with the host's own server", listen.brief());
            self.left_alone.insert((listen, addr));
        }
        // Others must see early what we are about to serve.
        let frontends = self.config.ports.iter().map(|port| (port.listen, BTreeMap::new()));
        self.write_record(&Desired { frontends: frontends.collect(), ..Desired::default() })?;
        self.events = Some(self.dataplane.take_events()?);
        // Before anybody is looked for.
        let resyncs = self.progress.resyncs().clone();
        self.moves = Some(self.netlink.neighbours().follow(resyncs)?);
        self.wait_for_first_answers(&first).await;
        self.sync(snapshot).await?;
        if self.routes.are_looked_for() {
            self.routes.wait(&self.netlink, FIRST_PLACES).await;
            self.sync(snapshot).await?;
        }
        self.dataplane.settle_in();
        self.instance.keep(false);
        self.progress.round(&Ok(()));
        Ok(())
    }

    /// Containers that have run for long answer immediately: with them we are ready, not without.
    async fn wait_for_first_answers(&mut self, snapshot: &Snapshot) {
        let deadline = tokio::time::Instant::now() + FIRST_ANSWERS;
        loop {
            let is_checked = |c: &&Candidate| matches!(c.condition, Condition::Checked(_));
            let to_check = snapshot.candidates.iter().filter(is_checked);
            // Not `any`: all are asked together.
            let missing = to_check.filter(|c| self.health.state(c) == State::Starting).count();
            let changed = tokio::time::timeout_at(deadline, self.health.changed());
            if missing == 0 || changed.await.is_err() {
                return;
            }
        }
    }

    /// Follows all changes for as long as it is polled. Between two polls nothing is half done: whatever waits only
    /// looks, and what is found is carried out without waiting.
    pub async fn run(
        &mut self,
        mut snapshots: watch::Receiver<Snapshot>,
        mut network: watch::Receiver<u64>,
        mut rules: mpsc::Receiver<NewRules>,
    ) -> Infallible {
        let mut failed = false;
        let mut said = String::new();
        let mut waiting: Option<Waiting> = None;
        let mut watchdog = Watchdog::of_environment();
        let mut pauses = self.progress.resyncs().pauses();
        let mut burst = Burst::default();
        let mut ended = Instant::now();
        let mut has_ended = true;
        loop {
            // After a round, however it has ended: what comes between two rounds is no sign that there will be one.
            if std::mem::take(&mut has_ended) {
                watchdog.notify(|| self.summary());
            }
            self.progress.waits_for("something to happen");
            let mut pending = None;
            // By the clock, so that nothing that needs no round keeps it from coming.
            let due = ended + self.pause(failed).min(watchdog.rest());
            tokio::select! {
                request = self.receiver.next() => pending = self.take(request),
                Ok(()) = snapshots.changed() => {}
                () = self.config.nodes.changed() => {}
                Some(change) = rules.recv() => {
                    self.config.limits.drain_seconds = change.rules.drain.as_secs();
                    self.config.rules = change.rules;
                    if let Some(cluster) = &mut self.config.cluster {
                        cluster.spread = self.config.rules.spread;
                    }
                    waiting = Some(Waiting { generation: change.generation, done: change.done });
                }
                Ok(()) = network.changed(), if !burst.has_begun() => {
                    burst.begin(Instant::now());
                    // The programs ask again by themselves: that takes no round.
                    if let Err(error) = self.tell_of_routes() {
                        tracing::debug!("{error:#}");
                    }
                    continue;
                }
                () = burst.end() => {}
                () = self.health.changed() => {}
                () = passive_health::next_move(&mut self.moves) => {}
                () = self.routes.news(&self.netlink) => {}
                () = self.netlink.late_next_hops() => {}
                Ok(()) = pauses.changed() => self.netlink.neighbours().doubt_all(),
                told = passive_health::next(&mut self.events) => {
                    self.hear(told);
                    continue;
                }
                done = self.confirmations.next() => {
                    self.conclude(done);
                    continue;
                }
                () = tokio::time::sleep_until(due) => {}
            }
            let snapshot = snapshots.borrow_and_update().clone();
            network.mark_unchanged();
            let begin = Instant::now();
            let outcome = self.sync(&snapshot).await;
            (ended, has_ended) = (Instant::now(), true);
            burst.round(ended, begin.elapsed());
            self.progress.round(&outcome);
            if let Some(pending) = pending {
                pending.answer(&outcome);
            }
            waiting = waiting.and_then(|one| one.after(outcome.is_ok(), snapshot.generation));
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
        drop(self.watching);
        if keep {
            self.instance.keep(true);
            self.dataplane.keep();
        } else {
            // The kernel's side before the lock, so that no other samport takes our place too early.
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

    /// Has the programs look routes up again, if they may lead elsewhere than before.
    fn tell_of_routes(&mut self) -> Result<()> {
        let changes = self.netlink.changes();
        if self.told_of != Some(changes) {
            self.dataplane.routes_have_changed()?;
            self.told_of = Some(changes);
        }
        Ok(())
    }

    async fn sync(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.tell_of_routes()?;
        self.progress.waits_for("the list of links and addresses");
        let devices = Arc::new(self.netlink.devices().await?);
        self.progress.waits_for("the list of filters");
        self.look_at_hooks(&devices).await?;
        let (snapshot, notes) = placement::settle(snapshot, &devices, &self.config.interfaces);
        for note in notes {
            complain(&mut self.complained, &note);
        }
        let snapshot = self.admit(&snapshot, &devices);
        let snapshot = self.spread(snapshot);
        let mut desired = self.desire(&snapshot, &devices).await;
        self.progress.waits_for("the kernel's tables and hooks");
        self.settle_policies(&mut desired, &snapshot);
        self.end_drains(&mut desired, &snapshot);
        let outcome = self.bring_about(&mut desired);
        // Whoever reads a line may look immediately: what it says is there before it.
        self.show_at_desk(&desired, &snapshot);
        self.write_record(&desired)?;
        self.show(&desired, &snapshot);
        outcome
    }

    /// Carries out plans until nothing is left to do. An error says what could not be done after everything else was.
    fn bring_about(&mut self, desired: &mut Desired) -> Result<()> {
        let mut done = 0;
        loop {
            let changes = plan::plan(desired, &mut self.actual)?;
            // Whatever is left then is seen at the next pass.
            if changes.is_empty() || done == PLANS {
                return Ok(());
            }
            self.write_ahead(&changes)?;
            let Err((failed, error)) = self.carry_out(&changes, desired) else {
                done += 1;
                continue;
            };
            // A container or a network may be gone before its event has come. It must not keep the
            // others waiting.
            let Some(what) = leave_out(desired, &failed) else { return Err(error) };
            complain(&mut self.complained, &format!("{what} is left out: {error:#}"));
        }
    }

    /// Makes the changes, up to the first that fails.
    fn carry_out(
        &mut self,
        changes: &[Change],
        desired: &Desired,
    ) -> std::result::Result<(), (Box<Change>, anyhow::Error)> {
        for change in changes {
            let mut done = self.dataplane.apply(change);
            // Nothing but the record finds a netlink filter again: without it none stays.
            if done.is_ok()
                && let Change::Attach(role, ifindex) = *change
                && self.hook() == "tc"
            {
                done = self.write_record(desired);
                if done.is_err() {
                    self.dataplane.apply(&Change::Detach(role, ifindex)).ok();
                }
            }
            done.map_err(|error| (Box::new(change.clone()), error))?;
            self.actual.record(change);
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
            ledger: IdManifest::of(&self.actual, &[]),
            orders: self.orders.clone(),
            left_out: self.who_is_left_out(),
            restricted: self.restricted.iter().map(|(on, nets)| (*on, nets.clone())).collect(),
            namespace: self.config.namespace,
            interfaces: self.config.interfaces.clone(),
            ports: desired.frontends.keys().copied().collect(),
            inside: self.owned_inside(desired),
            hook: self.hooks(),
            local: self.dataplane.serves_local_clients(),
            socket: self.config.socket.clone(),
            started_ms: self.started_ms,
            limits: self.config.limits,
            hash_seed_file: self.config.hash_seed.path.clone(),
            privileges: privileges::held(),
            services: service_records(desired, &self.receiver.shown()),
            node: self.config.cluster.as_ref().map(|cluster| cluster.node.clone()),
            nodes: node_records(&self.config.nodes),
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
        let ledger = IdManifest::of(&self.actual, changes);
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
