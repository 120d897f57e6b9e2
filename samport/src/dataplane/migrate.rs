//! Carrying what maps hold over into new maps, when a samport takes over from one that was told
//! other limits, or whose maps have an older layout.
//!
//! What becomes of each map of an older layout is a list, in a module that is named after the layout.

mod copy;
mod layout3;
mod layout4;
mod layout5;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use aya::maps::MapInfo;
use aya_obj::generated::bpf_map_type;
use samport_common::flow::{EndpointKey, Flow, FlowKey};
use samport_common::layout::{
    Backend, BackendLoad, BackendStats, Handshakes, LAYOUT_VERSION, ReverseNat,
};

use super::attach::device_index;
use super::load::{self, Options};
use super::pins::{self, Folder};
use super::seed;
use crate::plan::Route;
use crate::system::instance::Record;
use copy::{MapCopy, Pair, array, array_by_cpu, hash, nothing};

/// Opens an old map and the one that takes its place.
type Open = fn(&Pair) -> Result<Box<dyn MapCopy>>;

/// What becomes of a map when a samport takes over.
#[derive(Clone, Copy)]
enum Migration {
    /// It goes on being used: keys and values mean the same.
    Kept,
    /// Another takes its place, and gets what it holds in this way.
    Converted(Open),
    /// Another takes its place, and begins empty: nothing is lost with what it holds.
    Emptied,
    /// There was none.
    New,
    /// Each run has its own.
    OfRun,
}

type List = &'static [(&'static str, Migration)];

/// Maps that had other names: the old name and the present one.
type Renamed = &'static [(&'static str, &'static str)];

/// The older layouts that can be taken over, each with its list and the names its maps had.
const OLDER: [(u32, List, Renamed); 3] = [
    (3, &layout3::MAPS, &layout3::RENAMED),
    (4, &layout4::MAPS, &layout4::RENAMED),
    (5, &layout5::MAPS, &[]),
];

/// The layout of the maps that are taken over.
#[derive(Clone, Copy)]
pub(super) struct Layout(Option<(List, Renamed)>);

impl Layout {
    /// The layout with this number, if it can be taken over.
    pub(super) fn of(version: u32) -> Option<Self> {
        if version == LAYOUT_VERSION {
            return Some(Self(None));
        }
        let older = OLDER.iter().find(|(older, ..)| *older == version);
        older.map(|(_, list, renamed)| Self(Some((list, renamed))))
    }

    /// The maps that had other names: the old name and the present one.
    pub(super) fn renamed(self) -> Renamed {
        self.0.map_or(&[], |(_, renamed)| renamed)
    }

    fn migration(self, name: &str) -> Migration {
        if load::OF_A_RUN.contains(&name) {
            return Migration::OfRun;
        }
        // Written again, with what this run was given.
        if name == seed::MAP {
            return Migration::Emptied;
        }
        let listed = self.0.and_then(|(list, _)| list.iter().find(|(one, _)| *one == name));
        listed.map_or(Migration::Kept, |(_, migration)| *migration)
    }

    /// What copies a map into one of another size, or of another layout.
    fn open(self, name: &str) -> Result<Open> {
        Ok(match (self.migration(name), name) {
            (Migration::Converted(open), _) => open,
            // Whoever fails now will fail again; and another size means that there were no local clients, or will
            // be none.
            (Migration::Emptied | Migration::New | Migration::OfRun, _)
            | (
                Migration::Kept,
                "EVIDENCE" | "SUSPECTS" | "LOCAL_PEERS" | "LOCAL_SENDERS" | "LOCAL_CHOICES",
            ) => nothing,
            (Migration::Kept, "FLOWS4" | "OVERFLOW4") => hash::<FlowKey<[u8; 4]>, Flow>,
            (Migration::Kept, "FLOWS6" | "OVERFLOW6") => hash::<FlowKey<[u8; 16]>, Flow>,
            (Migration::Kept, "REV_NAT4") => hash::<EndpointKey<[u8; 4]>, ReverseNat>,
            (Migration::Kept, "REV_NAT6") => hash::<EndpointKey<[u8; 16]>, ReverseNat>,
            (Migration::Kept, "BACKENDS") => array::<Backend>,
            (Migration::Kept, "BACKEND_LOAD") => array::<BackendLoad>,
            (Migration::Kept, "OPEN_CORRECTION") => array::<u64>,
            (Migration::Kept, "BACKEND_STATS") => array_by_cpu::<BackendStats>,
            (Migration::Kept, "HANDSHAKES") => array_by_cpu::<Handshakes>,
            (Migration::Kept, _) => bail!(
                "map {name} is of another kind or size than this version makes, and there is no way to copy it"
            ),
        })
    }
}

