//! The client's side: a thread for each CPU, each with many connections open. It makes few system calls and hardly ever
//! sleeps, so that the way to the servers is what most of the time goes into.

use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, connect, recv, send, socket_with};
use samport_tests::Namespace;

use super::outcome::Outcome;
use super::server::{self, REQUEST};

/// Answers before a measurement: ARP, lazily allocated memory, the CPU's clock.
const WARM_UP: u32 = 400;
/// The whole range that an unprivileged client could use.
const FIRST_PORT: u32 = 1024;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a thread sleeps at most: then it looks at the clock.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What becomes of a connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// The server closes it, and another one is opened.
    Another,
    /// The next question goes over it.
    Stay,
}

/// Questions from a namespace to one address.
pub struct Load<'a> {
    client: &'a Namespace,
    target: SocketAddrV4,
    backends: usize,
    at_once: usize,
    threads: usize,
    after: After,
    /// Every connection has a client port of its own, taken here. So no contender's figure depends
    /// on how it, or the server's TIME_WAIT, takes to a port that comes again.
    next_port: AtomicU32,
}

impl<'a> Load<'a> {
    /// That many connections will be open at a time.
    pub fn new(
        client: &'a Namespace,
        target: SocketAddrV4,
        backends: usize,
        at_once: usize,
        after: After,
    ) -> Result<Self> {
        // A client that gets no answer gives up after 1 + 2 + 4 s, not after two minutes.
        client.sysctl("net/ipv4/tcp_syn_retries", "2")?;
        let threads = server::threads().min(at_once);
        let next_port = AtomicU32::new(FIRST_PORT);
        Ok(Self { client, target, backends, at_once, threads, after, next_port })
    }

    /// Asks a few hundred times. All have to be answered.
    pub fn warm_up(&self) -> Result<()> {
        let outcome = self.run_while(&|answered| answered < WARM_UP);
        match &outcome.first_failure {
            Some(why) => bail!(
                "{} of {} connections of the warm-up failed, the first: {why}",
                outcome.failures,
                outcome.failures + outcome.answered()
            ),
            None => Ok(()),
        }
    }

    /// Asks for that long, or until the ports are used up.
    pub fn run(&self, time: Duration) -> Outcome {
        let end = Instant::now() + time;
        self.run_while(&|_| Instant::now() < end)
    }

    /// Each thread is asked whether to go on with the number of answers it has got.
    fn run_while(&self, go_on: &(impl Fn(u32) -> bool + Sync)) -> Outcome {
        self.client.run(|| {
            let begin = Instant::now();
            // Threads inherit the namespace of the one that starts them.
            let outcomes: Vec<Outcome> = thread::scope(|scope| {
                let start = |index| scope.spawn(move || Worker::new(self, index).run(go_on));
                let threads: Vec<_> = (0..self.threads).map(start).collect();
                threads.into_iter().map(|t| t.join().expect("a client thread panicked")).collect()
            });
            let mut sum = Outcome::none(self.backends);
            for outcome in outcomes {
                sum.merge(outcome);
            }
            sum.time = begin.elapsed();
            sum
        })
    }

    fn take_port(&self) -> Option<u16> {
        u16::try_from(self.next_port.fetch_add(1, Ordering::Relaxed)).ok()
    }
}

/// A thread's connections.
struct Worker<'a> {
    load: &'a Load<'a>,
    epoll: OwnedFd,
    /// Their places in this list are what events name them by.
    calls: Vec<Call>,
    outcome: Outcome,
}

/// What is done with one of the connections that are open at a time.
enum Call {
    None,
    Dialled { socket: OwnedFd },
    Asked { socket: OwnedFd, at: Instant },
}

impl<'a> Worker<'a> {
    fn new(load: &'a Load<'a>, index: usize) -> Self {
        let share = (load.at_once + index) / load.threads;
        Self {
            load,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).expect("make an epoll descriptor"),
            calls: (0..share).map(|_| Call::None).collect(),
            outcome: Outcome::none(load.backends),
        }
    }

    fn run(mut self, go_on: &impl Fn(u32) -> bool) -> Outcome {
        for index in 0..self.calls.len() {
            self.dial(index);
        }
        let mut events = Vec::with_capacity(self.calls.len());
        let mut last_event = Instant::now();
        let mut is_going_on = true;
        while self.calls.iter().any(|call| !matches!(call, Call::None)) {
            is_going_on = is_going_on && go_on(self.outcome.answered());
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&LOOK)) {
                Ok(0) if last_event.elapsed() > TIMEOUT => break,
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => last_event = Instant::now(),
                Err(error) => panic!("wait for answers: {error}"),
            }
            for event in events.drain(..) {
                let index = usize::try_from(event.data.u64()).expect("the number of a connection");
                self.go_on_with(index, event.flags, is_going_on);
            }
        }
        let unanswered = self.calls.iter().filter(|call| !matches!(call, Call::None)).count();
        for _ in 0..unanswered {
            self.outcome.fail(format!("no answer in {} s", TIMEOUT.as_secs()));
        }
        self.outcome
    }

    /// Opens a connection, if there is a port left for it.
    fn dial(&mut self, index: usize) {
        let Some(port) = self.load.take_port() else { return };
        match self.try_dial(index, port) {
            Ok(socket) => self.calls[index] = Call::Dialled { socket },
            Err(error) => self.outcome.fail(format!("connect: {error}")),
        }
    }

    fn try_dial(&self, index: usize, port: u16) -> rustix::io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        match connect(&socket, &self.load.target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let interest = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(index as u64), interest)?;
        Ok(socket)
    }

    fn go_on_with(&mut self, index: usize, flags: epoll::EventFlags, is_going_on: bool) {
        // With the end of the connection its whole answer is there, and one read gets it.
        let awaited = match self.load.after {
            After::Another => epoll::EventFlags::RDHUP,
            After::Stay => epoll::EventFlags::IN,
        };
        let awaited = awaited | epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        match mem::replace(&mut self.calls[index], Call::None) {
            Call::Dialled { socket } => self.ask(index, socket),
            Call::Asked { socket, at } if flags.intersects(awaited) => {
                self.hear(index, socket, at, is_going_on);
            }
            other => self.calls[index] = other,
        }
    }

    /// Sends the question; a connection that could not be made says so here.
    fn ask(&mut self, index: usize, socket: OwnedFd) {
        let at = Instant::now();
        match send(&socket, REQUEST, SendFlags::NOSIGNAL) {
            Ok(_) => self.calls[index] = Call::Asked { socket, at },
            Err(error) => {
                self.outcome.fail(format!("connect or send: {error}"));
                self.dial(index);
            }
        }
    }

    fn hear(&mut self, index: usize, socket: OwnedFd, asked: Instant, is_going_on: bool) {
        let mut buffer = [0; 256];
        let answer = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => server::backend_of(&buffer[..length]),
            // The event was for something else, like room to send in.
            Err(Errno::AGAIN) => {
                self.calls[index] = Call::Asked { socket, at: asked };
                return;
            }
            Err(error) => {
                self.outcome.fail(format!("receive: {error}"));
                if is_going_on {
                    self.dial(index);
                }
                return;
            }
        };
        match answer.filter(|backend| *backend < self.load.backends) {
            Some(backend) => self.outcome.count(backend, asked.elapsed()),
            None => self.outcome.fail("not the answer of a backend".to_owned()),
        }
        if is_going_on {
            match self.load.after {
                After::Stay if answer.is_some() => self.ask(index, socket),
                After::Stay | After::Another => {
                    drop(socket);
                    self.dial(index);
                }
            }
        }
    }
}
