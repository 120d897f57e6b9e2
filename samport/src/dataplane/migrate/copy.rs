//! Copying one map into another, twice: while the programs before still change the old one, and once more when
//! ours have taken their places and change the new one.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use samport_common::flow::Flow;
use samport_common::layout::{Backend, BackendLoad, BackendState, ReverseNat};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Context;
use crate::dataplane::batch::HashTable;
use crate::dataplane::maps::MapCell;
use crate::dataplane::pins;
use crate::system::exit::{Exit, coded};

/// Where an old map is pinned, and the one that takes its place.
pub(super) struct Pair {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    pub(super) context: Rc<Context>,
}

/// A map that is copied.
pub(super) trait MapCopy {
    /// Copies all that it holds; the second time, what has changed since the first. How many entries had no
    /// room.
    fn migrate(&mut self) -> Result<usize>;
}

/// What a value becomes in a map of the present layout.
pub(super) trait Convert<K>: IntoBytes + FromBytes + Immutable + Copy {
    /// The value it becomes.
    type New: IntoBytes + FromBytes + Immutable + Copy;

    /// Whether a table that has no room for all of them goes on without the others.
    const MAY_BE_LOST: bool = false;

    /// The new value.
    fn convert(&self, key: &K, context: &Context) -> Self::New;

    /// The new value, if this one has changed since it was converted first, as `before`, and what came of that is
    /// `current` now; `None` to leave that as it is.
    fn follow(
        &self,
        _before: &Self,
        _current: &Self::New,
        key: &K,
        context: &Context,
    ) -> Option<Self::New> {
        Some(self.convert(key, context))
    }

    /// Whether it cannot be left out, as an unused one can.
    fn is_in_use(&self) -> bool {
        false
    }
}

impl<K> Convert<K> for Flow {
    type New = Self;
    const MAY_BE_LOST: bool = true;

    fn convert(&self, _: &K, _: &Context) -> Self {
        *self
    }

    fn follow(&self, before: &Self, current: &Self, _: &K, _: &Context) -> Option<Self> {
        follow_word(before.word, self.word, current.word).then_some(*self)
    }
}

/// Whether a flow is to be copied again: the programs before have moved it on, and ours have not.
pub(super) const fn follow_word(before: u64, now: u64, current: u64) -> bool {
    now != before && current == before
}

impl<K> Convert<K> for ReverseNat {
    type New = Self;

    fn convert(&self, _: &K, _: &Context) -> Self {
        *self
    }
}

impl Convert<u32> for Backend {
    type New = Self;

    fn convert(&self, _: &u32, _: &Context) -> Self {
        *self
    }

    fn is_in_use(&self) -> bool {
        BackendState::from_byte(self.state).serves()
    }
}

impl Convert<u32> for BackendLoad {
    type New = Self;

    fn convert(&self, _: &u32, _: &Context) -> Self {
        *self
    }

    fn follow(&self, before: &Self, current: &Self, _: &u32, _: &Context) -> Option<Self> {
        let since = |now: u64, before: u64| now.wrapping_sub(before);
        Some(Self {
            opened: current.opened.wrapping_add(since(self.opened, before.opened)),
            ended: current.ended.wrapping_add(since(self.ended, before.ended)),
            pad: 0,
        })
    }
}

impl Convert<u32> for u64 {
    type New = Self;

    fn convert(&self, _: &u32, _: &Context) -> Self {
        *self
    }
}

/// A map with keys that is copied: a hash table or an array.
struct Entries<K, Old: Convert<K>> {
    from: HashTable<K, Old>,
    to: HashTable<K, Old::New>,
    /// The numbers below this one are its keys, if it is an array.
    len: Option<usize>,
    context: Rc<Context>,
    /// What it held the last time: an array's values by their numbers, a hash table's by the bytes of the key.
    before: Before<Old>,
}

enum Before<Old> {
    Array(Vec<Old>),
    Hash(HashMap<Box<[u8]>, Old>),
}

impl<Old: Copy> Before<Old> {
    /// The value a key had, which has another one from now on.
    fn replace<K: IntoBytes + Immutable>(&mut self, at: usize, key: &K, now: Old) -> Option<Old> {
        let value = match self {
            Self::Array(values) => values.get_mut(at),
            Self::Hash(values) => values.get_mut(key.as_bytes()),
        };
        if let Some(value) = value {
            return Some(std::mem::replace(value, now));
        }
        match self {
            Self::Array(values) => values.push(now),
            Self::Hash(values) => drop(values.insert(key.as_bytes().into(), now)),
        }
        None
    }
}

