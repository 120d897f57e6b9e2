//! Who looks at packets for this host before a process gets them. samport takes packets from the
//! interface before any of these, so whoever relies on one of them must be told.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::process::Command;

use anyhow::{Context as _, Result};
use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlaBuffer, NlasIterator, parse_string, parse_u32_be,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// From linux/netfilter/nfnetlink.h and nf_tables.h: subsystem nftables, `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 10 << 8 | 4;
/// Length of `struct nfgenmsg`, which is before the attributes.
const HEADER: usize = 4;
/// Attributes of a chain, `NFTA_CHAIN_…`.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const USE: u16 = 6;
/// `NFTA_HOOK_HOOKNUM`.
const HOOK_NUMBER: u16 = 1;
/// `NF_INET_LOCAL_IN`.
const LOCAL_IN: u32 = 1;
/// The families that have it, `NFPROTO_…`.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];

/// One who may drop what is for the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspector {
    /// Its name.
    pub name: String,
    /// Whether it drops what no rule lets in.
    pub drops: bool,
}

impl fmt::Display for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.drops { f.write_str(" (it drops what it does not allow)") } else { Ok(()) }
    }
}

/// All of this network namespace.
pub fn inspectors() -> Result<Vec<Inspector>> {
    let chains = chains().context("cannot ask nftables for its chains")?;
    let mut found = of_chains(&chains);
    for (names, command) in [
        ("/proc/self/net/ip_tables_names", "iptables-legacy"),
        ("/proc/self/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        // Only a table that is there already: to list another one would make it.
        let tables = std::fs::read_to_string(names).unwrap_or_default();
        if tables.lines().any(|table| table == "filter") {
            let listed = Command::new(command).args(["-S", "INPUT"]).output();
            let listed = listed.with_context(|| format!("cannot run {command}"))?;
            found.extend(of_rules(command, &String::from_utf8_lossy(&listed.stdout)));
        }
    }
    Ok(found)
}

/// A chain of nftables.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    /// The hook it is called from, if it is.
    hook: Option<u32>,
    drops: bool,
    /// How many rules it has, if no rule jumps to it.
    rules: u32,
}

/// Those that are called for what is for the host, and do something.
fn of_chains(chains: &[Chain]) -> Vec<Inspector> {
    let ufw: BTreeSet<&str> = chains
        .iter()
        .filter(|chain| chain.name.starts_with("ufw"))
        .map(|c| c.table.as_str())
        .collect();
    let mut found = Vec::new();
    for chain in chains {
        let family = FAMILIES.iter().find(|(family, _)| *family == chain.family);
        let Some((_, family)) = family.filter(|_| chain.hook == Some(LOCAL_IN)) else { continue };
        if !chain.drops && chain.rules == 0 {
            continue;
        }
        let name = match chain.table.as_str() {
            table if ufw.contains(table) => "ufw".to_owned(),
            "firewalld" => "firewalld".to_owned(),
            table => format!("nftables chain \"{family} {table} {}\"", chain.name),
        };
        found.push(Inspector { name, drops: chain.drops });
    }
    found
}

/// From what `iptables-legacy -S INPUT` prints.
fn of_rules(command: &str, listed: &str) -> Option<Inspector> {
    let drops = listed.lines().any(|line| line == "-P INPUT DROP");
    let has_rules = listed.lines().any(|line| line.starts_with("-A "));
    let name = if listed.contains("ufw") { "ufw" } else { command };
    (drops || has_rules).then(|| Inspector { name: name.to_owned(), drops })
}

/// All chains; none where the kernel has no nftables.
fn chains() -> io::Result<Vec<Chain>> {
    if is_module_that_is_not_loaded() {
        return Ok(Vec::new());
    }
    let socket = match Socket::new(NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket?,
    };
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(Message::Get);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    match receive(&socket) {
        // The kernel has netfilter's netlink, and no nftables behind it.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        received => received,
    }
}

