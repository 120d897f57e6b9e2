//! Connections that are kept, and must be answered by the same backend from the beginning to the end.

use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use samport::lab::Namespace;

use crate::load::Connection;

/// A connection, and who has answered on it first.
#[derive(Debug)]
pub struct OpenConnection {
    /// The connection.
    pub connection: Connection,
    /// The backend's name.
    pub backend: String,
}

impl OpenConnection {
    /// That many connections from a namespace to each front, each asked on once; panics at the first failure.
    #[must_use]
    pub fn open(from: &Namespace, fronts: &[SocketAddr], each: usize) -> Vec<Self> {
        let open = |front: SocketAddr| {
            let mut connection =
                Connection::open(front).unwrap_or_else(|e| panic!("connect to {front}: {e}"));
            let answer = connection.get("/").unwrap_or_else(|e| panic!("ask {front}: {e}"));
            Self { connection, backend: answer.backend }
        };
        let fronts = fronts.iter().flat_map(|front| std::iter::repeat_n(*front, each));
        from.run(|| fronts.map(open).collect())
    }

    /// Asks; panics unless the same backend answers.
    pub fn check(&mut self) {
        let own = self.connection.local_addr();
        match self.connection.get("/") {
            Ok(answer) => assert_eq!(answer.backend, self.backend, "connection of {own}"),
            Err(error) => panic!("connection of {own} to {}: {error}", self.backend),
        }
    }

    /// Asks, and says why unless the same backend answers.
    fn ask(&mut self) -> Result<(), String> {
        let Self { connection, backend } = self;
        let own = connection.local_addr();
        match connection.get("/") {
            Ok(answer) if answer.backend == *backend => Ok(()),
            Ok(answer) => Err(format!("{own}: {} and not {backend}", answer.backend)),
            Err(error) => Err(format!("{own} to {backend}: {error}")),
        }
    }

    /// Asks on each; panics with how many have failed, and why, unless the same backends answer.
    pub fn check_all(kept: &mut [Self]) {
        let failed: Vec<_> = kept.iter_mut().filter_map(|one| one.ask().err()).collect();
        let (first, all) = (&failed[..failed.len().min(10)], kept.len());
        assert!(failed.is_empty(), "{} of {all} connections failed: {first:#?}", failed.len());
    }
}

/// Asks on connections all the time until it is stopped.
#[derive(Debug)]
pub struct Requests {
    thread: JoinHandle<Vec<OpenConnection>>,
    stop: Arc<AtomicBool>,
}

impl Requests {
    /// Begins.
    #[must_use]
    pub fn start(mut kept: Vec<OpenConnection>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                kept.iter_mut().for_each(OpenConnection::check);
            }
            kept
        });
        Self { thread, stop }
    }

    /// Begins to ask on each connection once in so much time, one after the other.
    #[must_use]
    pub fn each_within(mut kept: Vec<OpenConnection>, time: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let count = u32::try_from(kept.len()).expect("few connections");
        let thread = thread::spawn(move || {
            let begin = Instant::now();
            for turn in 0.. {
                let due = begin + time / count * turn;
                while Instant::now() < due {
                    if stopped.load(Relaxed) {
                        return kept;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                kept[(turn % count) as usize].check();
            }
            kept
        });
        Self { thread, stop }
    }

    /// The connections; panics if one of them was answered by another backend, or not at all.
    #[must_use]
    pub fn stop(self) -> Vec<OpenConnection> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}
