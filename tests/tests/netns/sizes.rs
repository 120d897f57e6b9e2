//! Everything arrives whole, whatever its size and whichever way it takes, or its sender is told: a table of all ways, which
//! docs/concepts/sizes.md shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use samport::lab::{Backend, CLIENT_V4, CLIENT_V6};
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::datagrams::{Echo, mirrored};
use samport_tests::load::Connection;
use samport_tests::served::{LISTEN, Status, TARGET};
use samport_tests::socket::connect_between;
use samport_tests::{HOST_V4, HOST_V6, Lab, Server, eventually, require_root};

use crate::datagrams::WAYS;
use crate::sources::{FAR, add_second_link, route_requests_by_eth1, set_rp_filter};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/concepts/sizes.md");
const HEAD: &str = "\
# Packet sizes: what arrives, by size and forwarding mode

Made by the test `sizes::everything_arrives_whole_or_its_sender_is_told` with `SAMPORT_WRITE_REFERENCE=1`, which fails when
anything here has changed. Clients and the host's uplink have an MTU of 9,000 bytes, containers and their bridge of 1,500; each backend echoes
every byte.

- *whole*: all bytes arrive, and all of the reply.
- *told*: the client's kernel is told the size by ICMP, in the name of the address that was dialled, and refuses the next
  datagram (`EMSGSIZE`): its program sends smaller ones, or fragments.

Datagrams of 100 bytes to 8,952, the largest that fits in 9,000 with the headers of IPv6, over IPv4 and IPv6. \"DF\" is what QUIC and path MTU discovery
set; without it they may be sent in fragments. TCP is 1 MB each way on one connection.

";

/// What the host's uplink is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Uplink {
    Veth,
    Bridge,
    Vlan,
    TwoWithoutRules,
    TwoWithRules,
}

impl Uplink {
    const ALL: [Self; 5] =
        [Self::Veth, Self::Bridge, Self::Vlan, Self::TwoWithoutRules, Self::TwoWithRules];

    const fn name(self) -> &'static str {
        match self {
            Self::Veth => "one, a veth",
            Self::Bridge => "one, a port of a bridge",
            Self::Vlan => "one, a VLAN",
            Self::TwoWithoutRules => "two, client at the second",
            Self::TwoWithRules => "two, with policy rules",
        }
    }

    /// The `-i` of samport.
    const fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::Veth => &["eth0"],
            Self::Bridge => &["up0"],
            Self::Vlan => &["eth0.100"],
            Self::TwoWithoutRules | Self::TwoWithRules => &["eth0", "eth1"],
        }
    }

    /// The client's addresses.
    fn client(self) -> [IpAddr; 2] {
        match self {
            Self::Veth | Self::Bridge | Self::Vlan => [CLIENT_V4.into(), CLIENT_V6.into()],
            Self::TwoWithoutRules | Self::TwoWithRules => FAR.map(|addr| addr.parse().unwrap()),
        }
    }

    /// Makes it; false if this kernel has no such device.
    fn make(self, lab: &Lab) -> bool {
        let (host, client) = (lab.host(), lab.client());
        for end in [host, client] {
            end.batch("link set eth0 mtu 9000\n").unwrap();
        }
        match self {
            Self::Veth => {}
            Self::Bridge => {
                host.batch(&format!(
                    "link add up0 type bridge\n\
                     link set up0 mtu 9000\n\
                     addr flush dev eth0\n\
                     link set eth0 master up0\n\
                     addr add {HOST_V4}/24 dev up0\n\
                     addr add {HOST_V6}/64 dev up0 nodad\n\
                     link set up0 up\n"
                ))
                .unwrap();
            }
            Self::Vlan => {
                let tag = ["link", "add", "link", "eth0", "eth0.100", "type", "vlan", "id", "100"];
                if host.ip(&tag).is_err_and(|error| format!("{error:#}").contains("Unknown device"))
                {
                    return false;
                }
                client.ip(&tag).unwrap();
                for (end, v4, v6) in [
                    (host, IpAddr::from(HOST_V4), IpAddr::from(HOST_V6)),
                    (client, CLIENT_V4.into(), CLIENT_V6.into()),
                ] {
                    end.batch(&format!(
                        "addr flush dev eth0\n\
                         addr add {v4}/24 dev eth0.100\n\
                         addr add {v6}/64 dev eth0.100 nodad\n\
                         link set eth0.100 up\n"
                    ))
                    .unwrap();
                }
            }
            Self::TwoWithoutRules | Self::TwoWithRules => {
                add_second_link(lab);
                set_rp_filter(host, "0");
                set_rp_filter(client, "0");
                for end in [host, client] {
                    end.batch("link set eth1 mtu 9000\n").unwrap();
                }
                route_requests_by_eth1(client);
                let (v4, v6) = (
                    "10.9.0.0/24 via 198.51.100.2 dev eth1",
                    "2001:db8:9::/64 via fe80::2 dev eth1",
                );
                let table = if self == Self::TwoWithRules { " table 100" } else { "" };
                host.batch(&format!("route add {v4}{table}\nroute add {v6}{table}\n")).unwrap();
                if self == Self::TwoWithRules {
                    // For what the host says itself.
                    let default = format!(
                        "route add default via {CLIENT_V4} dev eth0\nroute add ::/0 via fe80::2 dev eth0\n"
                    );
                    host.batch(&default).unwrap();
                    for (family, from) in [("-4", HOST_V4.to_string()), ("-6", HOST_V6.to_string())]
                    {
                        host.ip(&[family, "rule", "add", "from", &from, "lookup", "100"]).unwrap();
                    }
                }
            }
        }
        true
    }
}

