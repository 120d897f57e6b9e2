//! A million datagrams, each of which knows where it belongs.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use samport::lab::{Backend, CLIENT_V4, CLIENT_V6};
use samport_tests::TIMEOUT;
use samport_tests::datagrams::{client, set_receive_buffer};
use samport_tests::served::{Served, TARGET};

use crate::lab;

/// Half of them over IPv4, half over IPv6.
const FLOWS: usize = 1_000;
/// Datagrams of a flow that are sent at once.
const AT_ONCE: usize = 50;
/// How often the turn comes to every flow.
const ROUNDS: usize = 20;
/// Datagrams on their way at a time: fewer than a CPU's backlog of 1,000 takes
/// (net.core.netdev_max_backlog), so that none is lost.
const WINDOW: u64 = 600;

/// What stands in a datagram.
#[derive(Clone, Copy)]
struct Mark {
    flow: u32,
    port: u16,
}

impl Mark {
    const LEN: usize = 6;

    fn bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.flow.to_be_bytes());
        bytes[4..].copy_from_slice(&self.port.to_be_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Self {
        let (flow, port) = bytes.split_at(4);
        let flow = u32::from_be_bytes(flow.try_into().expect("a flow"));
        Self { flow, port: u16::from_be_bytes(port.try_into().expect("a port")) }
    }
}

/// Counts what a backend gets of each flow; panics if it is not what its client has sent.
fn count(
    backend: &Backend,
    arrived: &Arc<AtomicU64>,
    stop: &Arc<AtomicBool>,
) -> JoinHandle<Vec<u32>> {
    let (arrived, stop) = (Arc::clone(arrived), Arc::clone(stop));
    let socket = backend.namespace().run(|| UdpSocket::bind(("::", TARGET))).unwrap();
    set_receive_buffer(&socket, 16_000_000).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    std::thread::spawn(move || {
        let mut counts = vec![0; FLOWS];
        let mut buffer = [0; 64];
        while !stop.load(SeqCst) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let mark = Mark::read(&buffer[..length]);
            let client: [IpAddr; 2] = [CLIENT_V4.into(), CLIENT_V6.into()];
            let ip = from.ip().to_canonical();
            assert!(client.contains(&ip) && from.port() == mark.port, "{from}: {}", mark.port);
            counts[mark.flow as usize] += 1;
            arrived.fetch_add(1, SeqCst);
        }
        counts
    })
}

/// Sends the same datagram many times with one system call.
fn send(socket: &UdpSocket, bytes: &[u8]) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros are an empty message.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (&raw mut part, 1);
    let mut messages = [message; AT_ONCE];
    let length = u32::try_from(AT_ONCE).map_err(io::Error::other)?;
    // SAFETY: messages, part and bytes live until the call has returned; the kernel only reads the
    // bytes.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), length, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Cases 20 and 35, in the large: each flow's datagrams go to one backend, and to it only, with the
/// client's own address and port.
#[test]
fn of_a_million_datagrams_none_goes_to_a_wrong_backend() {
    let options = ["-p", "80:9090/udp"];
    let served = Served::start(lab(3), &options);
    let (arrived, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let counters: Vec<_> =
        served.lab.backends().iter().map(|backend| count(backend, &arrived, &stop)).collect();
    let sent = served.lab.client().run(|| {
        let fronts = served.fronts();
        let flow = |(number, front): (u32, &SocketAddr)| {
            let socket = client(*front).unwrap();
            socket.connect(front).unwrap();
            let port = socket.local_addr().unwrap().port();
            (socket, Mark { flow: number, port }.bytes())
        };
        let flows: Vec<_> = (0..).zip(fronts.iter().cycle().take(FLOWS)).map(flow).collect();
        let mut sent = 0;
        for _ in 0..ROUNDS {
            for (socket, mark) in &flows {
                sent += send(socket, mark).unwrap() as u64;
                wait_until(&arrived, sent.saturating_sub(WINDOW));
            }
        }
        wait_until(&arrived, sent);
        sent
    });
    stop.store(true, SeqCst);
    let counts: Vec<_> = counters.into_iter().map(|counter| counter.join().unwrap()).collect();
    assert_eq!(sent, 1_000_000);
    let each = u32::try_from(AT_ONCE * ROUNDS).unwrap();
    for flow in 0..FLOWS {
        let mut of_flow: Vec<_> = counts.iter().map(|counts| counts[flow]).collect();
        of_flow.sort_unstable();
        assert_eq!(of_flow, [0, 0, each], "flow {flow}");
    }
    for counts in counts {
        let flows = counts.iter().filter(|count| **count > 0).count();
        // A third, give or take 5 σ of 15.
        assert!((258..=409).contains(&flows), "{flows} flows of {FLOWS}");
    }
    assert_eq!(served.status().sum("packets_in"), sent);
}

fn wait_until(arrived: &AtomicU64, wanted: u64) {
    let begin = Instant::now();
    while arrived.load(SeqCst) < wanted {
        assert!(begin.elapsed() < TIMEOUT, "{} of {wanted} have arrived", arrived.load(SeqCst));
        sleep(Duration::from_micros(20));
    }
}