/// To ask would load it, and a module that is not loaded has no rules.
fn is_module_that_is_not_loaded() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = std::fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim()));
    let loaded = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    modules.is_ok_and(|modules| modules.contains("/nf_tables.ko"))
        && !loaded.lines().any(|line| line.starts_with("nf_tables "))
}

/// Receives up to the answer's end.
fn receive(socket: &Socket) -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<Message>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            match message.payload {
                NetlinkPayload::InnerMessage(Message::Chain(chain)) => chains.push(chain),
                NetlinkPayload::Done(_) => return Ok(chains),
                NetlinkPayload::Error(answer) => return Err(answer.to_io()),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// The messages of this conversation.
#[derive(Debug)]
enum Message {
    /// The question.
    Get,
    /// One chain.
    Chain(Chain),
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        GET_CHAIN
    }

    fn buffer_len(&self) -> usize {
        HEADER
    }

    /// All zero is every family.
    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let family = payload.first().copied().unwrap_or_default();
        let mut chain = Chain { family, ..Chain::default() };
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            read(&mut chain, &attribute?)?;
        }
        Ok(Self::Chain(chain))
    }
}

fn read(chain: &mut Chain, attribute: &NlaBuffer<&[u8]>) -> Result<(), DecodeError> {
    match attribute.kind() {
        TABLE => chain.table = parse_string(attribute.value())?,
        NAME => chain.name = parse_string(attribute.value())?,
        // `NF_DROP`.
        POLICY => chain.drops = parse_u32_be(attribute.value())? == 0,
        USE => chain.rules = parse_u32_be(attribute.value())?,
        HOOK => {
            for inner in NlasIterator::new(attribute.value()) {
                let inner = inner?;
                if inner.kind() == HOOK_NUMBER {
                    chain.hook = Some(parse_u32_be(inner.value())?);
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str, hook: Option<u32>, drops: bool, rules: u32) -> Chain {
        let (table, name) = (table.to_owned(), name.to_owned());
        Chain { family: 1, table, name, hook, drops, rules }
    }

    fn names(chains: &[Chain]) -> Vec<String> {
        of_chains(chains).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_chains_for_the_host_that_do_something_inspect() {
        let input = Some(LOCAL_IN);
        let idle = chain("filter", "INPUT", input, false, 0);
        let forward = chain("filter", "FORWARD", Some(2), true, 9);
        let helper = chain("filter", "input_helper", None, false, 9);
        let bridge = Chain { family: 7, ..chain("filter", "INPUT", input, true, 0) };
        assert_eq!(names(&[idle, forward, helper, bridge]), [""; 0]);
        let (strict, rules) =
            (chain("t", "in", input, true, 0), chain("firewalld", "filter_INPUT", input, false, 3));
        let drops = "nftables chain \"inet t in\" (it drops what it does not allow)";
        assert_eq!(names(&[strict, rules]), [drops, "firewalld"]);
    }

    #[test]
    fn ufw_is_called_by_its_name() {
        let chains = [
            chain("filter", "INPUT", Some(LOCAL_IN), true, 6),
            chain("filter", "ufw-before-input", None, false, 1),
        ];
        assert_eq!(names(&chains), ["ufw (it drops what it does not allow)"]);
        let listed = "-P INPUT DROP\n-A INPUT -j ufw-before-input\n";
        let found = of_rules("iptables-legacy", listed).unwrap();
        assert_eq!(found, Inspector { name: "ufw".into(), drops: true });
    }

    #[test]
    fn an_old_table_that_lets_all_in_inspects_nothing() {
        assert_eq!(of_rules("iptables-legacy", "-P INPUT ACCEPT\n"), None);
        let found = of_rules("iptables-legacy", "-P INPUT ACCEPT\n-A INPUT -s 192.0.2.1 -j DROP\n");
        assert_eq!(
            found.map(|found| (found.name, found.drops)),
            Some(("iptables-legacy".into(), false))
        );
    }
}
