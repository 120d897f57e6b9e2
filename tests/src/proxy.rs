//! A proxy of an engine's socket that lets nothing through but what reads: who sits behind it cannot start, stop or
//! change anything.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use samport::lab::Namespace;

/// Longest head of a request.
const HEAD: usize = 16 << 10;

/// A proxy at work. Dropped, it takes no more connections.
pub struct ReadingProxy {
    listener: TcpListener,
    address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
}

/// What was asked for.
#[derive(Clone, Default, Debug)]
struct Heard {
    /// The paths that were let through, with `ID` for what differs.
    passed: BTreeSet<String>,
    refused: Vec<String>,
}

/// What is behind the proxy, and what may be asked of it.
#[derive(Clone)]
struct Behind {
    socket: PathBuf,
    /// Like `/containers/ID/json`.
    paths: BTreeSet<String>,
}

impl ReadingProxy {
    /// Listens on a loopback address of a namespace, and lets GET and HEAD of these paths through to a socket.
    #[must_use]
    pub fn start(namespace: &Namespace, socket: &Path, paths: BTreeSet<String>) -> Self {
        let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0")).expect("listen");
        let address = listener.local_addr().expect("its address");
        let heard = Arc::new(Mutex::new(Heard::default()));
        let behind = Behind { socket: socket.to_owned(), paths };
        let (accepting, log) = (listener.try_clone().expect("clone"), Arc::clone(&heard));
        thread::spawn(move || {
            for client in accepting.incoming() {
                let Ok(client) = client else { return };
                let (behind, log) = (behind.clone(), Arc::clone(&log));
                // A client that goes away in the middle is its own affair.
                thread::spawn(move || behind.serve(client, &log));
            }
        });
        Self { listener, address, heard }
    }

    /// What goes into `DOCKER_HOST`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// The paths that were asked for and let through.
    #[must_use]
    pub fn passed(&self) -> BTreeSet<String> {
        self.heard().passed
    }

    /// The requests that were refused.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        self.heard().refused
    }

    fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ReadingProxy {
    fn drop(&mut self) {
        // Ends the wait for the next client.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

impl Behind {
    /// One request a connection, so that each is looked at.
    fn serve(&self, mut client: TcpStream, log: &Mutex<Heard>) -> io::Result<()> {
        let head = read_head(&mut client)?;
        let line = head.lines().next().unwrap_or_default();
        let allowed = self.allows(line);
        {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            match &allowed {
                Some(path) => drop(log.passed.insert(path.clone())),
                None => log.refused.push(line.to_owned()),
            }
        }
        if allowed.is_none() {
            return client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
        }
        let mut engine = UnixStream::connect(&self.socket)?;
        let kept = head.lines().filter(|line| !line.to_lowercase().starts_with("connection:"));
        let kept: Vec<&str> = kept.take_while(|line| !line.is_empty()).collect();
        let kept = kept.join("\r\n");
        engine.write_all(format!("{kept}\r\nconnection: close\r\n\r\n").as_bytes())?;
        io::copy(&mut engine, &mut client)?;
        client.shutdown(Shutdown::Both)
    }

    /// The path as it is documented, if this request only reads what is documented.
    fn allows(&self, line: &str) -> Option<String> {
        let mut words = line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let path = documented(target);
        (["GET", "HEAD"].contains(&method) && self.paths.contains(&path)).then_some(path)
    }
}

/// `/v1.41/containers/0123/json?size=1` is `/containers/ID/json`.
fn documented(target: &str) -> String {
    let path = target.split('?').next().unwrap_or(target);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let parts = match parts.split_first() {
        Some((version, rest)) if version.starts_with("v1.") => rest,
        _ => &parts[..],
    };
    match parts {
        ["containers", _, "json"] => "/containers/ID/json".to_owned(),
        parts => format!("/{}", parts.join("/")),
    }
}

fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD || client.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData.into())
}
