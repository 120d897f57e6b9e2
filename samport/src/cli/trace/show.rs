//! Traced packets as people and scripts read them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::time::{ClockId, clock_gettime};
use samport_common::trace::{Ends, Seen, Traced};
use samport_common::verdict::{Action, Verdict};
use samport_common::wire::protocol;
use samport_common::wire::tcp::Flags;

use crate::api::types::{SCHEMA, TracedPacket};
use crate::system::instance::Record;

/// What backends are called, by where they answer.
pub(super) struct Names(BTreeMap<SocketAddr, String>);

impl Names {
    pub(super) fn new(names: impl IntoIterator<Item = (SocketAddr, String)>) -> Self {
        Self(names.into_iter().collect())
    }

    pub(super) fn of(record: &Record) -> Self {
        let backends = record.backends.iter();
        Self::new(backends.filter_map(|one| Some((one.endpoint.parse().ok()?, one.name.clone()))))
    }

    /// Where a backend answers that is called this, or answers there.
    pub(super) fn addresses(&self, name: &str) -> Vec<SocketAddr> {
        let is_it = |at: &SocketAddr, called: &String| called == name || at.to_string() == name;
        self.0.iter().filter(|(at, called)| is_it(at, called)).map(|(at, _)| *at).collect()
    }

    /// All names.
    pub(super) fn all(&self) -> String {
        let names: BTreeSet<_> = self.0.values().map(String::as_str).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }

    fn name(&self, at: SocketAddr) -> Option<&str> {
        self.0.get(&at).map(String::as_str)
    }
}

/// What the kernel's clock shows when it is what time.
pub(super) struct Clock {
    /// Nanoseconds since 1970 at the kernel's zero.
    zero_ns: i128,
    zone: TimeZone,
}

impl Clock {
    pub(super) fn now() -> Self {
        let ns = |clock| {
            let now = clock_gettime(clock);
            i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
        };
        let zero_ns = ns(ClockId::Realtime) - ns(ClockId::Monotonic);
        Self { zero_ns, zone: TimeZone::system() }
    }

    fn at(&self, at_ns: u64) -> Timestamp {
        Timestamp::from_nanosecond(self.zero_ns + i128::from(at_ns)).unwrap_or_default()
    }

    fn local(&self, at_ns: u64) -> String {
        self.at(at_ns).to_zoned(self.zone.clone()).strftime("%H:%M:%S%.3f").to_string()
    }

    fn utc(&self, at_ns: u64) -> String {
        self.at(at_ns).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    }
}

/// A line: when, by which verdict, where it was seen, who to whom, and what it became.
pub(super) fn line(traced: &Traced, clock: &Clock, names: &Names) -> String {
    let name = verdict(traced).name();
    let time = clock.local(traced.at_ns);
    let place = place(traced);
    format!("{time} {name:<18} {place:<12} {}", talk(traced, names))
}

/// Who talks to whom, and what became of it.
fn talk(traced: &Traced, names: &Names) -> String {
    let (came, left) = (&traced.came, &traced.left);
    if came.protocol == 0 {
        return format!("no IP, or broken: {} bytes", traced.len);
    }
    let mut protocol = protocol_name(came.protocol);
    if is_icmp(came.protocol) && came.destination_port != [0; 2] {
        protocol.push_str(" about");
    }
    if came.protocol == protocol::TCP && !is_call(traced) {
        protocol = format!("{protocol} {}", flags(Flags(came.flags)));
    }
    let (source, destination) = (shown(source_of(came)), shown(destination_of(came)));
    if is_answered(traced) {
        return format!("{protocol} {source} → {destination}, answered");
    }
    if verdict(traced) == Verdict::LocalRestored {
        return format!("{protocol} {source} is told {}", shown(source_of(left)));
    }
    let called = |at: SocketAddr| match names.name(at) {
        Some(name) if name != at.to_string() => format!("{name} {at}"),
        _ => at.to_string(),
    };
    match (destination_of(left), source_of(left)) {
        (Some(to), _) if Some(to) != destination_of(came) => {
            format!("{protocol} {source} → {destination} → {}", called(to))
        }
        (_, Some(from)) if Some(from) != source_of(came) => {
            let source = source_of(came).map_or(source, called);
            format!("{protocol} {source} → {destination} as {from}")
        }
        _ => format!("{protocol} {source} → {destination}"),
    }
}

