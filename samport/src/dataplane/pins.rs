//! Names in bpffs: `/sys/fs/bpf/samport/INSTANCE/` holds every map and every link, so that traffic
//! goes on when the process is killed, and so that everything can be found and removed afterwards.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;
use rustix::mount::MountFlags;

use crate::exit::{Coded as _, Exit};
use crate::instance::Instance;
use crate::plan::Role;

const BPFFS: &str = "/sys/fs/bpf";
const ROOT: &str = "/sys/fs/bpf/samport";
/// `f_type` of bpffs (`BPF_FS_MAGIC` in linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The folder of one instance. Dropping it removes it and everything in it, which detaches and
/// frees what nothing else holds.
pub struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Makes the folder of an instance, mounting bpffs if nobody has.
    pub(super) fn create(instance: &Instance) -> Result<Self> {
        ensure_mounted()?;
        let path = Path::new(ROOT).join(instance.name());
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path, keep: false })
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path.join(format!("map_{name}"))
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, role: Role, ifindex: u32) -> PathBuf {
        let role = match role {
            Role::Forward => "forward",
            Role::Reverse => "reverse",
            Role::Device => "device",
            Role::Egress => "egress",
            Role::Inside => "inside",
        };
        self.path.join(format!("link_{role}_{ifindex}"))
    }

    /// Where the link of a hook for local clients is pinned.
    pub(super) fn local_link(&self, hook: &str) -> PathBuf {
        self.path.join(format!("link_local_{hook}"))
    }

    /// Where the link of a device's XDP program is pinned.
    pub(super) fn xdp_link(&self, ifindex: u32) -> PathBuf {
        self.path.join(format!("link_xdp_{ifindex}"))
    }

    /// Leaves the pins behind.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = remove(&self.path)
        {
            tracing::error!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// Where an instance's pins are.
#[must_use]
pub fn folder_of(instance: &str) -> PathBuf {
    Path::new(ROOT).join(instance)
}

/// Where an instance's map is pinned.
#[must_use]
pub fn map_of(instance: &str, map: &str) -> PathBuf {
    folder_of(instance).join(format!("map_{map}"))
}

/// Opens a pinned map.
pub(super) fn open(pin: &Path) -> Result<MapData> {
    MapData::from_pin(pin).with_context(|| format!("open {}", pin.display()))
}

/// Names of the instances that have pins.
#[must_use]
pub fn instances() -> Vec<String> {
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The pins of an instance.
#[must_use]
pub fn pins_of(instance: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(instance)).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Removes an instance's pins: its links detach, its maps are freed.
pub fn remove_instance(instance: &str) -> Result<()> {
    let path = Path::new(ROOT).join(instance);
    remove(&path).with_context(|| format!("remove {}", path.display()))
}

/// Removes a folder of pins, links first so that no packet meets a program without its maps' names.
fn remove(path: &Path) -> io::Result<()> {
    let mut pins: Vec<_> = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // "link_…" before "map_…".
    pins.sort();
    for pin in pins {
        fs::remove_file(pin)?;
    }
    fs::remove_dir(path)?;
    // Fails while other instances have pins, and that is right.
    let _ = fs::remove_dir(ROOT);
    Ok(())
}

/// The state of the file system for pins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bpffs {
    /// It is there.
    Mounted,
    /// There is a place for it.
    NotMounted,
    /// There is none; why.
    NoPlace(String),
}

/// Looks whether bpffs is where pins are made.
#[must_use]
pub fn bpffs() -> Bpffs {
    match rustix::fs::statfs(BPFFS) {
        Ok(status) if status.f_type == BPF_FS_MAGIC => Bpffs::Mounted,
        Ok(_) => Bpffs::NotMounted,
        Err(error) => Bpffs::NoPlace(format!("{BPFFS}: {error}")),
    }
}

/// bpffs must be there; systemd mounts it, a minimal system may not.
fn ensure_mounted() -> Result<()> {
    match bpffs() {
        Bpffs::Mounted => return Ok(()),
        Bpffs::NotMounted => {}
        Bpffs::NoPlace(why) => bail!("there is no place for bpffs: {why}"),
    }
    tracing::info!("mounting bpffs at {BPFFS}; it stays mounted");
    rustix::mount::mount("bpf", BPFFS, "bpf", MountFlags::empty(), None)
        .exit(Exit::Kernel, format!("mount bpffs (by hand: mount -t bpf bpf {BPFFS})"))
}
