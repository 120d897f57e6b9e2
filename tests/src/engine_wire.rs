//! What engines that run nothing say and hear: Docker's API on a socket.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The beginning of an answer without a known end: events.
pub const EVENTS_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
    Transfer-Encoding: chunked\r\n\r\n";

/// What a container's event says.
pub fn event(id: &str, action: &str, attributes: &[(&str, &str)]) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let attributes: serde_json::Map<_, _> =
        attributes.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({
        "Type": "container", "Action": action, "scope": "local",
        "time": now.as_secs(), "timeNano": u64::try_from(now.as_nanos()).unwrap_or(0),
        "Actor": { "ID": id, "Attributes": attributes },
    })
}

/// An event as a part of an answer without a known end.
pub fn chunk(event: &Value) -> Vec<u8> {
    let line = format!("{event}\n");
    format!("{:x}\r\n{line}\r\n", line.len()).into_bytes()
}

/// A whole answer.
pub fn answer(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// A question's path in parts, without the API's version and what follows a question mark.
pub fn parts_of(head: &str) -> Vec<&str> {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.first().is_some_and(|version| version.starts_with("v1.")) {
        parts.remove(0);
    }
    parts
}

/// The head of a question.
pub fn read_head(client: &mut UnixStream) -> io::Result<String> {
    let (mut head, mut buffer) = (Vec::new(), [0; 4_096]);
    // What is asked for by GET has nothing after its head.
    while !head.ends_with(b"\r\n\r\n") {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..length]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The lock, whatever the thread that had it has come to.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
