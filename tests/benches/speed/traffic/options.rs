//! Options of sockets that have no safe names.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// A connection is to be accepted with its request, not before: nobody has to wait for that then.
pub fn accept_with_request(listener: impl AsFd) -> io::Result<()> {
    set(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5)
}

/// Nobody who waits for bytes is to be woken for less than that many.
pub fn wake_for(stream: impl AsFd, bytes: i32) -> io::Result<()> {
    set(stream, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

fn set(socket: impl AsFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads an int, of the size that is given with it.
    let result =
        unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
