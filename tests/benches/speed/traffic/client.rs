//! The client's side: connect, ask, read to the end, close; again and again.

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use samport_tests::Lab;

use super::server::{ANSWER_END, ANSWER_START};

/// Connections before a measurement: ARP, lazily allocated memory, the CPU's clock.
const WARM_UP: u32 = 400;
/// The whole range that an unprivileged client could use.
const FIRST_PORT: u32 = 1024;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: samport.example\r\nConnection: close\r\n\r\n";

/// What came of a load.
#[derive(Clone, Default, Debug)]
pub struct Outcome {
    /// Answers of each backend.
    pub answers: Vec<u32>,
    /// Connections without a right answer.
    pub failures: u32,
    /// Why the first of them failed.
    pub first_failure: Option<String>,
    /// From the first connection's start to the last one's end.
    pub time: Duration,
}

impl Outcome {
    /// Connections that were answered.
    pub fn answered(&self) -> u32 {
        self.answers.iter().sum()
    }

    /// Answered connections a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.answered()) / self.time.as_secs_f64()
    }

    fn merge(&mut self, other: &Self) {
        for (sum, count) in self.answers.iter_mut().zip(&other.answers) {
            *sum += count;
        }
        self.failures += other.failures;
        if self.first_failure.is_none() {
            self.first_failure.clone_from(&other.first_failure);
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, answered) = (self.rate(), self.answered());
        write!(f, "{rate:>7.0}/s ({answered} in {:.2} s)", self.time.as_secs_f64())?;
        if let Some(why) = &self.first_failure {
            write!(f, ", {} failed, the first: {why}", self.failures)?;
        }
        Ok(())
    }
}

/// Connections from a lab's client to one address.
pub struct Load<'a> {
    lab: &'a Lab,
    target: SocketAddrV4,
    backends: usize,
    threads: usize,
    /// Every connection has a client port of its own, taken here. So no contender's figure depends
    /// on how it, or the server's TIME_WAIT, takes to a port that comes again.
    next_port: AtomicU32,
}

impl<'a> Load<'a> {
    /// `threads` connections will be open at a time.
    pub fn new(lab: &'a Lab, target: SocketAddrV4, threads: usize) -> Result<Self> {
        // A client that gets no answer gives up after 1 + 2 + 4 s, not after two minutes.
        lab.client().sysctl("net/ipv4/tcp_syn_retries", "2")?;
        let backends = lab.backends().len();
        Ok(Self { lab, target, backends, threads, next_port: AtomicU32::new(FIRST_PORT) })
    }

    /// Makes a few hundred connections. All have to succeed.
    pub fn warm_up(&self) -> Result<()> {
        let outcome =
            self.run_while(|| self.next_port.load(Ordering::Relaxed) < FIRST_PORT + WARM_UP);
        match &outcome.first_failure {
            Some(why) => bail!(
                "{} of {} connections of the warm-up failed, the first: {why}",
                outcome.failures,
                outcome.failures + outcome.answered()
            ),
            None => Ok(()),
        }
    }

    /// Connects for that long, or until the ports are used up.
    pub fn run(&self, time: Duration) -> Outcome {
        let end = Instant::now() + time;
        self.run_while(|| Instant::now() < end)
    }

    fn run_while(&self, go_on: impl Fn() -> bool + Sync) -> Outcome {
        self.lab.client().run(|| {
            let begin = Instant::now();
            // Threads inherit the namespace of the one that starts them.
            let outcomes: Vec<Outcome> = thread::scope(|scope| {
                let start = |_| scope.spawn(|| self.work(&go_on));
                let threads: Vec<_> = (0..self.threads).map(start).collect();
                threads.into_iter().map(|t| t.join().expect("a client thread panicked")).collect()
            });
            let mut sum = Outcome { answers: vec![0; self.backends], ..Outcome::default() };
            for outcome in &outcomes {
                sum.merge(outcome);
            }
            sum.time = begin.elapsed();
            sum
        })
    }

    fn work(&self, go_on: &impl Fn() -> bool) -> Outcome {
        let mut outcome = Outcome { answers: vec![0; self.backends], ..Outcome::default() };
        while go_on()
            && let Some(port) = self.take_port()
        {
            match self.ask(port) {
                Ok(backend) => outcome.answers[backend] += 1,
                Err(error) => {
                    outcome.failures += 1;
                    outcome.first_failure.get_or_insert_with(|| error.to_string());
                }
            }
        }
        outcome
    }

    fn take_port(&self) -> Option<u16> {
        u16::try_from(self.next_port.fetch_add(1, Ordering::Relaxed)).ok()
    }

    /// One connection with one request; the number of the backend that has answered.
    fn ask(&self, port: u16) -> io::Result<usize> {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        connect(&socket, &self.target)?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(REQUEST)?;

        let (mut buffer, mut length) = ([0; 512], 0);
        // The server closes first, as it does after `Connection: close`.
        loop {
            match stream.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.backend_of(&buffer[..length])
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "not the answer of a backend"))
    }

    /// Which backend has sent an answer; nothing if it is no backend's, or not all of one.
    fn backend_of(&self, answer: &[u8]) -> Option<usize> {
        let number = answer.strip_prefix(ANSWER_START)?.strip_suffix(ANSWER_END)?;
        let index = std::str::from_utf8(number).ok()?.parse::<usize>().ok()?;
        (index < self.backends).then_some(index)
    }
}
