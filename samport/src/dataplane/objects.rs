//! BPF objects by their ids. The kernel gives ids out in turn, up to 2³¹ (`bpf_prog_alloc_id` and others in
//! kernel/bpf/syscall.c): an id that was seen names the same object, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::syscall::{bpf, open_pin};

/// Commands of bpf(2), from linux/bpf.h.
const PROG_GET_NEXT_ID: libc::c_int = 11;
const MAP_GET_NEXT_ID: libc::c_int = 12;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_GET_NEXT_ID: libc::c_int = 31;
/// Most maps a program uses (`MAX_USED_MAPS` in linux/bpf_verifier.h).
const MAX_USED_MAPS: usize = 64;

/// A kind of BPF object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Programs.
    Program,
    /// Maps.
    Map,
    /// Links.
    Link,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Program, Self::Map, Self::Link];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Map => "map",
            Self::Link => "link",
        }
    }

    /// Its line in `/proc/PID/fdinfo/FD`.
    const fn key(self) -> &'static str {
        match self {
            Self::Program => "prog_id:",
            Self::Map => "map_id:",
            Self::Link => "link_id:",
        }
    }

    const fn next_id(self) -> libc::c_int {
        match self {
            Self::Program => PROG_GET_NEXT_ID,
            Self::Map => MAP_GET_NEXT_ID,
            Self::Link => LINK_GET_NEXT_ID,
        }
    }
}

/// BPF objects by kind and id, each with its name, as far as it is known.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Objects(BTreeMap<(Kind, u32), String>);

impl Objects {
    /// Those a process has descriptors of.
    pub fn held_by(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/fdinfo");
        let mut found = Self::default();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
            let path = entry.with_context(|| format!("cannot list {folder}"))?.path();
            match fs::read_to_string(&path) {
                Ok(fdinfo) => found.add_fdinfo(&fdinfo, ""),
                // Closed in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read {}", path.display()));
                }
            }
        }
        Ok(found)
    }

    /// Those that are pinned in a folder, by the names of their pins.
    pub fn pinned_in(folder: &Path) -> Result<Self> {
        let mut found = Self::default();
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let open = || fdinfo_of(&open_pin(&path)?);
            let fdinfo = open().with_context(|| format!("cannot open {}", path.display()))?;
            found.add_fdinfo(&fdinfo, &entry.file_name().to_string_lossy());
        }
        Ok(found)
    }

    fn add_fdinfo(&mut self, fdinfo: &str, name: &str) {
        // A link's names its program too, after the link.
        for kind in Kind::ALL {
            let line = fdinfo.lines().find_map(|line| line.strip_prefix(kind.key()));
            if let Some(id) = line.and_then(|id| id.trim().parse().ok()) {
                self.add(kind, id, if kind == Kind::Program { "" } else { name });
            }
        }
    }

    /// Adds an object. One that is known keeps its name, if it has one.
    pub fn add(&mut self, kind: Kind, id: u32, name: &str) {
        let known = self.0.entry((kind, id)).or_default();
        if known.is_empty() {
            name.clone_into(known);
        }
    }

    /// Adds others.
    pub fn extend(&mut self, others: &Self) {
        for ((kind, id), name) in &others.0 {
            self.add(*kind, *id, name);
        }
    }

    /// Adds every program that uses one of the maps, every map that one of the programs uses, and the programs'
    /// names. A program without an open descriptor is found by its maps.
    ///
    /// Maps are not opened: Linux (6.18 at least) never frees a program array that somebody opens by its id while
    /// it is going away. Nor are links, which would stay attached for as long.
    pub fn add_programs_and_maps(&mut self) -> Result<()> {
        for id in ids(Kind::Program)? {
            // One that has just gone is not counted.
            let Ok(program) = Program::of(id) else { continue };
            let is_ours = self.contains(Kind::Program, id);
            if is_ours || program.maps.iter().any(|map| self.contains(Kind::Map, *map)) {
                self.add(Kind::Program, id, &program.name);
                program.maps.iter().for_each(|map| self.add(Kind::Map, *map, ""));
            }
        }
        Ok(())
    }

    /// Those of them that are still there.
    pub fn left(&self) -> Result<Self> {
        let mut left = self.clone();
        for kind in Kind::ALL {
            let ids = ids(kind)?;
            left.0.retain(|(one, id), _| *one != kind || ids.contains(id));
        }
        Ok(left)
    }

    /// Adds what keeps them: programs that use the maps, and links of the programs, whoever made them.
    pub fn add_keepers(&mut self) -> Result<()> {
        self.add_programs_and_maps()?;
        self.add_links()
    }

    fn add_links(&mut self) -> Result<()> {
        for id in ids(Kind::Link)? {
            let Ok(program) = program_of_link(id) else { continue };
            if self.contains(Kind::Program, program) {
                self.add(Kind::Link, id, &format!("of program {program}"));
            }
        }
        Ok(())
    }

    /// Those that are not among others.
    #[must_use]
    pub fn without(mut self, others: &Self) -> Self {
        self.0.retain(|key, _| !others.0.contains_key(key));
        self
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them is the object.
    #[must_use]
    pub fn contains(&self, kind: Kind, id: u32) -> bool {
        self.0.contains_key(&(kind, id))
    }

    /// How many of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.0.keys().filter(|(one, _)| *one == kind).count()
    }

    /// Each as `program 12 samport_forward`.
    #[must_use]
    pub fn described(&self) -> Vec<String> {
        let described = |((kind, id), name): (&(Kind, u32), &String)| {
            format!("{} {id} {name}", kind.name()).trim_end().to_owned()
        };
        self.0.iter().map(described).collect()
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [programs, maps, links] = Kind::ALL.map(|kind| self.count(kind));
        write!(f, "{programs} BPF programs, {maps} maps and {links} links")
    }
}

