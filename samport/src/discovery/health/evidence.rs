//! Whether a backend fails, asked as soon as clients say so.

use std::net::SocketAddr;

use super::ask;
use crate::model::check::{Check, Method};

pub use super::ask::Finding;

/// Asks a backend once: first what its clients ask, a connection, then its check if that is another.
pub async fn confirm(endpoint: SocketAddr, check: &Check) -> Finding {
    let limit = check.rhythm.timeout;
    match tokio::time::timeout(limit, ask::connect(endpoint)).await {
        Ok(Ok(_)) => {}
        Ok(Err(finding)) => return finding,
        Err(_) => return Finding::Failing(ask::no_answer(limit)),
    }
    if check.method == Method::Tcp {
        return Finding::Well;
    }
    ask::ask(endpoint, check).await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::model::Condition;
    use crate::model::check::{Config, Rhythm};

    fn check(source: &str) -> Check {
        let rhythm = Rhythm { timeout: Duration::from_secs(20), ..Rhythm::default() };
        let config = Config { source: source.parse().unwrap(), rhythm };
        match config.of_listed(samport_common::wire::protocol::Protocol::Tcp) {
            Condition::Checked(check) => check,
            other => panic!("{source}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn one_that_takes_connections_is_well_and_one_that_refuses_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap();
        assert_eq!(confirm(endpoint, &check("tcp")).await, Finding::Well);
        drop(listener);
        let refused = Finding::Failing("connection refused".to_owned());
        assert_eq!(confirm(endpoint, &check("tcp")).await, refused);
    }

    /// The page may be another port's: it passes without a listener where clients connect.
    #[tokio::test]
    async fn a_page_must_pass_and_does_not_stand_for_the_connection() {
        let page = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = page.local_addr().unwrap();
        let serve = move |answers: Vec<&'static str>| {
            for answer in answers {
                let (mut stream, _) = page.accept().unwrap();
                assert!(stream.read(&mut [0; 512]).unwrap() > 0);
                write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        };
        let server = std::thread::spawn(move || serve(vec!["200 OK", "503 No"]));
        let check = check(&format!("http:{}/up", at.port()));
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let refused = Finding::Failing("connection refused".to_owned());
        assert_eq!(confirm(closed, &check).await, refused);
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = open.local_addr().unwrap();
        assert_eq!(confirm(endpoint, &check).await, Finding::Well);
        assert_eq!(confirm(endpoint, &check).await, Finding::Failing("answered 503".to_owned()));
        server.join().unwrap();
    }
}
