//! Frames put on a device as they are.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use samport::lab::Namespace;
use serde_json::Value;

/// Sends frames out of a device.
pub fn send(namespace: &Namespace, device: &str, frames: &[Vec<u8>]) {
    let sent = namespace.run(|| {
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, None)?;
        // SAFETY: all zeros are such an address.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        let index = name_to_index(&socket, device)?;
        to.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        let length =
            libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
        for frame in frames {
            // SAFETY: frame and address live until the call has returned, and are as long as we say.
            let sent = unsafe {
                let address = (&raw const to).cast();
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    address,
                    length,
                )
            };
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    });
    sent.unwrap_or_else(|e: io::Error| panic!("send frames out of {device}: {e}"));
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
