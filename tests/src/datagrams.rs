//! A server that answers each datagram with its name.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::PATIENCE;

/// How often the server looks whether it is to stop.
const TICK: Duration = Duration::from_millis(50);

/// The question that is answered with the client's address besides.
const WHO_AND_WHOM: &[u8] = b"who and whom?";

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on a port of all addresses, IPv4 and IPv6, of the calling thread's network namespace.
    pub fn bind(name: &str, port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), name.to_owned());
        let thread = thread::spawn(move || {
            while !stopped.load(SeqCst) {
                let mut question = [0; 64];
                if let Ok((length, client)) = socket.recv_from(&mut question) {
                    let seen = SocketAddr::new(client.ip().to_canonical(), client.port());
                    let answer = match &question[..length] {
                        WHO_AND_WHOM => format!("{name} {seen}"),
                        _ => name.clone(),
                    };
                    // A client that is gone asks no more.
                    let _ = socket.send_to(answer.as_bytes(), client);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A client's socket for the family of an address, on any port of the calling thread's namespace.
pub fn client(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a datagram to an address and waits for the answer: who sent it by what he says and by his
/// address.
pub fn ask_to(socket: &UdpSocket, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    socket.send_to(b"who?", to)?;
    answer(socket)
}

/// Asks once on a socket of its own: who answers by his name, the client as he saw it, and as it sees
/// itself. The answer must come from the address that was asked.
pub fn ask_whom(to: SocketAddr) -> io::Result<(String, [SocketAddr; 2])> {
    let socket = client(to)?;
    // The kernel takes answers only from there.
    socket.connect(to)?;
    socket.send(WHO_AND_WHOM)?;
    let strange = |said: &str| io::Error::new(ErrorKind::InvalidData, said.to_owned());
    let (said, _) = answer(&socket)?;
    let (name, seen) = said.split_once(' ').ok_or_else(|| strange(&said))?;
    let seen = seen.parse().map_err(|_| strange(&said))?;
    Ok((name.to_owned(), [seen, socket.local_addr()?]))
}

/// The same on a connected socket.
pub fn ask_connected(socket: &UdpSocket) -> io::Result<(String, SocketAddr)> {
    socket.send(b"who?")?;
    answer(socket)
}

fn answer(socket: &UdpSocket) -> io::Result<(String, SocketAddr)> {
    let mut bytes = [0; 64];
    let (length, from) = socket.recv_from(&mut bytes)?;
    let name = String::from_utf8(bytes[..length].to_vec());
    Ok((name.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?, from))
}
