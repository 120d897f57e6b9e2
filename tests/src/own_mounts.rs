//! A `/run` and a bpffs that only one thread and what it starts see: a small disk that can be full, and pins that
//! nobody else's `clean` finds.

use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_move, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use samport::dataplane::pins::{self, Bpffs};

/// Room for records and sockets, and not for much else.
const SIZE: &std::ffi::CStr = c"size=1m,mode=755";
const FILLER: &str = "/run/filler";
const BPFFS: &str = "/sys/fs/bpf";

/// Runs a closure in a thread that has them. A panic goes on in the caller.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        enter();
        work()
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Moves the calling thread there.
fn enter() {
    // Where `ip netns` keeps the names stays everybody's.
    fs::create_dir_all("/run/netns").expect("make /run/netns");
    // SAFETY: descriptors stay shared; what is no longer shared is the view of the file systems.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a mount namespace");
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).expect("keep mounts to this thread");
    let folder = tempfile::tempdir().expect("make a folder");
    let run = folder.path();
    mount("tmpfs", run, "tmpfs", MountFlags::empty(), SIZE).expect("mount a small tmpfs");
    fs::create_dir(run.join("netns")).expect("make netns");
    mount_bind_recursive("/run/netns", run.join("netns")).expect("bind /run/netns");
    mount_move(run, "/run").expect("put it into the place of /run");
    mount_bpffs();
}

/// Mounts a new bpffs, over what is there.
pub fn mount_bpffs() {
    mount("bpf", BPFFS, "bpf", MountFlags::empty(), None).expect("mount a bpffs");
}

/// Unmounts every bpffs, the machine's as seen from here too: what is pinned there stays.
pub fn unmount_bpffs() {
    while pins::bpffs() == Bpffs::Mounted {
        unmount(BPFFS, UnmountFlags::DETACH).expect("unmount a bpffs");
    }
}

/// Fills it to the last page.
pub fn fill() {
    let page = [0x55; 4_096];
    let mut file = fs::File::create(FILLER).expect("make a file");
    while std::io::Write::write_all(&mut file, &page).is_ok() {}
    assert!(fs::write("/run/probe", page).is_err(), "/run is not full");
    // It was made and is empty.
    let _ = fs::remove_file("/run/probe");
}

/// Makes room again.
pub fn empty() {
    if Path::new(FILLER).exists() {
        fs::remove_file(FILLER).expect("remove the file");
    }
}
