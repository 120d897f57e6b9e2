//! `--backend`: backends that are given, and change with the configuration only.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ProviderSettings;
use crate::model::allow::Networks;
use crate::model::ports::{PortSpec, port};
use crate::model::{Candidate, Egress, ServiceHints, Snapshot};
use crate::system::leaving::Leaving;

/// One `--backend [NAME=]IP[:PORT][@WEIGHT]`. An IPv6 address with a port stands in brackets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticBackend {
    /// What it is called, if not by its address.
    pub name: Option<String>,
    /// Where it answers.
    pub address: Address,
    /// Its share relative to the others; 0 takes no new flows.
    pub weight: u32,
}

/// An address with or without a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The IPv4 or IPv6 address.
    pub ip: IpAddr,
    /// The port; without one, that of `-p` is taken.
    pub port: Option<u16>,
}

impl Address {
    /// The endpoint behind a port of the host.
    #[must_use]
    pub fn endpoint(&self, spec: PortSpec) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.or(spec.target).unwrap_or(spec.listen.port))
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(ip) = text.parse() {
            return Ok(Self { ip, port: None });
        }
        let (host, tail) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, tail)) => (host, tail.strip_prefix(':')),
            None => match text.split_once(':') {
                Some((host, tail)) => (host, Some(tail)),
                None => (text, None),
            },
        };
        let Ok(ip) = host.parse::<IpAddr>() else {
            bail!(
                "invalid address {text:?}: expected IP or IP:PORT, e.g. 10.0.0.2:8080 or [::1]:8080"
            );
        };
        match tail {
            Some(tail) => Ok(Self {
                ip,
                port: Some(port(tail).with_context(|| format!("invalid address {text:?}"))?),
            }),
            None if text.ends_with(']') => Ok(Self { ip, port: None }),
            None => bail!("invalid address {text:?}: expected :PORT or nothing after the bracket"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl FromStr for StaticBackend {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = match text.split_once('=') {
            Some(("", _)) => bail!("invalid backend {text:?}: expected a name before the ="),
            Some((name, rest)) => (Some(name.to_owned()), rest),
            None => (None, text),
        };
        let (address, weight) = match rest.split_once('@') {
            Some((address, weight)) => (address, Some(weight)),
            None => (rest, None),
        };
        let weight = match weight.map(str::parse) {
            None => 1,
            Some(Ok(weight)) => weight,
            Some(Err(_)) => {
                bail!("invalid backend {text:?}: expected a weight of 0 or more after the @")
            }
        };
        let address = match address.parse() {
            Err(error) if address != text => {
                return Err(Error::context(error, format!("invalid backend {text:?}")));
            }
            parsed => parsed?,
        };
        Ok(Self { name, address, weight })
    }
}

/// Offers the backends behind every port, for as long as anyone listens.
pub(super) fn start(
    ports: Vec<PortSpec>,
    terms: watch::Receiver<ProviderSettings>,
) -> Result<watch::Receiver<Snapshot>> {
    if ports.is_empty() {
        bail!("no port is given; use -p PORT");
    }
    let first = snapshot(&terms.borrow(), &ports)?;
    let Snapshot { candidates: current, generation } = first.clone();
    let (sender, receiver) = watch::channel(first);
    let offer = Offer { ports, terms, current, generation, leaving: Leaving::default(), sender };
    tokio::spawn(offer.follow());
    Ok(receiver)
}

/// Whether backends could be offered on these terms.
pub(super) fn check(ports: &[PortSpec], terms: &ProviderSettings) -> Result<()> {
    snapshot(terms, ports).map(|_| ())
}

struct Offer {
    ports: Vec<PortSpec>,
    terms: watch::Receiver<ProviderSettings>,
    current: Vec<Candidate>,
    generation: u64,
    leaving: Leaving,
    sender: watch::Sender<Snapshot>,
}

impl Offer {
    async fn follow(mut self) {
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                Ok(()) = self.terms.changed() => self.renew(),
                () = self.leaving.next() => {}
            }
            self.leaving.pass(Instant::now());
            let candidates = self.leaving.and(&self.current);
            super::publish(&self.sender, Snapshot { candidates, generation: self.generation });
        }
    }

    fn renew(&mut self) {
        let terms = self.terms.borrow_and_update().clone();
        match snapshot(&terms, &self.ports) {
            Ok(Snapshot { candidates, generation }) => {
                self.generation = generation;
                let old = std::mem::replace(&mut self.current, candidates);
                self.leaving.replace(old, &self.current, Instant::now() + terms.drain);
            }
            // Whoever sends terms has checked them.
            Err(error) => tracing::error!("{error:#}; the backends stay as they were"),
        }
    }
}

