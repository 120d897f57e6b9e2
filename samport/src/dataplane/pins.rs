//! Names in bpffs: `/sys/fs/bpf/samport/INSTANCE/` holds every map and every link, so that traffic
//! goes on when the process is killed, and so that everything can be found and removed afterwards.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;
use rustix::mount::MountFlags;

use crate::plan::Role;
use crate::system::exit::{Coded as _, Exit, coded};
use crate::system::instance::Instance;
use crate::system::shared_folder::{self, SharedFolder};

/// The file system for pins.
pub const BPFFS: &str = "/sys/fs/bpf";
/// The folder of all instances' pins in it.
pub const ROOT: &str = "/sys/fs/bpf/samport";
/// `f_type` of bpffs (`BPF_FS_MAGIC` in linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The folder of one instance. Dropping it removes it and everything in it, which detaches and
/// frees what nothing else holds.
pub struct Folder {
    path: PathBuf,
    on_drop: OnDrop,
    /// Which of the runs that share the folder this is.
    run: u32,
    /// Maps that a run of an older layout has pinned under other names: the old name and the present one.
    renamed: &'static [(&'static str, &'static str)],
}

impl Folder {
    /// Makes the folder of an instance, mounting bpffs if it is not mounted.
    pub(super) fn create(instance: &Instance) -> Result<Self> {
        ensure_mounted()?;
        let path = Path::new(ROOT).join(instance.name());
        make(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let last = names_in(&path).iter().filter_map(|pin| run_of(pin)).max().unwrap_or(0);
        Ok(Self { path, on_drop: OnDrop::Remove, run: last + 1, renamed: &[] })
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path.join(format!("map_{name}"))
    }

    /// Says which maps may be pinned under the names that an older layout has for them.
    pub(super) fn set_renamed(&mut self, renamed: &'static [(&'static str, &'static str)]) {
        self.renamed = renamed;
    }

    /// Where a map is pinned that may have another name yet.
    pub(super) fn map_in_use(&self, name: &str) -> PathBuf {
        let present = self.map(name);
        match self.renamed.iter().find(|(_, new)| *new == name) {
            Some((old, _)) if !present.exists() => self.map(old),
            _ => present,
        }
    }

    /// Gives maps their present names.
    pub(super) fn rename_maps(&self) -> Result<()> {
        for (_, name) in self.renamed {
            let (from, to) = (self.map_in_use(name), self.map(name));
            if from != to {
                fs::rename(&from, &to)
                    .with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
            }
        }
        Ok(())
    }

    /// Where a map is pinned that is this run's alone.
    pub(super) fn map_of_run(&self, name: &str) -> PathBuf {
        self.path.join(format!("map_run{}_{name}", self.run))
    }

    /// Removes what is other runs' alone: nothing uses it any more.
    pub(super) fn end_other_runs(&self) -> Result<()> {
        for pin in names_in(&self.path) {
            if run_of(&pin).is_some_and(|run| run != self.run) {
                let pin = self.path.join(pin);
                fs::remove_file(&pin)
                    .with_context(|| format!("cannot remove {}", pin.display()))?;
            }
        }
        Ok(())
    }

    /// Puts a map that is this run's alone into the place of the one all runs know.
    pub(super) fn replace_map(&self, name: &str) -> Result<()> {
        let (from, to) = (self.map_of_run(name), self.map(name));
        fs::rename(&from, &to)
            .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
    }

    /// Removes the pins of maps that this version does not have.
    pub(super) fn remove_maps_but(&self, known: &[&str]) -> Result<()> {
        for pin in names_in(&self.path) {
            let is_unknown = |map: &str| run_of(&pin).is_none() && !known.contains(&map);
            if pin.strip_prefix("map_").is_some_and(is_unknown) {
                let pin = self.path.join(pin);
                fs::remove_file(&pin)
                    .with_context(|| format!("cannot remove {}", pin.display()))?;
            }
        }
        Ok(())
    }

    /// The links that are pinned.
    pub(super) fn links(&self) -> Vec<Link> {
        names_in(&self.path).iter().filter_map(|pin| Link::read(pin)).collect()
    }

    /// Removes a link's pin: what it holds is detached.
    pub(super) fn remove_link(&self, link: &Link) -> Result<()> {
        let pin = self.path.join(link.to_string());
        fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, role: Role, ifindex: u32) -> PathBuf {
        self.path.join(Link::Device(role, ifindex).to_string())
    }

    /// Where the link of a hook for local clients is pinned.
    pub(super) fn local_link(&self, hook: &str) -> PathBuf {
        self.path.join(Link::Local(hook.to_owned()).to_string())
    }

    /// Where the link of a device's XDP program is pinned.
    pub(super) fn xdp_link(&self, ifindex: u32) -> PathBuf {
        self.path.join(Link::Xdp(ifindex).to_string())
    }

    /// Makes the folder again if somebody has removed it.
    ///
    /// # Errors
    /// What is in the way, and the way out.
    pub(super) fn make_again(&self) -> Result<()> {
        if self.path.exists() {
            return Ok(());
        }
        if bpffs() != Bpffs::Mounted {
            bail!(
                "{BPFFS} is no bpffs any more; mount it again (mount -t bpf bpf {BPFFS}), and restart samport, which may \
                 write only in what it has started with"
            );
        }
        make(&self.path).with_context(|| format!("cannot make {}", self.path.display()))
    }

    /// Where the pins are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the pins behind, or does not.
    pub(super) fn keep(&mut self, keep: bool) {
        self.on_drop = if keep { OnDrop::Keep } else { OnDrop::Remove };
    }

    /// Leaves behind what was there before this run.
    pub(super) fn keep_others(&mut self) {
        self.on_drop = OnDrop::RemoveRun;
    }
}

/// What becomes of the folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OnDrop {
    Remove,
    RemoveRun,
    Keep,
}

