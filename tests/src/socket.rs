//! Client sockets with a local port of one's choice, and questions on them.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

/// Longest wait for a connection or an answer: several SYN retransmissions.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Connects from a local port, which sockets to other destinations may use at the same time.
pub fn connect_from(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    connect_between(SocketAddr::new(any, port), to)
}

/// Connects from a local address of the other one's family; port 0 is any.
pub fn connect_between(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    connect_within(TIMEOUT, from, to)
}

/// The same with another time that connecting, and each answer, may take.
pub fn connect_within(
    timeout: Duration,
    from: SocketAddr,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    for direction in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, direction, Some(timeout))?;
    }
    bind(&socket, &from)?;
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

/// An answer of the lab's server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The backend's name.
    pub backend: String,
    /// The client as the backend saw it.
    pub client: SocketAddr,
    /// The body.
    pub body: Vec<u8>,
}

/// Asks on a connection and keeps it.
pub fn ask_on(stream: &TcpStream, path: &str) -> io::Result<Answer> {
    send_question(stream, path)?;
    read_answer(stream)
}

/// The question alone.
pub fn send_question(mut stream: &TcpStream, path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())
}

/// The answer alone.
pub fn read_answer(mut stream: &TcpStream) -> io::Result<Answer> {
    let mut head = Vec::new();
    // Byte by byte: nothing of the body may be taken.
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head);
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        found.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("no {name} in {head}")))
    };
    let strange = || io::Error::new(ErrorKind::InvalidData, head.clone().into_owned());
    let length = header("content-length")?.parse().map_err(|_| strange())?;
    let client = header("x-client")?.parse().map_err(|_| strange())?;
    let backend = header("x-backend")?.to_owned();
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Answer { backend, client, body })
}
