//! Taking over from a samport that was killed: its maps go on being used, and its links get our programs.
//! No packet passes in between.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use samport_common::choose::Balance;
use samport_common::flow::ServiceId;
use samport_common::layout::{
    Backend, BackendState, LAYOUT_VERSION, ReverseNat, Scope, Service, Slots, service,
};

use super::pins::{self, Link};
use super::{Dataplane, Options, attach, backend_value, load, migrate, seed};
use crate::plan::table::Region;
use crate::plan::{
    Attributes, BackendId, BackendKey, Frontend, IdManifest, KernelContents, Orphan, Policy, Role,
    ServiceBackend,
};
use crate::system::instance::{FilterRecord, Instance, Record};

impl Dataplane {
    /// Loads the programs and puts them into the places of those that this instance has left. The maps
    /// are used as they are; those that are to have another size or another layout are copied, and the seed is
    /// that of the `options`. If it fails, or is dropped before it is told to
    /// [`settle_in`](Self::settle_in), what was there goes on working.
    ///
    /// # Errors
    /// As [`open`](Self::open); and if what is in use has no room in the sizes wanted, or its maps are of no
    /// [layout](migrate::layouts) that can be taken over.
    pub fn take_over(instance: &Instance, options: Options, record: &Record) -> Result<Self> {
        let layout = migrate::Layout::of(record.layout)
            .with_context(|| format!("maps of layout {} cannot be taken over", record.layout))?;
        let mut pins = pins::Folder::create(instance)?;
        pins.keep_others();
        pins.set_renamed(layout.renamed());
        warn_of_another_seed(instance, &options)?;
        let anew = migrate::anew(options, &pins, layout)?;
        let mut dataplane = Self::load(options, pins, &anew)?;
        let context = migrate::Context::of(record);
        let mut copies = migrate::Copies::open(&dataplane.pins, &anew, layout, context)?;
        copies.copy()?;
        dataplane.maps.fill_port_cache().context("find shortcuts")?;
        // What has come into the old maps while they were copied: just before the programs are exchanged, so that
        // little is left to come, and just after.
        copies.copy()?;
        dataplane.is_guest = true;
        dataplane.pins.keep(true);
        dataplane.take_links(instance, record)?;
        copies.copy()?;
        dataplane.serve_local_clients(options);
        // The sockets that the programs before have counted meanwhile.
        copies.copy()?;
        for name in &anew {
            dataplane.pins.replace_map(name)?;
        }
        dataplane.pins.rename_maps()?;
        dataplane.pins.remove_maps_but(&load::MAPS)?;
        // Whoever takes over from us finds our layout, even if that is in this moment.
        let filters = dataplane.filters();
        instance.write(&Record { layout: LAYOUT_VERSION, filters, ..record.clone() })?;
        dataplane.remove_unwanted_links()?;
        dataplane.pins.end_other_runs()?;
        Ok(dataplane)
    }

    fn take_links(&mut self, instance: &Instance, record: &Record) -> Result<()> {
        self.take_places(instance, record)?;
        for link in self.pins.links() {
            let Link::Device(role, ifindex) = link else { continue };
            if self.hook == super::Hook::Tc {
                self.pins.remove_link(&link)?;
                continue;
            }
            let taken = attach::take_over_tcx(&mut self.ebpf, &self.pins, role, ifindex)?;
            if let Some(attachment) = taken {
                self.hook = super::Hook::Tcx;
                self.attached.insert((role, ifindex), attachment);
            }
        }
        for filter in &record.filters {
            if self.hook != super::Hook::Tc {
                self.take_place_of_filter(filter)?;
            }
            attach::detach_filter(filter)?;
        }
        for link in self.pins.links() {
            let (Link::Xdp(ifindex), Some(shields)) = (&link, &mut self.shields) else { continue };
            if !shields.take_over(&mut self.ebpf, &self.pins, *ifindex)? {
                self.pins.remove_link(&link)?;
            }
        }
        let entrances: Vec<_> = self.attached.keys().copied().collect();
        entrances.into_iter().try_for_each(|(role, ifindex)| self.shield(role, ifindex))
    }

    /// Attaches our filters behind what they are to replace, which stays. Nothing but the record finds a filter again: if
    /// that cannot be written they are taken off.
    fn take_places(&mut self, instance: &Instance, record: &Record) -> Result<()> {
        if self.hook != super::Hook::Tc {
            return Ok(());
        }
        let recorded = self.attach_filters(record).and_then(|()| {
            let filters = [&record.filters[..], &self.filters()].concat();
            instance.write(&Record { filters, ..record.clone() })
        });
        if recorded.is_err() {
            self.attached.clear();
        }
        recorded
    }

    fn attach_filters(&mut self, record: &Record) -> Result<()> {
        for link in self.pins.links() {
            if let Link::Device(role, ifindex) = link {
                self.take_place(role, ifindex)?;
            }
        }
        record.filters.iter().try_for_each(|filter| self.take_place_of_filter(filter))
    }

    fn take_place_of_filter(&mut self, filter: &FilterRecord) -> Result<()> {
        match filter.role {
            Some(role) if attach::device_name(filter.ifindex).is_ok() => {
                self.take_place(role, filter.ifindex)
            }
            _ => Ok(()),
        }
    }

