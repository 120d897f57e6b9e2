//! The server as the only process of a container.

use std::env;
use std::fs;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::Server;

static TERMINATED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_terminate(_: i32) {
    TERMINATED.store(true, SeqCst);
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

/// The container's main function: serves as `INSTANCE` (the host name without it) on `PORT` (9090).
///
/// `DELAY_MS` puts off listening, `HEALTH` is the first status of `/health`; after SIGTERM it serves on for `LINGER_MS` (0) and ends with 0.
pub fn run_from_environment() -> ! {
    // Process 1 of a container has no default actions: without a handler SIGTERM does nothing.
    for number in [2, 15] {
        // SAFETY: the handler only stores to an atomic, which is safe at any moment; SIGINT and
        // SIGTERM are 2 and 15 on every Linux.
        unsafe { signal(number, on_terminate) };
    }
    let number = |key: &str| env::var(key).ok().and_then(|text| text.parse::<u64>().ok());
    let name = env::var("INSTANCE").unwrap_or_else(|_| host_name());
    let port = number("PORT").and_then(|port| port.try_into().ok()).unwrap_or(9090);

    sleep_unless_terminated(Duration::from_millis(number("DELAY_MS").unwrap_or(0)));
    let server = Server::bind(&name, port).unwrap_or_else(|error| {
        eprintln!("{name}: listen on port {port}: {error}");
        process::exit(1);
    });
    if let Some(status) = number("HEALTH").and_then(|status| status.try_into().ok()) {
        server.set_health(status);
    }
    println!("{name}: listening on port {port}");
    sleep_unless_terminated(Duration::MAX);
    thread::sleep(Duration::from_millis(number("LINGER_MS").unwrap_or(0)));
    process::exit(0)
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn sleep_unless_terminated(time: Duration) {
    let begin = Instant::now();
    while !TERMINATED.load(SeqCst) && begin.elapsed() < time {
        thread::sleep(Duration::from_millis(5).min(time));
    }
}