fn snapshot(terms: &ProviderSettings, ports: &[PortSpec]) -> Result<Snapshot> {
    let mut seen = BTreeSet::new();
    let mut snapshot = Snapshot { candidates: Vec::new(), generation: terms.generation };
    for spec in ports {
        for backend in &terms.backends {
            let endpoint = backend.address.endpoint(*spec);
            if !seen.insert((spec.listen, endpoint)) {
                let port = spec.listen.brief();
                bail!("backend {endpoint} is given twice for port {port}; keep one");
            }
            snapshot.candidates.push(Candidate {
                id: endpoint.to_string(),
                name: backend.name.clone().unwrap_or_else(|| backend.address.to_string()),
                listen: spec.listen,
                endpoint,
                weight: backend.weight,
                drain: None,
                condition: terms.health.of_listed(spec.listen.protocol),
                allow: Networks::new(),
                hints: ServiceHints::default(),
                place: None,
                egress: Egress::default(),
                started: None,
            });
        }
    }
    super::sort(&mut snapshot.candidates);
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spec(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    fn of(backends: &[StaticBackend], ports: &[PortSpec]) -> Result<Snapshot> {
        let terms = ProviderSettings { backends: backends.to_vec(), ..ProviderSettings::default() };
        snapshot(&terms, ports)
    }

    #[test]
    fn backends_are_read() {
        for (text, name, weight) in [
            ("10.0.0.2", "10.0.0.2", 1),
            ("10.0.0.2:9090", "10.0.0.2:9090", 1),
            ("10.0.0.2:9090@3", "10.0.0.2:9090", 3),
            ("10.0.0.2@0", "10.0.0.2", 0),
            ("2001:db8::1", "2001:db8::1", 1),
            ("[2001:db8::1]", "2001:db8::1", 1),
            ("[2001:db8::1]:9090", "[2001:db8::1]:9090", 1),
            ("2001:db8::1@2", "2001:db8::1", 2),
        ] {
            let backend: StaticBackend = text.parse().unwrap();
            assert_eq!((backend.address.to_string().as_str(), backend.weight), (name, weight));
        }
    }

    #[test]
    fn a_backend_may_have_a_name() {
        let backends = ["web-1=10.0.0.2:9090@3", "a=10.0.0.3"].map(|text| text.parse().unwrap());
        let snapshot = of(&backends, &[spec("80")]).unwrap();
        let seen =
            snapshot.candidates.iter().map(|c| (c.name.as_str(), c.endpoint.to_string(), c.weight));
        let seen: Vec<_> = seen.collect();
        assert_eq!(
            seen,
            [("a", "10.0.0.3:80".to_owned(), 1), ("web-1", "10.0.0.2:9090".to_owned(), 3)]
        );
    }

    #[test]
    fn what_is_no_backend_is_refused_by_name() {
        for text in [
            "",
            "web",
            "10.0.0",
            "10.0.0.2:",
            "10.0.0.2:0",
            "10.0.0.2:x",
            "10.0.0.2@",
            "10.0.0.2@-1",
            "10.0.0.2@1.5",
            "[::1",
            "[::1]x",
            "[::1]:",
            "[10.0.0.2]x",
            "10.0.0.2:80:81",
            "host:80",
            "@1",
            "10.0.0.2@1@2",
            "1:2",
            "10.0.0.2/24",
            "=10.0.0.2",
            "web=",
            "web=a=10.0.0.2",
        ] {
            let error = format!("{:#}", text.parse::<StaticBackend>().unwrap_err());
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn the_backends_own_port_beats_the_target_and_the_target_the_listen_port() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        assert_eq!(address("::1").endpoint(spec("80")).to_string(), "[::1]:80");
        assert_eq!(address("::1").endpoint(spec("80:81")).to_string(), "[::1]:81");
        assert_eq!(address("[::1]:82").endpoint(spec("80:81")).to_string(), "[::1]:82");
    }

    #[test]
    fn every_backend_stands_behind_every_port() {
        let backends = ["10.0.0.2@2", "10.0.0.3:9"].map(|text| text.parse().unwrap());
        let snapshot = of(&backends, &[spec("80"), spec("443:8443/udp")]).unwrap();
        let served: Vec<_> = snapshot
            .candidates
            .iter()
            .map(|c| format!("{}>{}", c.listen.brief(), c.endpoint))
            .collect();
        assert_eq!(
            served,
            ["80>10.0.0.2:80", "443/udp>10.0.0.2:8443", "80>10.0.0.3:9", "443/udp>10.0.0.3:9"]
        );
    }

    #[test]
    fn the_same_backend_twice_is_refused() {
        let backends = ["10.0.0.2", "10.0.0.2:80"].map(|text| text.parse().unwrap());
        let error = of(&backends, &[spec("80")]).unwrap_err().to_string();
        assert!(error.contains("10.0.0.2:80 is given twice"), "{error}");
    }

    #[tokio::test]
    async fn a_backend_that_is_taken_out_drains_before_it_goes() {
        let backends = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let drain = Duration::from_millis(50);
        let first = ProviderSettings {
            backends: backends(&["10.0.0.2", "10.0.0.3"]),
            drain,
            ..ProviderSettings::default()
        };
        let (change, terms) = watch::channel(first);
        let mut snapshots = start(vec![spec("80")], terms).unwrap();
        let mut next = async |change: &mut dyn FnMut()| {
            change();
            snapshots.changed().await.unwrap();
            let seen = snapshots.borrow_and_update();
            let one = |c: &Candidate| format!("{} {:?} {}", c.name, c.condition, c.weight);
            seen.candidates.iter().map(one).collect::<Vec<_>>()
        };
        let seen =
            next(&mut || change.send_modify(|terms| terms.backends = backends(&["10.0.0.3@2"])))
                .await;
        assert_eq!(seen, ["10.0.0.2 Draining 1", "10.0.0.3 Ready 2"]);
        assert_eq!(next(&mut || {}).await, ["10.0.0.3 Ready 2"]);
    }

    /// Whoever has changed them waits for that.
    #[tokio::test]
    async fn a_snapshot_says_which_terms_are_in_force() {
        let (change, terms) = watch::channel(ProviderSettings::default());
        let mut snapshots = start(vec![spec("80")], terms).unwrap();
        assert_eq!(snapshots.borrow().generation, 0);
        change.send_modify(|terms| terms.generation = 1);
        snapshots.changed().await.unwrap();
        assert_eq!(snapshots.borrow().generation, 1);
    }

    #[test]
    fn terms_with_a_backend_twice_are_refused() {
        let backends = ["10.0.0.2", "10.0.0.2:80"].map(|text| text.parse().unwrap()).to_vec();
        let terms = ProviderSettings { backends, ..ProviderSettings::default() };
        assert!(check(&[spec("80")], &terms).unwrap_err().to_string().contains("given twice"));
    }
}
