//! From the object compiled with us to programs the kernel has accepted.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::maps::ProgramArray;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use samport_common::conntrack;
use samport_common::layout::{DEFAULT_BACKENDS, DEFAULT_FLOWS, RoomLimits, overflow_of, program};
use samport_common::seed::Seed;

use super::attach::Hook;
use super::maps::MapCell;
use super::xdp::XdpMode;
use super::{clock, pins, seed, sock_lb};
use crate::system::exit::{Coded as _, Exit, coded};

/// Percent of a table of flows that one service may hold when others need room.
pub const DEFAULT_SERVICE_SHARE: u8 = 50;

/// What can be chosen when loading.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Entries of the table of flows for IPv4.
    pub flows: u32,
    /// Entries of the table of flows for IPv6.
    pub flows6: u32,
    /// Backends at a time.
    pub backends: u32,
    /// Percent of a table of flows that one service may hold when others need room.
    pub service_share: u8,
    /// Handshakes left unanswered on one CPU in a tick that are a flood; `None` for a part of `flows`.
    pub syn_flood: Option<u32>,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// What choices by hash are keyed by.
    pub hash_seed: Seed,
    /// How programs are attached at tc.
    pub hook: Hook,
    /// Whether there is a program at XDP in front of them.
    pub xdp: Option<XdpMode>,
    /// Whether the kernel writes debug lines.
    pub log: bool,
    /// Whether clients on the machine itself are to be served.
    pub local: bool,
    /// The UDP port of this machine's end of the tunnel to other nodes; 0 without a cluster.
    pub tunnel_port: u16,
}

impl Options {
    /// Who may hold how much of the tables of flows.
    #[must_use]
    pub const fn room_limits(&self) -> RoomLimits {
        RoomLimits::new([self.flows, self.flows6], self.service_share)
    }
}

impl Default for Options {
    /// What holds without any flag.
    fn default() -> Self {
        Self {
            flows: DEFAULT_FLOWS,
            flows6: DEFAULT_FLOWS,
            backends: DEFAULT_BACKENDS,
            service_share: DEFAULT_SERVICE_SHARE,
            syn_flood: None,
            timeouts: Timeouts::default(),
            hash_seed: Seed::default(),
            hook: Hook::Auto,
            xdp: None,
            log: false,
            local: true,
            tunnel_port: 0,
        }
    }
}

/// How long a flow is remembered after its last packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, being opened.
    pub tcp_syn: Duration,
    /// TCP, open.
    pub tcp: Duration,
    /// TCP, closed by both sides.
    pub tcp_fin: Duration,
    /// TCP, reset by either side.
    pub tcp_rst: Duration,
    /// UDP, answered.
    pub udp: Duration,
    /// UDP, never answered.
    pub udp_unanswered: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let of = |seconds: u32| Duration::from_secs(seconds.into());
        let default = conntrack::Seconds::DEFAULT;
        Self {
            tcp_syn: of(default.syn),
            tcp: of(default.established),
            tcp_fin: of(default.finished),
            tcp_rst: of(default.reset),
            udp: of(default.udp),
            udp_unanswered: of(default.udp_unanswered),
        }
    }
}

impl Timeouts {
    /// The shortest of them.
    pub(super) fn shortest(&self) -> Duration {
        let Self { tcp_syn, tcp, tcp_fin, tcp_rst, udp, udp_unanswered } = *self;
        [tcp_syn, tcp, tcp_fin, tcp_rst, udp, udp_unanswered].into_iter().min().unwrap_or_default()
    }

    /// As the kernel counts them.
    pub(crate) fn in_ticks(&self) -> conntrack::Timeouts {
        let of = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        conntrack::Timeouts::new(&conntrack::Seconds {
            syn: of(self.tcp_syn),
            established: of(self.tcp),
            finished: of(self.tcp_fin),
            reset: of(self.tcp_rst),
            udp_unanswered: of(self.udp_unanswered),
            udp: of(self.udp),
        })
    }
}

/// Handshakes that may stay unanswered on one CPU in a tick before it is a flood: as many as leave
/// most of the table to others for the 20 s that they are remembered.
fn default_syn_flood(flows: u32) -> u32 {
    (flows / 128).max(64)
}

/// The compiled programs, aligned as the ELF parser wants them.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/samport-ebpf"));

/// Every program that sees packets, but for those of the tunnel.
pub(super) const PROGRAMS: [&str; 21] = [
    "samport_forward",
    "samport_bridge",
    "samport_hairpin",
    "samport_forward6",
    "samport_choose",
    "samport_slow_path",
    "samport_open",
    "samport_make_way",
    "samport_icmp",
    "samport_reverse",
    "samport_device",
    "samport_egress",
    "samport_outbound",
    "samport_reverse6",
    "samport_answer",
    "samport_reverse_first",
    "samport_reverse_icmp",
    "samport_later",
    "samport_reset",
    "samport_refused",
    "samport_trace",
];

