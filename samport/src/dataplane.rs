//! The kernel's side of things as the rest of the loader sees it: make it, change it, read it,
//! remove it. The only folder that names aya.

mod allowed;
mod attach;
mod batch;
pub mod clean;
mod clock;
mod events;
pub mod flows;
mod gc;
mod hooks;
pub mod inspect;
mod load;
mod logs;
pub mod map_reader;
mod maps;
pub mod memory;
mod migrate;
mod missing_pins;
mod nodes;
pub mod objects;
pub mod pins;
mod port_cache;
mod probe;
pub mod program_run;
mod recount;
mod room;
mod seed;
mod sock_lb;
mod sources;
mod syscall;
mod takeover;
pub mod traces;
mod xdp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use samport_common::conntrack::{self, TICK_SHIFT};
use samport_common::layout::{
    Backend, BackendState, DeviceSet, ForwardMode, MAX_NODES, ReverseNat, ReverseNatEntry,
    SHARED_BY, Service, Slots, service,
};

use crate::model::encode::wide;
use crate::plan::{self, BackendId, Change, Frontend, Policy, Role, Route};
use crate::system::instance::{FilterRecord, Instance};

pub(crate) use attach::device_name;
pub(crate) use migrate::layouts;

pub use attach::Hook;
pub use events::{Ask, Events, Failing, Failure, RingEvent};
pub use gc::Collector;
pub use load::{DEFAULT_SERVICE_SHARE, Options, Timeouts};
pub use logs::follow as follow_logs;
pub use pins::{Bpffs, bpffs};
pub use probe::{Tcx, at_tcx, can_serve_local_clients, name_of_program, programs_at_tcx};
pub use xdp::XdpMode;

/// Programs, maps and links of one running instance. Dropping it removes all of them from the
/// kernel and from bpffs, unless it was told to [keep](Dataplane::keep) them, or has taken over from
/// another samport and not [settled](Dataplane::settle_in) yet.
pub struct Dataplane {
    // Links first: they go before the programs and the pins' folder do.
    attached: BTreeMap<(Role, u32), attach::Attachment>,
    local: Option<sock_lb::Local>,
    shields: Option<xdp::XdpLinks>,
    maps: maps::Maps,
    pinned_maps: missing_pins::Maps,
    allowed: allowed::Allowed,
    sources: sources::Sources,
    nodes: nodes::Nodes,
    ebpf: Ebpf,
    hook: Hook,
    pins: pins::Folder,
    /// What is there was there before us, and stays if we fail.
    is_guest: bool,
}

impl Dataplane {
    /// Loads the programs and pins the maps; maps that this instance has pinned already are used as
    /// they are. Nothing is attached yet but the hooks for local clients: these look into maps that
    /// are empty so far.
    pub fn open(instance: &Instance, options: Options) -> Result<Self> {
        let pins = pins::Folder::create(instance)?;
        let mut dataplane = Self::load(options, pins, &[])?;
        dataplane.serve_local_clients(options);
        Ok(dataplane)
    }

    fn load(options: Options, pins: pins::Folder, anew: &[&str]) -> Result<Self> {
        let mut ebpf = load::load(options, &pins, anew)?;
        let pinned_maps = missing_pins::Maps::open(&pins, anew)?;
        let maps = maps::Maps::take(&mut ebpf)?;
        let allowed = allowed::Allowed::take(&mut ebpf)?;
        let sources = sources::Sources::take(&mut ebpf)?;
        let nodes = nodes::Nodes::take(&mut ebpf)?;
        let shields = options.xdp.map(|mode| xdp::XdpLinks::new(&mut ebpf, mode)).transpose()?;
        let (attached, local, hook) = (BTreeMap::new(), None, options.hook);
        let is_guest = false;
        Ok(Self {
            attached,
            local,
            shields,
            maps,
            pinned_maps,
            allowed,
            sources,
            nodes,
            ebpf,
            hook,
            pins,
            is_guest,
        })
    }

    fn serve_local_clients(&mut self, options: Options) {
        if options.local {
            self.local = sock_lb::attach_if_possible(&mut self.ebpf, &self.pins);
        }
    }

    /// Whether clients on the machine itself are served.
    #[must_use]
    pub const fn serves_local_clients(&self) -> bool {
        self.local.is_some()
    }