/// Ids of all objects of a kind in the kernel, whoever they belong to. Nothing is opened for that.
pub fn ids(kind: Kind) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    let mut attr = IdAttr::default();
    loop {
        // SAFETY: numbers only.
        match unsafe { bpf(kind.next_id(), &mut attr) } {
            Ok(_) => {}
            // The last one has no next.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot list BPF {}s", kind.name()));
            }
        }
        ids.insert(attr.next);
        attr.id = attr.next;
    }
}

/// The part of `union bpf_attr` that commands about ids use.
#[derive(Default)]
#[repr(C)]
struct IdAttr {
    id: u32,
    next: u32,
    open_flags: u32,
}

/// The part of `union bpf_attr` that `OBJ_GET_INFO_BY_FD` uses.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[derive(Default)]
#[repr(C)]
struct ProgramInfo {
    /// Type, id, tag, lengths and addresses of instructions, load time, user.
    _before: [u64; 6],
    _user: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// The beginning of `struct bpf_link_info`.
#[derive(Default)]
#[repr(C)]
struct LinkInfo {
    _kind: u32,
    _id: u32,
    program: u32,
    _padding: u32,
}

struct Program {
    name: String,
    maps: Vec<u32>,
}

impl Program {
    fn of(id: u32) -> io::Result<Self> {
        let program = open_id(PROG_GET_FD_BY_ID, id)?;
        let mut maps = vec![0; MAX_USED_MAPS];
        let mut info = ProgramInfo {
            maps: u32::try_from(maps.len()).unwrap_or(0),
            map_ids: maps.as_mut_ptr() as u64,
            ..ProgramInfo::default()
        };
        // SAFETY: the addresses of instructions are zero, and there is room for as many maps as it says.
        unsafe { info_of(&program, &mut info) }?;
        maps.truncate(usize::try_from(info.maps).unwrap_or(0));
        let name = info.name.iter().copied().take_while(|byte| *byte != 0).collect::<Vec<_>>();
        Ok(Self { name: String::from_utf8_lossy(&name).into_owned(), maps })
    }
}

fn program_of_link(id: u32) -> io::Result<u32> {
    let mut info = LinkInfo::default();
    // SAFETY: the part of a link's structure that has no addresses.
    unsafe { info_of(&open_id(LINK_GET_FD_BY_ID, id)?, &mut info) }?;
    Ok(info.program)
}

/// Has the kernel fill in what it knows of an object.
///
/// # Safety
/// It is the structure of the object's kind, and what it points to is valid.
pub(super) unsafe fn info_of<T>(object: &OwnedFd, info: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        fd: object.as_raw_fd().cast_unsigned(),
        len: u32::try_from(size_of::<T>()).unwrap_or(0),
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the structure is as long as it says; the rest is the caller's promise.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

fn open_id(command: libc::c_int, id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr { id, ..IdAttr::default() };
    // SAFETY: numbers only; the kernel makes the descriptor for us.
    unsafe { bpf(command, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

fn fdinfo_of(object: &OwnedFd) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_descriptor_is_of_is_read_from_its_fdinfo() {
        let mut objects = Objects::default();
        objects.add_fdinfo("pos:\t0\nflags:\t02000002\nmap_type:\t2\nmap_id:\t7\n", "map_FLOWS4");
        objects.add_fdinfo("link_type:\ttcx\nlink_id:\t3\nprog_tag:\t0a\nprog_id:\t12\n", "link_x");
        objects.add_fdinfo("pos:\t0\nflags:\t02\nino:\t4026531840\n", "no BPF object");
        assert_eq!(objects.described(), ["program 12", "map 7 map_FLOWS4", "link 3 link_x"]);
    }

    #[test]
    fn a_name_once_known_stays() {
        let mut objects = Objects::default();
        objects.add(Kind::Map, 7, "");
        objects.add(Kind::Map, 7, "map_FLOWS4");
        objects.add(Kind::Map, 7, "");
        assert_eq!(objects.described(), ["map 7 map_FLOWS4"]);
        assert_eq!(objects.to_string(), "0 BPF programs, 1 maps and 0 links");
    }
}