/// Those of the tunnel to other nodes, and where in `PROGRAMS`: others call them, if there is a cluster.
pub(super) const OF_TUNNEL: [(u32, &str); 5] = [
    (program::UNWRAP, "samport_unwrap"),
    (program::INNER, "samport_inner"),
    (program::WRAP, "samport_wrap"),
    (program::PROBE, "samport_probe"),
    (program::TOO_BIG, "samport_too_big"),
];

/// Those that others call, and where in `PROGRAMS`.
const CALLED: [(u32, &str); program::COUNT as usize - OF_TUNNEL.len()] = [
    (program::SLOW_PATH, "samport_slow_path"),
    (program::OPEN, "samport_open"),
    (program::MAKE_WAY, "samport_make_way"),
    (program::ICMP, "samport_icmp"),
    (program::REVERSE_FIRST, "samport_reverse_first"),
    (program::REVERSE_ICMP, "samport_reverse_icmp"),
    (program::HAIRPIN, "samport_hairpin"),
    (program::LATER, "samport_later"),
    (program::RESET, "samport_reset"),
    (program::REFUSED, "samport_refused"),
    (program::CHOOSE, "samport_choose"),
    (program::ANSWER, "samport_answer"),
    (program::FORWARD6, "samport_forward6"),
    (program::REVERSE6, "samport_reverse6"),
];

/// Every map of the object.
pub(super) const MAPS: [&str; 60] = [
    "PORTS",
    "PORT_CACHE",
    "SERVICES4",
    "SERVICES6",
    "ALLOWED4",
    "ALLOWED6",
    "TABLE",
    "BACKENDS",
    "REV_NAT4",
    "REV_NAT6",
    "FLOWS4",
    "FLOWS6",
    "OVERFLOW4",
    "OVERFLOW6",
    "HELD",
    "FREED",
    "NEARLY_FULL",
    "FRAGMENTS4",
    "FRAGMENTS6",
    "SCRATCH_FRAG",
    "SCRATCH_PACKET",
    "SCRATCH_FLOW",
    "ROUTES",
    "FLOW_HINTS",
    "SYN_RATE",
    "GC_STATS",
    seed::MAP,
    "CLOCK",
    "VERDICTS",
    "BACKEND_STATS",
    "PROGRAMS",
    "SCRATCH_WORD",
    "XDP_DEVICES",
    "DEVICES",
    "SOURCES4",
    "SOURCES6",
    "NODES",
    "NODE_IDS",
    "SCRATCH_FIB",
    "LOCAL_PEERS",
    "LOCAL_SENDERS",
    "LOCAL_CHOICES",
    "AFFINITY4",
    "AFFINITY6",
    "OUTBOUND4",
    "OUTBOUND6",
    "RR_COUNTERS",
    "BACKEND_LOAD",
    "EVIDENCE",
    "SUSPECTS",
    "OPEN_CORRECTION",
    "HANDSHAKES",
    "EVENTS",
    "TRACE_WATCH",
    "TRACES",
    "TRACE_LOST",
    "TRACE_PACKET",
    "TRACE_RECORD",
    "TRACERS",
    "AYA_LOGS",
];

/// Arrays by backend id.
const BY_BACKEND: [&str; 7] = [
    "BACKENDS",
    "BACKEND_STATS",
    "BACKEND_LOAD",
    "EVIDENCE",
    "HANDSHAKES",
    "OPEN_CORRECTION",
    "SUSPECTS",
];
/// Hash tables by where backends answer: there are new ones before the old ones go.
const BY_ENDPOINT: [&str; 2] = ["REV_NAT4", "REV_NAT6"];

/// What is known of sockets of this machine.
const OF_LOCAL_CLIENTS: [&str; 3] = ["LOCAL_PEERS", "LOCAL_SENDERS", "LOCAL_CHOICES"];

/// How often a program is verified that signals keep from being verified.
const LOAD_TRIES: u32 = 100;

/// Entries of a map that is not used.
const NO_ROOM: u32 = 16;

/// Maps that hold nothing beyond one packet's way through the programs, or that no other process is to read: a
/// run that takes over makes its own, as other programs may use them in other ways.
pub(super) const OF_A_RUN: [&str; 10] = [
    "PROGRAMS",
    "PORT_CACHE",
    "CLOCK",
    "SCRATCH_WORD",
    "SCRATCH_PACKET",
    "SCRATCH_FLOW",
    "SCRATCH_FRAG",
    "SCRATCH_FIB",
    "EVENTS",
    "AYA_LOGS",
];

/// Maps of which a flag says how many entries they have, and how many that is.
pub(super) fn sizes(options: Options) -> Vec<(&'static str, u32)> {
    let mut sizes = vec![
        ("FLOWS4", options.flows),
        ("FLOWS6", options.flows6),
        ("OVERFLOW4", overflow_of(options.flows)),
        ("OVERFLOW6", overflow_of(options.flows6)),
    ];
    // Id 0 is never used.
    sizes.extend(BY_BACKEND.map(|name| (name, options.backends + 1)));
    sizes.extend(BY_ENDPOINT.map(|name| (name, 2 * options.backends)));
    if cookie(options) == 0 {
        sizes.extend(OF_LOCAL_CLIENTS.map(|name| (name, NO_ROOM)));
    }
    sizes
}

