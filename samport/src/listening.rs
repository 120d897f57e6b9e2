//! Who listens on a port of this machine already.

use anyhow::Result;
use procfs::net::TcpState;
use procfs::process::FDTarget;

use crate::exit::{Exit, coded};

/// Refuses ports that a socket of this network namespace listens on: it would get no more
/// connections through the interface, and nobody would know why.
///
/// # Errors
/// [`Exit::Conflict`], naming the process.
pub fn refuse_taken(ports: &[u16]) -> Result<()> {
    // /proc/net is a convenience: without it nothing can be said.
    let v4 = procfs::net::tcp().unwrap_or_default();
    let v6 = procfs::net::tcp6().unwrap_or_default();
    let taken = v4.into_iter().chain(v6).find(|socket| {
        socket.state == TcpState::Listen
            && ports.contains(&socket.local_address.port())
            && !socket.local_address.ip().is_loopback()
    });
    let Some(socket) = taken else { return Ok(()) };
    let port = socket.local_address.port();
    let (who, way_out) = match owner(socket.inode) {
        Some((pid, name)) if name.starts_with("docker-proxy") => (
            format!("a container that publishes it (docker-proxy, pid {pid})"),
            "remove it from that container's `ports:`",
        ),
        Some((pid, name)) => (format!("{name} (pid {pid})"), "stop it"),
        None => ("another process".to_owned(), "stop it"),
    };
    Err(coded(
        Exit::Conflict,
        format!("port {port} is listened on by {who}; {way_out}, or choose another port with -p"),
    ))
}

/// The process that holds a socket.
fn owner(inode: u64) -> Option<(i32, String)> {
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let holds = process
            .fd()
            .ok()?
            .flatten()
            .any(|fd| matches!(fd.target, FDTarget::Socket(of) if of == inode));
        holds.then(|| Some((process.pid(), process.stat().ok()?.comm))).flatten()
    })
}