/// A host with an uplink and samport, whose backends send everything back.
struct Bed {
    daemon: Daemon,
    _file: Backends,
    _servers: Vec<Server>,
    _echoes: Vec<Echo>,
    lab: Lab,
    uplink: Uplink,
}

impl Bed {
    /// `None` if this kernel has no such uplink.
    fn start(uplink: Uplink, way: &str) -> Option<Self> {
        let lab = Lab::builder().backends(2).build().unwrap();
        if !uplink.make(&lab) {
            return None;
        }
        let servers = lab.serve(TARGET).unwrap();
        let echo =
            |one: &Backend| one.namespace().run(|| Echo::mirror(one.name(), TARGET)).unwrap();
        let echoes = lab.backends().iter().map(echo).collect();
        let file = Backends::dual(&lab, TARGET);
        let mut args = vec!["-p", "80:9090", "-p", "80:9090/udp", "--forward", way];
        args.extend(uplink.interfaces().iter().flat_map(|name| ["-i", name]));
        args.extend(["--file", file.path()]);
        let daemon = Daemon::start(&lab, &args);
        Some(Self { daemon, _file: file, _servers: servers, _echoes: echoes, lab, uplink })
    }

    fn fronts() -> [SocketAddr; 2] {
        [SocketAddr::new(HOST_V4.into(), LISTEN), SocketAddr::new(HOST_V6.into(), LISTEN)]
    }

    /// One megabyte each way on a connection.
    fn assert_tcp_is_whole(&self) {
        self.lab.client().run(|| {
            for (own, front) in self.uplink.client().into_iter().zip(Self::fronts()) {
                let stream = connect_between(SocketAddr::new(own, 0), front).unwrap();
                let mut connection = Connection::over(stream, front).unwrap();
                assert!(connection.get("/bytes/1000000").unwrap().is_pattern());
                assert_eq!(connection.post(1_000_000).unwrap().text(), "ok 1000000");
            }
        });
    }

