//! UDP with real sockets.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::Duration;

use samport::lab::{Backend, Builder};
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::datagrams::{
    Echo, ask_connected, ask_to, client, mirrored, set_receive_buffer, set_udp_option,
};
use samport_tests::load::ask;
use samport_tests::served::{LISTEN, Served, TARGET};
use samport_tests::{Lab, TIMEOUT, eventually, require_root};

use crate::lab;

/// Every way to a backend.
pub const WAYS: [&str; 3] = ["peer", "neigh", "stack"];

/// A served lab whose backends answer datagrams too.
pub struct Datagrams {
    pub served: Served,
    echoes: BTreeMap<String, Echo>,
}

impl Datagrams {
    pub fn start(
        builder: Builder,
        options: &[&str],
        bind: impl Fn(&str, u16) -> std::io::Result<Echo> + Sync,
    ) -> Self {
        require_root();
        Self::start_in(builder.build().unwrap(), options, bind)
    }

    pub fn start_in(
        lab: Lab,
        options: &[&str],
        bind: impl Fn(&str, u16) -> std::io::Result<Echo> + Sync,
    ) -> Self {
        let options = [&["-p", "80:9090/udp"], options].concat();
        let served = Served::start(lab, &options);
        let echo = |backend: &Backend| {
            let echo = backend.namespace().run(|| bind(backend.name(), TARGET)).unwrap();
            (backend.name().to_owned(), echo)
        };
        let echoes = served.lab.backends().iter().map(echo).collect();
        Self { served, echoes }
    }

    /// Ends the server of datagrams of a backend: its port is closed then.
    pub fn stop_echo(&mut self, name: &str) {
        self.echoes.remove(name).unwrap_or_else(|| panic!("{name} has no server"));
    }

    /// Starts it again.
    pub fn start_echo(&mut self, name: &str) {
        let backends = self.served.lab.backends();
        let backend = backends.iter().find(|backend| backend.name() == name).unwrap();
        let echo = backend.namespace().run(|| Echo::bind(name, TARGET)).unwrap();
        self.echoes.insert(name.to_owned(), echo);
    }

    pub fn echo(backends: u8, options: &[&str]) -> Self {
        Self::start(Lab::builder().backends(backends), options, Echo::bind)
    }

    pub fn on_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.served.lab.client().run(work)
    }
}

pub fn connected(front: SocketAddr) -> UdpSocket {
    let socket = client(front).unwrap();
    socket.connect(front).unwrap();
    socket
}

/// Case 4: TCP and UDP on one port are independent: each has its backends, and one client port may
/// use both at once.
#[test]
fn tcp_and_udp_on_one_port_have_backends_of_their_own() {
    let lab = lab(2);
    let _servers = lab.serve(TARGET).unwrap();
    let echo = |backend: &Backend| backend.namespace().run(|| Echo::bind(backend.name(), TARGET));
    let _echoes: Vec<_> = lab.backends().iter().map(|backend| echo(backend).unwrap()).collect();
    let entry = |backend: &Backend, listen: &str| {
        [backend.v4(TARGET), backend.v6(TARGET)]
            .map(|to| format!("[[backend]]\naddress = \"{to}\"\nlisten = \"{listen}\"\n"))
            .concat()
    };
    let [first, second] = lab.backends() else { panic!("two backends") };
    let file = Backends::none();
    file.write_text(&[entry(first, "80/tcp"), entry(second, "80/udp")].concat());
    let args = ["-i", "eth0", "-p", "80,80/udp", "--file", file.path()];
    let daemon = Daemon::start(&lab, &args);
    let fronts = [lab.front(LISTEN), lab.front_v6(LISTEN)];
    for front in fronts {
        assert_eq!(ask(&lab, front, 30).of("web-1"), 30);
        lab.client().run(|| {
            for _ in 0..30 {
                let stream = std::net::TcpStream::connect(front).unwrap();
                let same_port = SocketAddr::new(stream.local_addr().unwrap().ip(), 0);
                let port = stream.local_addr().unwrap().port();
                let socket = UdpSocket::bind(SocketAddr::new(same_port.ip(), port)).unwrap();
                socket.set_read_timeout(Some(TIMEOUT)).unwrap();
                assert_eq!(ask_to(&socket, front).unwrap(), ("web-2".into(), front));
            }
        });
    }
    // Without backends for UDP, TCP goes on.
    let mark = daemon.mark();
    file.write_text(&entry(first, "80/tcp"));
    for address in [second.v4(TARGET), second.v6(TARGET)] {
        daemon.wait_for_line_after(mark, &address.to_string(), TIMEOUT);
    }
    for front in fronts {
        assert_eq!(ask(&lab, front, 30).of("web-1"), 30);
    }
}

