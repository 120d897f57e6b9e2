//! Reading whole hash maps and arrays, and writing whole tables, many entries in one system call. aya takes
//! them one by one.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::syscall::bpf;

/// Commands of bpf(2), from linux/bpf.h.
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;

/// What a kernel says that knows no such command, or not for this kind of map (linux/errno.h).
const ENOTSUPP: libc::c_int = 524;

/// Entries asked for at a time. A bucket comes whole, and has rarely more than ten.
const BATCH: usize = 512;

/// The part of `union bpf_attr` that batch commands use.
#[derive(Default)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that commands about one element use.
#[derive(Default)]
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A hash map with plain keys and values.
pub(super) struct HashTable<K, V> {
    map: MapData,
    _entries: std::marker::PhantomData<(K, V)>,
}

impl<K, V> HashTable<K, V>
where
    K: FromBytes + IntoBytes + Immutable + Copy,
    V: FromBytes + IntoBytes + Immutable + Copy,
{
    /// Opens a pinned map.
    pub(super) fn open(pin: &std::path::Path) -> Result<Self> {
        let map = super::pins::open(pin)?;
        let info = map.info().with_context(|| format!("ask about {}", pin.display()))?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        ensure!(sizes == (size_of::<K>(), size_of::<V>()), "{} has another layout", pin.display());
        Ok(Self { map, _entries: std::marker::PhantomData })
    }

    /// Calls a function for every entry. One that comes or goes meanwhile may be missed.
    pub(super) fn for_each(&self, visit: impl FnMut(&K, &V)) -> io::Result<()> {
        self.for_each_of(BATCH, visit)
    }

    /// The same, with this many entries at a time.
    fn for_each_of(&self, batch: usize, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
        let mut keys = vec![K::new_zeroed(); batch];
        let mut values = vec![V::new_zeroed(); batch];
        let (mut from, mut to) = (0u32, 0u32);
        let mut first = true;
        loop {
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { (&raw mut from) as u64 },
                out_batch: (&raw mut to) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
                map_fd: fd_of(&self.map),
                ..BatchAttr::default()
            };
            // SAFETY: the buffers have room for `count` keys and values of the map's sizes, checked
            // when it was opened, and live until the call has returned.
            let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
            let ended = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket has more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    let double = keys.len() * 2;
                    keys.resize(double, K::new_zeroed());
                    values.resize(double, V::new_zeroed());
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (key, value) in keys.iter().zip(&values).take(attr.count as usize) {
                visit(key, value);
            }
            if ended {
                return Ok(());
            }
            (from, first) = (to, false);
        }
    }

    /// The value of a key now.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut value = V::new_zeroed();
        let mut attr = self.element(key);
        attr.value = (&raw mut value) as u64;
        // SAFETY: as in `for_each`.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) }.ok().map(|_| value)
    }

    /// Removes a key. False if it was not there.
    pub(super) fn remove(&self, key: &K) -> bool {
        // SAFETY: as in `for_each`.
        unsafe { bpf(MAP_DELETE_ELEM, &mut self.element(key)) }.is_ok()
    }

    /// Adds a key that is not there; one that is stays as it is.
    pub(super) fn add(&self, key: &K, value: &V) -> io::Result<()> {
        const NOEXIST: u64 = 1;
        let mut attr = self.element(key);
        (attr.value, attr.flags) = ((&raw const *value) as u64, NOEXIST);
        // SAFETY: as in `for_each`.
        match unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) } {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
            _ => Ok(()),
        }
    }

    /// Sets the value of a key.
    pub(super) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.element(key);
        attr.value = (&raw const *value) as u64;
        // SAFETY: as in `for_each`.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// How many entries it has room for.
    pub(super) fn max_entries(&self) -> Result<usize> {
        Ok(self.map.info().context("ask about a map")?.max_entries() as usize)
    }

    fn element(&self, key: &K) -> ElementAttr {
        ElementAttr {
            map_fd: fd_of(&self.map),
            key: (&raw const *key) as u64,
            ..ElementAttr::default()
        }
    }
}

/// An array with plain values that is read whole, in one system call (Linux 5.6).
pub(super) struct Values<V> {
    table: HashTable<u32, V>,
    len: usize,
}

impl<V: FromBytes + IntoBytes + Immutable + Copy> Values<V> {
    /// Opens a pinned array.
    pub(super) fn open(pin: &std::path::Path) -> Result<Self> {
        let table = HashTable::open(pin)?;
        let info = table.map.info().with_context(|| format!("ask about {}", pin.display()))?;
        Ok(Self { table, len: info.max_entries() as usize })
    }

    /// All values, each as it was when its turn came.
    pub(super) fn read(&self) -> io::Result<Vec<V>> {
        let mut values = Vec::with_capacity(self.len);
        // With room for one more the kernel sees the end, and need not be asked again.
        self.table.for_each_of(self.len + 1, |_, value| values.push(*value))?;
        Ok(values)
    }
}

/// An array of backend ids, written in runs. Only what changes is written: where there was a table a few
/// changes ago, most slots still say the same.
pub(super) struct Slots {
    map: MapData,
    /// What we have written. 0, which is no id, where that is nothing yet.
    written: Vec<u32>,
}

impl Slots {
    /// Takes the map `TABLE`.
    pub(super) fn of(map: Map) -> Result<Self> {
        let Map::Array(map) = map else { bail!("TABLE is no array") };
        let info = map.info().context("ask about TABLE")?;
        ensure!((info.key_size(), info.value_size()) == (4, 4), "TABLE has another layout");
        Ok(Self { map, written: vec![0; info.max_entries() as usize] })
    }

    /// Writes ids into the slots from `base` on.
    pub(super) fn write(&mut self, base: u32, ids: &[u32]) -> Result<()> {
        let end = base as usize + ids.len();
        let Some(written) = self.written.get_mut(base as usize..end) else {
            bail!("TABLE ends before slot {end}");
        };
        let changed = (base..).zip(ids).zip(&*written).filter(|((_, id), before)| id != before);
        let (keys, values): (Vec<u32>, Vec<u32>) = changed.map(|((key, id), _)| (key, *id)).unzip();
        // Not known until all of it is done.
        written.fill(0);
        write_all(&self.map, &keys, &values)?;
        written.copy_from_slice(ids);
        Ok(())
    }
}

fn write_all(map: &MapData, keys: &[u32], values: &[u32]) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    match write_at_once(map, keys, values) {
        // Before Linux 5.6.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {
            keys.iter().zip(values).try_for_each(|(key, value)| write_one(map, *key, *value))
        }
        done => done,
    }
}

fn write_at_once(map: &MapData, keys: &[u32], values: &[u32]) -> io::Result<()> {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: fd_of(map),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel reads `count` keys and values of four bytes, which is what `Slots::of` has found
    // the map's to be; there are as many, and they live until the call has returned.
    unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

fn write_one(map: &MapData, key: u32, value: u32) -> io::Result<()> {
    let (key, value) = ((&raw const key) as u64, (&raw const value) as u64);
    let mut attr = ElementAttr { map_fd: fd_of(map), key, value, ..ElementAttr::default() };
    // SAFETY: as in `write_at_once`, for one of each.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

fn fd_of(map: &MapData) -> u32 {
    map.fd().as_fd().as_raw_fd().cast_unsigned()
}