/// The number of the network namespace whose clients count as local: 0, which is the cookie of no namespace, unless
/// we can tell.
fn cookie(options: Options) -> u64 {
    if options.local { sock_lb::netns_cookie().unwrap_or_default() } else { 0 }
}

/// Loads all programs that see packets, with all maps pinned, and fills the tail-call table. A map that is pinned
/// already is used as it is, unless it is among those that are made again beside it.
pub(super) fn load(options: Options, pins: &pins::Folder, anew: &[&str]) -> Result<Ebpf> {
    if OBJECT.is_empty() {
        return Err(coded(
            Exit::Failure,
            "this samport was built with AYA_BUILD_SKIP, without its BPF program; run `cargo xtask build`",
        ));
    }
    // 0 turns every log statement into dead code, which the kernel removes.
    let log_level = if options.log { aya_log::Level::Debug as u8 } else { 0 };
    let netns_cookie = cookie(options);
    let mut loader = EbpfLoader::new();
    for (name, entries) in sizes(options) {
        loader.map_max_entries(name, entries);
    }
    for name in MAPS {
        let is_own = OF_A_RUN.contains(&name) || anew.contains(&name);
        loader
            .map_pin_path(name, if is_own { pins.map_of_run(name) } else { pins.map_in_use(name) });
    }
    let timeouts = MapCell(options.timeouts.in_ticks());
    let flood_limit = options.syn_flood.unwrap_or_else(|| default_syn_flood(options.flows));
    let tunnel_port = u32::from(options.tunnel_port);
    let mut ebpf = loader
        .override_global(aya_log::LEVEL, &log_level, true)
        .override_global("TIMEOUTS", &timeouts, true)
        .override_global("FLOOD_LIMIT", &flood_limit, true)
        .override_global("ROOM_LIMITS", &MapCell(options.room_limits()), true)
        .override_global("HOST_NETNS_COOKIE", &netns_cookie, true)
        .override_global("TUNNEL_PORT", &tunnel_port, true)
        .load(OBJECT)
        .exit(
            Exit::Kernel,
            "cannot make the BPF maps (is the kernel 5.13 or newer, with BPF enabled?)",
        )?;
    // Before anything is attached. All of them: once we are ready we may load no more.
    for name in PROGRAMS {
        classifier(&mut ebpf, name)?;
    }
    if let Some((name, _)) = ebpf.maps().find(|(name, _)| !is_listed(name)) {
        bail!("map {name} would not be pinned; it is missing in MAPS");
    }
    let of_tunnel = OF_TUNNEL.into_iter().filter(|_| options.tunnel_port != 0);
    for (index, name) in CALLED.into_iter().chain(of_tunnel) {
        put(&mut ebpf, "PROGRAMS", index, name)?;
    }
    put(&mut ebpf, "TRACERS", 0, "samport_trace")?;
    seed::set(&mut ebpf, options.hash_seed)?;
    if let Err(error) = clock::set(&mut ebpf) {
        // Then they ask the kernel's clock each time.
        tracing::debug!("the programs' clock: {error:#}");
    }
    Ok(ebpf)
}

/// Puts a program where others call it.
fn put(ebpf: &mut Ebpf, array: &str, index: u32, name: &str) -> Result<()> {
    let called = classifier(ebpf, name)?
        .fd()
        .and_then(|fd| fd.try_clone().map_err(ProgramError::IOError))
        .with_context(|| format!("get {name}"))?;
    let map = ebpf.map_mut(array).with_context(|| format!("the object has no map {array}"))?;
    let mut programs =
        ProgramArray::try_from(map).with_context(|| format!("{array} is another type"))?;
    programs.set(index, &called, 0).with_context(|| format!("fill {array}"))
}

/// Whether a map is pinned; the compiler's own data sections need not be.
fn is_listed(map: &str) -> bool {
    MAPS.contains(&map) || map.starts_with('.')
}

/// A program by its name, loaded.
pub(super) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is no classifier"))?;
    if program.fd().is_err() {
        persist(|| program.load())
            .map_err(explain)
            .exit(Exit::Kernel, format!("cannot load program {name}"))?;
    }
    Ok(program)
}

/// Loads a program; once more if a signal has come while the kernel verified it, which breaks that off (`EAGAIN`).
pub(super) fn persist(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let was_interrupted = |error: &ProgramError| {
        let ProgramError::LoadError { io_error, .. } = error else { return false };
        io_error.raw_os_error() == Some(libc::EAGAIN)
    };
    for _ in 1..LOAD_TRIES {
        match load() {
            Err(error) if was_interrupted(&error) => {}
            done => return done,
        }
    }
    load()
}

/// The verifier's log is thousands of lines; its end says what is wrong.
pub(super) fn explain(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().rev().take(12).collect();
            let end = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            anyhow::anyhow!("{io_error}; the verifier's last words:\n{end}")
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever adds a map says what becomes of one entry too many.
    #[test]
    fn every_map_has_its_limit_in_the_docs() {
        let page = include_str!("../../../docs/concepts/limits.md");
        let missing: Vec<_> =
            MAPS.into_iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "not in docs/concepts/limits.md: {missing:?}");
    }
}
