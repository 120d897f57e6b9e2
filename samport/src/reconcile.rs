//! The loop that keeps the kernel as it is wanted: whatever changes, the whole is looked at, a plan is
//! made and carried out. The only caller of `Dataplane::apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;

use crate::dataplane::Dataplane;
use crate::exit::{Exit, coded};
use crate::instance::{BackendRecord, FilterRecord, Instance, Record};
use crate::model::{Candidate, Condition, PortSpec, Snapshot};
use crate::netlink::{Devices, Netlink};
use crate::plan::{self, Actual, BackendKey, Desired, Route, Share};
use crate::probe::Probes;
use crate::routes::{Forward, Routes};

/// Address and link changes come in bursts.
const NETLINK_PAUSE: Duration = Duration::from_millis(10);
/// Without any event: what was missed is found all the same.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// After a change failed.
const RETRY: Duration = Duration::from_secs(1);

/// What a run serves.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Interfaces clients come in by.
    pub interfaces: Vec<String>,
    /// Ports; empty if labels say which.
    pub ports: Vec<PortSpec>,
    /// How packets get to backends.
    pub forward: Forward,
    /// Inode of the network namespace.
    pub namespace: u64,
}

/// The state of a run.
pub struct Reconciler {
    scope: Scope,
    netlink: Netlink,
    dataplane: Dataplane,
    instance: Instance,
    actual: Actual,
    shown: BTreeMap<BackendKey, Share>,
    routes: Routes,
    probes: Probes,
    complained: BTreeSet<String>,
    written: Record,
}

impl Reconciler {
    /// Everything that is needed; nothing is attached yet.
    #[must_use]
    pub fn new(scope: Scope, netlink: Netlink, dataplane: Dataplane, instance: Instance) -> Self {
        Self {
            scope,
            netlink,
            dataplane,
            instance,
            actual: Actual::default(),
            shown: BTreeMap::new(),
            routes: Routes::default(),
            probes: Probes::default(),
            complained: BTreeSet::new(),
            written: Record::default(),
        }
    }

    /// Brings the kernel to what the first snapshot wants.
    ///
    /// # Errors
    /// Anything that keeps an interface from being served.
    pub async fn start(&mut self, snapshot: &Snapshot) -> Result<()> {
        let devices = self.netlink.devices().await?;
        check_interfaces(&self.scope.interfaces, &devices)?;
        check_families(&self.scope.interfaces, snapshot, &devices)?;
        self.sync(snapshot).await
    }