    /// Attaches a program beside the one it is to replace, by another kind of hook.
    fn take_place(&mut self, role: Role, ifindex: u32) -> Result<()> {
        if self.attached.contains_key(&(role, ifindex)) {
            return Ok(());
        }
        let attachment = attach::attach(&mut self.ebpf, &self.pins, &mut self.hook, role, ifindex)?;
        self.attached.insert((role, ifindex), attachment);
        Ok(())
    }

    /// Removes the links of hooks that are not used any more.
    fn remove_unwanted_links(&self) -> Result<()> {
        let is_unwanted = |link: &Link| match link {
            Link::Device(..) => false,
            Link::Xdp(_) => self.shields.is_none(),
            Link::Local(_) => self.local.is_none(),
        };
        let links = self.pins.links();
        links
            .iter()
            .filter(|link| is_unwanted(link))
            .try_for_each(|link| self.pins.remove_link(link))
    }

    /// What the maps say, and where programs are attached.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn read_back(&self, ledger: &IdManifest) -> Result<KernelContents> {
        let backends = self.maps.all_backends().context("read BACKENDS")?;
        let mut known = BTreeMap::new();
        let mut indices = BTreeSet::new();
        for (key, id) in ledger.backends() {
            if let Some(marks) =
                backends.get(id.index as usize).and_then(|b| self.marks(b, &key, id))
            {
                indices.insert(id.index);
                known.insert(key, (id, marks));
            }
        }
        let orphans = (0..).zip(&backends).filter(|(index, backend)| {
            BackendState::from_byte(backend.state).serves() && !indices.contains(index)
        });
        let orphans = orphans.map(|(index, one)| BackendId { index, generation: one.generation });
        let reverse_nat = self.maps.all_reverse_nat().context("read REV_NAT4 and REV_NAT6")?;
        let frontends = self.maps.all_frontends().context("read SERVICES4 and SERVICES6")?;
        Ok(KernelContents {
            backends: known,
            orphans: orphans.collect(),
            generations: backends.iter().map(|backend| backend.generation).collect(),
            reverse_nat: reverse_nat
                .into_iter()
                .map(|(from, of)| (from, reverse_nat_of(&of)))
                .collect(),
            frontends: frontends
                .into_iter()
                .filter_map(|(place, value)| Some((place, frontend_of(value)?)))
                .collect(),
            allowed: self.allowed.all().context("read ALLOWED4 and ALLOWED6")?,
            ports: self.maps.all_ports().context("read PORTS")?,
            attached: self.attached.keys().copied().collect(),
            devices: self.sources.all_devices().context("read DEVICES")?,
            sources: self.sources.all().context("read SOURCES4 and SOURCES6")?,
            nodes: self.nodes.all(),
        })
    }

    /// What may change of a backend, if the kernel has just this one under this number, at work.
    fn marks(&self, found: &Backend, key: &BackendKey, id: BackendId) -> Option<Attributes> {
        let state = BackendState::from_byte(found.state);
        let Backend { weight, shared, answers_on, .. } = *found;
        let expected = backend_value(key.endpoint, key.route, id, &self.nodes);
        let is_same =
            *found == Backend { weight, shared, answers_on, state: found.state, ..expected };
        (is_same && state.serves()).then_some(Attributes {
            shared: shared != 0,
            weight,
            state,
            answers_on,
        })
    }

    /// Undoes what has no known meaning.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn undo(&mut self, orphan: &Orphan) -> Result<()> {
        match orphan {
            Orphan::Backend(id) => self.maps.retire_backend(*id),
            Orphan::Allowed(service, net) => self.allowed.remove(*service, *net),
        }
        .with_context(|| format!("undo {orphan:?}"))
    }

    /// Flows of all these backends that are open.
    pub fn open_flows_of(&self, ids: impl Iterator<Item = BackendId>) -> Result<u64> {
        ids.map(|id| self.open_flows(id.index)).sum()
    }
}

/// Connections that are remembered stay where they are; new ones of the same clients need not go there.
fn warn_of_another_seed(instance: &Instance, options: &Options) -> Result<()> {
    if seed::of(instance.name())? != Some(options.hash_seed) {
        tracing::warn!(
            "the hash seed is not that of the run before: with `maglev` and `source-hash` new connections may go              to other backends than those before; open connections stay"
        );
    }
    Ok(())
}

fn reverse_nat_of(value: &ReverseNat) -> Vec<ServiceBackend> {
    let reverse_nat = value.of.iter().take(value.len as usize);
    reverse_nat
        .filter_map(|entry| {
            let id = BackendId { index: entry.backend, generation: entry.generation };
            Some((ServiceId::new(entry.service)?, id))
        })
        .collect()
}

fn frontend_of(value: Service) -> Option<Frontend> {
    let is = |bit: u32| value.flags & bit != 0;
    let Slots { base, len, .. } = Slots::from_bits(value.slots);
    Some(Frontend {
        id: ServiceId::new(value.id)?,
        region: Region { base, len },
        scope: Scope::from_byte(value.scope),
        restricted: is(service::RESTRICTED),
        shared: is(service::SHARED),
        nodes: is(service::NODES),
        policy: Policy {
            balance: Balance::from_byte(value.balance),
            // The kernel has ticks, not the seconds they were made of: the value is written again.
            affinity: value.affinity_ticks,
            failover: is(service::FAILOVER),
            drop: is(service::DROP),
        },
    })
}
