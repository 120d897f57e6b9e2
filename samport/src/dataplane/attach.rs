//! Putting programs on devices and taking them off again, through tcx or through tc filters.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};

use super::{load, pins, syscall};
use crate::net::netlink;
use crate::plan::Role;
use crate::system::exit::{Coded as _, Exit, coded};
use crate::system::instance::{self, FilterRecord};

/// How programs are attached to devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// tcx where the kernel has it (6.6), tc filters elsewhere.
    Auto,
    /// tcx: an ordered list of programs, each held by a link.
    Tcx,
    /// Filters under a clsact qdisc.
    Tc,
}

impl Hook {
    /// The name users give it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Tc => "tc",
        }
    }
}

/// One attached program. Dropping it detaches the program.
pub(super) enum Attachment {
    /// Held by a pin: tcx, and the hooks for local clients. `None` while being dropped, or attached again.
    Pinned(Option<Pinned>),
    /// Held by the device.
    Tc { link: Option<SchedClassifierLink>, filter: FilterRecord },
}

/// A link with a pin. It holds without the pin too, by our descriptor, for as long as we run.
pub(super) struct Pinned {
    link: PinnedLink,
    descriptor: OwnedFd,
}

impl Attachment {
    /// By a link that is pinned there.
    pub(super) fn pinned(link: PinnedLink, pin: &Path) -> Result<Self> {
        let descriptor =
            syscall::open_pin(pin).with_context(|| format!("cannot open {}", pin.display()))?;
        Ok(Self::Pinned(Some(Pinned { link, descriptor })))
    }

    /// The link, if it is by one.
    pub(super) fn link(&self) -> Option<&OwnedFd> {
        match self {
            Self::Pinned(Some(pinned)) => Some(&pinned.descriptor),
            Self::Pinned(None) | Self::Tc { .. } => None,
        }
    }

    pub(super) fn filter(&self) -> Option<FilterRecord> {
        match self {
            Self::Pinned(_) => None,
            Self::Tc { filter, .. } => Some(filter.clone()),
        }
    }

    /// Lets go of one that is attached no more, and of nothing else: a qdisc that is there now is somebody else's.
    pub(super) fn forget(mut self) {
        match &mut self {
            // Dropped, it takes its pin away.
            Self::Pinned(_) => {}
            Self::Tc { link, .. } => std::mem::forget(link.take()),
        }
    }

    /// Leaves the program attached.
    pub(super) fn keep(mut self) {
        match &mut self {
            // The pin holds it.
            Self::Pinned(link) => drop(link.take()),
            Self::Tc { link, .. } => std::mem::forget(link.take()),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        match self {
            Self::Pinned(link) => {
                // Without its pin the link goes with its file descriptor. A device that is gone has
                // taken the program with it, but not the pin.
                let Some(Pinned { link, descriptor }) = link.take() else { return };
                match link.unpin() {
                    // Somebody else has taken the pin away.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => tracing::error!("a link could not be unpinned: {error}"),
                    Ok(link) => drop(link),
                }
                drop(descriptor);
            }
            Self::Tc { link, filter } => {
                if link.take().is_some() && filter.made_qdisc {
                    netlink::remove_empty_clsact(filter.ifindex);
                }
            }
        }
    }
}

/// Puts a program into the place of the one that a pinned link holds. `None` if there is no such link, or
/// what it was attached to is gone: then its pin goes too.
pub(super) fn take_over(pin: &Path, program: BorrowedFd<'_>) -> Result<Option<Attachment>> {
    match syscall::exchange_program(pin, program) {
        Ok(()) => {
            let link = PinnedLink::from_pin(pin)
                .with_context(|| format!("cannot open {}", pin.display()))?;
            Attachment::pinned(link, pin).map(Some)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            fs::remove_file(pin).with_context(|| format!("cannot remove {}", pin.display()))?;
            Ok(None)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot exchange the program of {}", pin.display()))
        }
    }
}

/// The program of a role, and where it is attached.
const fn program_of(role: Role) -> (&'static str, TcAttachType) {
    match role {
        Role::Forward => ("samport_forward", TcAttachType::Ingress),
        Role::Reverse => ("samport_reverse", TcAttachType::Ingress),
        Role::Egress => ("samport_egress", TcAttachType::Egress),
        Role::Device => ("samport_device", TcAttachType::Ingress),
        Role::Inside => ("samport_bridge", TcAttachType::Ingress),
        Role::Outbound => ("samport_outbound", TcAttachType::Egress),
    }
}

/// Puts the program of a role into a pinned tcx link: see [`take_over`].
pub(super) fn take_over_tcx(
    ebpf: &mut Ebpf,
    pins: &pins::Folder,
    role: Role,
    ifindex: u32,
) -> Result<Option<Attachment>> {
    let (program, _) = program_of(role);
    let program = load::classifier(ebpf, program)?.fd()?;
    take_over(&pins.link(role, ifindex), program.as_fd())
}

/// Attaches the program of a role to a device and pins the link.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &pins::Folder,
    hook: &mut Hook,
    role: Role,
    ifindex: u32,
) -> Result<Attachment> {
    let (program, kind) = program_of(role);
    let device = device_name(ifindex)?;
    let classifier = load::classifier(ebpf, program)?;
    if *hook != Hook::Tc {
        match attach_tcx(classifier, pins, &device, kind, role, ifindex) {
            Err(error) if *hook == Hook::Auto && lacks_tcx(&error) => *hook = Hook::Tc,
            Err(error) if lacks_tcx(&error) => {
                return Err(error).exit(
                    Exit::Kernel,
                    "this kernel has no tcx (it came with 6.6); use --hook tc or auto",
                );
            }
            result => {
                *hook = Hook::Tcx;
                if result.as_ref().is_err_and(is_full) {
                    let message = format!(
                        "{device} has as many programs at tcx as the kernel allows (`bpftool net show dev \
                         {device}` lists them); remove one, or use --hook tc"
                    );
                    return result.exit(Exit::Conflict, message);
                }
                return result.with_context(|| format!("cannot attach {program} to {device}"));
            }
        }
    }
    attach_filter(classifier, &device, kind, role, ifindex)
        .with_context(|| format!("cannot attach {program} to {device}"))
}

