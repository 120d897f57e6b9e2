//! What BPF objects the kernel holds, to compare before and after.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use anyhow::{Context as _, Result};

/// Commands of bpf(2), from linux/bpf.h.
const PROG_GET_NEXT_ID: libc::c_int = 11;
const MAP_GET_NEXT_ID: libc::c_int = 12;
const LINK_GET_NEXT_ID: libc::c_int = 31;

/// Ids of all programs, maps and links in the kernel, whoever they belong to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Inventory {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

/// Asks the kernel for the ids of all BPF objects.
///
/// Nothing is opened, as aya's own listing would: Linux (6.18 at least) never frees a program array
/// that somebody opens by its id while it is going away.
pub fn inventory() -> Result<Inventory> {
    Ok(Inventory {
        programs: ids(PROG_GET_NEXT_ID).context("list BPF programs")?,
        maps: ids(MAP_GET_NEXT_ID).context("list BPF maps")?,
        links: ids(LINK_GET_NEXT_ID).context("list BPF links")?,
    })
}

/// The part of `union bpf_attr` that the `GET_NEXT_ID` commands use.
#[derive(Default)]
#[repr(C)]
struct NextIdAttr {
    start: u32,
    next: u32,
    open_flags: u32,
}

fn ids(command: libc::c_int) -> io::Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    let mut attr = NextIdAttr::default();
    loop {
        // SAFETY: the kernel reads and writes `size` bytes behind the pointer, which are ours.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<NextIdAttr>())
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            // The last one has no next.
            return if error.kind() == io::ErrorKind::NotFound { Ok(ids) } else { Err(error) };
        }
        ids.insert(attr.next);
        attr.start = attr.next;
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (programs, maps, links) = (self.programs.len(), self.maps.len(), self.links.len());
        write!(f, "{programs} BPF programs, {maps} maps, {links} links")
    }
}