    /// What becomes of a datagram with this payload, IPv4 and IPv6 alike.
    fn outcome(&self, length: usize, df: bool) -> &'static str {
        let outcomes = self.uplink.client().into_iter().zip(Self::fronts()).map(|(own, front)| {
            let what = format!("{} {front} {length} DF {df}", self.uplink.name());
            self.lab.client().run(|| {
                let socket = UdpSocket::bind(SocketAddr::new(own, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                set_df(&socket, own.is_ipv6(), df);
                socket.connect(front).unwrap();
                let question: Vec<u8> = (0..=250).cycle().take(length).collect();
                eventually(&what, || {
                    match socket.send(&question) {
                        Ok(_) => {}
                        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                            return Some("told");
                        }
                        Err(error) => panic!("{what}: {error}"),
                    }
                    let mut buffer = vec![0; 10_000];
                    match socket.recv(&mut buffer) {
                        Ok(got) => {
                            let name = String::from_utf8_lossy(&buffer[..5]).into_owned();
                            assert!(buffer[..got] == mirrored(&name, &question), "{what}");
                            Some("whole")
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Some("told"),
                        Err(error) => panic!("{what}: {error}"),
                    }
                })
            })
        });
        let outcomes: Vec<_> = outcomes.collect();
        assert_eq!(outcomes[0], outcomes[1], "IPv4 and IPv6: {} {length}", self.uplink.name());
        outcomes[0]
    }
}

/// Sets whether a socket's datagrams may be fragmented, by it and on their way.
pub fn set_df(socket: &UdpSocket, v6: bool, df: bool) {
    let (level, option) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    let value: i32 = if df { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
    // SAFETY: the value lives until the call has returned, and is as long as we say.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4)
    };
    assert_eq!(result, 0);
}

/// The payloads that are sent, in bytes: the smallest, what fits in 1,500 with IPv6's header, what just does not, and
/// what just fits in 9,000.
const LENGTHS: [usize; 4] = [100, 1_452, 1_473, 8_952];

#[test]
fn everything_arrives_whole_or_its_sender_is_told() {
    require_root();
    let mut page = HEAD.to_owned();
    let mut missing = Vec::new();
    page.push_str("| uplink | mode | TCP |");
    for df in ["", " DF"] {
        for length in LENGTHS {
            let _ = write!(page, " {length}{df} |");
        }
    }
    page.push_str("\n| --- | --- | --- |");
    page.push_str(&" --- |".repeat(2 * LENGTHS.len()));
    page.push('\n');
    for uplink in Uplink::ALL {
        for way in WAYS {
            let Some(bed) = Bed::start(uplink, way) else {
                missing.push(uplink.name());
                break;
            };
            bed.assert_tcp_is_whole();
            let _ = write!(page, "| {} | `{way}` | whole |", uplink.name());
            let mut counts = BTreeMap::new();
            for df in [false, true] {
                for length in LENGTHS {
                    let outcome = bed.outcome(length, df);
                    *counts.entry(outcome).or_insert(0) += 1;
                    let _ = write!(page, " {outcome} |");
                }
            }
            page.push('\n');
            // Who was told was told for a reason that has a name.
            let status = Status::only_in(bed.lab.host());
            let named: u64 = ["forward-too-big", "icmp-reply", "forward-stack"]
                .iter()
                .map(|name| status.verdict(name))
                .sum();
            assert!(!counts.contains_key("told") || named > 0, "{way}: {status:?}");
            bed.daemon.stop();
        }
    }
    println!("{page}");
    for uplink in missing {
        println!("not run, because this kernel has no such device: {uplink}");
    }
    if std::env::var_os("SAMPORT_WRITE_REFERENCE").is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    let known = fs::read_to_string(PAGE).unwrap_or_default();
    // A kernel with VLANs has rows that this one has not.
    for line in known.lines() {
        assert!(
            page.contains(line),
            "{PAGE} is stale, SAMPORT_WRITE_REFERENCE=1 writes it: {line}"
        );
    }
    assert!(known.lines().count() > 20, "{PAGE}");
}
