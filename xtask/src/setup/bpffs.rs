//! The BPF file system, which keeps samport's programs alive between two runs of it.

use std::fs;

use anyhow::{Context as _, Result};

use super::Need;
use crate::sh;

const MOUNT_POINT: &str = "/sys/fs/bpf";

pub fn check() -> Need {
    if is_mounted() {
        Need::found("BPF file system", MOUNT_POINT.to_owned())
    } else {
        Need::missing("BPF file system", "as root: mount -t bpf bpf /sys/fs/bpf")
    }
}

/// Mounts it.
pub fn mount() -> Result<()> {
    eprintln!("setup: mounting the BPF file system: samport pins its programs there");
    let mut mount = sh::as_root("mount")?;
    sh::run(mount.args(["-t", "bpf", "bpf", MOUNT_POINT]))
        .with_context(|| format!("no BPF file system at {MOUNT_POINT}"))
}

/// Unmounts it, unless something is pinned there.
pub fn unmount() -> Result<()> {
    let is_empty = fs::read_dir(MOUNT_POINT).is_ok_and(|mut pins| pins.next().is_none());
    if !is_mounted() || !is_empty {
        return Ok(());
    }
    sh::run(sh::as_root("umount")?.arg(MOUNT_POINT))
}

pub fn is_mounted() -> bool {
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| lists(&mounts))
}

/// Whether `/proc/self/mounts` lists it: device, mount point and type begin each line.
fn lists(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next(), fields.next()) == (Some(MOUNT_POINT), Some("bpf"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_file_system_at_the_usual_place_counts() {
        assert!(lists("sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"));
        assert!(!lists("bpf /run/bpf bpf rw 0 0\n"));
        assert!(!lists("tmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
    }
}
