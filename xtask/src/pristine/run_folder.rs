//! The folder of one run, removed after it; a run that was killed leaves it to the next one.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, UnmountFlags};

/// A run's folder is called this and its process id.
const PREFIX: &str = "samport-pristine-";
const LOCK: &str = "lock";
/// `f_type` of an overlay file system, see statfs(2).
const OVERLAY: i64 = 0x794c_7630;

/// A folder below TMPDIR or /var/tmp: the root file system of a run does not belong into memory,
/// where /tmp often is.
pub struct RunFolder {
    path: PathBuf,
    is_kept: bool,
    has_disk: bool,
    /// Held as long as this process lives: it tells other runs that the folder is in use.
    _lock: File,
}

impl RunFolder {
    /// Removes what runs that were killed have left, and makes a new folder.
    pub fn make() -> Result<Self> {
        let parent = env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        ensure!(parent.is_absolute(), "TMPDIR is no absolute path: \"{}\"", parent.display());
        remove_abandoned(&parent);
        let path = parent.join(format!("{PREFIX}{}", process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let lock = path.join(LOCK);
        let lock = File::create(&lock).with_context(|| format!("make {}", lock.display()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock it")?;
        let run = Self { path, is_kept: false, has_disk: false, _lock: lock };
        fs::create_dir(run.root()).context("make the root's folder")?;
        if rustix::fs::statfs(&run.path).is_ok_and(|data| data.f_type == OVERLAY) {
            eprintln!(
                "warning: {} is on an overlay, which Docker's overlay2 cannot use: set TMPDIR",
                parent.display()
            );
        }
        Ok(run)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the root file system is.
    pub fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// Puts the root on a separate file system of this size in bytes. It is in memory and, like
    /// every mount of this process, ends with its mount namespace.
    pub fn mount_disk(&mut self, size: u64) -> Result<()> {
        let options = std::ffi::CString::new(format!("size={size},mode=755"))?;
        rustix::mount::mount("tmpfs", self.root(), "tmpfs", MountFlags::empty(), &*options)
            .with_context(|| format!("mount a file system of {size} bytes"))?;
        self.has_disk = true;
        Ok(())
    }

    /// Leaves the folder after the run, under another name; returns where the root will be.
    pub fn keep(&mut self) -> Result<PathBuf> {
        let kept = self.path.with_file_name(format!("{PREFIX}kept-{}", process::id()));
        fs::rename(&self.path, &kept).with_context(|| format!("make {}", kept.display()))?;
        self.path = kept;
        self.is_kept = true;
        Ok(self.root())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.has_disk
            && let Err(error) = rustix::mount::unmount(self.root(), UnmountFlags::DETACH)
        {
            eprintln!("unmount {}: {error}", self.root().display());
        }
        if !self.is_kept {
            remove(&self.path);
        }
    }
}

fn remove(folder: &Path) {
    let mut rm = Command::new("rm");
    rm.args(["-rf", "--one-file-system", "--"]).arg(folder);
    // Not in the terminal's foreground group: a second Ctrl-C must not end it.
    let status = rm.process_group(0).status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("cannot remove {}: remove it by hand", folder.display());
    }
}

/// Removes the folders of runs that are no more.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_ours = fs::symlink_metadata(&path)
            .is_ok_and(|data| data.is_dir() && data.uid() == rustix::process::geteuid().as_raw());
        if is_ours && process_of(&path).is_some_and(|pid| is_over(pid, &path)) {
            eprintln!("pristine: removing {}, left by a run that was killed", path.display());
            remove(&path);
        }
    }
}

/// The process id in the name of a run's folder.
fn process_of(folder: &Path) -> Option<u32> {
    folder.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// Whether the process is dead, and the folder not in use by one of the same number in another pid
/// namespace.
fn is_over(pid: u32, folder: &Path) -> bool {
    let is_dead = pid == process::id() || !Path::new("/proc").join(pid.to_string()).exists();
    is_dead && File::open(folder.join(LOCK)).map_or(true, |file| is_free(&file))
}

fn is_free(lock: &File) -> bool {
    rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_run_is_known_by_its_name() {
        assert_eq!(process_of(Path::new("/var/tmp/samport-pristine-17")), Some(17));
        for other in ["samport-pristine-kept-17", "samport-pristine-", "pristine-17", "17"] {
            assert_eq!(process_of(&Path::new("/var/tmp").join(other)), None, "{other}");
        }
    }

    #[test]
    fn a_folder_is_abandoned_when_its_process_is_dead_and_its_lock_free() {
        let folder = env::temp_dir().join(format!("samport-lock-{}", process::id()));
        fs::create_dir(&folder).unwrap();
        // No process has a number above the limit of 2^22.
        let dead = 1 << 23;
        let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
        let living = u32::try_from(parent).unwrap();
        let without_lock = (is_over(dead, &folder), is_over(living, &folder));
        let lock = File::create(folder.join(LOCK)).unwrap();
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let in_use = is_over(dead, &folder);
        drop(lock);
        let abandoned = is_over(dead, &folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(without_lock, (true, false));
        assert!(!in_use && abandoned);
    }
}
