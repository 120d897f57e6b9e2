//! Clients that ask all the time, on new connections and on those they keep, and write down what becomes of each.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use samport_tests::Namespace;
use samport_tests::load::{Connection, Response, get};

use super::explain::{Request, Stream};

/// Between two requests on new connections of a client.
const PAUSE: Duration = Duration::from_millis(3);
/// Between two rounds on the connections that are kept.
const ROUND: Duration = Duration::from_millis(20);
/// Connections that each of these clients keeps.
const KEPT: usize = 4;

/// The clients at work.
pub struct Clients {
    pub begin: Instant,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Two for each front in each place: one with new connections, one that keeps some. `is_host` says which place is
    /// the host itself.
    pub fn start(places: &[(&Namespace, bool)], fronts: [SocketAddr; 2]) -> Self {
        let mut clients = Self {
            begin: Instant::now(),
            requests: Arc::default(),
            is_over: Arc::default(),
            threads: Vec::new(),
        };
        for (namespace, is_host) in places {
            for front in fronts {
                for is_held in [false, true] {
                    let stream = Stream { is_host: *is_host, is_v6: front.is_ipv6(), is_held };
                    clients.spawn(namespace, front, stream);
                }
            }
        }
        clients
    }

    fn spawn(&mut self, namespace: &Namespace, front: SocketAddr, stream: Stream) {
        let (requests, is_over) = (Arc::clone(&self.requests), Arc::clone(&self.is_over));
        let client = Client { begin: self.begin, requests, is_over, front, stream };
        self.threads.push(
            namespace.spawn(move || if stream.is_held { client.keep() } else { client.connect() }),
        );
    }

    /// What has become of all requests so far.
    pub fn so_far(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, after the last.
    pub fn stop(mut self) -> Vec<Request> {
        self.is_over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client has panicked");
        }
        self.so_far()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
    }
}

struct Client {
    begin: Instant,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    front: SocketAddr,
    stream: Stream,
}

impl Client {
    fn connect(&self) {
        while !self.is_over.load(Relaxed) {
            let begin = self.begin.elapsed();
            let answer = get(self.front, "/").map_err(|error| error.to_string());
            self.write_down(begin, answer.and_then(checked), None, false);
            thread::sleep(PAUSE);
        }
    }

    fn keep(&self) {
        let mut kept: Vec<Held> = Vec::new();
        while !self.is_over.load(Relaxed) {
            while kept.len() < KEPT && !self.is_over.load(Relaxed) {
                kept.extend(self.open());
            }
            kept.retain_mut(|one| self.ask(one));
            thread::sleep(ROUND);
        }
    }

    /// A connection on which one request was answered. A failure is one of a new connection.
    fn open(&self) -> Option<Held> {
        let begin = self.begin.elapsed();
        let opened = Connection::open(self.front).and_then(|mut connection| {
            let answer = connection.get("/")?;
            Ok((connection, answer))
        });
        match opened {
            Ok((connection, answer)) => {
                Some(Held { connection, backend: answer.backend, good: self.begin.elapsed() })
            }
            Err(error) => {
                self.write_down(begin, Err(error.to_string()), None, false);
                thread::sleep(ROUND);
                None
            }
        }
    }

    fn ask(&self, one: &mut Held) -> bool {
        let answer = one.connection.get("/").map_err(|error| error.to_string());
        let answer = answer.and_then(checked).and_then(|answer| {
            let is_same = answer.backend == one.backend;
            is_same.then_some(answer).ok_or_else(|| "another backend has answered".to_owned())
        });
        let is_good = answer.is_ok();
        self.write_down(one.good, answer, number_of(&one.backend), true);
        one.good = self.begin.elapsed();
        is_good
    }

    fn write_down(
        &self,
        begin: Duration,
        answer: Result<Response, String>,
        leads_to: Option<usize>,
        is_held: bool,
    ) {
        let (backend, error) = match answer {
            Ok(answer) => (number_of(&answer.backend), None),
            Err(error) => (leads_to, Some(error)),
        };
        let stream = Stream { is_held, ..self.stream };
        let request = Request { stream, begin, end: self.begin.elapsed(), backend, error };
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }
}

/// A connection that is kept, where it leads, and when it was last good.
struct Held {
    connection: Connection,
    backend: String,
    good: Duration,
}

/// An answer as it should be.
fn checked(answer: Response) -> Result<Response, String> {
    if answer.status != 200 {
        return Err(format!("{} answered {}", answer.backend, answer.status));
    }
    if answer.client != answer.local_addr {
        return Err(format!("{} took {} for {}", answer.backend, answer.local_addr, answer.client));
    }
    Ok(answer)
}

/// `web-1` is the first, number 0.
fn number_of(backend: &str) -> Option<usize> {
    backend.strip_prefix("web-")?.parse::<usize>().ok()?.checked_sub(1)
}
