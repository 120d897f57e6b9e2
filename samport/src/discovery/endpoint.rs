//! Where the engine listens, and what to say when it does not.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Result, bail};
use bollard::{API_DEFAULT_VERSION, Docker};

use super::access;
use crate::system::causes::{causes, io_kind};
use crate::system::escape;
use crate::system::exit::{Coded as _, Exit};

/// Who is asked for containers. Podman's service speaks Docker's API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// Docker.
    Docker,
    /// `podman system service`, of root.
    Podman,
}

impl Engine {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        }
    }

    /// What `--provider` calls it.
    pub(super) const fn provider(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// The environment variable that names its address.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Docker => "DOCKER_HOST",
            Self::Podman => "CONTAINER_HOST",
        }
    }

    /// Where it listens unless it is told otherwise.
    const fn usual(self) -> &'static str {
        match self {
            Self::Docker => "unix:///var/run/docker.sock",
            Self::Podman => "unix:///run/podman/podman.sock",
        }
    }

    /// How it is made to listen.
    const fn way_to_start(self) -> &'static str {
        match self {
            Self::Docker => "start Docker",
            Self::Podman => {
                "start its service with `systemctl start podman.socket` or `podman system service \
                 --time=0`"
            }
        }
    }
}
/// Longest wait for the head of an answer, in seconds.
const TIMEOUT_S: u64 = 30;

/// The engine's address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// The path of a Unix socket.
    Unix(String),
    /// `HOST:PORT`, unencrypted.
    Http(String),
}

impl Endpoint {
    /// Takes `--endpoint`, else the engine's environment variable, else its usual socket.
    pub fn find(engine: Engine, flag: Option<&str>, variable: Option<&str>) -> Result<Self> {
        match (flag, variable.filter(|text| !text.is_empty())) {
            (Some(text), _) => Self::parse(text).exit(Exit::Usage, "--endpoint"),
            (None, Some(text)) => Self::parse(text).exit(Exit::Usage, engine.variable()),
            (None, None) => Self::parse(engine.usual()),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        const WAY_OUT: &str = "use unix:///PATH or tcp://HOST:PORT";
        if text.starts_with('/') {
            return Ok(Self::Unix(text.to_owned()));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            bail!("invalid address {text:?}: no scheme; {WAY_OUT}");
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.to_owned())),
            "unix" => bail!(
                "invalid address {text:?}: expected a path that starts with a slash; {WAY_OUT}"
            ),
            "tcp" | "http" => {
                let host = rest.trim_end_matches('/');
                let port = host.rsplit_once(':').filter(|(host, _)| !host.is_empty());
                if port.is_none_or(|(_, port)| crate::model::ports::port(port).is_err()) {
                    bail!("invalid address {text:?}: expected a host and a port; {WAY_OUT}");
                }
                Ok(Self::Http(host.to_owned()))
            }
            "https" | "ssh" => {
                bail!("invalid address {text:?}: TLS and SSH are not supported; {WAY_OUT}")
            }
            _ => bail!("invalid address {text:?}: unknown scheme {scheme:?}; {WAY_OUT}"),
        }
    }

    /// Whether the engine's processes are this machine's. Behind a loopback address is a proxy of its socket.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let Self::Http(host) = self else { return true };
        let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// A client, which has not connected yet.
    pub(super) fn client(&self) -> Result<Docker, bollard::errors::Error> {
        match self {
            Self::Unix(path) => Docker::connect_with_unix(path, TIMEOUT_S, API_DEFAULT_VERSION),
            Self::Http(host) => Docker::connect_with_http(host, TIMEOUT_S, API_DEFAULT_VERSION),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Http(host) => write!(f, "tcp://{host}"),
        }
    }
}

/// The engine does not answer. Its text names the endpoint, the trouble and the way out.
#[derive(Debug)]
pub struct Unreachable {
    /// Who it should be.
    pub engine: Engine,
    /// Where it was looked for.
    pub endpoint: Endpoint,
    /// What is wrong.
    pub reason: UnreachableReason,
}