/// Questions from 900 ports, as a resolver asks them: each backend answers about a third. A share is
/// off by more than 5 σ (14 each) once in a million runs.
#[test]
fn datagrams_from_many_ports_are_shared_out_evenly() {
    let datagrams = Datagrams::echo(3, &[]);
    for front in datagrams.served.fronts() {
        let mut tally = BTreeMap::new();
        datagrams.on_client(|| {
            // All kept until the end: no port is used twice.
            let sockets: Vec<_> = (0..900).map(|_| connected(front)).collect();
            for socket in &sockets {
                let (name, from) = ask_connected(socket).unwrap();
                assert_eq!(from, front);
                *tally.entry(name).or_insert(0) += 1;
            }
        });
        assert_eq!(tally.len(), 3, "{tally:?}");
        assert!(tally.values().all(|count| (229..=371).contains(count)), "{tally:?}");
    }
    assert_eq!(datagrams.served.status().sum("flows"), 1_800);
}

/// Case 89: IPv6 end to end for UDP.
#[test]
fn datagrams_over_ipv6_need_nothing_else() {
    let lab = lab(2);
    let echo = |backend: &Backend| backend.namespace().run(|| Echo::bind(backend.name(), TARGET));
    let _echoes: Vec<_> = lab.backends().iter().map(|backend| echo(backend).unwrap()).collect();
    let mut file = Backends::none();
    for backend in lab.backends() {
        file.add(backend.name(), backend.v6(TARGET));
    }
    let _daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80/udp", "--file", file.path()]);
    lab.client().run(|| {
        let front = lab.front_v6(LISTEN);
        for _ in 0..50 {
            assert_eq!(ask_connected(&connected(front)).unwrap().1, front);
        }
        // IPv4 has no backend: refused, not silence.
        let error = ask_connected(&connected(lab.front(LISTEN))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn datagrams_go_every_way() {
    for way in WAYS {
        for hook in ["tcx", "tc"] {
            let options = ["--forward", way, "--hook", hook];
            let datagrams = Datagrams::echo(2, &options);
            for front in datagrams.served.fronts() {
                datagrams.on_client(|| {
                    for _ in 0..20 {
                        let socket = connected(front);
                        let (name, _) = ask_connected(&socket).unwrap();
                        assert_eq!(ask_connected(&socket).unwrap().0, name, "{way} {hook}");
                    }
                });
            }
        }
    }
}

/// Sends 10 MB in datagrams of 1,200 bytes to the mirrors, 16 on their way at a time, and compares
/// what comes back.
fn transfer(builder: Builder) {
    let datagrams = Datagrams::start(builder, &[], Echo::mirror);
    for front in datagrams.served.fronts() {
        datagrams.on_client(|| {
            let socket = connected(front);
            let mut buffer = vec![0; 2_000];
            let mut name = None;
            for begin in (0..8_334_u32).step_by(16) {
                let sent: Vec<_> = (begin..begin + 16).map(numbered).collect();
                for datagram in &sent {
                    socket.send(datagram).unwrap();
                }
                for datagram in sent {
                    let length = socket.recv(&mut buffer).unwrap();
                    let backend = String::from_utf8(buffer[..5].to_vec()).unwrap();
                    assert_eq!(*name.get_or_insert(backend.clone()), backend);
                    assert!(buffer[..length] == mirrored(&backend, &datagram), "{front}: changed");
                }
            }
        });
    }
}

/// A datagram of 1,200 bytes that no other is like.
fn numbered(number: u32) -> Vec<u8> {
    let words = (0..300u32).map(|word| number.wrapping_mul(2_654_435_761).wrapping_add(word));
    words.flat_map(u32::to_be_bytes).collect()
}

/// Case 18: tx offload off everywhere: 10 MB arrives intact, over UDP.
#[test]
fn ten_megabytes_of_datagrams_arrive_intact_with_checksums_computed_by_the_senders() {
    transfer(Lab::builder().backends(2).tx_offload_off());
}

/// Case 18: the same with checksums left to devices.
#[test]
fn ten_megabytes_of_datagrams_arrive_intact() {
    transfer(Lab::builder().backends(2));
}

/// Case 20: UDP_SEGMENT intact: 40 datagrams that the kernel carries as one, there and back.
#[test]
fn segments_that_are_sent_at_once_arrive_intact() {
    const SEGMENT: i32 = 1_200;
    for way in WAYS {
        let bind = |name: &str, port| Echo::mirror_segments(name, port, SEGMENT);
        let datagrams = Datagrams::start(Lab::builder().backends(2), &["--forward", way], bind);
        for front in datagrams.served.fronts() {
            datagrams.on_client(|| {
                let socket = connected(front);
                set_receive_buffer(&socket, 4_000_000).unwrap();
                set_udp_option(&socket, libc::UDP_SEGMENT, SEGMENT).unwrap();
                let sent: Vec<u8> = (0..40).flat_map(numbered).collect();
                for _ in 0..20 {
                    socket.send(&sent).unwrap();
                    let mut received = Vec::new();
                    while received.len() < sent.len() {
                        let mut buffer = [0; 2_000];
                        let length = socket.recv(&mut buffer).unwrap();
                        assert_eq!(length, 1_200, "{way} {front}");
                        received.extend_from_slice(&buffer[..length]);
                    }
                    let name = String::from_utf8(received[..5].to_vec()).unwrap();
                    assert!(received == mirrored(&name, &sent), "{way} {front}: changed");
                }
            });
        }
        let status = datagrams.served.status();
        // One packet a send, were it not for the neighbours' first.
        let mean = status.sum("bytes_in") / status.sum("packets_in");
        assert!(mean > 40_000, "{way}: frames of {mean} bytes to the backends");
        let mean = status.sum("bytes_out") / status.sum("packets_out");
        assert!(mean > 40_000, "{way}: frames of {mean} bytes from the backends");
    }
}

/// Case 35: UDP sticky until timeout: who asks again and again stays, who pauses for longer than the
/// timeout is chosen for anew.
#[test]
fn a_client_stays_with_its_backend_until_the_timeout() {
    let options = ["--udp-timeout", "4s", "--udp-unanswered-timeout", "1s"];
    let datagrams = Datagrams::echo(2, &options);
    for front in datagrams.served.fronts() {
        datagrams.on_client(|| {
            let sockets: Vec<_> = (0..20).map(|_| connected(front)).collect();
            let ask = || -> Vec<_> {
                sockets.iter().map(|socket| ask_connected(socket).unwrap().0).collect()
            };
            let first = ask();
            // Longer than the timeout altogether.
            for _ in 0..24 {
                sleep(Duration::from_millis(250));
                assert_eq!(ask(), first);
            }
            eventually("another backend after a pause", || {
                sleep(Duration::from_secs(6));
                (ask() != first).then_some(())
            });
        });
    }
}

/// Case 35, for clients that were never answered, who have a timeout of their own.
#[test]
fn a_client_without_an_answer_is_chosen_for_anew_sooner() {
    let (sender, heard) = channel();
    let options = ["--udp-timeout", "1h", "--udp-unanswered-timeout", "1s"];
    let bind = {
        let sender = std::sync::Mutex::new(sender);
        move |name: &str, port| Echo::silent(name, port, sender.lock().unwrap().clone())
    };
    let datagrams = Datagrams::start(Lab::builder().backends(2), &options, bind);
    for front in datagrams.served.fronts() {
        let sockets: Vec<_> = datagrams.on_client(|| (0..20).map(|_| connected(front)).collect());
        let tell = || {
            for (number, socket) in (0..).zip(&sockets) {
                socket.send(&[number]).unwrap();
            }
            let heard = sockets.iter().map(|_| heard.recv_timeout(TIMEOUT).unwrap());
            let by_number: BTreeMap<_, _> = heard.map(|(name, number)| (number, name)).collect();
            assert_eq!(by_number.len(), sockets.len());
            by_number
        };
        let first = tell();
        eventually("another backend after a pause", || {
            sleep(Duration::from_secs(3));
            (tell() != first).then_some(())
        });
    }
}

/// Case 57: UDP to a removed backend re-selects at its next datagram: the client's socket, and with it its
/// port, stays the same, and nothing it sends is lost. Sockets of other backends stay where they are.
#[test]
fn the_next_datagram_to_a_backend_that_is_gone_goes_to_another_one() {
    let mut datagrams = Datagrams::echo(3, &["--drain", "1"]);
    for (front, gone) in datagrams.served.fronts().into_iter().zip(["web-1", "web-2"]) {
        let sockets: Vec<_> = datagrams.on_client(|| (0..60).map(|_| connected(front)).collect());
        let ask = || sockets.iter().map(|socket| ask_connected(socket).unwrap());
        let before: Vec<_> = ask().collect();
        assert!(before.iter().any(|(name, _)| name == gone), "{front}: {before:?}");
        datagrams.served.change(("-", gone, "on :80/udp gone"), |file| file.remove(gone));
        for ((was, _), (is, from)) in before.iter().zip(ask()) {
            assert!(is != gone && from == front, "{is} answered from {from}");
            assert!(was == gone || *was == is, "{was} is there, and {is} answered");
        }
        // The choice is for good.
        assert!(ask().eq(ask()));
    }
}