/// A link, by the name of its pin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Link {
    /// At tc.
    Device(Role, u32),
    /// In front of it.
    Xdp(u32),
    /// A hook for local clients.
    Local(String),
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(role, ifindex) => write!(f, "link_{}_{ifindex}", role.name()),
            Self::Xdp(ifindex) => write!(f, "link_xdp_{ifindex}"),
            Self::Local(hook) => write!(f, "link_local_{hook}"),
        }
    }
}

impl Link {
    fn read(pin: &str) -> Option<Self> {
        let (kind, of) = pin.strip_prefix("link_")?.split_once('_')?;
        match kind {
            "local" => Some(Self::Local(of.to_owned())),
            "xdp" => Some(Self::Xdp(of.parse().ok()?)),
            kind => {
                let role = Role::ALL.into_iter().find(|role| role.name() == kind)?;
                Some(Self::Device(role, of.parse().ok()?))
            }
        }
    }
}

fn remove_run(folder: &Path, run: u32) -> io::Result<()> {
    let pins = names_in(folder).into_iter().filter(|pin| run_of(pin) == Some(run));
    pins.map(|pin| folder.join(pin)).try_for_each(fs::remove_file)
}

/// The run a pin is of, if it is one's alone.
fn run_of(pin: &str) -> Option<u32> {
    pin.strip_prefix("map_run")?.split_once('_')?.0.parse().ok()
}

impl Drop for Folder {
    fn drop(&mut self) {
        let removed = match self.on_drop {
            OnDrop::Remove => remove(&self.path),
            OnDrop::RemoveRun => remove_run(&self.path, self.run),
            OnDrop::Keep => Ok(()),
        };
        if let Err(error) = removed {
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
    MapData::from_pin(pin).with_context(|| format!("cannot open {}", pin.display()))
}

/// Names of the instances that have pins.
#[must_use]
pub fn instances() -> Vec<String> {
    names_in(Path::new(ROOT))
}

/// The pins of an instance.
#[must_use]
pub fn pins_of(instance: &str) -> Vec<String> {
    names_in(&Path::new(ROOT).join(instance))
}

/// Gives the pins of an instance that is not running to another name.
pub fn rename_instance(from: &str, to: &str) -> Result<()> {
    let (from, to) = (Path::new(ROOT).join(from), Path::new(ROOT).join(to));
    fs::rename(&from, &to)
        .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Removes an instance's pins: its links detach, its maps are freed.
pub fn remove_instance(instance: &str) -> Result<()> {
    let path = Path::new(ROOT).join(instance);
    remove(&path).with_context(|| format!("cannot remove {}", path.display()))
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
    shared_folder::remove_unused(Path::new(ROOT));
    Ok(())
}

/// Makes a folder for pins, also while an instance that ends takes the empty [`ROOT`] away.
fn make(path: &Path) -> io::Result<()> {
    for _ in 0..9 {
        match fs::create_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            made => return made,
        }
    }
    fs::create_dir_all(path)
}

/// Makes the folder of all instances' pins, mounting bpffs if it is not mounted, and keeps it there as long as the result
/// lives.
///
/// # Errors
/// [`Exit::Kernel`] without bpffs.
pub fn hold_root() -> Result<SharedFolder> {
    ensure_mounted()?;
    SharedFolder::hold(Path::new(ROOT)).with_context(|| format!("cannot make {ROOT}"))
}

/// The state of the file system for pins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bpffs {
    /// It is there.
    Mounted,
    /// There is a place for it.
    NotMounted,
    /// There is no place for it; why.
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

/// Mounts bpffs if it is not mounted: systemd does, a minimal system may not.
///
/// # Errors
/// [`Exit::Kernel`] if there is no place for it, or it cannot be mounted.
pub fn ensure_mounted() -> Result<()> {
    match bpffs() {
        Bpffs::Mounted => return Ok(()),
        Bpffs::NotMounted => {}
        Bpffs::NoPlace(why) => {
            let message =
                format!("there is no place for bpffs ({why}); mount sysfs, on a kernel with BPF");
            return Err(coded(Exit::Kernel, message));
        }
    }
    tracing::info!("mounting bpffs at {BPFFS}; it stays mounted");
    rustix::mount::mount("bpf", BPFFS, "bpf", MountFlags::empty(), None)
        .exit(Exit::Kernel, format!("cannot mount bpffs (by hand: mount -t bpf bpf {BPFFS})"))
}