/// Copies a hash table.
pub(super) fn hash<K, Old>(pair: &Pair) -> Result<Box<dyn MapCopy>>
where
    K: FromBytes + IntoBytes + Immutable + Copy + 'static,
    Old: Convert<K> + 'static,
    Old::New: 'static,
{
    let Pair { from, to, context } = pair;
    let (from, to, context) = (HashTable::open(from)?, HashTable::open(to)?, Rc::clone(context));
    let before = Before::Hash(HashMap::new());
    Ok(Box::new(Entries::<K, Old> { from, to, len: None, context, before }))
}

/// Copies an array.
pub(super) fn array<Old>(pair: &Pair) -> Result<Box<dyn MapCopy>>
where
    Old: Convert<u32> + 'static,
    Old::New: 'static,
{
    let Pair { from, to, context } = pair;
    let (from, to, context) = (HashTable::open(from)?, HashTable::open(to)?, Rc::clone(context));
    let len = Some(to.max_entries()?);
    let before = Before::Array(Vec::new());
    Ok(Box::new(Entries::<u32, Old> { from, to, len, context, before }))
}

impl<K, Old> MapCopy for Entries<K, Old>
where
    K: FromBytes + IntoBytes + Immutable + Copy,
    Old: Convert<K>,
{
    fn migrate(&mut self) -> Result<usize> {
        let mut now = Vec::new();
        self.from.for_each(|key, value| now.push((*key, *value)))?;
        if let Some(len) = self.len {
            if let Some(last) = (len..now.len()).rev().find(|at| now[*at].1.is_in_use()) {
                return Err(no_room(len, last));
            }
            now.truncate(len);
        }
        let mut lost = 0;
        for (at, (key, value)) in now.iter().enumerate() {
            let written = match self.before.replace(at, key, *value) {
                None => {
                    let new = value.convert(key, &self.context);
                    if self.len.is_some() { self.to.set(key, &new) } else { self.to.add(key, &new) }
                }
                Some(before) if before.as_bytes() == value.as_bytes() => Ok(()),
                Some(before) => {
                    let current = self.to.get(key);
                    let new = current
                        .and_then(|current| value.follow(&before, &current, key, &self.context));
                    new.map_or(Ok(()), |new| self.to.set(key, &new))
                }
            };
            match written {
                Err(error) if Old::MAY_BE_LOST && is_full(&error) => lost += 1,
                written => written.context("write a value")?,
            }
        }
        Ok(lost)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM))
}

/// The numbers of backends are the only ones that may be needed beyond the end.
fn no_room(len: usize, last: usize) -> anyhow::Error {
    let message = format!(
        "--max-backends {} is too small to take over what runs: backend number {last} is in use; give at \
         least that, or run `samport clean` first",
        len.saturating_sub(1)
    );
    coded(Exit::Usage, message)
}

/// An array with a value for each CPU, all of which are counters.
struct ByCpu<V: 'static + IntoBytes + FromBytes + Immutable + Copy> {
    from: PerCpuArray<MapData, MapCell<V>>,
    to: PerCpuArray<MapData, MapCell<V>>,
}

/// Copies counters that each CPU has.
pub(super) fn array_by_cpu<V>(pair: &Pair) -> Result<Box<dyn MapCopy>>
where
    V: IntoBytes + FromBytes + Immutable + Copy + 'static,
{
    let open = |pin: &std::path::Path| -> Result<_> {
        let map = Map::PerCpuArray(pins::open(pin)?);
        PerCpuArray::try_from(map).with_context(|| format!("{} has another layout", pin.display()))
    };
    Ok(Box::new(ByCpu::<V> { from: open(&pair.from)?, to: open(&pair.to)? }))
}

impl<V: IntoBytes + FromBytes + Immutable + Copy> MapCopy for ByCpu<V> {
    fn migrate(&mut self) -> Result<usize> {
        for index in 0..self.from.len().min(self.to.len()) {
            self.to.set(index, self.from.get(&index, 0)?, 0)?;
        }
        Ok(0)
    }
}

struct Nothing;

/// Copies nothing.
#[allow(clippy::unnecessary_wraps, reason = "one of several that may fail")]
pub(super) fn nothing(_: &Pair) -> Result<Box<dyn MapCopy>> {
    Ok(Box::new(Nothing))
}

impl MapCopy for Nothing {
    fn migrate(&mut self) -> Result<usize> {
        Ok(0)
    }
}
