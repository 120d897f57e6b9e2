//! How much a run remembers, and for how long: the flags under "Limits".

use std::time::Duration;

use samport_common::layout::{DEFAULT_BACKENDS, DEFAULT_FLOWS, MAX_BACKENDS};

use crate::dataplane::{DEFAULT_SERVICE_SHARE, Timeouts};
pub(super) use crate::model::duration::read as time;

/// Shortest time-out: the kernel programs' clock is no finer.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Limits of `samport run`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct Limits {
    /// Limit the connections per table
    ///
    /// There is one for IPv4 and one for IPv6. 1,000 connections take 0.15 MiB of locked memory in each;
    /// fragments, affinity and connections that begin at a served port take 9 MiB more. At most a quarter may
    /// be half-open or unanswered. What finds no room is served from an overflow table of an eighth of the
    /// size, where the oldest are replaced. In a full table, closed connections are removed first, then
    /// half-open and unanswered ones, then services beyond their share, then the longest idle.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FLOWS, value_parser = clap::value_parser!(u32).range(1_024..=16_777_216), env = "SAMPORT_FLOWS")]
    pub(super) flows: u32,
    /// Limit the connections of the IPv6 table
    ///
    /// A table takes its memory whether it is used or not. Default: as --flows
    #[arg(long, hide_short_help = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1_024..=16_777_216), env = "SAMPORT_FLOWS6")]
    flows6: Option<u32>,
    /// Limit the number of backends
    ///
    /// Draining ones included. 1,000 take 0.6 MiB of locked memory, and 0.2 MiB for each CPU.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BACKENDS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_BACKENDS)), env = "SAMPORT_MAX_BACKENDS")]
    pub(super) max_backends: u32,
    /// Limit the share of a table that one service may hold
    ///
    /// In percent, 1 to 100; only while others need room: while more than three quarters of the table are in
    /// use. What it holds beyond that is removed when the table is full.
    #[arg(long, hide_short_help = true, value_name = "PERCENT", default_value_t = DEFAULT_SERVICE_SHARE, value_parser = clap::value_parser!(u8).range(1..=100), env = "SAMPORT_SERVICE_SHARE")]
    pub(super) service_share: u8,
    /// Treat this many half-open connections as a flood
    ///
    /// On one CPU in about a second. Connections of a SYN flood are kept in a small table of their own and
    /// remove no others. Default: a 128th of --flows
    #[arg(long, hide_short_help = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), env = "SAMPORT_SYN_FLOOD")]
    pub(super) syn_flood: Option<u32>,
    /// Idle timeout of half-open connections
    ///
    /// Timeouts are 1s to 30d, like 20s or 2h5m, or a number of seconds.
    #[arg(long, hide_short_help = true, value_name = "TIME", default_value = "20s", value_parser = timeout, env = "SAMPORT_TCP_SYN_TIMEOUT")]
    tcp_syn_timeout: Duration,
    /// Idle timeout of open TCP connections
    #[arg(long, value_name = "TIME", default_value = "2h5m", value_parser = timeout, env = "SAMPORT_TCP_TIMEOUT")]
    tcp_timeout: Duration,
    /// Idle timeout of closed TCP connections
    #[arg(long, hide_short_help = true, value_name = "TIME", default_value = "30s", value_parser = timeout, env = "SAMPORT_TCP_FIN_TIMEOUT")]
    tcp_fin_timeout: Duration,
    /// Idle timeout of reset TCP connections
    #[arg(long, hide_short_help = true, value_name = "TIME", default_value = "10s", value_parser = timeout, env = "SAMPORT_TCP_RST_TIMEOUT")]
    tcp_rst_timeout: Duration,
    /// Idle timeout of UDP clients
    ///
    /// After it, the next datagram may go to another backend.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout, env = "SAMPORT_UDP_TIMEOUT")]
    udp_timeout: Duration,
    /// Idle timeout of unanswered UDP clients
    #[arg(long, hide_short_help = true, value_name = "TIME", default_value = "30s", value_parser = timeout, env = "SAMPORT_UDP_UNANSWERED_TIMEOUT")]
    udp_unanswered_timeout: Duration,
}