/// What may be wrong with the way to the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnreachableReason {
    /// There is no such socket.
    Absent,
    /// There is something else in its place.
    NoSocket,
    /// We may not open it.
    Forbidden,
    /// It is another user's, as these words say, and root gives up what it would take to open it all the same.
    AnotherUsers(String),
    /// It is there, and there is no listener.
    NobodyListens,
    /// No answer in time.
    Silent,
    /// Anything else, in its own words.
    Other(String),
}

impl Error for Unreachable {}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, start) = (self.engine.name(), self.engine.way_to_start());
        let elsewhere =
            format!("name its address with --endpoint unix:///PATH or {}", self.engine.variable());
        write!(f, "cannot reach {name} at {}: ", self.endpoint)?;
        match &self.reason {
            UnreachableReason::Absent => {
                write!(f, "there is no such socket; {start}, or {elsewhere}")
            }
            UnreachableReason::NoSocket => write!(f, "that is no socket; {elsewhere}"),
            UnreachableReason::Forbidden => write!(
                f,
                "permission denied; run samport as root, or as a user who may open the socket"
            ),
            UnreachableReason::AnotherUsers(whose) => write!(
                f,
                "permission denied: {whose}, and samport gives up root's right to open what is others' \
                 (CAP_DAC_OVERRIDE); containers of a rootless engine cannot be served: run {name} as root, or, \
                 if it does run as root, let root open the socket (setfacl -m u:root:rw)"
            ),
            UnreachableReason::NobodyListens => {
                write!(f, "nothing listens there; {start}, or {elsewhere}")
            }
            UnreachableReason::Silent => {
                write!(f, "no answer; see whether {name} is well, or {elsewhere}")
            }
            UnreachableReason::Other(words) => {
                write!(f, "{words}; see whether {name} is well, or {elsewhere}")
            }
        }
    }
}

impl Unreachable {
    /// Finds out what an error of the client means.
    pub(super) fn new(engine: Engine, endpoint: &Endpoint, error: &bollard::errors::Error) -> Self {
        let reason = match (error, io_kind(error)) {
            (bollard::errors::Error::SocketNotFoundError(path), _) => absence(path, endpoint),
            (bollard::errors::Error::RequestTimeoutError, _) | (_, Some(ErrorKind::TimedOut)) => {
                UnreachableReason::Silent
            }
            (_, Some(ErrorKind::PermissionDenied)) => refusal_by_mode(endpoint),
            (_, Some(ErrorKind::NotFound | ErrorKind::NotADirectory)) => UnreachableReason::Absent,
            (_, Some(ErrorKind::ConnectionRefused)) => refusal(endpoint),
            _ => UnreachableReason::Other(words(error)),
        };
        Self { engine, endpoint: endpoint.clone(), reason }
    }
}

/// The client calls everything absent that it cannot look at.
fn absence(path: &str, endpoint: &Endpoint) -> UnreachableReason {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => refusal_by_mode(endpoint),
        _ => UnreachableReason::Absent,
    }
}

/// Somebody may not open it: whose it is, if that is in the way.
pub(super) fn refusal_by_mode(endpoint: &Endpoint) -> UnreachableReason {
    let whose = match endpoint {
        Endpoint::Unix(path) => access::obstacle(Path::new(path)),
        Endpoint::Http(_) => None,
    };
    whose.map_or(UnreachableReason::Forbidden, UnreachableReason::AnotherUsers)
}

/// Connecting to a plain file is refused just as connecting to a socket without a listener.
fn refusal(endpoint: &Endpoint) -> UnreachableReason {
    match endpoint {
        Endpoint::Unix(path)
            if std::fs::metadata(path).is_ok_and(|m| !m.file_type().is_socket()) =>
        {
            UnreachableReason::NoSocket
        }
        _ => UnreachableReason::NobodyListens,
    }
}

