//! The `samport.*` labels of a container.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::ServiceHints;
use crate::model::allow::{self, Networks};
use crate::model::check::{self, CheckOrigin, RhythmLabels};
use crate::model::duration::read as time;
use crate::model::ports::{PortSpec, port};
use crate::plan::policy;

/// What all of them begin with.
pub(super) const PREFIX: &str = "samport.";

/// Ports that the labels of one container may name.
pub(super) const MAX_PORTS: usize = 64;
/// Networks in one `samport.allow`.
pub(super) const MAX_NETWORKS: usize = 1_024;
/// Networks in `samport.allow` times ports in the labels of one container: each port has its own allow-list.
pub(super) const MAX_ALLOWED: usize = 4_096;
/// Largest weight of a container or a group.
pub(super) const MAX_WEIGHT: u32 = 65_535;
/// Bytes in the value of a label.
pub(super) const MAX_VALUE: usize = 65_536;
/// Characters in the name of a service or a group.
pub(super) const MAX_NAME: usize = 128;
/// Warnings about the labels of one container.
pub(super) const MAX_WARNINGS: usize = 8;
/// Characters of a label that a message repeats.
const QUOTED: usize = 80;

/// What the labels say, read but not yet held against `-p`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Labels {
    /// Whether any label is ours.
    pub present: bool,
    /// `samport.enable`, if given.
    pub enable: Option<bool>,
    /// `samport.port` and `samport.ports`, each service once.
    pub ports: Vec<PortSpec>,
    /// `samport.target`.
    pub target: Option<u16>,
    /// `samport.weight`; 1 if not given.
    pub weight: u32,
    /// `samport.drain`.
    pub drain: Option<Duration>,
    /// `samport.network`.
    pub network: Option<String>,
    /// `samport.allow`.
    pub allow: Networks,
    /// `samport.health`.
    pub health: Option<CheckOrigin>,
    /// `samport.health.interval` and so on.
    pub rhythm: RhythmLabels,
    /// `samport.service`, `group`, `group.weight`, `balance`, `affinity` and `spread`.
    pub hints: ServiceHints,
    /// What is to be told to the user although the container can be served.
    pub warnings: Vec<String>,
}

/// Whether the labels keep the container out, however wrong the rest of them is.
#[must_use]
pub fn excluded(labels: &BTreeMap<String, String>) -> bool {
    labels.get("samport.enable").is_some_and(|value| value.trim().eq_ignore_ascii_case("false"))
}

/// How long a container with these labels may drain, if they say so and can be read.
#[must_use]
pub fn drain(labels: &BTreeMap<String, String>) -> Option<Duration> {
    time(labels.get("samport.drain")?.trim()).ok()
}

/// Whether any label is ours.
#[must_use]
pub fn present(labels: &BTreeMap<String, String>) -> bool {
    labels.keys().any(|key| key.starts_with(PREFIX))
}

/// Reads the labels. The error is half a sentence that names label and value, and says what to put.
pub fn read(labels: &BTreeMap<String, String>) -> Result<Labels, String> {
    let mut read = Labels { weight: 1, ..Labels::default() };
    for (key, value) in labels {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        read.present = true;
        take(&mut read, name, value.trim()).map_err(|what| refusal(key, value, &what))?;
    }
    if read.allow.len() * read.ports.len() > MAX_ALLOWED {
        let (networks, ports) = (read.allow.len(), read.ports.len());
        return Err(format!(
            "label samport.allow: {networks} networks on {ports} ports exceed the limit of {MAX_ALLOWED} for a \
             container; name fewer, or larger ones"
        ));
    }
    if read.warnings.len() > MAX_WARNINGS {
        let more = read.warnings.len() - MAX_WARNINGS;
        read.warnings.truncate(MAX_WARNINGS);
        read.warnings.push(format!("{more} more of its labels are unknown"));
    }
    Ok(read)
}

/// What is wrong with a label; neither it nor the message about it is repeated at length.
fn refusal(key: &str, value: &str, what: &str) -> String {
    let (key, value) = (shortened(key, QUOTED), shortened(value, QUOTED));
    format!("label {key}={value:?}: {}", shortened(what, 4 * QUOTED))
}

/// A text, cut if it is longer than this many characters.
pub(super) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

