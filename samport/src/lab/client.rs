//! The client's side of the lab's HTTP: one question a connection, or several.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::server::pattern;

/// Long enough for the SYN retransmissions after 1 and 3 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for any part of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the pattern sent or compared at a time.
const CHUNK: usize = 251 * 256;

/// What a server of the lab has answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Name of the backend.
    pub backend: String,
    /// The client as the backend saw it.
    pub client: SocketAddr,
    /// The client as it sees itself; samport keeps the two equal.
    pub local_addr: SocketAddr,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text, without the line's end.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }

    /// Whether the body is the first bytes of what `/bytes/N` sends.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        let chunks = self.body.chunks(CHUNK).enumerate();
        chunks.fold(true, |good, (i, chunk)| good && *chunk == *pattern(i * CHUNK, chunk.len()))
    }
}

/// Asks once, on a new connection, from the calling thread's network namespace.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Response> {
    let mut connection = Connection::open(address)?;
    connection
        .send(&format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))?;
    connection.receive()
}

/// A connection that is kept between questions.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    local_addr: SocketAddr,
    address: SocketAddr,
}

impl Connection {
    /// Connects from the calling thread's network namespace.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?, address)
    }

    /// Over a stream that was connected to the address.
    pub fn over(stream: TcpStream, address: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(READ_TIMEOUT))?;
        let local_addr = stream.local_addr()?;
        Ok(Self { stream: BufReader::new(stream), local_addr, address })
    }

    /// The client's end.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The socket, for options and half closes.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Asks, and keeps the connection.
    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address))?;
        self.receive()
    }

    /// Asks with any method, like `POST /health/503`, and without a body.
    pub fn ask(&mut self, question: &str) -> io::Result<Response> {
        self.send(&format!(
            "{question} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n",
            self.address
        ))?;
        self.receive()
    }

    /// Sends that many bytes of the pattern to `/sink`, which finds them right.
    pub fn post(&mut self, length: usize) -> io::Result<Response> {
        let chunks = (0..length).step_by(CHUNK);
        self.post_chunks(length, chunks.map(|offset| pattern(offset, CHUNK.min(length - offset))))
    }

    /// Sends any bytes to `/sink`.
    pub fn post_bytes(&mut self, bytes: &[u8]) -> io::Result<Response> {
        self.post_chunks(bytes.len(), [bytes])
    }

    fn post_chunks<'a>(
        &mut self,
        length: usize,
        chunks: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<Response> {
        let address = self.address;
        let head =
            format!("POST /sink HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n");
        self.send(&head)?;
        for chunk in chunks {
            self.stream.get_mut().write_all(chunk)?;
        }
        self.receive()
    }

    fn send(&mut self, request: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(request.as_bytes())
    }

    fn receive(&mut self) -> io::Result<Response> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut headers = HashMap::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let number = |name: &str| headers.get(name).and_then(|text| text.parse().ok());
        let mut body = vec![0; number("content-length").ok_or_else(|| strange(&status_line))?];
        self.stream.read_exact(&mut body)?;
        let client = headers.get("x-client").and_then(|text| text.parse().ok());
        Ok(Response {
            status: status.ok_or_else(|| strange(&status_line))?,
            backend: headers.remove("x-backend").unwrap_or_default(),
            client: client.ok_or_else(|| strange(&status_line))?,
            local_addr: self.local_addr,
            body,
        })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed before the answer's end",
            ));
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

fn strange(status_line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("no answer of the lab's server: {status_line}"),
    )
}
