//! A small HTTP/1.1 server that says who it is and who asked.
//!
//! It uses nothing but std, so that `tests/image/main.rs` can compile this very folder into a static
//! binary, the only one in the test containers' image.
//! So it is `server/mod.rs`: what a `#[path]` leads to looks for its modules beside it.
//!
//! - `GET /` answers `Hello from NAME`, with `X-Backend: NAME` and `X-Client: IP:PORT`.
//! - `GET /bytes/N` answers N bytes, byte i being i mod 251.
//! - `POST /sink` expects the same bytes and answers `ok N`, or 500 if they are others.
//! - `GET /slow/MS` answers after that many milliseconds.
//! - `GET /health` answers 200, or what `POST /health/STATUS` has said, and never if that was 0.

mod container;
mod http;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use container::run_from_environment;
pub use http::pattern;

/// How long a thread sleeps in the kernel before it looks whether the server is to stop.
const TICK: Duration = Duration::from_millis(50);
/// While stopping, a connection that has not asked anything yet is waited for this many ticks.
const PATIENCE_TICKS: u32 = 20;
/// Threads kept waiting in `accept`; a connection that finds one costs no new thread.
const SPARE_WORKERS: usize = 4;
/// Longest stop: requests still running after it are left behind.
const STOP_LIMIT: Duration = Duration::from_secs(10);

const RUNNING: u8 = 0;
const STOPPING: u8 = 1;
const ABORTING: u8 = 2;

/// A running server. Dropped without [`Server::stop`] it breaks off, as a crashed one does.
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    listener: Mutex<Option<Arc<TcpListener>>>,
    phase: AtomicU8,
    /// What `/health` answers; 0 for nothing.
    health: AtomicU16,
    /// Threads that are in `accept`.
    waiting: AtomicUsize,
    /// All threads.
    workers: AtomicUsize,
}

impl Server {
    /// Listens on a port of all addresses, IPv4 and IPv6, of the calling thread's network
    /// namespace.
    pub fn bind(name: &str, port: u16) -> io::Result<Self> {
        // On Linux [::] takes IPv4 too; 0.0.0.0 is for machines without IPv6.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            listener: Mutex::new(Some(Arc::new(with_accept_timeout(listener)?))),
            phase: AtomicU8::new(RUNNING),
            health: AtomicU16::new(200),
            waiting: AtomicUsize::new(0),
            workers: AtomicUsize::new(0),
        });
        start_worker(&shared)?;
        Ok(Self { shared })
    }

    /// The name the server answers with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Sets the status of `/health`; with 0 it does not answer.
    pub fn set_health(&self, status: u16) {
        self.shared.health.store(status, SeqCst);
    }

    /// Stops as a well-behaved server does: answers what has been connected, closes the listener
    /// once nothing more comes, and returns when the requests in flight have been answered.
    pub fn stop(self) {
        self.leave(STOPPING);
    }

    /// Serves until the process ends.
    pub fn serve_forever(&self) -> ! {
        loop {
            thread::park();
        }
    }

    fn leave(&self, phase: u8) {
        self.shared.phase.fetch_max(phase, SeqCst);
        let begin = Instant::now();
        while self.shared.workers.load(SeqCst) > 0 && begin.elapsed() < STOP_LIMIT {
            // Under constant load the accept queue never empties by itself.
            if phase == ABORTING || begin.elapsed() > TICK * PATIENCE_TICKS {
                self.shared.close();
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.shared.close();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.leave(ABORTING);
    }
}

impl Shared {
    fn listener(&self) -> Option<Arc<TcpListener>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn close(&self) {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn phase(&self) -> u8 {
        self.phase.load(SeqCst)
    }
}

/// Makes `accept` give up after a tick. std offers the timeout for streams alone; the socket option
/// is the same.
fn with_accept_timeout(listener: TcpListener) -> io::Result<TcpListener> {
    let socket = TcpStream::from(OwnedFd::from(listener));
    socket.set_read_timeout(Some(TICK))?;
    Ok(TcpListener::from(OwnedFd::from(socket)))
}

/// A thread of the server; counted as long as this lives, whichever way the thread ends.
struct Worker(Arc<Shared>);

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.workers.fetch_sub(1, SeqCst);
    }
}

fn start_worker(shared: &Arc<Shared>) -> io::Result<()> {
    shared.workers.fetch_add(1, SeqCst);
    let worker = Worker(Arc::clone(shared));
    thread::Builder::new().name(shared.name.clone()).spawn(move || work(&worker.0)).map(drop)
}

/// Takes connections one after another. The last one waiting starts another thread before it serves,
/// so somebody always waits, and short connections need no new thread.
fn work(shared: &Arc<Shared>) {
    while let Some(listener) = shared.listener() {
        shared.waiting.fetch_add(1, SeqCst);
        let accepted = listener.accept();
        let last = shared.waiting.fetch_sub(1, SeqCst) == 1;
        drop(listener);
        match accepted {
            Ok((stream, peer)) => {
                if last {
                    // Without the new thread the next connection waits until this one is served.
                    let _ = start_worker(shared);
                }
                // A client that goes away in the middle is no concern of the server.
                let _ = http::serve(shared, stream, peer);
                if shared.waiting.load(SeqCst) >= SPARE_WORKERS {
                    return;
                }
            }
            Err(error) if timed_out(&error) && shared.phase() == RUNNING => {}
            Err(error) if timed_out(&error) => shared.close(),
            // Out of descriptors, most likely: those in use come back.
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
