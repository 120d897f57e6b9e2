//! The kernel's debug lines, when `-v` asks for them.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The reading end of the kernel's log.
pub type Logs = EbpfLogger<&'static dyn log::Log>;

pub(super) fn take(ebpf: &mut Ebpf) -> Option<Logs> {
    match EbpfLogger::init(ebpf) {
        Ok(logs) => Some(logs),
        Err(error) => {
            tracing::warn!("the kernel's log cannot be read: {error}");
            None
        }
    }
}

/// Hands the kernel's lines to the log until the ring buffer is gone.
pub async fn follow(logs: Logs) -> Result<()> {
    // SAFETY: the logger owns the ring buffer's file descriptor for as long as it lives, and never
    // exchanges it.
    let registered = unsafe { AsyncFd::register_with_interest(logs, Interest::READABLE) };
    let mut logs = registered.map_err(std::io::Error::from).context("poll the kernel's log")?;
    loop {
        let mut ready = logs.readable_mut().await.context("wait for the kernel's log")?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
