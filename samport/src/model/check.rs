//! What a backend's health is known by, as users say it: `--health` and the label `samport.health`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use samport_common::wire::protocol::Protocol;

use super::Condition;
use crate::model::ports::port;

/// Whose word on a backend's health holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum CheckOrigin {
    /// The container's own HEALTHCHECK, as the engine reports it. For those without one a TCP
    /// connection of ours; nothing for UDP ports, and for backends that are no containers.
    #[default]
    Docker,
    /// A TCP connection of ours; for UDP ports as `Docker`.
    Tcp,
    /// A page that we ask for, also for UDP ports.
    Http(Page),
    /// Nothing: it serves as soon as it runs.
    None,
}

impl FromStr for CheckOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "docker" => Ok(Self::Docker),
            "tcp" => Ok(Self::Tcp),
            "none" => Ok(Self::None),
            _ => match text.split_once(':') {
                Some(("http", page)) => page.parse().map(Self::Http),
                _ if text == "http" => {
                    Err(format!("invalid check {text:?}: expected a path, e.g. http:/health"))
                }
                _ if text.starts_with("https") => Err(format!(
                    "invalid check {text:?}: HTTPS is not supported; use http:/path, tcp, docker or none"
                )),
                _ => {
                    Err(format!("invalid check {text:?}: expected docker, tcp, http:/path or none"))
                }
            },
        }
    }
}

/// A page of a backend's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The port that has it, if not the one that is served.
    port: Option<u16>,
    /// What is asked for.
    pub(crate) path: PathAndQuery,
}

impl Page {
    /// Where the page of a backend is.
    pub(crate) fn address(&self, endpoint: SocketAddr) -> SocketAddr {
        SocketAddr::new(endpoint.ip(), self.port.unwrap_or(endpoint.port()))
    }
}

impl FromStr for Page {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(slash) = text.find('/') else {
            return Err(format!(
                "invalid check \"http:{text}\": expected a path, e.g. http:/health or http:8080/health"
            ));
        };
        let (number, path) = text.split_at(slash);
        let port = match number {
            "" if path.starts_with("//") => {
                return Err(format!(
                    "invalid check \"http:{text}\": expected http:/path, without a host"
                ));
            }
            "" => None,
            _ => Some(port(number).map_err(|error| error.to_string())?),
        };
        let path = path.parse().map_err(|why| format!("invalid path {path:?}: {why}"))?;
        Ok(Self { port, path })
    }
}

/// When we ask, and how many answers count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rhythm {
    /// Between two checks of a backend that is not starting.
    pub interval: Duration,
    /// How long one check may take.
    pub timeout: Duration,
    /// Checks in a row that must pass before it is healthy.
    pub rise: u32,
    /// Checks in a row that must fail before it is unhealthy.
    pub fall: u32,
}

impl Rhythm {
    /// Shortest interval and timeout: more often is a load, and a busy machine is no sick one.
    const SHORTEST: Duration = Duration::from_millis(100);
    /// Most checks in a row.
    const MOST: u32 = 1_000;
}

impl Default for Rhythm {
    fn default() -> Self {
        let [interval, timeout] = [5, 2].map(Duration::from_secs);
        Self { interval, timeout, rise: 1, fall: 3 }
    }
}

/// What the labels of a container say of the rhythm.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RhythmLabels {
    /// `samport.health.interval`.
    pub interval: Option<Duration>,
    /// `samport.health.timeout`.
    pub timeout: Option<Duration>,
    /// `samport.health.rise`.
    pub rise: Option<u32>,
    /// `samport.health.fall`.
    pub fall: Option<u32>,
}

impl RhythmLabels {
    /// The rhythm that holds where `default` does without labels.
    #[must_use]
    pub fn over(self, default: Rhythm) -> Rhythm {
        Rhythm {
            interval: self.interval.unwrap_or(default.interval),
            timeout: self.timeout.unwrap_or(default.timeout),
            rise: self.rise.unwrap_or(default.rise),
            fall: self.fall.unwrap_or(default.fall),
        }
    }
}

/// Reads an interval or a timeout.
pub fn time(text: &str) -> Result<Duration, String> {
    let time = crate::model::duration::read(text)?;
    if time < Rhythm::SHORTEST {
        return Err(format!("invalid time {text:?}: expected 100ms at least"));
    }
    Ok(time)
}

/// Reads how many checks in a row count.
pub fn count(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=Rhythm::MOST).contains(number));
    number.ok_or_else(|| format!("invalid number {text:?}: expected 1-{}", Rhythm::MOST))
}

