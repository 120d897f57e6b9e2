//! A flood of forged packets out of a namespace.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use samport::lab::Namespace;

use crate::eventually;
use crate::raw::Socket;

/// Packets sent at once, before a pause: far fewer than a CPU's backlog takes (net.core.netdev_max_backlog is
/// 1,000), which tests that run at the same time share.
const BURST: u64 = 50;

/// Somebody who sends packets from addresses that are not his. Dropped, he stops.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Sends frames out of `eth0` of a namespace, each as it is made of its number, until there are that many or
    /// it is stopped.
    pub fn start(
        from: &Namespace,
        count: u64,
        frame: impl FnMut(u32) -> Vec<u8> + Send + 'static,
    ) -> Self {
        Self::start_with(from, count, Duration::from_millis(1), frame)
    }

    /// The same without any pause, until it is stopped: as fast as one thread can send.
    pub fn unlimited(from: &Namespace, frame: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> Self {
        Self::start_with(from, u64::MAX, Duration::ZERO, frame)
    }

    fn start_with(
        from: &Namespace,
        count: u64,
        pause: Duration,
        mut frame: impl FnMut(u32) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = from.spawn(move || {
            let socket = Socket::open("eth0").expect("open a packet socket");
            for number in (0..=u32::MAX).cycle() {
                let sent = counter.load(Relaxed);
                if sent >= count || stopped.load(Relaxed) {
                    return;
                }
                // What the device has no room for is lost, as it may be.
                let _ = socket.send(&frame(number));
                counter.store(sent + 1, Relaxed);
                if sent % BURST == BURST - 1 && !pause.is_zero() {
                    thread::sleep(pause);
                }
            }
        });
        Self { sent, stop, thread: Some(thread) }
    }

    /// How many it has sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Waits until it has sent that many.
    pub fn wait_for(&self, sent: u64) {
        eventually("the flood is sent", || (self.sent() >= sent).then_some(()));
    }

    /// Stops it, and says how many it has sent.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.sent()
    }

    fn end(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end();
    }
}