fn take(read: &mut Labels, name: &str, value: &str) -> Result<(), String> {
    if value.len() > MAX_VALUE {
        return Err(format!("{} bytes, expected {MAX_VALUE} at most", value.len()));
    }
    match name {
        "enable" => read.enable = Some(truth(value)?),
        "port" if value.contains(',') => {
            return Err("expected one port; use samport.ports for several".into());
        }
        "port" | "ports" => ports(read, value)?,
        "target" => read.target = Some(port(value).map_err(|error| error.to_string())?),
        "weight" => read.weight = weight(value)?,
        "network" if value.is_empty() => return Err("expected the name of a network".into()),
        "network" => read.network = Some(value.to_owned()),
        "allow" => read.allow = networks(value)?,
        "health" => read.health = Some(value.parse()?),
        "health.interval" => read.rhythm.interval = Some(check::time(value)?),
        "health.timeout" => read.rhythm.timeout = Some(check::time(value)?),
        "health.rise" => read.rhythm.rise = Some(check::count(value)?),
        "health.fall" => read.rhythm.fall = Some(check::count(value)?),
        "drain" => read.drain = Some(time(value)?),
        "service" => read.hints.service = Some(given_name(value)?),
        "group" => read.hints.group = Some(given_name(value)?),
        "group.weight" => read.hints.group_weight = Some(weight(value)?),
        "balance" => read.hints.balance = Some(policy::balance(value)?),
        "affinity" => read.hints.affinity = Some(policy::affinity(value)?),
        "spread" => read.hints.spread = Some(value.parse()?),
        _ => read.warnings.push(format!(
            "unknown label {PREFIX}{}; expected samport.enable, port, ports, target, \
             service, weight, group, group.weight, balance, affinity, spread, drain, network, allow, \
             health and health.interval, timeout, rise, fall",
            shortened(name, QUOTED)
        )),
    }
    Ok(())
}

fn weight(value: &str) -> Result<u32, String> {
    let weight = value.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| format!("expected a weight of 0-{MAX_WEIGHT}"))
}

/// Reads a name that users choose. It stands in lists, and between words of a command.
fn given_name(value: &str) -> Result<String, String> {
    let is_fine = |c: char| c.is_alphanumeric() || "-_./".contains(c);
    if value.is_empty() || !value.chars().all(is_fine) {
        return Err("expected a name of letters, digits and - _ . /".into());
    }
    let length = value.chars().count();
    if length > MAX_NAME {
        return Err(format!("a name of {length} characters, expected {MAX_NAME} at most"));
    }
    Ok(value.to_owned())
}