    /// The kernel's log lines, if they were asked for.
    pub fn take_logs(&mut self) -> Option<logs::Logs> {
        logs::take(&mut self.ebpf)
    }

    /// Has the programs ask again by which device replies leave: routes, rules, addresses or links have changed.
    pub fn routes_have_changed(&mut self) -> Result<()> {
        self.maps.raise_routes().context("write ROUTES")
    }

    /// What takes flows that are over out of the tables.
    pub fn collector(&self, options: &Options) -> Result<Collector> {
        Collector::open(&self.pins, options)
    }

    /// Makes one change.
    pub fn apply(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::SetBackend { key, id, shared, weight, state, answers_on } => {
                let value = Backend {
                    weight: *weight,
                    state: *state as u8,
                    shared: u8::from(*shared),
                    answers_on: *answers_on,
                    ..backend_value(key.endpoint, key.route, *id, &self.nodes)
                };
                self.maps.set_backend(id.index, value)
            }
            Change::RetireBackend { key, id } => self.maps.retire_backend(*id).map(|()| {
                if let Some(local) = &mut self.local {
                    local.close_sockets_of(key.endpoint, *id);
                }
            }),
            Change::SetNode { at, index, tunnel } => self.nodes.set(*at, *index, *tunnel),
            Change::RemoveNode { at, index } => self.nodes.remove(*at, *index),
            Change::SetDevice(ifindex, device) => self.sources.set_device(*ifindex, *device),
            Change::RemoveDevice(ifindex) => self.sources.remove_device(*ifindex),
            Change::SetSource(addr, devices) => self.sources.set(*addr, *devices),
            Change::RemoveSource(addr) => self.sources.remove(*addr),
            Change::SetReverseNat { source, reverse_nat } => {
                self.maps.set_reverse_nat(*source, Some(&reverse_nat_value(reverse_nat)))
            }
            Change::RemoveReverseNat(source) => self.maps.set_reverse_nat(*source, None),
            Change::WriteTable { region, slots, .. } => self.maps.write_table(region.base, slots),
            Change::Settle => {
                settle();
                Ok(())
            }
            Change::SetFrontend { addr, listen, to } => {
                self.maps.set_frontend(*addr, *listen, Some(&service_value(*to)))
            }
            Change::Allow { id, net, .. } => self.allowed.add(*id, *net),
            Change::Disallow { id, net, .. } => self.allowed.remove(*id, *net),
            Change::RemoveFrontend { addr, listen } => self.maps.set_frontend(*addr, *listen, None),
            Change::OpenPort(listen) => self.maps.listen(*listen, true),
            Change::ClosePort(listen) => self.maps.listen(*listen, false),
            Change::Attach(role, ifindex) => self.attach(*role, *ifindex),
            Change::Detach(role, ifindex) => {
                if let (Role::Forward, Some(shields)) = (role, &mut self.shields) {
                    shields.detach(*ifindex);
                }
                self.attached.remove(&(*role, *ifindex));
                Ok(())
            }
        }
        .with_context(|| format!("{change:?}"))
    }

    fn attach(&mut self, role: Role, ifindex: u32) -> Result<()> {
        let attachment = attach::attach(&mut self.ebpf, &self.pins, &mut self.hook, role, ifindex)?;
        self.attached.insert((role, ifindex), attachment);
        if let Err(error) = self.shield(role, ifindex) {
            self.attached.remove(&(role, ifindex));
            return Err(error);
        }
        Ok(())
    }

    /// In front of the program at tc, which must be there to take what is left to it.
    fn shield(&mut self, role: Role, ifindex: u32) -> Result<()> {
        match (role, &mut self.shields) {
            (Role::Forward, Some(shields)) if !shields.is_on(ifindex) => {
                shields.attach(&mut self.ebpf, &self.pins, ifindex)
            }
            _ => Ok(()),
        }
    }

    /// What is attached by netlink filters, which no pin shows: for the record that `clean` reads.
    #[must_use]
    pub fn filters(&self) -> Vec<FilterRecord> {
        self.attached.values().filter_map(attach::Attachment::filter).collect()
    }

    /// Which kind of hook is in use.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        self.hook
    }

    /// Which frames the XDP program sees, if there is one.
    #[must_use]
    pub fn xdp(&self) -> Option<XdpMode> {
        self.shields.as_ref().map(xdp::XdpLinks::mode)
    }

    /// Flows of a backend that are open, by its index.
    pub fn open_flows(&self, index: u32) -> Result<u64> {
        self.maps.open_flows(index)
    }

    /// Makes new flows avoid a backend that a check has confirmed to fail, for the time it returns; `None` if it is
    /// gone.
    pub fn confirm(&mut self, backend: BackendId) -> Result<Option<Duration>> {
        let ticks = self.maps.confirm(backend, gc::now_tick())?;
        Ok(ticks.map(|ticks| Duration::from_nanos(u64::from(ticks) << TICK_SHIFT)))
    }

    /// Drops the evidence against a backend that a check has found well.
    pub fn refute(&mut self, backend: BackendId) -> Result<()> {
        self.maps.refute(backend)
    }

    /// What the kernel reports without being asked, if it has not been taken before.
    pub fn take_events(&mut self) -> Result<Events> {
        Events::take(&mut self.ebpf)
    }

    /// Packets by verdict, in the order of their ids, summed over the CPUs.
    pub fn verdicts(&self) -> Result<Vec<u64>> {
        self.maps.verdicts()
    }

    /// Leaves everything in the kernel, working on without us.
    pub fn keep(mut self) {
        self.let_go();
    }

    /// From now on all that is there is ours, and goes when we go.
    pub fn settle_in(&mut self) {
        self.is_guest = false;
        self.pins.keep(false);
    }

    fn let_go(&mut self) {
        self.pins.keep(true);
        if let Some(shields) = self.shields.take() {
            shields.keep();
        }
        for (_, attachment) in std::mem::take(&mut self.attached) {
            attachment.keep();
        }
        if let Some(local) = self.local.take() {
            local.keep();
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        if self.is_guest {
            self.let_go();
        }
    }
}

