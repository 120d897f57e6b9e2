//! One check: does it pass, and if not, why?

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::model::check::{Check, Method, Page};

const AGENT: &str = concat!("samport/", env!("CARGO_PKG_VERSION"));

/// What was found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Its check passes.
    Well,
    /// It does not, for this reason: half a sentence for the user.
    Failing(String),
    /// This machine could not ask: no verdict on the backend.
    Unknown(String),
}

/// Checks once.
pub(super) async fn ask(endpoint: SocketAddr, check: &Check) -> Finding {
    let answer = async {
        match &check.method {
            Method::Tcp => connect(endpoint).await.map(drop),
            Method::Http(page) => get(page, page.address(endpoint)).await,
        }
    };
    let limit = check.rhythm.timeout;
    let answer = tokio::time::timeout(limit, answer).await;
    match answer.unwrap_or_else(|_| Err(Finding::Failing(no_answer(limit)))) {
        Ok(()) => Finding::Well,
        Err(finding) => finding,
    }
}

/// Why a check fails that takes too long.
pub(super) fn no_answer(limit: Duration) -> String {
    format!("no answer within {}", humantime::format_duration(limit))
}

/// A connection, or why there is no connection.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, Finding> {
    TcpStream::connect(address).await.map_err(|error| {
        if is_local(&error) {
            return Finding::Unknown(error.to_string());
        }
        Finding::Failing(match error.kind() {
            io::ErrorKind::Other => error.to_string(),
            // "connection refused", without the number of the error.
            kind => kind.to_string(),
        })
    })
}

/// Whether an error of `connect` says nothing about the other end: it is this machine that lacks something, or forbids
/// it.
fn is_local(error: &io::Error) -> bool {
    const OF_THIS_MACHINE: [i32; 8] = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EADDRNOTAVAIL,
        libc::EAGAIN,
        libc::EACCES,
        libc::EPERM,
    ];
    error.raw_os_error().is_some_and(|number| OF_THIS_MACHINE.contains(&number))
}

/// Whether a page is there. Where else it may be is not followed: a redirect is an answer.
async fn get(page: &Page, address: SocketAddr) -> Result<(), Finding> {
    let in_words = |error: hyper::Error| Finding::Failing(error.to_string());
    let stream = TokioIo::new(connect(address).await?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(in_words)?;
    let request = Request::get(page.path.as_str())
        .header(HOST, address.to_string())
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Finding::Failing(error.to_string()))?;
    // The connection moves only while it is polled. Where it ends first it has left an answer behind, or
    // the reason why there is no answer.
    let answer = match select(pin!(sender.send_request(request)), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    };
    let status = answer.map_err(in_words)?.status();
    if is_fit(status) {
        Ok(())
    } else {
        Err(Finding::Failing(format!("answered {}", status.as_u16())))
    }
}

fn is_fit(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::model::check::{Config, Rhythm};

    const PATIENT: Duration = Duration::from_secs(20);

    /// A server that takes one connection, sends this, and hands back the request's head.
    fn answering(answer: &'static str) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head = lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
            stream.write_all(answer.as_bytes()).unwrap();
            head
        };
        (address, thread::spawn(serve))
    }

    async fn check(address: SocketAddr, source: &str, timeout: Duration) -> Result<(), String> {
        match found(address, source, timeout).await {
            Finding::Well => Ok(()),
            Finding::Failing(why) => Err(why),
            Finding::Unknown(why) => panic!("this machine could not ask: {why}"),
        }
    }

    async fn found(address: SocketAddr, source: &str, timeout: Duration) -> Finding {
        let rhythm = Rhythm { timeout, ..Rhythm::default() };
        let config = Config { source: source.parse().unwrap(), rhythm };
        let condition = config.of_listed(samport_common::wire::protocol::Protocol::Tcp);
        let crate::model::Condition::Checked(check) = condition else { panic!("{source}") };
        ask(address, &check).await
    }

    #[tokio::test]
    async fn the_status_decides() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Ok(())),
            ("HTTP/1.0 204 No Content\r\n\r\n", Ok(())),
            ("HTTP/1.1 399 Odd\r\nContent-Length: 0\r\n\r\n", Ok(())),
            ("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", Ok(())),
            ("HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n", Err("answered 400")),
            ("HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nnot all", Err("answered 503")),
            ("", Err("connection closed before message completed")),
            ("SSH-2.0-x\r\n\r\n", Err("invalid HTTP version parsed")),
        ] {
            let (address, server) = answering(answer);
            let outcome = check(address, "http:/up?deep=1", PATIENT).await;
            assert_eq!(outcome, expected.map_err(str::to_owned), "{answer:?}");
            let head = server.join().unwrap();
            assert_eq!(head[0], "GET /up?deep=1 HTTP/1.1");
            assert!(head.contains(&format!("host: {address}")), "{head:?}");
        }
    }

    #[test]
    fn what_this_machine_lacks_is_no_verdict() {
        for number in [libc::EMFILE, libc::ENOBUFS, libc::EADDRNOTAVAIL, libc::EPERM] {
            assert!(is_local(&io::Error::from_raw_os_error(number)), "{number}");
        }
        for number in [libc::ECONNREFUSED, libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ECONNRESET] {
            assert!(!is_local(&io::Error::from_raw_os_error(number)), "{number}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_refused_and_somebody_silent_takes_too_long() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // The kernel accepts for a server that does nothing.
        assert_eq!(check(address, "tcp", PATIENT).await, Ok(()));
        let outcome = check(address, "http:/", Duration::from_millis(100)).await;
        assert_eq!(outcome, Err("no answer within 100ms".to_owned()));
        drop(listener);
        for source in ["tcp", "http:/"] {
            let outcome = check(address, source, PATIENT).await;
            assert_eq!(outcome, Err("connection refused".to_owned()));
        }
    }
}
