//! Clients on the machine itself: programs at the root of the control groups, and an end to sockets
//! whose backend is gone.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, ProgramError};
use rustix::net::{AddressFamily, SocketType};
use samport_common::local::{Chosen, Dialled, SocketKey};

use super::attach::{self, Attachment};
use super::load;
use super::maps::{MapCell, typed};
use super::pins;
use crate::plan::BackendId;
use crate::sockets::Sockets;
use crate::wire_forms::wide;

/// The hooks on addresses, in the order they are attached: what a socket is told must be understood
/// before the first one is sent to a backend.
const HOOKS: [&str; 8] = [
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
];

/// aya would pass the flag for several programs on to the kernel, which takes none for links: there,
/// several is all there is.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// What is said of a kernel that cannot tell whose sockets are the machine's own.
pub(super) const NO_COOKIE: &str =
    "the kernel does not number its network namespaces (it does from 5.14 on)";

/// The hooks of an instance, and the sockets that went through them.
pub(super) struct Local {
    attached: Vec<Attachment>,
    peers: HashMap<MapData, MapCell<SocketKey>, MapCell<Dialled>>,
    sockets: Option<Sockets>,
}

/// Attaches the hooks, or says in one line why they are not to be had here: samport works without.
pub(super) fn attach_if_possible(ebpf: &mut Ebpf, pins: &pins::Folder) -> Option<Local> {
    attach_all(ebpf, pins)
        .inspect_err(|error| {
            tracing::warn!(
                "clients on this machine itself are not served: {error:#} (--no-local does without)"
            );
        })
        .ok()
}

fn attach_all(ebpf: &mut Ebpf, pins: &pins::Folder) -> Result<Local> {
    if netns_cookie().is_err() {
        bail!(NO_COOKIE);
    }
    let root = cgroup_root()?;
    let cgroup = File::open(&root).with_context(|| format!("open {}", root.display()))?;
    let mut attached = Vec::new();
    // What is remembered must be forgotten again.
    let closing = program::<CgroupSock>(ebpf, "samport_close")?;
    closing.load().map_err(load::explain).context("load samport_close")?;
    let hook = "sock_release";
    let taken = attach::take_over(&pins.local_link(hook), closing.fd()?.as_fd())?;
    attached.push(taken.map_or_else(
        || {
            let id = closing.attach(&cgroup, MODE);
            let link = id.and_then(|id| closing.take_link(id)).map_err(|e| why_not(e, hook))?;
            pin(link.try_into(), pins, hook)
        },
        Ok,
    )?);
    for hook in HOOKS {
        let name = format!("samport_{hook}");
        let program = program::<CgroupSockAddr>(ebpf, &name)?;
        program.load().map_err(load::explain).with_context(|| format!("load {name}"))?;
        let taken = attach::take_over(&pins.local_link(hook), program.fd()?.as_fd())?;
        attached.push(taken.map_or_else(
            || {
                let id = program.attach(&cgroup, MODE);
                let link = id.and_then(|id| program.take_link(id)).map_err(|e| why_not(e, hook))?;
                pin(link.try_into(), pins, hook)
            },
            Ok,
        )?);
    }
    let sockets = Sockets::open().inspect_err(cannot_close).ok();
    Ok(Local { attached, peers: typed(ebpf, "LOCAL_PEERS")?, sockets })
}

fn why_not(error: ProgramError, hook: &str) -> anyhow::Error {
    let ProgramError::SyscallError(refused) = &error else { return error.into() };
    match refused.io_error.raw_os_error() {
        Some(libc::E2BIG) => anyhow!("the cgroup hook {hook} has its 64 programs already"),
        Some(libc::EPERM) => anyhow!(
            "the kernel does not let us attach to the cgroup hook {hook} (in a container, or beside \
             a program that shares the hook with nobody)"
        ),
        _ => anyhow!("attach to the cgroup hook {hook}: {}", refused.io_error),
    }
}

/// A link, held by its pin.
fn pin(link: Result<FdLink, LinkError>, pins: &pins::Folder, hook: &str) -> Result<Attachment> {
    let link = link.context("this kernel has no links for cgroups")?;
    let path = pins.local_link(hook);
    let link = link.pin(&path).with_context(|| format!("pin {}", path.display()))?;
    Ok(Attachment::Pinned(Some(link)))
}

/// A program of a type by its name.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} has another type"))
}

/// Where the tree of control groups (version 2) is mounted; its root, if that is to be seen.
pub(super) fn cgroup_root() -> Result<PathBuf> {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
    let mounts = mounts.context("read /proc/self/mountinfo")?;
    let mut mounts: Vec<_> = mounts.into_iter().filter(|m| m.fs_type == "cgroup2").collect();
    mounts.sort_by_key(|mount| mount.root != "/");
    let mount = mounts.into_iter().next();
    mount.map(|mount| mount.mount_point).context("no cgroup2 is mounted")
}

/// The kernel's number of this network namespace.
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to the cookie.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

impl Local {
    /// Ends the connections of local clients to a backend that is gone: without the kernel's help
    /// they would wait for it, datagram sockets for ever.
    pub(super) fn close_sockets_of(&mut self, backend: SocketAddr, id: BackendId) {
        let Some(sockets) = &mut self.sockets else { return };
        match close_sockets(sockets, &mut self.peers, backend, id) {
            Ok(0) => {}
            Ok(closed) => tracing::debug!("closed {closed} local sockets of {backend}"),
            Err(error) => {
                cannot_close(&error);
                // What the kernel does not have is asked for once.
                let again = error.kind() != io::ErrorKind::Unsupported;
                self.sockets = again.then(Sockets::open).and_then(Result::ok);
            }
        }
    }

    /// Leaves the hooks attached.
    pub(super) fn keep(self) {
        for attachment in self.attached {
            attachment.keep();
        }
    }
}

/// Closes those sockets connected to a backend that were sent to it in this life of its.
fn close_sockets(
    sockets: &mut Sockets,
    peers: &mut HashMap<MapData, MapCell<SocketKey>, MapCell<Dialled>>,
    backend: SocketAddr,
    id: BackendId,
) -> io::Result<usize> {
    let gone = Chosen { backend: id.index, generation: id.generation };
    let mut closed = 0;
    for socket in sockets.connected_to(backend)? {
        let key = SocketKey::new(socket.cookie, wide(backend.ip()), backend.port().to_be_bytes());
        let ours = peers.get(&MapCell(key), 0).is_ok_and(|MapCell(dialled)| dialled.chosen == gone);
        if ours {
            sockets.destroy(&socket)?;
            // The socket has forgotten its other end, which its close would need to find this.
            let _ = peers.remove(&MapCell(key));
            closed += 1;
        }
    }
    Ok(closed)
}

fn cannot_close(error: &io::Error) {
    let why = if error.kind() == io::ErrorKind::Unsupported {
        "the kernel was built without INET_DIAG_DESTROY".to_owned()
    } else {
        error.to_string()
    };
    tracing::warn!(
        "connections from this machine itself to a backend that is gone are left to time out: {why}"
    );
}