/// Numbers of the layouts whose maps can be taken over.
pub(crate) fn layouts() -> BTreeSet<u32> {
    OLDER.iter().map(|(version, ..)| *version).chain([LAYOUT_VERSION]).collect()
}

/// What conversions need to know beside the maps.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    /// How packets get to each backend, by its number.
    routes: BTreeMap<u32, Route>,
    /// The devices that outside clients come in by.
    interfaces: BTreeSet<u32>,
}

impl Context {
    /// What a samport has written down for its successor.
    pub(super) fn of(record: &Record) -> Self {
        let routes = record.ledger.backends().map(|(key, id)| (id.index, key.route));
        // One that is gone has no flows any more.
        let interfaces = record.interfaces.iter().filter_map(|name| device_index(name).ok());
        Self { routes: routes.collect(), interfaces: interfaces.collect() }
    }
}

/// What the kernel is told when a map is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shape {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Shape {
    fn of(info: &MapInfo) -> Result<Self> {
        let kind = info.map_type().context("a map of an unknown type")? as u32;
        let (key, value) = (info.key_size(), info.value_size());
        let (entries, flags) = (info.max_entries(), info.map_flags());
        Ok(Self { kind, key, value, entries, flags }.bounded())
    }

    fn wanted(map: &aya_obj::Map, entries: Option<u32>) -> Self {
        let (kind, key, value) = (map.map_type(), map.key_size(), map.value_size());
        let entries = entries.unwrap_or_else(|| map.max_entries());
        Self { kind, key, value, entries, flags: map.map_flags() }.bounded()
    }

    /// Without the size of a ring, which is made of whole pages.
    fn bounded(self) -> Self {
        let is_ring = self.kind == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
        if is_ring { Self { entries: 0, ..self } } else { self }
    }
}

/// The maps that are to be made again beside those that are pinned: they have another size or another layout, or
/// there are none yet.
///
/// # Errors
/// If a pin is missing or cannot be read.
pub(super) fn anew(options: Options, pins: &Folder, layout: Layout) -> Result<Vec<&'static str>> {
    let object = aya_obj::Object::parse(load::OBJECT).context("read the kernel programs")?;
    let sizes: BTreeMap<_, _> = load::sizes(options).into_iter().collect();
    let mut anew = Vec::new();
    for name in load::MAPS {
        let is_anew = match layout.migration(name) {
            Migration::OfRun => false,
            Migration::Emptied => true,
            Migration::New if !pins.map_in_use(name).exists() => true,
            // One that was converted before, by a samport that was killed in the middle, is as it should be.
            Migration::New | Migration::Kept | Migration::Converted(_) => {
                let wanted = object
                    .maps
                    .get(name)
                    .with_context(|| format!("the object has no map {name}"))?;
                let wanted = Shape::wanted(wanted, sizes.get(name).copied());
                let pinned = pins::open(&pins.map_in_use(name))?;
                let info = pinned.info().with_context(|| format!("ask about {name}"))?;
                Shape::of(&info)? != wanted
            }
        };
        if is_anew {
            anew.push(name);
        }
    }
    Ok(anew)
}

/// Maps that are copied, each with the one it is copied into.
pub(super) struct Copies(Vec<(&'static str, Box<dyn MapCopy>)>);

impl Copies {
    /// Opens the pinned maps of these names, and this run's own.
    pub(super) fn open(
        pins: &Folder,
        names: &[&'static str],
        layout: Layout,
        context: Context,
    ) -> Result<Self> {
        let context = Rc::new(context);
        let open = |name: &&'static str| {
            let pair = Pair {
                from: pins.map_in_use(name),
                to: pins.map_of_run(name),
                context: Rc::clone(&context),
            };
            let copy = layout.open(name).and_then(|open| open(&pair));
            Ok((*name, copy.with_context(|| format!("copy {name}"))?))
        };
        let mut copies: Vec<_> = names.iter().map(open).collect::<Result<_>>()?;
        // What connections wait for comes first.
        copies.sort_by_key(|(name, _)| !name.starts_with("FLOWS"));
        Ok(Self(copies))
    }

    /// Copies what they hold; the second time, what has changed since the first.
    pub(super) fn copy(&mut self) -> Result<()> {
        for (name, copy) in &mut self.0 {
            let lost = copy.migrate().with_context(|| format!("copy {name}"))?;
            if lost > 0 {
                tracing::warn!("{lost} entries of {name} had no room in the new table");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