/// The last cause says what happened; those above it say in whose hands. Only its first line: what
/// is no engine may answer with a whole web page.
pub(super) fn words(error: &(dyn Error + 'static)) -> String {
    let cause = causes(error).last().map_or_else(String::new, ToString::to_string);
    escape::line(cause.lines().next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_behind_a_socket_or_a_loopback_address_is_this_machines() {
        for (text, is_local) in [
            ("unix:///var/run/docker.sock", true),
            ("tcp://127.0.0.1:2375", true),
            ("tcp://localhost:2375", true),
            ("tcp://[::1]:2375", true),
            ("tcp://192.0.2.1:2375", false),
            ("tcp://engine.example:2375", false),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().is_local(), is_local, "{text}");
        }
    }

    #[test]
    fn the_flag_beats_docker_host_and_that_beats_the_usual_socket() {
        let find = |flag, host| Endpoint::find(Engine::Docker, flag, host).unwrap().to_string();
        assert_eq!(find(None, None), "unix:///var/run/docker.sock");
        assert_eq!(find(None, Some("")), "unix:///var/run/docker.sock");
        assert_eq!(find(None, Some("tcp://h:1")), "tcp://h:1");
        assert_eq!(find(Some("unix:///a b"), Some("tcp://h:1")), "unix:///a b");
        assert_eq!(find(Some("/run/d.sock"), None), "unix:///run/d.sock");
        assert_eq!(find(Some("http://[::1]:2375/"), None), "tcp://[::1]:2375");
        let podman = |host| Endpoint::find(Engine::Podman, None, host).unwrap().to_string();
        assert_eq!(podman(None), "unix:///run/podman/podman.sock");
        assert_eq!(podman(Some("unix:///p.sock")), "unix:///p.sock");
    }

    #[test]
    fn wrong_addresses_are_refused_by_name_and_source() {
        for text in
            ["", "docker", "unix://run", "tcp://h", "tcp://:1", "tcp://h:x", "ssh://h", "x://h"]
        {
            let error =
                format!("{:#}", Endpoint::find(Engine::Docker, Some(text), None).unwrap_err());
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("--endpoint"),
                "{error}"
            );
        }
        for (engine, variable) in
            [(Engine::Docker, "DOCKER_HOST"), (Engine::Podman, "CONTAINER_HOST")]
        {
            let error = format!("{:#}", Endpoint::find(engine, None, Some("x")).unwrap_err());
            assert!(error.contains(variable), "{error}");
        }
    }

    async fn reason(endpoint: &str) -> UnreachableReason {
        let endpoint = Endpoint::parse(endpoint).unwrap();
        let error = match endpoint.client() {
            Ok(client) => client.ping().await.unwrap_err(),
            Err(error) => error,
        };
        Unreachable::new(Engine::Docker, &endpoint, &error).reason
    }

    #[tokio::test]
    async fn troubles_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        assert_eq!(reason(&path("absent")).await, UnreachableReason::Absent);
        std::fs::write(path("file"), "").unwrap();
        assert_eq!(reason(&path("file")).await, UnreachableReason::NoSocket);
        assert_eq!(reason(&path("file/under")).await, UnreachableReason::Absent);
        drop(std::os::unix::net::UnixListener::bind(path("left")).unwrap());
        assert_eq!(reason(&path("left")).await, UnreachableReason::NobodyListens);
        // Port 1 of the machine itself: tcpmux is no longer in use.
        assert_eq!(reason("tcp://127.0.0.1:1").await, UnreachableReason::NobodyListens);
    }

    #[test]
    fn each_trouble_is_told_with_a_way_out() {
        let engine = Engine::Docker;
        let endpoint = Endpoint::parse(engine.usual()).unwrap();
        for (reason, word) in [
            (UnreachableReason::Absent, "--endpoint"),
            (UnreachableReason::NoSocket, "DOCKER_HOST"),
            (UnreachableReason::Forbidden, "as root"),
            (
                UnreachableReason::AnotherUsers("/run/user/7 is user 7's (mode 0700)".into()),
                "/run/user/7 is user 7's",
            ),
            (UnreachableReason::NobodyListens, "start Docker"),
            (UnreachableReason::Silent, "no answer"),
            (UnreachableReason::Other("odd".into()), "odd"),
        ] {
            let text = Unreachable { engine, endpoint: endpoint.clone(), reason }.to_string();
            assert!(text.contains("unix:///var/run/docker.sock") && text.contains(word), "{text}");
        }
        let engine = Engine::Podman;
        let absent =
            Unreachable { engine, endpoint, reason: UnreachableReason::Absent }.to_string();
        assert!(absent.contains("podman system service") && absent.contains("CONTAINER_HOST"));
    }
}
