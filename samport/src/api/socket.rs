//! The control socket as a file: only for root, gone when its samport is.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::system::exit::{Coded as _, Exit, coded};

/// Who may connect: its owner, who started samport.
const ONLY_OWNER: Mode = Mode::RUSR.union(Mode::WUSR);
/// Clients that wait to be served.
const BACKLOG: i32 = 64;

/// A bound socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds a path; a socket there that is no longer served is replaced.
    ///
    /// # Errors
    /// [`Exit::Conflict`] if somebody serves it, or if it is no socket.
    pub fn bind(path: &Path) -> Result<Self> {
        make_room(path)?;
        let about = || format!("cannot open the control socket {}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(about)?;
        }
        let address = SocketAddrUnix::new(path).with_context(about)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .with_context(about)?;
        // The file takes its mode from the socket: there is no moment at which others may connect.
        rustix::fs::fchmod(&socket, ONLY_OWNER).with_context(about)?;
        rustix::net::bind(&socket, &address).with_context(about)?;
        rustix::net::listen(&socket, BACKLOG).with_context(about)?;
        Ok(Self { path: path.to_owned(), listener: socket.into() })
    }

    /// The listening end, for tokio.
    pub fn listener(&self) -> Result<tokio::net::UnixListener> {
        let listener = self.listener.try_clone().context("cannot clone the control socket")?;
        tokio::net::UnixListener::from_std(listener).context("cannot watch the control socket")
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // One that is gone already is fine.
        let _ = fs::remove_file(&self.path);
    }
}

fn make_room(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let name = path.display();
    if !metadata.file_type().is_socket() {
        let message = format!("{name} is there and is no socket; name another path with --socket");
        return Err(coded(Exit::Conflict, message));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot remove the abandoned socket {name}")),
        Ok(_) => {
            let message = format!("another program serves {name}; name another path with --socket");
            Err(coded(Exit::Conflict, message))
        }
        Err(error) => Err(error).exit(Exit::Conflict, format!("cannot look who serves {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::exit::code_of;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn only_its_owner_may_connect_and_it_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/control.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn an_abandoned_socket_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        // As after kill -9: the file stays.
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert_eq!(code_of(&error), Exit::Conflict, "{error:#}");
        assert!(error.to_string().contains("control.sock"), "{error:#}");
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "words").unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert_eq!(code_of(&error), Exit::Conflict);
        assert!(error.to_string().contains("precious"), "{error:#}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "words");
    }
}
