//! The program where frames enter the machine, in front of the one at tc.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, Xdp, XdpMode as AyaMode};
use rustix::net::{AddressFamily, SocketType};
use samport_common::layout::XdpDevice;

use super::attach::{self, Attachment, device_name};
use super::maps::{MapCell, typed};
use super::{load, pins};
use crate::system::exit::{Exit, coded};

/// Which frames the program is to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// The driver's, where it can; what the stack makes of them elsewhere.
    Auto,
    /// The driver's own, before the stack has an skb.
    Native,
    /// What the stack makes of them: works on every device.
    Generic,
}

impl XdpMode {
    /// The name users give it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The program on the interfaces. Dropping it takes it off.
pub(super) struct XdpLinks {
    attached: BTreeMap<u32, Attachment>,
    devices: HashMap<MapData, u32, MapCell<XdpDevice>>,
    mode: XdpMode,
}

impl XdpLinks {
    pub(super) fn new(ebpf: &mut Ebpf, mode: XdpMode) -> Result<Self> {
        Ok(Self { attached: BTreeMap::new(), devices: typed(ebpf, "XDP_DEVICES")?, mode })
    }

    /// The mode in use, once it is known.
    pub(super) const fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Attaches the program to a device and pins the link.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &pins::Folder,
        ifindex: u32,
    ) -> Result<()> {
        let device = device_name(ifindex)?;
        let program = load(ebpf)?;
        let (link, generic) = self.link(program, &device, ifindex)?;
        let pin = pins.xdp_link(ifindex);
        let link = link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        self.attached.insert(ifindex, Attachment::pinned(link, &pin)?);
        let value = XdpDevice { mac: mac_of(&device)?, generic: u8::from(generic), pad: 0 };
        self.devices.insert(ifindex, MapCell(value), 0).context("write XDP_DEVICES")?;
        self.mode = if generic { XdpMode::Generic } else { XdpMode::Native };
        Ok(())
    }

    /// Puts the program into the link that another samport has left on a device, if it sees the frames
    /// this one is to see.
    pub(super) fn take_over(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &pins::Folder,
        ifindex: u32,
    ) -> Result<bool> {
        let Ok(MapCell(device)) = self.devices.get(&ifindex, 0) else { return Ok(false) };
        let mode = if device.generic == 1 { XdpMode::Generic } else { XdpMode::Native };
        if self.mode != XdpMode::Auto && self.mode != mode {
            return Ok(false);
        }
        let program = load(ebpf)?.fd()?;
        let taken = attach::take_over(&pins.xdp_link(ifindex), program.as_fd())?;
        let is_taken = taken.is_some();
        if let Some(attachment) = taken {
            self.attached.insert(ifindex, attachment);
            self.mode = mode;
        }
        Ok(is_taken)
    }

    /// The devices it is on.
    pub(super) fn devices(&self) -> impl Iterator<Item = u32> {
        self.attached.keys().copied()
    }

    /// The link on a device.
    pub(super) fn link_on(&self, ifindex: u32) -> Option<&OwnedFd> {
        self.attached.get(&ifindex)?.link()
    }

    /// Whether the program is on a device.
    pub(super) fn is_on(&self, ifindex: u32) -> bool {
        self.attached.contains_key(&ifindex)
    }

    /// The link, and whether it is generic.
    fn link(&self, program: &mut Xdp, device: &str, ifindex: u32) -> Result<(FdLink, bool)> {
        let modes: &[(AyaMode, bool)] = match self.mode {
            XdpMode::Auto => &[(AyaMode::Driver, false), (AyaMode::Skb, true)],
            XdpMode::Native => &[(AyaMode::Driver, false)],
            XdpMode::Generic => &[(AyaMode::Skb, true)],
        };
        for (mode, generic) in modes {
            let attached = program.attach_to_if_index(ifindex, *mode);
            match attached.and_then(|id| program.take_link(id)) {
                Ok(link) => return Ok((link.try_into()?, *generic)),
                Err(error) if is(&error, libc::EBUSY) || is(&error, libc::EEXIST) => {
                    let message = format!(
                        "{device} has an XDP program already, and a device takes one (`ip link show \
                         {device}` shows it); use --hook auto"
                    );
                    return Err(coded(Exit::Conflict, message));
                }
                Err(error) if is(&error, libc::EOPNOTSUPP) || is(&error, libc::EINVAL) => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot attach samport_xdp to {device}"));
                }
            }
        }
        let message = format!(
            "the driver of {device} has no XDP in {} mode; use --xdp-mode generic, or --hook auto",
            self.mode.name()
        );
        Err(coded(Exit::Kernel, message))
    }

    /// Takes the program off a device.
    pub(super) fn detach(&mut self, ifindex: u32) {
        self.attached.remove(&ifindex);
        // What is not there any more need not be removed.
        let _ = self.devices.remove(&ifindex);
    }

    /// Leaves the program attached.
    pub(super) fn keep(self) {
        for (_, attachment) in self.attached {
            attachment.keep();
        }
    }
}

/// The program, loaded.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program: &mut Xdp = ebpf
        .program_mut("samport_xdp")
        .context("the object has no program samport_xdp")?
        .try_into()?;
    if program.fd().is_err() {
        load::persist(|| program.load())
            .map_err(load::explain)
            .context("cannot load samport_xdp")?;
    }
    Ok(program)
}

/// Makes an interface known that the program is not attached to, for test runs.
pub(super) fn make_known(ebpf: &mut Ebpf, ifindex: u32) -> Result<()> {
    let map = ebpf.map_mut("XDP_DEVICES").context("the object has no map XDP_DEVICES")?;
    let mut devices: HashMap<_, u32, MapCell<XdpDevice>> = HashMap::try_from(map)?;
    let value = XdpDevice { mac: [0; 6], generic: 1, pad: 0 };
    devices.insert(ifindex, MapCell(value), 0).context("write XDP_DEVICES")
}

fn is(error: &ProgramError, errno: i32) -> bool {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error() == Some(errno),
        ProgramError::XdpError(aya::programs::XdpError::NetlinkError(error)) => {
            error.raw_os_error() == Some(errno)
        }
        _ => false,
    }
}

/// The Ethernet address of a device of this network namespace.
fn mac_of(device: &str) -> Result<[u8; 6]> {
    // SAFETY: plain data, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        bail!("invalid device name {device:?}");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: the request lives until the call has returned, and its name ends with a zero.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error).with_context(|| format!("cannot ask for the address of {device}"));
    }
    // SAFETY: the kernel has filled in this member of the union.
    let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(bytes) {
        *to = from.cast_unsigned();
    }
    Ok(mac)
}
