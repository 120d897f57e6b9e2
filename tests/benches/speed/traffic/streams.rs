//! TCP streams as fast as they go. What is sent is sent from one file in memory, and what arrives is thrown away in the
//! kernel, so neither side copies: the way between them is what counts.

use std::io;
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create, sendfile};
use rustix::net::sockopt::{Timeout, set_socket_timeout, set_tcp_congestion};
use rustix::net::{RecvFlags, recv, shutdown};

use super::options;
use super::outcome::Outcome;

/// Sent and received in pieces of this size.
const PIECE: usize = 1 << 20;
/// A receiver is woken for this many bytes: being woken for each segment costs more than its way.
const WAKE: i32 = 1 << 18;
/// Of the congestion controls the kernel's own default, whatever the machine's is. BBR sends at the rate that it
/// has measured so far: what is measured then is its measuring.
const CONGESTION: &str = "cubic";
/// Longest wait for anything.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the server to the client.
    Down,
    /// From the client to the server.
    Up,
}

/// What is sent.
pub struct Store(Arc<OwnedFd>);

impl Store {
    pub fn make() -> Result<Self> {
        let file = memfd_create("bulk", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, PIECE as u64)?;
        // Pages of its own, not the one page of zeros.
        rustix::io::pwrite(&file, &vec![0x5a; PIECE], 0)?;
        Ok(Self(Arc::new(file)))
    }
}

/// A server for streams. It ends when dropped.
pub struct Servers {
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
}

impl Servers {
    /// Sends to all that connect, or receives from them, until they have enough.
    pub fn start(listener: OwnedFd, direction: Direction, store: &Store) -> Result<Self> {
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(false).context("make a listener wait")?;
        let (listener, store) = (Arc::new(listener), Arc::clone(&store.0));
        let accepting = thread::spawn({
            let listener = Arc::clone(&listener);
            move || {
                // It ends with `shutdown`.
                for stream in listener.incoming().map_while(Result::ok) {
                    let store = Arc::clone(&store);
                    thread::spawn(move || match direction {
                        Direction::Down => drop(send_while(&stream, &store, || true)),
                        Direction::Up => drop(receive_while(&stream, || true)),
                    });
                }
            }
        });
        Ok(Self { listener, accepting: Some(accepting) })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // On Linux this ends a listener's waiting accepts, which closing it would not.
        if let Err(error) = shutdown(&self.listener, rustix::net::Shutdown::Both) {
            eprintln!("shut down a listener: {error}");
            return;
        }
        if self.accepting.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("a server's thread has panicked");
        }
    }
}

/// That many streams for that long, from the calling thread's namespace.
pub fn run(
    target: SocketAddrV4,
    direction: Direction,
    streams: u8,
    time: Duration,
    store: &Store,
) -> Outcome {
    let mut outcome = Outcome::none(1);
    let connect = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect(target)?;
        set_socket_timeout(&stream, Timeout::Recv, Some(TIMEOUT))?;
        set_socket_timeout(&stream, Timeout::Send, Some(TIMEOUT))?;
        Ok(stream)
    };
    let begin = Instant::now();
    let end = begin + time;
    let results: Vec<io::Result<u64>> = thread::scope(|scope| {
        let work = || {
            let stream = connect()?;
            match direction {
                Direction::Down => receive_while(&stream, || Instant::now() < end),
                Direction::Up => {
                    let sent = send_while(&stream, &store.0, || Instant::now() < end)?;
                    stream.shutdown(Shutdown::Write)?;
                    // The other side closes when it has received all of it.
                    receive_while(&stream, || true).map(|_| sent)
                }
            }
        };
        let threads: Vec<_> = (0..streams).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().expect("a client thread panicked")).collect()
    });
    outcome.time = begin.elapsed();
    for result in results {
        match result {
            Ok(bytes) => outcome.bytes += bytes,
            Err(error) => outcome.fail(error.to_string()),
        }
    }
    outcome
}

fn send_while(stream: &TcpStream, store: &OwnedFd, go_on: impl Fn() -> bool) -> io::Result<u64> {
    set_tcp_congestion(stream, CONGESTION)?;
    let mut sent = 0;
    while go_on() {
        let mut offset = 0;
        sent += sendfile(stream, store, Some(&mut offset), PIECE)? as u64;
    }
    Ok(sent)
}

fn receive_while(stream: &TcpStream, go_on: impl Fn() -> bool) -> io::Result<u64> {
    options::wake_for(stream, WAKE)?;
    let mut buffer = vec![0; PIECE];
    let mut received = 0;
    while go_on() {
        // The kernel only counts what it throws away.
        let (_, length) = recv(stream, &mut buffer[..], RecvFlags::TRUNC)?;
        if length == 0 {
            break;
        }
        received += length as u64;
    }
    Ok(received)
}