fn attach_tcx(
    classifier: &mut SchedClassifier,
    pins: &pins::Folder,
    device: &str,
    kind: TcAttachType,
    role: Role,
    ifindex: u32,
) -> Result<Attachment> {
    // After the programs of others: what they let through and only that is ours.
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = classifier.attach_with_options(device, kind, options)?;
    let link: FdLink = classifier.take_link(id)?.try_into()?;
    let pin = pins.link(role, ifindex);
    let link = link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
    Attachment::pinned(link, &pin)
}

/// Whether the kernel refused because it does not know tcx.
fn lacks_tcx(error: &anyhow::Error) -> bool {
    was_refused(error, libc::EINVAL)
}

/// Whether the kernel refused because the hook takes no more programs.
fn is_full(error: &anyhow::Error) -> bool {
    was_refused(error, libc::ERANGE)
}

fn was_refused(error: &anyhow::Error, errno: i32) -> bool {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::SyscallError(error)) => error.io_error.raw_os_error() == Some(errno),
        _ => false,
    }
}

fn attach_filter(
    classifier: &mut SchedClassifier,
    device: &str,
    kind: TcAttachType,
    role: Role,
    ifindex: u32,
) -> Result<Attachment> {
    // Of several filters on a device, the last one that goes takes the qdisc of the first with it,
    // be they ours or another samport's. All are in the records, as soon as they are made.
    let ours = || instance::made_qdisc_on(ifindex);
    let made_qdisc = match tc::qdisc_add_clsact(device) {
        Ok(()) => true,
        Err(TcError::AlreadyAttached) => ours(),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => ours(),
        Err(error) => return Err(error).with_context(|| format!("cannot add clsact to {device}")),
    };
    let attached = classifier
        .attach_with_options(device, kind, TcAttachOptions::Netlink(NlOptions::default()))
        .and_then(|id| classifier.take_link(id));
    let link = match attached {
        Ok(link) => link,
        Err(error) => {
            if made_qdisc {
                netlink::remove_empty_clsact(ifindex);
            }
            return Err(error.into());
        }
    };
    let filter = FilterRecord {
        role: Some(role),
        ifindex,
        egress: kind == TcAttachType::Egress,
        priority: link.priority()?,
        handle: link.handle()?.into(),
        made_qdisc,
    };
    Ok(Attachment::Tc { link: Some(link), filter })
}

/// Removes a filter that a killed instance has left.
pub(super) fn detach_filter(filter: &FilterRecord) -> Result<()> {
    // A device that is gone has taken its filters with it.
    let Ok(device) = device_name(filter.ifindex) else { return Ok(()) };
    let kind = if filter.egress { TcAttachType::Egress } else { TcAttachType::Ingress };
    let handle = TcHandle::from(filter.handle);
    let link = SchedClassifierLink::attached(&device, kind, filter.priority, handle, None)?;
    drop(link);
    if filter.made_qdisc {
        netlink::remove_empty_clsact(filter.ifindex);
    }
    Ok(())
}

/// The name of a device in this network namespace.
pub(crate) fn device_name(ifindex: u32) -> Result<String> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .context("cannot open a socket")?;
    rustix::net::netdevice::index_to_name(socket.as_fd(), ifindex)
        .map_err(|_| coded(Exit::Failure, format!("there is no device with index {ifindex}")))
}

/// The index of a device of this network namespace.
pub(super) fn device_index(name: &str) -> Result<u32> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .context("cannot open a socket")?;
    rustix::net::netdevice::name_to_index(socket.as_fd(), name)
        .map_err(|_| coded(Exit::Failure, format!("there is no device {name}")))
}
