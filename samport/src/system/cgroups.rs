//! Control groups, which the kernel keeps processes in.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Where the tree of control groups (version 2) is mounted; its root, if that is to be seen.
pub fn root() -> Result<PathBuf> {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
    let mounts = mounts.context("cannot read /proc/self/mountinfo")?;
    let mut mounts: Vec<_> = mounts.into_iter().filter(|m| m.fs_type == "cgroup2").collect();
    mounts.sort_by_key(|mount| mount.root != "/");
    let mount = mounts.into_iter().next();
    mount.map(|mount| mount.mount_point).context("no cgroup2 is mounted")
}