/// The document of a packet.
pub(super) fn document(traced: &Traced, clock: &Clock, names: &Names) -> TracedPacket {
    let (came, left) = (&traced.came, &traced.left);
    let verdict = verdict(traced);
    let action = match verdict.action() {
        Action::Pass => "pass",
        Action::Redirect => "redirect",
        Action::Drop => "drop",
    };
    let has_flags = came.protocol == protocol::TCP && !is_call(traced);
    TracedPacket {
        schema: SCHEMA,
        time: clock.utc(traced.at_ns),
        verdict: verdict.name().to_owned(),
        action: action.to_owned(),
        seen: seen_name(traced).to_owned(),
        device: device(traced),
        protocol: (came.protocol != 0).then(|| protocol_name(came.protocol)),
        flags: has_flags.then(|| flags(Flags(came.flags))),
        source: source_of(came),
        destination: destination_of(came),
        left_source: source_of(left),
        left_destination: destination_of(left),
        backend: backend(traced, names).map(str::to_owned),
        bytes: traced.len,
    }
}

/// The name of the backend that a packet went to, or came from.
pub(super) fn backend<'a>(traced: &Traced, names: &'a Names) -> Option<&'a str> {
    let ends = [destination_of(&traced.left), source_of(&traced.came)];
    ends.into_iter().flatten().find_map(|at| names.name(at))
}

/// Whether there must be a backend: the packet was changed, and is no answer of ours.
pub(super) fn has_backend(traced: &Traced) -> bool {
    let (came, left) = (&traced.came, &traced.left);
    let is_changed = |before: Option<SocketAddr>, after: Option<SocketAddr>| {
        before.is_some() && after.is_some() && before != after
    };
    !is_answered(traced)
        && (is_changed(destination_of(came), destination_of(left))
            || is_changed(source_of(came), source_of(left)))
}

fn is_answered(traced: &Traced) -> bool {
    matches!(verdict(traced), Verdict::GoneReset | Verdict::NoBackendReset)
}

/// Before there is a packet there are no flags.
fn is_call(traced: &Traced) -> bool {
    Seen::from_byte(traced.seen) == Seen::Call
}

fn verdict(traced: &Traced) -> Verdict {
    Verdict::from_number(traced.verdict.into()).unwrap_or(Verdict::RewriteFailed)
}

fn source_of(ends: &Ends) -> Option<SocketAddr> {
    end(ends.source, ends.source_port)
}

fn destination_of(ends: &Ends) -> Option<SocketAddr> {
    end(ends.destination, ends.destination_port)
}

/// None if nothing is known of it, as of the own address of a socket that has none yet.
fn end(addr: [u8; 16], port: [u8; 2]) -> Option<SocketAddr> {
    let ip = Ipv6Addr::from(addr).to_canonical();
    (!ip.is_unspecified()).then(|| SocketAddr::new(ip, u16::from_be_bytes(port)))
}

/// An end of a packet without ports is its address.
fn shown(end: Option<SocketAddr>) -> String {
    match end {
        None => "-".to_owned(),
        Some(end) if end.port() == 0 => end.ip().to_string(),
        Some(end) => end.to_string(),
    }
}

const fn is_icmp(number: u8) -> bool {
    matches!(number, protocol::ICMP | protocol::ICMP6)
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        number if is_icmp(number) => "icmp".to_owned(),
        other => format!("protocol {other}"),
    }
}

