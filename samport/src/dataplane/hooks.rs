//! Whether programs are still on their hooks: somebody else may take them off, and nothing says so.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::Result;

use super::objects::info_of;
use super::{Dataplane, attach};
use crate::plan::Role;

/// The beginning of `struct bpf_link_info` of a link to a device (tcx, XDP).
#[derive(Default)]
#[repr(C)]
struct DeviceLink {
    _kind: u32,
    _id: u32,
    _program: u32,
    _padding: u32,
    /// 0 if it is attached no more.
    ifindex: u32,
    _attach_type: u32,
}

/// The same of a link to a control group.
#[derive(Default)]
#[repr(C)]
struct CgroupLink {
    _kind: u32,
    _id: u32,
    _program: u32,
    _padding: u32,
    /// 0 if it is attached no more.
    cgroup: u64,
}

impl Dataplane {
    /// Puts programs for local clients on their hooks again that are not there any more. How many.
    ///
    /// # Errors
    /// If one cannot be attached.
    pub fn restore_local(&mut self) -> Result<u64> {
        let Some(local) = &mut self.local else { return Ok(0) };
        local.restore(&mut self.ebpf, &self.pins)
    }

    /// Programs whose links lead to no device any more. Those of devices that are gone are among them.
    #[must_use]
    pub fn detached(&self) -> Vec<(Role, u32)> {
        let is_detached =
            |(_, one): &(&(Role, u32), &attach::Attachment)| one.link().is_some_and(is_detached);
        self.attached.iter().filter(is_detached).map(|(place, _)| *place).collect()
    }

    /// Forgets a program that is not on its hook any more.
    pub fn forget(&mut self, role: Role, ifindex: u32) {
        if let Some(attachment) = self.attached.remove(&(role, ifindex)) {
            attachment.forget();
        }
    }

    /// Puts XDP programs on devices again that are not there any more, though the programs behind them at tc are.
    /// How many.
    ///
    /// # Errors
    /// If one cannot be attached.
    pub fn restore_xdp(&mut self, exists: impl Fn(u32) -> bool) -> Result<u64> {
        let mut restored = 0;
        let devices: Vec<u32> =
            self.shields.iter().flat_map(super::xdp::XdpLinks::devices).collect();
        for ifindex in devices {
            let link = self.shields.as_ref().and_then(|shields| shields.link_on(ifindex));
            if !exists(ifindex) || !link.is_some_and(is_detached) {
                continue;
            }
            if let Some(shields) = &mut self.shields {
                shields.detach(ifindex);
            }
            self.shield(Role::Forward, ifindex)?;
            restored += 1;
        }
        Ok(restored)
    }
}

/// Whether a link leads to no device.
fn is_detached(link: &OwnedFd) -> bool {
    device_of(link).is_ok_and(|ifindex| ifindex == 0)
}

/// The same of a link to a control group.
pub(super) fn is_off_its_cgroup(link: &OwnedFd) -> bool {
    cgroup_of(link).is_ok_and(|cgroup| cgroup == 0)
}

fn cgroup_of(link: &OwnedFd) -> io::Result<u64> {
    let mut info = CgroupLink::default();
    // SAFETY: the part of a link's structure that has no addresses.
    unsafe { info_of(link, &mut info) }?;
    Ok(info.cgroup)
}

fn device_of(link: &OwnedFd) -> io::Result<u32> {
    let mut info = DeviceLink::default();
    // SAFETY: the part of a link's structure that has no addresses.
    unsafe { info_of(link, &mut info) }?;
    Ok(info.ifindex)
}
