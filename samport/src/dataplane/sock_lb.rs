//! Clients on the machine itself: programs at the root of the control groups, and an end to sockets
//! whose backend is gone.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, ProgramError, SockOps};
use rustix::net::{AddressFamily, SocketType};
use samport_common::sock_lb::{Chosen, Connected};

use super::attach::{self, Attachment};
use super::hooks;
use super::load;
use super::maps::{MapCell, typed};
use super::pins;
use crate::model::encode::wide;
use crate::net::sock_diag::Sockets;
use crate::plan::BackendId;
use crate::system::cgroups;

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

/// The hook that hears of closed sockets, and that of connections' states.
const RELEASE: &str = "sock_release";
const SOCK_OPS: &str = "sock_ops";

/// aya would pass the flag for several programs on to the kernel, which takes none for links: there,
/// several is all there is.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// The message about a kernel that cannot tell whose sockets are the machine's own.
pub(super) const NO_COOKIE: &str =
    "the kernel does not number its network namespaces (it does from 5.14 on)";

/// What is known of sockets that are connected to backends, by their cookies.
type Peers = HashMap<MapData, u64, MapCell<Connected>>;

/// The hooks of an instance, and the sockets that went through them.
pub(super) struct Local {
    /// By their hooks, in the order they were attached.
    attached: Vec<(&'static str, Attachment)>,
    peers: Peers,
    sockets: Option<Sockets>,
}

/// Attaches the hooks, or says in one line why they are not to be had here: samport works without.
pub(super) fn attach_if_possible(ebpf: &mut Ebpf, pins: &pins::Folder) -> Option<Local> {
    attach_all(ebpf, pins)
        .inspect_err(|error| {
            tracing::warn!(
                "clients on this machine itself are not served: {error:#}; --no-local turns this off"
            );
        })
        .ok()
}

fn attach_all(ebpf: &mut Ebpf, pins: &pins::Folder) -> Result<Local> {
    if netns_cookie().is_err() {
        bail!(NO_COOKIE);
    }
    let cgroup = open_cgroup_root()?;
    let mut attached = Vec::new();
    // What is remembered must be forgotten again.
    attached.push((RELEASE, attach_one(ebpf, pins, &cgroup, RELEASE)?));
    attached.extend(follow_connections(ebpf, pins, &cgroup).map(|followed| (SOCK_OPS, followed)));
    for hook in HOOKS {
        attached.push((hook, attach_one(ebpf, pins, &cgroup, hook)?));
    }
    let sockets = Sockets::open().inspect_err(cannot_close).ok();
    Ok(Local { attached, peers: typed(ebpf, "LOCAL_PEERS")?, sockets })
}

fn open_cgroup_root() -> Result<File> {
    let root = cgroups::root()?;
    File::open(&root).with_context(|| format!("cannot open {}", root.display()))
}

/// Attaches the program of a hook, or puts it into the link that another samport has left there.
fn attach_one(
    ebpf: &mut Ebpf,
    pins: &pins::Folder,
    cgroup: &File,
    hook: &'static str,
) -> Result<Attachment> {
    /// The same for programs of any type: aya has no trait for it.
    macro_rules! attach {
        ($type:ty, $name:expr) => {{
            let name = $name;
            let program = program::<$type>(ebpf, &name)?;
            // One that is attached again is loaded.
            if program.fd().is_err() {
                load::persist(|| program.load())
                    .map_err(load::explain)
                    .with_context(|| format!("cannot load {name}"))?;
            }
            let taken = attach::take_over(&pins.local_link(hook), program.fd()?.as_fd())?;
            if let Some(taken) = taken {
                return Ok(taken);
            }
            let id = program.attach(cgroup, MODE);
            let link = id.and_then(|id| program.take_link(id)).map_err(|e| why_not(e, hook))?;
            pin(link.try_into(), pins, hook)
        }};
    }
    match hook {
        RELEASE => attach!(CgroupSock, "samport_close".to_owned()),
        SOCK_OPS => attach!(SockOps, "samport_sockops".to_owned()),
        _ => attach!(CgroupSockAddr, format!("samport_{hook}")),
    }
}

/// Attaches the hook that hears what becomes of TCP connections. Without it, one that has failed counts as open until
/// its socket is closed.
fn follow_connections(ebpf: &mut Ebpf, pins: &pins::Folder, cgroup: &File) -> Option<Attachment> {
    let attached = attach_one(ebpf, pins, cgroup, SOCK_OPS);
    let why = |error: &anyhow::Error| {
        tracing::warn!(
            "failed connections of this machine's own clients count as open until their sockets are closed: \
             {error:#}"
        );
    };
    attached.inspect_err(why).ok()
}

fn why_not(error: ProgramError, hook: &str) -> anyhow::Error {
    let ProgramError::SyscallError(refused) = &error else { return error.into() };
    match refused.io_error.raw_os_error() {
        Some(libc::E2BIG) => anyhow!("the cgroup hook {hook} has its 64 programs already"),
        Some(libc::EPERM) => anyhow!(
            "the kernel does not let us attach to the cgroup hook {hook} (in a container, or beside \
             a program that does not share the hook)"
        ),
        _ => anyhow!("cannot attach to the cgroup hook {hook}: {}", refused.io_error),
    }
}

/// A link, held by its pin.
fn pin(link: Result<FdLink, LinkError>, pins: &pins::Folder, hook: &str) -> Result<Attachment> {
    let link = link.context("this kernel has no links for cgroups")?;
    let path = pins.local_link(hook);
    let link = link.pin(&path).with_context(|| format!("cannot pin {}", path.display()))?;
    Attachment::pinned(link, &path)
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
    /// Attaches programs again that somebody else has taken off their hooks. How many.
    ///
    /// # Errors
    /// If one cannot be attached.
    pub(super) fn restore(&mut self, ebpf: &mut Ebpf, pins: &pins::Folder) -> Result<u64> {
        let mut restored = 0;
        for (hook, attachment) in &mut self.attached {
            if attachment.link().is_some_and(|link| !hooks::is_off_its_cgroup(link)) {
                continue;
            }
            // Its pin goes first: the new link is to have it.
            *attachment = Attachment::Pinned(None);
            *attachment = attach_one(ebpf, pins, &open_cgroup_root()?, hook)?;
            restored += 1;
        }
        Ok(restored)
    }

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

    /// The links, and where their pins are.
    pub(super) fn links<'a>(
        &'a self,
        pins: &'a pins::Folder,
    ) -> impl Iterator<Item = (PathBuf, &'a OwnedFd)> {
        let link = |(hook, attachment): &'a (&'static str, Attachment)| {
            Some((pins.local_link(hook), attachment.link()?))
        };
        self.attached.iter().filter_map(link)
    }

    /// Leaves the hooks attached.
    pub(super) fn keep(self) {
        for (_, attachment) in self.attached {
            attachment.keep();
        }
    }
}

/// Closes those sockets connected to a backend that were sent to it in this life of its.
fn close_sockets(
    sockets: &mut Sockets,
    peers: &mut Peers,
    backend: SocketAddr,
    id: BackendId,
) -> io::Result<usize> {
    let gone = Chosen { backend: id.index, generation: id.generation };
    let (addr, port) = (wide(backend.ip()), backend.port().to_be_bytes());
    let mut closed = 0;
    for socket in sockets.connected_to(backend)? {
        let ours = peers.get(&socket.cookie, 0).is_ok_and(|MapCell(connected)| {
            connected.dialled.chosen == gone && connected.is_with(&addr, port)
        });
        if ours {
            sockets.destroy(&socket)?;
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
