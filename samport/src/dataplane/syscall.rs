//! bpf(2), as far as aya has no word for it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands, from linux/bpf.h.
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const LINK_UPDATE: libc::c_int = 29;

/// The part of `union bpf_attr` that commands about pins use.
#[derive(Default)]
#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that exchanging a link's program uses.
#[derive(Default)]
#[repr(C)]
struct UpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    before: u32,
}

/// Opens what is pinned at a path, whatever its kind.
pub(super) fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = PinAttr { path: path.as_ptr() as u64, ..PinAttr::default() };
    // SAFETY: a path that ends with a zero, and lives until the call has returned.
    let object = unsafe { bpf(OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Pins an object at a path.
pub(super) fn pin(object: &OwnedFd, pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().cast_unsigned();
    let mut attr = PinAttr { path: path.as_ptr() as u64, fd, ..PinAttr::default() };
    // SAFETY: a path that ends with a zero, and lives until the call has returned.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Puts another program of the same kind into a pinned link: no packet passes between the old one and the
/// new one.
pub(super) fn exchange_program(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open_pin(pin)?;
    let mut attr = UpdateAttr {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        ..UpdateAttr::default()
    };
    // SAFETY: numbers only, which the kernel checks.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Calls the kernel; its answer is a file descriptor or means nothing, depending on the command.
///
/// # Safety
/// The attributes are those of the command, and what they point to is valid.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}
