//! What a Docker daemon leaves when it could not clean up: processes, mounts, control groups.
//!
//! All of it is found by the daemon's own folder or control group, so nobody else's is touched.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// How long killed processes may take to end.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Removes everything but the folder itself.
pub(super) fn remove(folder: &Path, cgroup: &str) -> Result<()> {
    kill_all(folder, cgroup)?;
    for mount in mounts_below(folder)?.iter().rev() {
        unmount(mount, UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", mount.display()))?;
    }
    for group in cgroup_folders(cgroup) {
        remove_empty_folders(&group);
    }
    Ok(())
}

fn kill_all(folder: &Path, cgroup: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        // containerd and its shims name the folder in their arguments, containers are in the group.
        let mut pids = processes_below(folder)?;
        for group in cgroup_folders(cgroup) {
            collect_members(&group, &mut pids);
        }
        if pids.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < TIMEOUT, "processes of the Docker daemon do not end: {pids:?}");
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            // One that has just ended is what is wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Removes the pid file of a containerd that has ended with its dockerd. In a container whose first
/// process does not reap it stays a zombie, and the next dockerd would wait for it in vain.
pub(super) fn forget_dead_containerd(folder: &Path) {
    let file = folder.join("exec/containerd/containerd.pid");
    let pid = fs::read_to_string(&file).unwrap_or_default();
    // A zombie has no command line.
    let arguments = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    if arguments.is_empty() {
        // Without the file there is nothing to forget.
        let _ = fs::remove_file(file);
    }
}

/// Processes that name a folder in their arguments.
pub fn processes_below(folder: &Path) -> Result<BTreeSet<i32>> {
    let needle = folder.as_os_str().as_bytes();
    let mut pids = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that has ended in between, and a zombie, have none.
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.windows(needle.len()).any(|part| part == needle) {
            pids.insert(pid);
        }
    }
    Ok(pids)
}

/// Mount points below a folder, in the order they were mounted.
pub fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

/// The group in every hierarchy: the unified one, those below it, and version 1's.
fn cgroup_folders(cgroup: &str) -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = [root].into_iter().chain(hierarchies);
    let groups = groups.map(|root| root.join(cgroup.trim_start_matches('/')));
    groups.filter(|group| group.is_dir()).collect()
}

fn collect_members(group: &Path, pids: &mut BTreeSet<i32>) {
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.extend(members.lines().filter_map(|line| line.parse::<i32>().ok()));
    for below in subfolders(group) {
        collect_members(&below, pids);
    }
}

/// Control groups go by rmdir alone, from the bottom up.
fn remove_empty_folders(group: &Path) {
    for below in subfolders(group) {
        remove_empty_folders(&below);
    }
    if let Err(error) = fs::remove_dir(group) {
        eprintln!("remove {}: {error}", group.display());
    }
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
