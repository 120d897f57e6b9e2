//! Pins that somebody else has removed. Everything works on by our own descriptors, and would be gone with us: so they
//! are made again from these.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::load::{MAPS, OF_A_RUN};
use super::{Dataplane, pins, syscall};
use crate::system::causes::io_kind;

/// Descriptors of all maps, by name.
pub(super) struct Maps(Vec<(&'static str, OwnedFd)>);

impl Maps {
    /// Opens what a run has just pinned; those made again are still beside those that they replace.
    pub(super) fn open(pins: &pins::Folder, anew: &[&str]) -> Result<Self> {
        let open = |name: &'static str| {
            let is_own = OF_A_RUN.contains(&name) || anew.contains(&name);
            let pin = if is_own { pins.map_of_run(name) } else { pins.map_in_use(name) };
            let map = syscall::open_pin(&pin)
                .with_context(|| format!("cannot open {}", pin.display()))?;
            Ok((name, map))
        };
        MAPS.into_iter().map(open).collect::<Result<_>>().map(Self)
    }

    fn pinned<'a>(
        &'a self,
        pins: &'a pins::Folder,
    ) -> impl Iterator<Item = (PathBuf, &'a OwnedFd)> {
        self.0.iter().map(|(name, map)| {
            let is_own = OF_A_RUN.contains(name);
            (if is_own { pins.map_of_run(name) } else { pins.map(name) }, map)
        })
    }
}

/// A folder that was made or mounted in the place of ours is another one to the kernel.
fn explained(error: anyhow::Error) -> anyhow::Error {
    if io_kind(&*error) == Some(io::ErrorKind::PermissionDenied) {
        error.context(
            "samport may write only in the folder that it has started with; restart samport",
        )
    } else {
        error
    }
}

impl Dataplane {
    /// Makes pins again that are not there any more. How many.
    ///
    /// # Errors
    /// If that cannot be; the message says what to do.
    pub fn restore_pins(&self) -> Result<u64> {
        let mut restored = 0;
        for (pin, object) in self.pinned() {
            if pin.symlink_metadata().is_ok() {
                continue;
            }
            let about = || format!("cannot pin {}", pin.display());
            let made = self.pins.make_again();
            made.and_then(|()| syscall::pin(object, &pin).with_context(about))
                .map_err(explained)?;
            restored += 1;
        }
        Ok(restored)
    }

    /// Where they are.
    #[must_use]
    pub fn folder_of_pins(&self) -> &std::path::Path {
        self.pins.path()
    }

    /// Every object that has a pin, and where that is.
    fn pinned(&self) -> impl Iterator<Item = (PathBuf, &OwnedFd)> {
        let devices = self.attached.iter().filter_map(|((role, ifindex), attachment)| {
            Some((self.pins.link(*role, *ifindex), attachment.link()?))
        });
        let xdp = self.shields.iter().flat_map(|shields| {
            let link = |ifindex| Some((self.pins.xdp_link(ifindex), shields.link_on(ifindex)?));
            shields.devices().filter_map(link)
        });
        let local = self.local.iter().flat_map(|local| local.links(&self.pins));
        self.pinned_maps.pinned(&self.pins).chain(devices).chain(xdp).chain(local)
    }
}