    /// Follows all changes until `stop` resolves.
    pub async fn run(
        &mut self,
        mut snapshots: watch::Receiver<Snapshot>,
        mut network: watch::Receiver<u64>,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        let mut failed = false;
        let mut said = String::new();
        loop {
            tokio::select! {
                () = &mut stop => return,
                Ok(()) = snapshots.changed() => {}
                Ok(()) = network.changed() => tokio::time::sleep(NETLINK_PAUSE).await,
                () = self.probes.next() => {}
                () = tokio::time::sleep(if failed { RETRY } else { LOOK_AGAIN }) => {}
            }
            let snapshot = snapshots.borrow_and_update().clone();
            network.mark_unchanged();
            failed = match self.sync(&snapshot).await {
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
    pub fn finish(self, keep: bool) -> Result<Vec<u64>> {
        let verdicts = self.dataplane.verdicts();
        if keep {
            self.instance.keep();
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

    /// How programs are attached.
    #[must_use]
    pub fn hook(&self) -> &'static str {
        self.dataplane.hook().name()
    }

    async fn sync(&mut self, snapshot: &Snapshot) -> Result<()> {
        let devices = self.netlink.devices().await?;
        let desired = self.desire(snapshot, &devices).await;
        let changes = plan::plan(&desired, &mut self.actual)?;
        let mut worked = Ok(());
        for change in &changes {
            worked = self.dataplane.apply(change);
            if worked.is_err() {
                break;
            }
            self.actual.record(change);
        }
        if worked.is_ok() {
            self.show(&desired, snapshot);
        }
        self.write_record(&desired)?;
        worked
    }

    /// What the kernel should be like now.
    async fn desire(&mut self, snapshot: &Snapshot, devices: &Devices) -> Desired {
        self.probes.keep_only(&snapshot.candidates);
        self.routes.keep_only(&snapshot.candidates);
        let mut desired = Desired::default();
        let mut addresses = BTreeSet::new();
        for device in devices.values().filter(|d| self.scope.interfaces.contains(&d.name)) {
            desired.interfaces.insert(device.ifindex);
            addresses.extend(device.addresses.iter().copied());
        }
        for name in &self.scope.interfaces {
            if devices.values().all(|device| device.name != *name) {
                let about = format!("interface {name} is gone; it is served again when it is back");
                complain(&mut self.complained, &about);
            }
        }
        for port in &self.scope.ports {
            desired.frontends.insert(port.listen, addresses.clone());
        }
        for candidate in &snapshot.candidates {
            if !self.is_admitted(candidate) {
                continue;
            }
            let forward = self.scope.forward;
            let route = match self.routes.to(candidate, forward, &self.netlink, devices).await {
                Ok(route) => route,
                Err(trouble) => {
                    let about = format!("{} is not served: {trouble:#}", candidate.name);
                    complain(&mut self.complained, &about);
                    continue;
                }
            };
            let key = key_of(candidate, route);
            let draining = matches!(candidate.condition, Condition::Draining | Condition::Starting);
            desired.frontends.entry(candidate.listen).or_insert_with(|| addresses.clone());
            let (name, weight) = (candidate.name.clone(), candidate.weight);
            desired.backends.insert(key, Share { name, weight, draining });
        }
        desired
    }

    /// Whether a candidate takes part: it is ready, or it was and still has flows.
    fn is_admitted(&mut self, candidate: &Candidate) -> bool {
        match candidate.condition {
            Condition::Ready => true,
            Condition::ProbeFirst => self.probes.has_answered(candidate),
            Condition::Starting | Condition::Draining => self.shown.keys().any(|key| {
                key.id == candidate.id
                    && key.endpoint == candidate.endpoint
                    && key.listen == candidate.listen
            }),
        }
    }

    /// One line for everything that is new to the user.
    fn show(&mut self, desired: &Desired, snapshot: &Snapshot) {
        for (key, share) in &desired.backends {
            let before = self.shown.get(key);
            let who = format!("{} {} on :{}", share.name, key.endpoint, key.listen);
            match (before, share.draining) {
                (None, false) => {
                    let after = since_start(key, snapshot);
                    tracing::info!("+ {who} by {}{after}", key.route.name());
                }
                (Some(Share { draining: false, .. }), true) => tracing::info!("- {who} draining"),
                (Some(Share { draining: true, .. }), false) => tracing::info!("+ {who} back"),
                (Some(before), _) if before.name != share.name => {
                    tracing::info!("~ {who} was {}", before.name);
                }
                (Some(before), _) if before.weight != share.weight => {
                    tracing::info!("~ {who} weight {}", share.weight);
                }
                _ => {}
            }
        }
        for (key, share) in &self.shown {
            if !desired.backends.contains_key(key) {
                tracing::info!("- {} {} on :{} gone", share.name, key.endpoint, key.listen);
            }
        }
        self.shown.clone_from(&desired.backends);
    }

    /// Tells `status` and `clean` how things are, if that has changed.
    fn write_record(&mut self, desired: &Desired) -> Result<()> {
        let filters = self.dataplane.filters();
        let record = Record {
            schema: 1,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            namespace: self.scope.namespace,
            interfaces: self.scope.interfaces.clone(),
            ports: desired.frontends.keys().copied().collect(),
            hook: self.hook().to_owned(),
            filters: filters
                .into_iter()
                .map(|f| FilterRecord {
                    ifindex: f.ifindex,
                    egress: f.egress,
                    priority: f.priority,
                    handle: f.handle,
                    made_qdisc: f.made_qdisc,
                })
                .collect(),
            backends: self
                .actual
                .backends()
                .map(|(key, id)| backend_record(key, id.index, desired.backends.get(key)))
                .collect(),
        };
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

fn backend_record(key: &BackendKey, id: u32, share: Option<&Share>) -> BackendRecord {
    let draining = share.is_none_or(|share| share.draining);
    BackendRecord {
        id,
        name: share.map_or_else(String::new, |share| share.name.clone()),
        port: key.listen,
        endpoint: key.endpoint.to_string(),
        weight: share.map_or(0, |share| share.weight),
        state: if draining { "draining" } else { "active" }.to_owned(),
        via: key.route.name().to_owned(),
    }
}

/// All interfaces must be there and speak Ethernet.
fn check_interfaces(names: &[String], devices: &Devices) -> Result<()> {
    for name in names {
        let Some(device) = devices.values().find(|device| device.name == *name) else {
            let known: Vec<_> = devices.values().map(|d| d.name.as_str()).collect();
            let known = known.join(", ");
            let message = format!("there is no interface {name:?}; this machine has {known}");
            return Err(coded(Exit::Failure, message));
        };
        if !device.is_ethernet {
            let message = format!(
                "{name} carries no Ethernet frames (a tunnel or lo), which this version needs"
            );
            return Err(coded(Exit::Failure, message));
        }
    }
    Ok(())
}

/// Backends must have something of their family to stand behind. One that has not is named; if that
/// is all of them, the run makes no sense. (A container with addresses of both families may well
/// stand behind an interface with one.)
fn check_families(names: &[String], snapshot: &Snapshot, devices: &Devices) -> Result<()> {
    let served: BTreeSet<bool> = devices
        .values()
        .filter(|device| names.contains(&device.name))
        .flat_map(|device| device.addresses.iter().map(IpAddr::is_ipv6))
        .collect();
    let fits = |candidate: &&Candidate| served.contains(&candidate.endpoint.is_ipv6());
    let fitting: BTreeSet<_> = snapshot.candidates.iter().filter(fits).map(|c| &c.id).collect();
    for misfit in snapshot.candidates.iter().filter(|candidate| !fitting.contains(&candidate.id)) {
        let family = if misfit.endpoint.is_ipv6() { "IPv6" } else { "IPv4" };
        let message = format!(
            "backend {} is {family}, but {} has no {family} address to serve it on; give it one, or \
             take a backend of the other family",
            misfit.endpoint,
            names.join(", ")
        );
        if fitting.is_empty() {
            return Err(coded(Exit::Failure, message));
        }
        tracing::warn!("{message}");
    }
    Ok(())
}

fn key_of(candidate: &Candidate, route: Route) -> BackendKey {
    BackendKey {
        listen: candidate.listen,
        id: candidate.id.clone(),
        endpoint: candidate.endpoint,
        route,
    }
}

/// How long after its start a container began to serve, if it was started while we watched.
fn since_start(key: &BackendKey, snapshot: &Snapshot) -> String {
    snapshot
        .candidates
        .iter()
        .find(|c| c.id == key.id && c.endpoint == key.endpoint && c.listen == key.listen)
        .and_then(|candidate| candidate.started?.elapsed().ok())
        .map(|elapsed| format!(", {} ms after its start", elapsed.as_millis()))
        .unwrap_or_default()
}