fn backend_value(
    endpoint: SocketAddr,
    route: Route,
    id: BackendId,
    nodes: &nodes::Nodes,
) -> Backend {
    let (forward_mode, ifindex, mac) = match route {
        Route::Peer(place) => (ForwardMode::Peer, place.ifindex, place.mac),
        Route::Neighbour { ifindex, .. } => (ForwardMode::Neighbour, ifindex, [0; 6]),
        Route::Stack => (ForwardMode::Stack, 0, [0; 6]),
        Route::Child(place) => (ForwardMode::Child, place.ifindex, place.mac),
        // Whatever is no node's index leads nowhere.
        Route::Node(at) => (ForwardMode::Node, nodes.index_of(at).unwrap_or(MAX_NODES), [0; 6]),
    };
    Backend {
        addr: wide(endpoint.ip()),
        port: endpoint.port().to_be_bytes(),
        mac,
        ifindex,
        generation: id.generation,
        weight: 0,
        state: BackendState::Unset as u8,
        forward_mode: forward_mode as u8,
        shared: 0,
        takes_frames: u8::from(matches!(route, Route::Peer(place) if place.polls)),
        answers_on: DeviceSet::NONE,
    }
}

fn service_value(to: Frontend) -> Service {
    let Policy { balance, affinity, failover, drop } = to.policy;
    let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
    Service {
        slots: Slots { base: to.region.base, len: to.region.len, key_fold: 0 }.to_bits(),
        affinity_ticks: conntrack::Timeouts::ticks(affinity),
        id: to.id.get(),
        scope: to.scope as u8,
        balance: balance as u8,
        flags: bit(to.restricted, service::RESTRICTED)
            | bit(to.shared, service::SHARED)
            | bit(to.nodes, service::NODES)
            | bit(failover, service::FAILOVER)
            | bit(drop, service::DROP),
        pad: 0,
    }
}

fn reverse_nat_value(reverse_nat: &[plan::ServiceBackend]) -> ReverseNat {
    let mut of = [ReverseNatEntry::default(); SHARED_BY];
    for (slot, (service, id)) in of.iter_mut().zip(reverse_nat) {
        *slot = ReverseNatEntry {
            backend: id.index,
            generation: id.generation,
            service: service.get(),
            pad: 0,
        };
    }
    // At most SHARED_BY: the plan refuses more.
    ReverseNat { len: u32::try_from(reverse_nat.len().min(SHARED_BY)).unwrap_or(0), of }
}

/// Waits for an RCU grace period: every program that was running when this was called has ended.
fn settle() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers; the kernel checks the numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        // Not to be had with nohz_full. A program runs for microseconds, in a softirq.
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
