//! A client that connects without end, and remembers when it began each connection and who answered.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use samport_tests::Namespace;

/// Between two connections: how exact the figures are.
const PAUSE: Duration = Duration::from_micros(200);
/// Longest wait for a connection or an answer. One that is lost in between is not one that was refused.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that was answered.
#[derive(Clone, Debug)]
pub struct Answered {
    /// When the client began to connect.
    pub begun: Instant,
    /// The same by the clock on the wall, which containers' events go by.
    pub begun_at: SystemTime,
    pub backend: String,
}

/// The client at work; it ends when dropped.
pub struct Prober {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    /// Connections that were answered, refused or given up.
    ended: AtomicU64,
    answered: Mutex<Vec<Answered>>,
}

impl Prober {
    pub fn start(client: &Namespace, front: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let work = Arc::clone(&shared);
        let thread = client.spawn(move || {
            while !work.stopping.load(Ordering::Relaxed) {
                let (begun, begun_at) = (Instant::now(), SystemTime::now());
                if let Some(backend) = ask(front) {
                    let answer = Answered { begun, begun_at, backend };
                    work.answered.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                }
                work.ended.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PAUSE);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// Everything that was answered so far, in the order it was begun.
    pub fn answered(&self) -> Vec<Answered> {
        self.shared.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more connections have come to their end: none that was begun before hangs.
    pub fn wait_for_more(&self, count: u64) {
        let enough = self.shared.ended.load(Ordering::Relaxed) + count;
        while self.shared.ended.load(Ordering::Relaxed) < enough {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until an answer satisfies; false if there is none in time.
    pub fn wait_for(&self, is_it: impl Fn(&Answered) -> bool, timeout: Duration) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < timeout {
            if self.answered().iter().any(&is_it) {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a client has panicked");
        }
    }
}

/// Who answers, if anybody does.
fn ask(front: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&front, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let name = answer.lines().find_map(|line| line.strip_prefix("X-Backend: "))?;
    Some(name.to_owned())
}