impl Limits {
    /// Connections remembered for IPv6.
    pub(super) fn flows6(&self) -> u32 {
        self.flows6.unwrap_or(self.flows)
    }

    /// The times, as the dataplane takes them.
    pub(super) const fn timeouts(&self) -> Timeouts {
        Timeouts {
            tcp_syn: self.tcp_syn_timeout,
            tcp: self.tcp_timeout,
            tcp_fin: self.tcp_fin_timeout,
            tcp_rst: self.tcp_rst_timeout,
            udp: self.udp_timeout,
            udp_unanswered: self.udp_unanswered_timeout,
        }
    }
}

/// Reads a time that is no shorter than a second.
fn timeout(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time < SHORTEST_TIMEOUT {
        return Err(format!("invalid time {text:?}: expected 1s at least"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        limits: Limits,
    }

    fn flags(args: &[&str]) -> Result<Limits, String> {
        let args = [&["run"], args].concat();
        Flags::try_parse_from(args).map(|flags| flags.limits).map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_the_defaults_hold() {
        let limits = flags(&[]).unwrap();
        assert_eq!((limits.flows, limits.max_backends), (DEFAULT_FLOWS, DEFAULT_BACKENDS));
        assert_eq!(limits.timeouts(), Timeouts::default());
    }

    #[test]
    fn there_is_room_for_as_much_of_ipv6_as_of_ipv4_unless_it_is_said_how_much() {
        for (args, read) in [
            (&["--flows=2000"][..], Some((2_000, 2_000))),
            (&["--flows=2000", "--flows6=5000"], Some((2_000, 5_000))),
            (&["--flows6=1024"], Some((DEFAULT_FLOWS, 1_024))),
            (&["--flows6=1023"], None),
        ] {
            let limits = flags(args).ok().map(|limits| (limits.flows, limits.flows6()));
            assert_eq!(limits, read, "{args:?}");
        }
    }

    #[test]
    fn every_flag_sets_its_own_time() {
        let limits = flags(&[
            "--tcp-syn-timeout=1",
            "--tcp-timeout=2s",
            "--tcp-fin-timeout=3s",
            "--tcp-rst-timeout=4s",
            "--udp-timeout=5s",
            "--udp-unanswered-timeout=6s",
        ]);
        let [tcp_syn, tcp, tcp_fin, tcp_rst, udp, udp_unanswered] =
            [1, 2, 3, 4, 5, 6].map(Duration::from_secs);
        let expected = Timeouts { tcp_syn, tcp, tcp_fin, tcp_rst, udp, udp_unanswered };
        assert_eq!(limits.unwrap().timeouts(), expected);
    }

    #[test]
    fn there_is_room_for_some_backends_and_no_more_than_the_limit() {
        for (text, read) in [("1", Some(1)), ("16384", Some(16_384)), ("0", None), ("16385", None)]
        {
            let limits = flags(&[&format!("--max-backends={text}")]);
            assert_eq!(limits.ok().map(|limits| limits.max_backends), read, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_by_name_and_flag() {
        for (text, way_out) in [
            ("soon", "30s or 2h5m"),
            ("", "30s or 2h5m"),
            ("-1", "30s or 2h5m"),
            ("1.5", "30s or 2h5m"),
            ("5x", "30s or 2h5m"),
            ("0", "1s at least"),
            ("999ms", "1s at least"),
            ("30d1s", "30d at most"),
            ("99999999999999999999", "30s or 2h5m"),
            ("18446744073709551615", "30d at most"),
        ] {
            let error = flags(&[&format!("--udp-timeout={text}")]).err().unwrap();
            assert!(error.contains(&format!("{text:?}")) && error.contains(way_out), "{error}");
            assert!(error.contains("--udp-timeout"), "{error}");
        }
    }
}
