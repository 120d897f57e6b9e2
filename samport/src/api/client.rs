//! The client of the control socket.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::ErrorBody;
use crate::system::exit::{Coded as _, Exit, coded};
use crate::system::instance;

/// How long a running samport may take for an answer: it gives up itself before that.
const ANSWER: Duration = Duration::from_secs(30);

/// Talks to one instance, a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// An instance that could be meant.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Running {
    name: String,
    namespace: u64,
    socket: PathBuf,
}

impl Client {
    /// The client of a socket.
    #[must_use]
    pub fn of(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The client of the instance with this name; without one, of the only one in this network namespace.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] if none exists; [`Exit::Usage`] if there are several.
    pub fn find(name: Option<&str>) -> Result<Self> {
        instance::check_visible()?;
        let here = instance::network_namespace()?;
        choose(name, running(), here).map(|one| Self { socket: one.socket })
    }

    /// Asks for something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.ask(Method::GET, path, Vec::new()).await?;
        understand(&answer.expect_good()?)
    }

    /// Asks for something that is also said by the status code: that one may be 503.
    pub async fn look<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.ask(Method::GET, path, Vec::new()).await?;
        if answer.code == StatusCode::SERVICE_UNAVAILABLE {
            return understand(&answer.body);
        }
        understand(&answer.expect_good()?)
    }

    /// Has something done.
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        understand(&self.ask(Method::POST, path, Vec::new()).await?.expect_good()?)
    }

    /// Sets something.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, to: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(to).context("cannot encode the order")?;
        understand(&self.ask(Method::PUT, path, body).await?.expect_good()?)
    }

    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<HttpResponse> {
        let asked = tokio::time::timeout(ANSWER, self.exchange(method, path, body)).await;
        asked.unwrap_or_else(|_| {
            let message = format!("no answer on {} in time", self.socket.display());
            Err(coded(Exit::Timeout, message))
        })
    }

    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<HttpResponse> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let lost = || format!("samport at {} has hung up", self.socket.display());
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.exit(Exit::Unreachable, lost())?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "samport")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .context("cannot make the request")?;
        let response = sender.send_request(request).await.exit(Exit::Unreachable, lost())?;
        let (code, body) = (response.status(), response.into_body());
        let body = body.collect().await.exit(Exit::Unreachable, lost())?.to_bytes();
        connection.abort();
        Ok(HttpResponse { code, body })
    }

    fn unreachable(&self, error: io::Error) -> anyhow::Error {
        let socket = self.socket.display();
        let (exit, message) = match error.kind() {
            ErrorKind::PermissionDenied => {
                (Exit::Privileges, format!("{socket} is root's; run it as root, with sudo"))
            }
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                (Exit::Unreachable, format!("no samport answers on {socket}"))
            }
            _ => (Exit::Unreachable, format!("connect to {socket}")),
        };
        Err::<(), _>(error).exit(exit, message).unwrap_err()
    }
}

/// An answer, good or bad.
struct HttpResponse {
    code: StatusCode,
    body: Bytes,
}

impl HttpResponse {
    /// The body of a good one; what a bad one says as an error.
    fn expect_good(self) -> Result<Bytes> {
        if self.code.is_success() {
            return Ok(self.body);
        }
        let said = serde_json::from_slice::<ErrorBody>(&self.body).map(|trouble| trouble.error);
        let said = said.unwrap_or_else(|_| format!("it answered {}", self.code));
        Err(coded(Exit::Failure, said))
    }
}

fn understand<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).context("cannot understand the answer; is it the same version?")
}

/// A name as a part of a path.
#[must_use]
pub fn escaped(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

fn running() -> Vec<Running> {
    let names = instance::known().into_iter().filter(|name| instance::is_running(name));
    let known = names.filter_map(|name| {
        // One that has just been started, or is about to end, has no record.
        let record = instance::read_record(&name).ok()?;
        Some(Running { name, namespace: record.namespace, socket: record.socket })
    });
    known.collect()
}

/// The instance that is meant.
fn choose(name: Option<&str>, all: Vec<Running>, here: u64) -> Result<Running> {
    let names =
        |of: &[Running]| of.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(name) = name {
        let there = names(&all);
        let found = all.into_iter().find(|one| one.name == name);
        return found.ok_or_else(|| {
            let others =
                if there.is_empty() { String::new() } else { format!("; there are {there}") };
            coded(Exit::Unreachable, format!("no samport {name} runs{others}"))
        });
    }
    let (mut nearby, elsewhere): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|one| one.namespace == here);
    if nearby.len() > 1 {
        let message =
            format!("several samports run; choose one with --instance: {}", names(&nearby));
        return Err(coded(Exit::Usage, message));
    }
    nearby.pop().ok_or_else(|| {
        let message = if elsewhere.is_empty() {
            "samport does not run on this machine; `samport run` starts it".to_owned()
        } else {
            let there = names(&elsewhere);
            format!("samport does not run in this network namespace; elsewhere there are {there}")
        };
        coded(Exit::Unreachable, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::exit::code_of;

    fn all() -> Vec<Running> {
        [("eth0:80@1", 1), ("eth0:81@1", 1), ("eth0:80@2", 2)]
            .map(|(name, namespace)| Running {
                name: name.into(),
                namespace,
                socket: PathBuf::from(format!("/run/samport/{name}.sock")),
            })
            .into()
    }

    #[test]
    fn the_only_one_here_is_meant_or_the_one_that_is_named() {
        assert_eq!(choose(None, all(), 2).unwrap().name, "eth0:80@2");
        assert_eq!(choose(Some("eth0:81@1"), all(), 2).unwrap().name, "eth0:81@1");
    }

    #[test]
    fn several_are_named_and_so_is_what_there_is_instead() {
        let error = choose(None, all(), 1).unwrap_err();
        assert_eq!(code_of(&error), Exit::Usage);
        let said = error.to_string();
        assert!(said.contains("eth0:80@1, eth0:81@1") && !said.contains("@2"), "{said}");
        assert!(said.contains("--instance"), "{said}");
        let error = choose(Some("eth0:82@1"), all(), 1).unwrap_err();
        assert_eq!(code_of(&error), Exit::Unreachable);
        assert!(error.to_string().contains("eth0:80@2"), "{error}");
        // An instance of another namespace has to be named.
        let error = choose(None, all(), 9).unwrap_err();
        assert_eq!(code_of(&error), Exit::Unreachable);
        assert!(error.to_string().contains("eth0:81@1"), "{error}");
        let error = choose(None, Vec::new(), 1).unwrap_err();
        assert_eq!(code_of(&error), Exit::Unreachable);
        assert!(error.to_string().contains("samport run"), "{error}");
    }

    #[test]
    fn names_are_one_part_of_a_path() {
        assert_eq!(escaped("web-1"), "web%2D1");
        assert_eq!(escaped("53/udp"), "53%2Fudp");
        assert_eq!(escaped("[::1]:80"), "%5B%3A%3A1%5D%3A80");
    }

    #[tokio::test]
    async fn who_is_not_there_is_said_to_be_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.sock");
        let asked = Client::of(&path).get::<ErrorBody>("/v1/backends").await;
        let error = asked.unwrap_err();
        assert_eq!(code_of(&error), Exit::Unreachable);
        assert!(error.to_string().contains("none.sock"), "{error:#}");
    }
}
