//! The backends' side: a server that costs next to nothing, so that the way to it is what counts.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::{Shutdown, shutdown};
use samport_tests::Namespace;

use super::BACKEND_PORT;

/// What comes before the backend's number. `Connection: close` makes a length unnecessary.
pub const ANSWER_START: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nHello from ";
/// What comes after it.
pub const ANSWER_END: &[u8] = b"\n";

/// How long threads may take to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// A server in a backend. It ends when dropped.
pub struct Server {
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens in a namespace. The index is what it answers. With as many threads as the client has,
    /// one backend alone serves as many connections at a time as several.
    pub fn start(namespace: &Namespace, index: usize, threads: usize) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACKEND_PORT)))
            .with_context(|| format!("listen in {}", namespace.name()))?;
        let listener = Arc::new(listener);
        let answer: Arc<[u8]> =
            [ANSWER_START, index.to_string().as_bytes(), ANSWER_END].concat().into();
        let start = |_| {
            let (listener, answer) = (Arc::clone(&listener), Arc::clone(&answer));
            thread::spawn(move || accept_all(&listener, &answer))
        };
        let threads = (0..threads).map(start).collect();
        Ok(Self { listener, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On Linux this ends a listener's waiting accepts, which closing it would not.
        if let Err(error) = shutdown(&self.listener, Shutdown::Both) {
            eprintln!("shut down a listener: {error}");
        }
        let begin = Instant::now();
        while !self.threads.iter().all(JoinHandle::is_finished) && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn accept_all(listener: &TcpListener, answer: &[u8]) {
    loop {
        match listener.accept() {
            // The client counts what fails.
            Ok((stream, _)) => drop(serve(stream, answer)),
            // What `shutdown` leads to.
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

/// Reads one request and answers. Closing first, the server keeps the TIME_WAIT, as HTTP servers do
/// after `Connection: close`.
fn serve(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let (mut buffer, mut length) = ([0; 512], 0);
    while !buffer[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer[length..])? {
            0 => return Ok(()),
            count => length += count,
        }
    }
    stream.write_all(answer)
}