/// As tcpdump shows them.
fn flags(flags: Flags) -> String {
    const PSH: u8 = 0x08;
    let letters =
        [(Flags::SYN, 'S'), (Flags::FIN, 'F'), (Flags::RST, 'R'), (PSH, 'P'), (Flags::ACK, '.')];
    let set = letters.into_iter().filter(|(bit, _)| flags.0 & bit != 0);
    format!("[{}]", set.map(|(_, letter)| letter).collect::<String>())
}

fn device(traced: &Traced) -> Option<String> {
    if traced.ifindex == 0 {
        return None;
    }
    let name = crate::dataplane::device_name(traced.ifindex).ok();
    Some(name.unwrap_or_else(|| format!("device {}", traced.ifindex)))
}

fn seen_name(traced: &Traced) -> &'static str {
    match Seen::from_byte(traced.seen) {
        Seen::Call => "call",
        Seen::Interface => "interface",
        Seen::Bridge => "bridge",
        Seen::Container => "container",
        Seen::Device => "device",
        Seen::Egress => "egress",
        Seen::Xdp => "xdp",
    }
}

fn place(traced: &Traced) -> String {
    let device = device(traced).unwrap_or_else(|| "this machine".to_owned());
    match Seen::from_byte(traced.seen) {
        Seen::Egress => format!("{device} egress"),
        Seen::Xdp => format!("{device} xdp"),
        Seen::Call | Seen::Interface | Seen::Bridge | Seen::Container | Seen::Device => device,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::encode::wide;
    use crate::model::snapshots::Pages;

    const CLIENT: &str = "192.0.2.2:40000";
    const VIP: &str = "192.0.2.1:80";
    const BACKEND: &str = "172.30.0.10:9090";

    fn ends(source: &str, destination: &str) -> Ends {
        let [source, destination] =
            [source, destination].map(|at| at.parse::<SocketAddr>().unwrap());
        Ends {
            source: wide(source.ip()),
            destination: wide(destination.ip()),
            source_port: source.port().to_be_bytes(),
            destination_port: destination.port().to_be_bytes(),
            protocol: protocol::TCP,
            flags: Flags::SYN,
            ..Ends::default()
        }
    }

    /// Seen at an interface without a name, unless its verdict is one of system calls.
    fn traced(verdict: Verdict, came: Ends, left: Ends) -> Traced {
        let seen = if verdict.name().starts_with("local-") { Seen::Call } else { Seen::Interface };
        Traced { verdict: verdict as u8, seen: seen as u8, came, left, ..Traced::default() }
    }

    fn names() -> Names {
        Names::new([(BACKEND.parse().unwrap(), "web-1".to_owned())])
    }

    fn said(traced: &Traced) -> String {
        talk(traced, &names())
    }

    #[test]
    fn both_ways_name_the_backend() {
        let forward = traced(Verdict::ForwardPeer, ends(CLIENT, VIP), ends(CLIENT, BACKEND));
        assert_eq!(
            said(&forward),
            "tcp [S] 192.0.2.2:40000 → 192.0.2.1:80 → web-1 172.30.0.10:9090"
        );
        let reply = traced(Verdict::Reply, ends(BACKEND, CLIENT), ends(VIP, CLIENT));
        assert_eq!(
            said(&reply),
            "tcp [S] web-1 172.30.0.10:9090 → 192.0.2.2:40000 as 192.0.2.1:80"
        );
        for one in [&forward, &reply] {
            assert_eq!(backend(one, &names()), Some("web-1"));
            assert!(has_backend(one));
        }
    }

    #[test]
    fn what_is_left_alone_is_shown_as_it_came() {
        let passed = traced(Verdict::NotOurs, ends(CLIENT, VIP), ends(CLIENT, VIP));
        assert_eq!(said(&passed), "tcp [S] 192.0.2.2:40000 → 192.0.2.1:80");
        assert!(!has_backend(&passed));
        let reset = traced(Verdict::GoneReset, ends(CLIENT, VIP), ends(VIP, CLIENT));
        assert_eq!(said(&reset), "tcp [S] 192.0.2.2:40000 → 192.0.2.1:80, answered");
        assert!(!has_backend(&reset));
        let arp = Traced { len: 42, ..traced(Verdict::NotIp, Ends::default(), Ends::default()) };
        assert_eq!(said(&arp), "no IP, or broken: 42 bytes");
    }

    #[test]
    fn an_error_says_what_it_is_about_and_an_echo_has_no_ports() {
        let icmp = |ends| Ends { protocol: protocol::ICMP, ..ends };
        let error =
            traced(Verdict::IcmpForward, icmp(ends(CLIENT, VIP)), icmp(ends(CLIENT, BACKEND)));
        let about = "icmp about 192.0.2.2:40000 → 192.0.2.1:80 → web-1 172.30.0.10:9090";
        assert_eq!(said(&error), about);
        let echo = icmp(ends("192.0.2.2:0", "192.0.2.1:0"));
        assert_eq!(said(&traced(Verdict::IcmpOther, echo, echo)), "icmp 192.0.2.2 → 192.0.2.1");
    }

    #[test]
    fn a_socket_without_an_address_is_a_dash() {
        let came = ends("0.0.0.0:0", "127.0.0.1:80");
        let local = traced(Verdict::LocalForward, came, ends("0.0.0.0:0", BACKEND));
        assert_eq!(said(&local), "tcp - → 127.0.0.1:80 → web-1 172.30.0.10:9090");
        let restored = traced(Verdict::LocalRestored, ends(CLIENT, "0.0.0.0:0"), ends(VIP, CLIENT));
        assert_eq!(said(&restored), "tcp 192.0.2.2:40000 is told 192.0.2.1:80");
    }

    #[test]
    fn a_line_begins_with_the_local_time_and_a_document_has_it_in_utc() {
        let clock = Clock { zero_ns: 1_000_000_000, zone: TimeZone::fixed(jiff::tz::offset(2)) };
        let mut passed = traced(Verdict::NotOurs, ends(CLIENT, VIP), ends(CLIENT, VIP));
        passed.at_ns = 61_234_567_890;
        let text = line(&passed, &clock, &names());
        assert!(text.starts_with("02:01:02.234 not-ours"), "{text}");
        let document = serde_json::to_value(document(&passed, &clock, &names())).unwrap();
        for (key, value) in [
            ("schema", json!(1)),
            ("time", json!("1970-01-01T00:01:02.234Z")),
            ("verdict", json!("not-ours")),
            ("action", json!("pass")),
            ("seen", json!("interface")),
            ("device", Value::Null),
            ("protocol", json!("tcp")),
            ("flags", json!("[S]")),
            ("source", json!(CLIENT)),
            ("destination", json!(VIP)),
            ("backend", Value::Null),
        ] {
            assert_eq!(document[key], value, "{document:#}");
        }
    }

    #[test]
    fn the_lines_are_as_they_were() {
        let clock = Clock { zero_ns: 1_000_000_000, zone: TimeZone::UTC };
        let all = [
            traced(Verdict::ForwardPeer, ends(CLIENT, VIP), ends(CLIENT, BACKEND)),
            traced(Verdict::Reply, ends(BACKEND, CLIENT), ends(VIP, CLIENT)),
            traced(Verdict::NotAllowed, ends(CLIENT, VIP), ends(CLIENT, VIP)),
            traced(Verdict::NotIp, Ends::default(), Ends::default()),
            traced(Verdict::LocalForward, ends("0.0.0.0:0", VIP), ends("0.0.0.0:0", BACKEND)),
        ];
        let lines: Vec<_> = all.iter().map(|one| line(one, &clock, &names())).collect();
        let mut pages = Pages::default();
        pages.add("samport trace", &lines.join("\n"));
        pages.add_json("samport trace -o json", &document(&all[0], &clock, &names()));
        pages.assert("trace");
    }
}
