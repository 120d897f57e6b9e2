//! Connections that are kept, and must be answered by the same backend from the beginning to the end.

use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use samport::lab::Namespace;

use crate::load::Connection;

/// A connection, and who has answered on it first.
#[derive(Debug)]
pub struct Kept {
    /// The connection.
    pub connection: Connection,
    /// The backend's name.
    pub backend: String,
}

impl Kept {
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

    /// Asks on each; panics with how many have failed, and why, unless the same backends answer.
    pub fn check_all(kept: &mut [Self]) {
        let mut failed = Vec::new();
        for Self { connection, backend } in &mut *kept {
            let own = connection.local_addr();
            match connection.get("/") {
                Ok(answer) if answer.backend == *backend => {}
                Ok(answer) => failed.push(format!("{own}: {} and not {backend}", answer.backend)),
                Err(error) => failed.push(format!("{own} to {backend}: {error}")),
            }
        }
        let (first, all) = (&failed[..failed.len().min(10)], kept.len());
        assert!(failed.is_empty(), "{} of {all} connections failed: {first:#?}", failed.len());
    }
}

/// Asks on connections all the time until it is stopped.
#[derive(Debug)]
pub struct Asking {
    thread: JoinHandle<Vec<Kept>>,
    stop: Arc<AtomicBool>,
}

impl Asking {
    /// Begins.
    #[must_use]
    pub fn start(mut kept: Vec<Kept>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                kept.iter_mut().for_each(Kept::check);
            }
            kept
        });
        Self { thread, stop }
    }

    /// The connections; panics if one of them was answered by another backend, or not at all.
    #[must_use]
    pub fn stop(self) -> Vec<Kept> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}
