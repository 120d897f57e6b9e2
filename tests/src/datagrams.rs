//! Servers of datagrams: one that answers with its name, one that sends back what it gets.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{TIMEOUT, eventually};

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
    /// Listens on a port of all addresses, IPv4 and IPv6, of the calling thread's network namespace,
    /// and answers with its name.
    pub fn bind(name: &str, port: u16) -> io::Result<Self> {
        let name = name.to_owned();
        Self::start(listen(port)?, move |question, client| {
            let answer = match question {
                WHO_AND_WHOM => format!("{name} {client}"),
                _ => name.clone(),
            };
            Some(answer.into_bytes())
        })
    }

    /// Sends every datagram back with its name at the beginning: see [`mirrored`].
    pub fn mirror(name: &str, port: u16) -> io::Result<Self> {
        let name = name.to_owned();
        Self::start(listen(port)?, move |datagram, _| Some(mirrored(&name, datagram)))
    }

    /// The same in segments of this length, many of which the kernel hands over and takes at once.
    pub fn mirror_segments(name: &str, port: u16, length: i32) -> io::Result<Self> {
        let (name, socket) = (name.to_owned(), listen(port)?);
        set_udp_option(&socket, libc::UDP_SEGMENT, length)?;
        set_udp_option(&socket, libc::UDP_GRO, 1)?;
        Self::start(socket, move |datagrams, _| Some(mirrored(&name, datagrams)))
    }

    /// Receives and says nothing, but sends the name of the receiver for each datagram.
    pub fn silent(name: &str, port: u16, heard: Sender<(String, Vec<u8>)>) -> io::Result<Self> {
        let name = name.to_owned();
        Self::start(listen(port)?, move |datagram, _| {
            // A test that has ended listens no more.
            let _ = heard.send((name.clone(), datagram.to_vec()));
            None
        })
    }

    fn start(
        socket: UdpSocket,
        answer: impl Fn(&[u8], SocketAddr) -> Option<Vec<u8>> + Send + 'static,
    ) -> io::Result<Self> {
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stopped.load(SeqCst) {
                if let Ok((length, client)) = socket.recv_from(&mut buffer)
                    && let Some(answer) = answer(&buffer[..length], canonical(client))
                {
                    // A client that is gone asks no more.
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

fn listen(port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
}

/// What [`Echo::mirror`] makes of a datagram: its first bytes are the server's name.
#[must_use]
pub fn mirrored(name: &str, datagram: &[u8]) -> Vec<u8> {
    let mut answer = datagram.to_vec();
    let length = name.len().min(answer.len());
    answer[..length].copy_from_slice(&name.as_bytes()[..length]);
    answer
}

/// What a connected socket gets for a question, sent again as long as its own timeout passes without an answer.
#[must_use]
pub fn ask_until_answered(socket: &UdpSocket, question: &[u8], what: &str) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let length = eventually(&format!("an answer: {what}"), || {
        socket.send(question).expect("send the question");
        socket.recv(&mut buffer).ok()
    });
    buffer.truncate(length);
    buffer
}

/// Sets an option of UDP on a socket.
pub fn set_udp_option(socket: &UdpSocket, option: i32, value: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, option, value)
}

/// Gives a socket a receive buffer of this many bytes, whatever the machine's limit is.
pub fn set_receive_buffer(socket: &UdpSocket, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value lives until the call has returned, and is as long as we say.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// IPv4 as such, not in the form a socket for IPv6 gives it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
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
    socket.set_read_timeout(Some(TIMEOUT))?;
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