/// How we check a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// What we do.
    pub method: Method,
    /// When, and how often.
    pub rhythm: Rhythm,
}

/// What a check does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Method {
    /// Opens a connection and closes it.
    Tcp,
    /// Asks for a page.
    Http(Page),
}

/// What holds of a backend unless something else is set for that one.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Config {
    /// Whose word holds.
    pub source: CheckOrigin,
    /// When we ask, if it is us.
    pub rhythm: Rhythm,
}

impl Config {
    /// The condition that goes with a check of ours.
    #[must_use]
    pub fn checked(&self, method: Method) -> Condition {
        Condition::Checked(Check { method, rhythm: self.rhythm })
    }

    /// What a backend may do that is no container: only samport can ask how it is.
    #[must_use]
    pub fn of_listed(&self, protocol: Protocol) -> Condition {
        match (&self.source, protocol) {
            (CheckOrigin::Http(page), _) => self.checked(Method::Http(page.clone())),
            (CheckOrigin::Tcp, Protocol::Tcp) => self.checked(Method::Tcp),
            (CheckOrigin::None, _) => Condition::Unchecked,
            (CheckOrigin::Docker | CheckOrigin::Tcp, _) => Condition::Ready,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("a TCP connection"),
            Self::Http(Page { port: None, path }) => write!(f, "http:{path}"),
            Self::Http(Page { port: Some(port), path }) => write!(f, "http:{port}{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read() {
        for (text, expected) in [
            ("docker", CheckOrigin::Docker),
            ("tcp", CheckOrigin::Tcp),
            ("none", CheckOrigin::None),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        let endpoint = "[2001:db8::2]:80".parse().unwrap();
        for (text, path, at) in [
            ("http:/", "/", "[2001:db8::2]:80"),
            ("http:/up?deep=1", "/up?deep=1", "[2001:db8::2]:80"),
            ("http:8080/up", "/up", "[2001:db8::2]:8080"),
        ] {
            let Ok(CheckOrigin::Http(page)) = text.parse() else { panic!("{text} is not read") };
            assert_eq!(
                (page.path.as_str(), page.address(endpoint).to_string().as_str()),
                (path, at)
            );
            assert_eq!(Method::Http(page).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_source_is_refused_with_a_way_out() {
        for (text, way_out) in [
            ("", "docker, tcp, http:/path or none"),
            ("maybe", "docker, tcp, http:/path or none"),
            ("Docker", "docker, tcp, http:/path or none"),
            ("tcp:80", "docker, tcp, http:/path or none"),
            ("http", "expected a path, e.g. http:/health"),
            ("http:", "expected a path, e.g. http:/health"),
            ("http:x", "expected a path, e.g. http:/health"),
            ("http:80", "expected a path, e.g. http:/health"),
            ("http:0/up", "expected 1-65535"),
            ("http:web/up", "expected 1-65535"),
            ("http://web/up", "without a host"),
            ("http:/a b", "invalid path"),
            ("https:/up", "HTTPS is not supported"),
        ] {
            let error = text.parse::<CheckOrigin>().unwrap_err();
            assert!(error.contains(way_out), "{text:?}: {error}");
        }
    }

    #[test]
    fn times_and_counts_have_limits() {
        assert_eq!(time("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(time("5"), Ok(Duration::from_secs(5)));
        for (text, way_out) in [("0", "100ms"), ("99ms", "100ms"), ("x", "30s"), ("31d", "30d")] {
            let error = time(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")) && error.contains(way_out), "{error}");
        }
        assert_eq!(count("1"), Ok(1));
        assert_eq!(count("1000"), Ok(1_000));
        for text in ["0", "1001", "-1", "x", ""] {
            let error = count(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")) && error.contains("1-1000"), "{error}");
        }
    }

    #[test]
    fn backends_that_are_no_containers_are_checked_only_if_one_says_so() {
        let of = |source: &str, protocol| {
            let config = Config { source: source.parse().unwrap(), ..Config::default() };
            match config.of_listed(protocol) {
                Condition::Checked(check) => check.method.to_string(),
                condition => format!("{condition:?}"),
            }
        };
        for (source, over_tcp, over_udp) in [
            ("docker", "Ready", "Ready"),
            ("none", "Unchecked", "Unchecked"),
            ("tcp", "a TCP connection", "Ready"),
            ("http:8080/up", "http:8080/up", "http:8080/up"),
        ] {
            let read = [Protocol::Tcp, Protocol::Udp].map(|protocol| of(source, protocol));
            assert_eq!(read, [over_tcp, over_udp], "{source}");
        }
    }
}