fn truth(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// Reads `10.0.0.0/8,2001:db8::/32`.
fn networks(value: &str) -> Result<Networks, String> {
    let networks = value.split(',').map(|text| allow::network(text.trim()));
    let networks = networks.collect::<Result<Networks, _>>().map_err(|error| error.to_string())?;
    if networks.len() > MAX_NETWORKS {
        let count = networks.len();
        return Err(format!(
            "{count} networks, expected {MAX_NETWORKS} at most; name larger ones, or use --allow"
        ));
    }
    Ok(networks)
}

/// Reads `80:8080/tcp,53/udp`.
fn ports(read: &mut Labels, value: &str) -> Result<(), String> {
    for entry in value.split(',').map(str::trim) {
        let spec: PortSpec = entry.parse().map_err(|error| format!("{error:#}"))?;
        match read.ports.iter().find(|known| known.listen == spec.listen) {
            None if read.ports.len() >= MAX_PORTS => {
                return Err(format!(
                    "more than {MAX_PORTS} ports, the limit for the labels of a container; give the others to -p"
                ));
            }
            None => read.ports.push(spec),
            Some(known) if *known == spec => {}
            Some(known) => return Err(format!("port {known} is also given as {spec}; keep one")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use samport_common::choose::Balance;

    use super::*;
    use crate::model::Spread;
    use crate::model::snapshots::Pages;

    fn read_all(labels: &[(&str, &str)]) -> Result<Labels, String> {
        read(&labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn spec(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    #[test]
    fn each_label_is_read() {
        let read = read_all(&[
            ("samport.enable", "True"),
            ("samport.ports", "80:8080/tcp, 443, 443:53/udp, 192.0.2.7:80, [::1]:80:81"),
            ("samport.port", "80:8080"),
            ("samport.target", "9090"),
            ("samport.weight", "0"),
            ("samport.drain", "1m30s"),
            ("samport.network", "front"),
            ("samport.allow", "10.0.0.0/8, 2001:db8::/32,192.0.2.9"),
            ("samport.health", "tcp"),
            ("samport.health.interval", "1m"),
            ("samport.health.timeout", "100ms"),
            ("samport.health.rise", "2"),
            ("samport.health.fall", "1000"),
            ("samport.service", "web"),
            ("samport.group", "canary"),
            ("samport.group.weight", "5"),
            ("samport.balance", "least-conn"),
            ("samport.affinity", "30m"),
            ("samport.spread", "local-first"),
            ("other", "label"),
        ])
        .unwrap();
        let expected = Labels {
            present: true,
            enable: Some(true),
            ports: ["80:8080", "443", "443:53/udp", "192.0.2.7:80", "[::1]:80:81"].map(spec).into(),
            target: Some(9090),
            weight: 0,
            drain: Some(Duration::from_secs(90)),
            network: Some("front".into()),
            allow: ["10.0.0.0/8", "2001:db8::/32", "192.0.2.9/32"]
                .map(|n| n.parse().unwrap())
                .into(),
            health: Some(CheckOrigin::Tcp),
            rhythm: RhythmLabels {
                interval: Some(Duration::from_mins(1)),
                timeout: Some(Duration::from_millis(100)),
                rise: Some(2),
                fall: Some(1_000),
            },
            hints: ServiceHints {
                service: Some("web".into()),
                group: Some("canary".into()),
                group_weight: Some(5),
                balance: Some(Balance::LeastConn),
                affinity: Some(1_800),
                spread: Some(Spread::LocalFirst),
                ..ServiceHints::default()
            },
            warnings: vec![],
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn no_label_of_ours_is_none() {
        let read = read_all(&[("com.docker.compose.service", "web"), ("samportal", "x")]).unwrap();
        assert_eq!(read, Labels { weight: 1, ..Labels::default() });
    }

    /// Case 87: two services on one port and protocol among them.
    #[test]
    fn wrong_values_are_refused_by_name() {
        for (key, value, way_out) in [
            ("samport.enable", "yes", "true or false"),
            ("samport.enable", "", "true or false"),
            ("samport.port", "http", "expected 1-65535"),
            ("samport.port", "80,81", "samport.ports"),
            ("samport.port", "0", "expected 1-65535"),
            ("samport.ports", "", "expected 1-65535"),
            ("samport.ports", "80,", "expected 1-65535"),
            ("samport.ports", "80/sctp", "expected tcp or udp"),
            ("samport.ports", "::1:80", "brackets"),
            ("samport.ports", "192.0.2.7:80,192.0.2.7:80:81", "keep one"),
            ("samport.ports", "80:81,80:82", "keep one"),
            ("samport.ports", "53:81/udp,53:82/udp", "keep one"),
            ("samport.target", "65536", "expected 1-65535"),
            ("samport.weight", "-1", "weight of 0-65535"),
            ("samport.weight", "1.5", "weight of 0-65535"),
            ("samport.drain", "soon", "30s or 2h5m"),
            ("samport.service", "", "letters"),
            ("samport.group", "a b", "letters"),
            ("samport.group.weight", "5%", "weight of 0-65535"),
            ("samport.balance", "fair", "least-conn"),
            ("samport.affinity", "long", "30s or 2h5m"),
            ("samport.spread", "near", "all, local-first, local"),
            ("samport.network", " ", "name of a network"),
            ("samport.allow", "", "invalid network \"\""),
            ("samport.allow", "10.0.0.0/8,office", "invalid network \"office\""),
            ("samport.health", "http", "e.g. http:/health"),
            ("samport.health", "maybe", "docker, tcp, http:/path or none"),
            ("samport.health.interval", "0", "100ms at least"),
            ("samport.health.timeout", "soon", "30s or 2h5m"),
            ("samport.health.rise", "0", "expected 1-1000"),
            ("samport.health.fall", "often", "expected 1-1000"),
        ] {
            let error = read_all(&[(key, value)]).unwrap_err();
            assert!(error.contains(&format!("{key}={value:?}")), "{error}");
            assert!(error.contains(way_out), "{error}");
        }
    }

    /// Case 87: whatever one container says takes no more than its part, and a message repeats only its beginning.
    #[test]
    fn what_one_container_may_say_is_limited() {
        let networks = |count: usize| {
            let net = |n: usize| format!("10.{}.{}.0/24", n / 256, n % 256);
            (0..count).map(net).collect::<Vec<_>>().join(",")
        };
        let ports =
            |count: usize| (1..=count).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        let name = |length: usize| "é".repeat(length);
        let weight = |weight: u32| weight.to_string();
        for (key, fits, too_much, limit) in [
            ("samport.allow", networks(MAX_NETWORKS), networks(MAX_NETWORKS + 1), "1024 at most"),
            ("samport.ports", ports(MAX_PORTS), ports(MAX_PORTS + 1), "more than 64 ports"),
            ("samport.weight", weight(MAX_WEIGHT), weight(MAX_WEIGHT + 1), "of 0-65535"),
            ("samport.group.weight", weight(MAX_WEIGHT), weight(MAX_WEIGHT + 1), "of 0-65535"),
            ("samport.service", name(MAX_NAME), name(MAX_NAME + 1), "128 at most"),
            ("samport.group", name(MAX_NAME), name(MAX_NAME + 1), "128 at most"),
            ("samport.network", "n".repeat(MAX_VALUE), "n".repeat(MAX_VALUE + 1), "65536 at most"),
        ] {
            assert!(read_all(&[(key, &fits)]).is_ok(), "{key}");
            let error = read_all(&[(key, &too_much)]).unwrap_err();
            assert!(error.contains(key) && error.contains(limit), "{error}");
            assert!(error.len() < 500, "{error}");
        }
        let both = |count| {
            let (ports, networks) = (ports(8), networks(count));
            read_all(&[("samport.ports", &ports), ("samport.allow", &networks)])
        };
        assert!(both(512).is_ok());
        let error = both(513).unwrap_err();
        assert!(error.contains("513 networks on 8 ports"), "{error}");
    }

    #[test]
    fn a_few_unknown_labels_are_named_and_the_others_counted() {
        let labels = (0..100).map(|n| (format!("samport.{n}{}", "x".repeat(1_000)), String::new()));
        let warnings = read(&labels.collect()).unwrap().warnings;
        assert_eq!(warnings.len(), MAX_WARNINGS + 1);
        assert!(warnings[MAX_WARNINGS].starts_with("92 more"), "{warnings:?}");
        assert!(warnings.iter().all(|warning| warning.len() < 400), "{warnings:?}");
    }

    #[test]
    fn unknown_labels_are_told_but_do_not_stop() {
        for (key, value, word) in [
            ("samport.prot", "80", "unknown label samport.prot;"),
            ("samport.health.path", "/", "unknown label samport.health.path;"),
        ] {
            let read = read_all(&[(key, value)]).unwrap();
            assert_eq!(read.warnings.len(), 1, "{key}");
            assert!(read.warnings[0].contains(word), "{:?}", read.warnings);
        }
    }

    #[test]
    fn exclusion_holds_beside_wrong_labels() {
        let labels = [("samport.enable", "FALSE"), ("samport.port", "x")];
        assert!(excluded(&labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()));
        assert!(!excluded(&[("samport.enable".to_owned(), "true".to_owned())].into()));
        assert!(!excluded(&BTreeMap::new()));
    }

    #[test]
    fn what_is_said_of_labels_is_as_it_was() {
        let mut pages = Pages::default();
        for (key, value) in [
            ("samport.enable", "yes"),
            ("samport.port", "http"),
            ("samport.port", "80,81"),
            ("samport.ports", "80/sctp"),
            ("samport.ports", "80:81,80:82"),
            ("samport.target", "65536"),
            ("samport.weight", "-1"),
            ("samport.drain", "soon"),
            ("samport.service", "a b"),
            ("samport.group.weight", "5%"),
            ("samport.balance", "fair"),
            ("samport.affinity", "long"),
            ("samport.spread", "near"),
            ("samport.network", ""),
            ("samport.allow", "office"),
            ("samport.health", "maybe"),
            ("samport.health.interval", "0"),
            ("samport.health.rise", "often"),
        ] {
            pages.add(&format!("{key}: {value:?}"), &read_all(&[(key, value)]).unwrap_err());
        }
        let unknown = read_all(&[("samport.prot", "80")]).unwrap();
        pages.add("samport.prot: \"80\"", &unknown.warnings.join("\n"));
        pages.assert("labels");
    }
}
