//! One connection: requests in, answers out.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use super::{ABORTING, PATIENCE_TICKS, RUNNING, STOPPING, Shared, TICK, timed_out};

/// Longest request head that is read, in bytes.
const HEAD_LIMIT: usize = 16 * 1024;
/// Bytes written or compared at a time; a multiple of the pattern's period of 251.
const CHUNK: usize = 251 * 256;

/// Answers the requests of one connection until either side has had enough.
pub(super) fn serve(shared: &Shared, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let mut connection = Connection { shared, stream, peer, buffer: Vec::new(), served: 0 };
    while let Some(request) = connection.read_request()? {
        connection.answer(&request)?;
        connection.served += 1;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

struct Connection<'a> {
    shared: &'a Shared,
    stream: TcpStream,
    peer: SocketAddr,
    /// What has been read and not used.
    buffer: Vec<u8>,
    served: u32,
}

struct Request {
    method: String,
    path: String,
    length: usize,
    keep_alive: bool,
    expects_continue: bool,
}

impl Request {
    fn parse(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, path, version) = (words.next()?, words.next()?, words.next()?);
        let mut request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            length: 0,
            keep_alive: version != "HTTP/1.0",
            expects_continue: false,
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                request.length = value.parse().ok()?;
            } else if name.eq_ignore_ascii_case("connection") {
                request.keep_alive = !value.eq_ignore_ascii_case("close")
                    && (request.keep_alive || value.eq_ignore_ascii_case("keep-alive"));
            } else if name.eq_ignore_ascii_case("expect") {
                request.expects_continue = true;
            }
        }
        Some(request)
    }
}

impl Connection<'_> {
    /// The next request, or nothing when the client or the server has had enough.
    fn read_request(&mut self) -> io::Result<Option<Request>> {
        loop {
            // A client that asks without a pause keeps no server that breaks off.
            if self.shared.phase() == ABORTING {
                return Ok(None);
            }
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let request =
                    std::str::from_utf8(&self.buffer[..end]).ok().and_then(Request::parse);
                self.buffer.drain(..end + 4);
                return Ok(request);
            }
            if self.buffer.len() > HEAD_LIMIT || !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads more into the buffer; false when there is nothing to wait for.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 * 1024];
        let mut ticks = 0;
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Ok(true);
                }
                Err(error) if timed_out(&error) => {
                    ticks += 1;
                    let idle = self.served > 0 && self.buffer.is_empty();
                    let enough = match self.shared.phase() {
                        RUNNING => false,
                        STOPPING => idle || ticks > PATIENCE_TICKS,
                        _ => true,
                    };
                    if enough {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, request: &Request) -> io::Result<()> {
        if request.expects_continue {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let name = &self.shared.name;
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/") => self.reply(request, "200 OK", &format!("Hello from {name}\n")),
            ("GET", "/health") => self.reply_health(request),
            ("POST", path) if path.starts_with("/health/") => {
                let status = split_number(path).and_then(|(_, number)| number.try_into().ok());
                self.shared.health.store(status.unwrap_or(0), SeqCst);
                self.reply(request, "200 OK", "")
            }
            ("POST", "/sink") => {
                let (status, said) = match self.sink(request.length)? {
                    Ok(()) => ("200 OK", format!("ok {}\n", request.length)),
                    Err(offset) => {
                        ("500 Internal Server Error", format!("other bytes near {offset}\n"))
                    }
                };
                self.reply(request, status, &said)
            }
            ("GET", path) => match split_number(path) {
                Some(("/bytes", count)) => self.reply_bytes(request, count),
                Some(("/slow", ms)) => {
                    thread::sleep(Duration::from_millis(ms.try_into().unwrap_or(0)));
                    self.reply(request, "200 OK", &format!("Hello from {name} after {ms} ms\n"))
                }
                _ => self.reply(request, "404 Not Found", "no such page\n"),
            },
            _ => self.reply(request, "405 Method Not Allowed", "no such method\n"),
        }
    }

    fn head(&self, request: &Request, status: &str, length: usize) -> String {
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\
             X-Backend: {}\r\nX-Client: {}\r\n\r\n",
            self.shared.name, self.peer
        )
    }

    fn reply(&mut self, request: &Request, status: &str, body: &str) -> io::Result<()> {
        let message = self.head(request, status, body.len()) + body;
        self.stream.write_all(message.as_bytes())
    }

    fn reply_health(&mut self, request: &Request) -> io::Result<()> {
        while self.shared.health.load(SeqCst) == 0 && self.shared.phase() == RUNNING {
            thread::sleep(TICK);
        }
        let status = self.shared.health.load(SeqCst).to_string();
        self.reply(request, &format!("{status} as told"), "")
    }

    fn reply_bytes(&mut self, request: &Request, count: usize) -> io::Result<()> {
        let head = self.head(request, "200 OK", count);
        self.stream.write_all(head.as_bytes())?;
        for offset in (0..count).step_by(CHUNK) {
            self.stream.write_all(pattern(offset, CHUNK.min(count - offset)))?;
        }
        Ok(())
    }

    /// Reads a body of the pattern; says near which offset it is another.
    fn sink(&mut self, length: usize) -> io::Result<Result<(), usize>> {
        let (mut offset, mut verdict) = (0, Ok(()));
        while offset < length {
            if self.buffer.is_empty() && !self.fill()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let count = self.buffer.len().min(length - offset).min(CHUNK);
            if verdict.is_ok() && self.buffer[..count] != *pattern(offset, count) {
                verdict = Err(offset);
            }
            self.buffer.drain(..count);
            offset += count;
        }
        Ok(verdict)
    }
}

fn split_number(path: &str) -> Option<(&str, usize)> {
    let (front, number) = path.rsplit_once('/')?;
    Some((front, number.parse().ok()?))
}

/// The bytes from `offset` on of what `/bytes` sends and `/sink` expects; at most 64,256 of them.
#[must_use]
pub fn pattern(offset: usize, length: usize) -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = PATTERN.get_or_init(|| (0..=250).cycle().take(CHUNK + 251).collect());
    &bytes[offset % 251..][..length]
}
