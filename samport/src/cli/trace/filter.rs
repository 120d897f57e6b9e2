//! Which packets are traced: from what people say to what the kernel compares.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ipnet::IpNet;
use samport_common::trace::{End, MAX_WATCHED, Watch};
use samport_common::verdict::Verdict;

use super::show::Names;
use crate::model::allow;
use crate::model::encode::wide;
use crate::system::exit::{Exit, coded};

/// Options that say which packets.
#[derive(clap::Args, Default, Debug)]
#[command(next_help_heading = "Filters (all must match; default: every packet)")]
pub(super) struct Filter {
    /// Show packets from or to this network
    ///
    /// Like 203.0.113.0/24, or an address.
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub(super) client: Option<IpNet>,
    /// Show packets of connections to this port
    ///
    /// The port that clients dial.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
    /// Show packets that leave by this verdict
    ///
    /// As `samport status` names it. Several with commas, or several times.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = super::verdict)]
    pub(super) verdict: Vec<Verdict>,
    /// Show packets to or from this backend
    ///
    /// The name of its container, or its address and port. May be given several times.
    #[arg(long, value_name = "BACKEND")]
    pub(super) backend: Vec<String>,
}

fn network(text: &str) -> Result<IpNet, String> {
    allow::network(text).map_err(|error| error.to_string())
}

impl Filter {
    /// As the kernel compares it.
    ///
    /// # Errors
    /// A backend that does not exist, or more addresses than the kernel compares.
    pub(super) fn watch(&self, names: &Names) -> Result<Watch> {
        let mut watch = Watch { verdicts: self.verdicts(), ..Watch::default() };
        if let Some(net) = self.client {
            watch.network = wide(net.network());
            watch.mask = mask(net);
        }
        watch.port = self.port.unwrap_or(0).to_be_bytes();
        let ends = self.ends(names)?;
        if ends.len() > MAX_WATCHED {
            let message = format!(
                "those backends have {} addresses, and {MAX_WATCHED} can be watched; name fewer, or one by \
                 its address and port",
                ends.len()
            );
            return Err(coded(Exit::Usage, message));
        }
        watch.backends_len = u32::try_from(ends.len()).unwrap_or(0);
        for (slot, at) in watch.backends.iter_mut().zip(ends) {
            *slot = End { addr: wide(at.ip()), port: at.port().to_be_bytes(), pad: [0; 2] };
        }
        Ok(watch)
    }

    fn verdicts(&self) -> u64 {
        let all = if self.verdict.is_empty() { Verdict::ALL } else { &self.verdict };
        all.iter().fold(0, |bits, verdict| bits | 1 << *verdict as u32)
    }

    fn ends(&self, names: &Names) -> Result<Vec<SocketAddr>> {
        let mut ends = Vec::new();
        for name in &self.backend {
            let of_name = names.addresses(name);
            if of_name.is_empty() {
                let message = format!("there is no backend {name:?}; there are {}", names.all());
                return Err(coded(Exit::Failure, message));
            }
            ends.extend(of_name);
        }
        ends.sort_unstable();
        ends.dedup();
        Ok(ends)
    }
}

/// The bits of a wide address that say whether it is in the network.
fn mask(net: IpNet) -> [u8; 16] {
    let before = match net.network() {
        IpAddr::V4(_) => 96,
        IpAddr::V6(_) => 0,
    };
    let bits = before + u32::from(net.prefix_len());
    u128::MAX.checked_shl(128 - bits).unwrap_or(0).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new([
            ("172.30.0.10:9090".parse().unwrap(), "web-1".to_owned()),
            ("[2001:db8::10]:9090".parse().unwrap(), "web-1".to_owned()),
            ("172.30.0.11:9090".parse().unwrap(), "web-2".to_owned()),
        ])
    }

    fn watch(filter: &Filter) -> Watch {
        filter.watch(&names()).unwrap()
    }

    #[test]
    fn without_a_filter_every_verdict_is_wanted_and_nothing_else_said() {
        let all = watch(&Filter::default());
        assert_eq!(all.verdicts.count_ones(), Verdict::COUNT);
        assert_eq!(all, Watch { verdicts: all.verdicts, ..Watch::default() });
    }

    #[test]
    fn networks_are_compared_in_their_wide_form() {
        for (net, ones) in [
            ("10.0.0.0/8", 104),
            ("0.0.0.0/0", 96),
            ("192.0.2.7", 128),
            ("::/0", 0),
            ("2001:db8::/32", 32),
        ] {
            let client = allow::network(net).unwrap();
            let watch = watch(&Filter { client: Some(client), ..Filter::default() });
            assert_eq!(u128::from_be_bytes(watch.mask).leading_ones(), ones, "{net}");
            assert_eq!(watch.network, wide(client.network()), "{net}");
        }
    }

    #[test]
    fn a_backend_is_all_its_addresses_or_the_one_that_is_named() {
        let of = |name: &str| Filter { backend: vec![name.to_owned()], ..Filter::default() };
        assert_eq!(watch(&of("web-1")).backends_len, 2);
        assert_eq!(watch(&of("172.30.0.11:9090")).backends_len, 1);
        let error = of("web-9").watch(&names()).unwrap_err().to_string();
        assert!(error.contains("\"web-9\"") && error.contains("web-1, web-2"), "{error}");
    }

    #[test]
    fn verdicts_are_named_as_status_names_them() {
        let verdict = vec![super::super::verdict("not-ours").unwrap()];
        let watch = watch(&Filter { verdict, ..Filter::default() });
        assert_eq!(watch.verdicts, 1 << Verdict::NotOurs as u32);
        let error = super::super::verdict("nope").unwrap_err();
        assert!(error.contains("\"nope\"") && error.contains("forward-peer"), "{error}");
    }
}
