//! Constant load of new connections, and what came of each.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Namespace, Response, get};

/// Between two requests of a thread: enough load to hit every gap, and some CPU left for others.
const PAUSE: Duration = Duration::from_micros(500);

/// How often each backend has answered.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tally(BTreeMap<String, u32>);

impl Tally {
    /// Counts one answer.
    pub fn add(&mut self, backend: &str) {
        *self.0.entry(backend.to_owned()).or_default() += 1;
    }

    /// How often one backend has answered.
    #[must_use]
    pub fn of(&self, backend: &str) -> u32 {
        self.0.get(backend).copied().unwrap_or(0)
    }

    /// How often anyone has answered.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.0.values().sum()
    }

    /// Name and count of all that have answered, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// The counts, by name.
    #[must_use]
    pub fn counts(&self) -> Vec<u32> {
        self.0.values().copied().collect()
    }

    /// What has come since an earlier tally of the same load.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let news = self.iter().map(|(name, count)| (name.to_owned(), count - earlier.of(name)));
        Self(news.filter(|(_, count)| *count > 0).collect())
    }
}

impl fmt::Display for Tally {
    /// As `sort | uniq -c` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.iter().map(|(name, count)| format!("{count:7} Hello from {name}"));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

/// A request that was not answered as it should have been.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it failed.
    pub at: Instant,
    /// How long after the load's begin.
    pub after: Duration,
    /// Why.
    pub text: String,
}

/// What came of a load.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// Requests that were answered.
    pub tally: Tally,
    /// Requests that were not, or with another client address than the client's own.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Panics with the first failures unless there are none and some requests were answered.
    pub fn assert_no_failure(&self) {
        assert!(self.failures.is_empty(), "{self}");
        assert!(self.tally.total() > 0, "the load has sent nothing");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (answered, failed) = (self.tally.total(), self.failures.len());
        write!(f, "{answered} answered, {failed} failed")?;
        for failure in self.failures.iter().take(10) {
            write!(f, "\n  after {:.3} s: {}", failure.after.as_secs_f64(), failure.text)?;
        }
        Ok(())
    }
}

/// Threads that ask `GET /` over and over, each time on a new connection.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    begin: Instant,
    stopping: AtomicBool,
    report: Mutex<Report>,
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, address: SocketAddr) {
        let fault = match get(address, "/") {
            Ok(response) => {
                self.report().tally.add(&response.backend);
                fault_of(&response)
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(text) = fault {
            let at = Instant::now();
            self.report().failures.push(Failure { at, after: at - self.begin, text });
        }
    }
}

fn fault_of(response: &Response) -> Option<String> {
    let Response { status, backend, client, local_addr, .. } = response;
    if *status != 200 {
        return Some(format!("{backend} answered {status}"));
    }
    (client != local_addr).then(|| format!("{backend} took {local_addr} for {client}"))
}

impl Load {
    /// Starts the load from a namespace.
    #[must_use]
    pub fn start(namespace: &Namespace, address: SocketAddr, threads: usize) -> Self {
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            stopping: AtomicBool::new(false),
            report: Mutex::default(),
        });
        let start = |_| {
            let shared = Arc::clone(&shared);
            namespace.spawn(move || {
                while !shared.stopping.load(Ordering::Relaxed) {
                    shared.ask(address);
                    thread::sleep(PAUSE);
                }
            })
        };
        let threads = (0..threads).map(start).collect();
        Self { shared, threads }
    }

    /// What has come of it so far.
    #[must_use]
    pub fn so_far(&self) -> Report {
        self.shared.report().clone()
    }

    /// Waits until that many more requests have been answered; false if they are not in time.
    #[must_use]
    pub fn wait_for_more(&self, requests: u32, timeout: Duration) -> bool {
        let (begin, before) = (Instant::now(), self.shared.report().tally.total());
        while self.shared.report().tally.total() < before + requests {
            if begin.elapsed() > timeout {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Ends the load: each thread finishes its request.
    #[must_use]
    pub fn stop(mut self) -> Report {
        self.join();
        self.so_far()
    }

    fn join(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a thread of the load has panicked");
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}
