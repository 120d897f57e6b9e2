//! Frames put on a device as they are, and frames seen on one.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, socket};
use samport::lab::Namespace;
use serde_json::Value;

/// Room for the frames that a [`Sniffer`] has not been asked for, in bytes.
const SNIFFER_BUFFER: usize = 64 << 20;
/// `PACKET_IGNORE_OUTGOING` of linux/if_packet.h.
const PACKET_IGNORE_OUTGOING: i32 = 23;

/// Sends frames out of a device.
pub fn send(namespace: &Namespace, device: &str, frames: &[Vec<u8>]) {
    let sent = namespace.run(|| {
        let socket = Socket::open(device)?;
        frames.iter().try_for_each(|frame| socket.send(frame))
    });
    sent.unwrap_or_else(|e| panic!("send frames out of {device}: {e}"));
}

/// A packet socket that only sends.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl Socket {
    /// Opens one for a device of the calling thread's namespace.
    pub fn open(device: &str) -> io::Result<Self> {
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, None)?;
        // SAFETY: all zeros are such an address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        let index = name_to_index(&socket, device)?;
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        Ok(Self { socket, address })
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: frame and address live until the call has returned, and are as long as we say.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.address).cast(),
                address_len()?,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Receives every frame that comes in by a device, whoever it is addressed to.
#[derive(Debug)]
pub struct Sniffer(OwnedFd);

impl Sniffer {
    /// Begins to receive.
    #[must_use]
    pub fn start(namespace: &Namespace, device: &str) -> Self {
        let socket = namespace.run(|| {
            let Socket { socket, mut address } = Socket::open(device)?;
            set_socket_recv_buffer_size_force(&socket, SNIFFER_BUFFER)?;
            let on = 1_i32;
            // SAFETY: the value lives until the call has returned, and is as long as we say.
            let set = unsafe {
                let value = (&raw const on).cast();
                let option = PACKET_IGNORE_OUTGOING;
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, 4)
            };
            let everything = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
            address.sll_protocol = everything.to_be();
            // SAFETY: as above.
            let bound = unsafe {
                libc::bind(socket.as_raw_fd(), (&raw const address).cast(), address_len()?)
            };
            if set < 0 || bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
        });
        Self(socket.unwrap_or_else(|e| panic!("sniff on {device}: {e}")))
    }

    /// The frames that have come in since it was last asked.
    #[must_use]
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let next = || match recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => Some(buffer[..length].to_vec()),
            Err(rustix::io::Errno::AGAIN) => None,
            Err(error) => panic!("receive frames: {error}"),
        };
        std::iter::from_fn(next).collect()
    }
}

fn address_len() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)
}

/// The MAC of a device.
#[must_use]
pub fn mac(namespace: &Namespace, device: &str) -> [u8; 6] {
    let link = namespace.ip(&["-j", "link", "show", device]).unwrap_or_else(|e| panic!("{e:#}"));
    let link: Value = serde_json::from_str(&link).expect("JSON");
    let text = link[0]["address"].as_str().expect("an address");
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}
