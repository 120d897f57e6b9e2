//! The backends' side: servers that cost next to nothing, so that the way to them is what counts. A thread for each CPU
//! serves the listeners of all backends.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{accept_with, bind, listen, recv, send, socket_with, sockopt};
use samport_tests::Namespace;

use super::client::After;
use super::{BACKEND_PORT, options};

/// What is asked.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: samport.example\r\n\r\n";
/// What comes before the backend's number, of two digits.
const ANSWER_START: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nHello from ";
const BACKLOG: i32 = 4096;
/// How events name what ends the threads; listeners are named by their places from 0 on.
const STOP: u64 = u64::MAX;
/// How events name connections: by this and their descriptors.
const CONNECTION: u64 = 1 << 32;

/// As many as there are CPUs.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Which backend has sent an answer; nothing if it is no backend's, or not all of one.
pub fn backend_of(answer: &[u8]) -> Option<usize> {
    match answer.strip_prefix(ANSWER_START)? {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => {
            Some(usize::from((tens - b'0') * 10 + ones - b'0'))
        }
        _ => None,
    }
}

/// Listens in a namespace; with `shares_port`, others may listen on the same port.
pub fn listener(namespace: &Namespace, shares_port: bool) -> Result<OwnedFd> {
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseport(&socket, shares_port)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, BACKEND_PORT))?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    let socket: rustix::io::Result<OwnedFd> = namespace.run(make);
    socket.with_context(|| format!("listen in {}", namespace.name()))
}

/// Servers of all backends. They end when this is dropped.
pub struct Servers {
    stop: OwnedFd,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Each listener's place is what is answered there.
    pub fn start(listeners: Vec<OwnedFd>, after: After) -> Result<Self> {
        if after == After::Another {
            let mut listeners = listeners.iter();
            listeners.try_for_each(options::accept_with_request).context("set TCP_DEFER_ACCEPT")?;
        }
        let listeners: Arc<[OwnedFd]> = listeners.into();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("make an event descriptor")?;
        let mut servers = Self { stop, threads: Vec::new() };
        for _ in 0..threads() {
            let thread = Thread::new(Arc::clone(&listeners), &servers.stop, after)
                .context("watch the listeners")?;
            servers.threads.push(thread::spawn(|| thread.run()));
        }
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            eprintln!("stop the servers: {error}");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a server's thread has panicked");
            }
        }
    }
}

/// One thread's view of all listeners, and the connections it has accepted.
struct Thread {
    epoll: OwnedFd,
    listeners: Arc<[OwnedFd]>,
    answers: Vec<Vec<u8>>,
    after: After,
    /// By descriptor: those that are waited for, and whose backend each is.
    open: HashMap<u64, (OwnedFd, usize)>,
}

impl Thread {
    fn new(listeners: Arc<[OwnedFd]>, stop: &OwnedFd, after: After) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        // A connection wakes one thread.
        let interest = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        for (index, listener) in (0..).zip(listeners.iter()) {
            epoll::add(&epoll, listener, epoll::EventData::new_u64(index), interest)?;
        }
        let answer = |index| [ANSWER_START, format!("{index:02}").as_bytes()].concat();
        let answers = (0..listeners.len()).map(answer).collect();
        Ok(Self { epoll, listeners, answers, after, open: HashMap::new() })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("wait for connections: {error}"),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    STOP => return,
                    name if name >= CONNECTION => {
                        if let Some((socket, backend)) = self.open.remove(&name) {
                            self.serve(socket, backend, true);
                        }
                    }
                    index => self.accept(usize::try_from(index).unwrap_or(0)),
                }
            }
        }
    }

    fn accept(&mut self, backend: usize) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match accept_with(&self.listeners[backend], flags) {
                Ok(socket) => self.serve(socket, backend, false),
                Err(Errno::AGAIN) => return,
                // Closed before it was accepted.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => {
                    eprintln!("accept: {error}");
                    return;
                }
            }
        }
    }

    /// Answers if there is a request. Closing first, the server keeps the TIME_WAIT, as HTTP servers do
    /// after `Connection: close`. The client counts what fails.
    fn serve(&mut self, socket: OwnedFd, backend: usize, is_watched: bool) {
        let mut buffer = [0; 256];
        match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return,
            Ok((length, _)) if buffer[..length].ends_with(b"\r\n\r\n") => {
                let sent = send(&socket, &self.answers[backend], SendFlags::NOSIGNAL);
                if sent.is_err() || self.after == After::Another {
                    return;
                }
            }
            // Still to come.
            Err(Errno::AGAIN) => {}
            // Half a request would be strange: all of it fits into any segment.
            Ok(_) | Err(_) => return,
        }
        let name = CONNECTION + u64::try_from(socket.as_raw_fd()).unwrap_or(0);
        let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(name);
        if is_watched || epoll::add(&self.epoll, &socket, data, interest).is_ok() {
            self.open.insert(name, (socket, backend));
        }
    }
}
