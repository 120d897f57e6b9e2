//! Watching single packets. Whoever watches says again and again that it does: one that is killed costs
//! nothing any more after a moment.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use rustix::fs::FlockOperation;
use samport_common::trace::{Traced, Watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes as _;

use super::maps::{MapCell, sums};
use super::{flows, pins};
use crate::system::exit::{Exit, coded};

/// For how long the kernel tells after it was last asked to.
const TERM: Duration = Duration::from_secs(1);
/// How often it should be asked.
pub const RENEW: Duration = Duration::from_millis(250);

/// Who watches an instance. Dropping it ends that.
pub struct Tracer {
    watch: Array<MapData, MapCell<Watch>>,
    filter: Watch,
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    /// How many were lost before.
    lost_before: u64,
    /// Held for as long as it watches: the ring has one reader.
    _lock: OwnedFd,
}

impl Tracer {
    /// Begins to watch an instance for what a filter says; its time is not looked at.
    ///
    /// # Errors
    /// [`Exit::Conflict`] if somebody else does.
    pub fn start(instance: &str, filter: Watch) -> Result<Self> {
        let lock = lock(instance)?;
        let data = |map: &str| {
            let opened = pins::open(&pins::map_of(instance, map));
            opened.with_context(|| format!("cannot trace {instance} (is it of an older samport?)"))
        };
        let watch = Array::try_from(Map::Array(data("TRACE_WATCH")?)).context("TRACE_WATCH")?;
        let ring = RingBuf::try_from(Map::RingBuf(data("TRACES")?)).context("TRACES")?;
        let lost = PerCpuArray::try_from(Map::PerCpuArray(data("TRACE_LOST")?));
        let lost = lost.context("TRACE_LOST")?;
        let mut tracer = Self { watch, filter, ring, lost, lost_before: 0, _lock: lock };
        // The filter before there is a time; and what a killed one has left has no reader.
        tracer.set(0)?;
        while tracer.ring.next().is_some() {}
        tracer.lost_before = tracer.all_lost()?;
        tracer.renew()?;
        Ok(tracer)
    }

    /// Goes on watching.
    pub fn renew(&mut self) -> Result<()> {
        self.set(flows::now_ns() + u64::try_from(TERM.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The next packet that the kernel has told of, if there is one already.
    pub fn take(&mut self) -> Option<Traced> {
        while let Some(item) = self.ring.next() {
            if let Ok(traced) = Traced::read_from_bytes(&item) {
                return Some(traced);
            }
        }
        None
    }

    /// How many packets could not be told of since it began.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.all_lost()?.saturating_sub(self.lost_before))
    }

    /// What resolves when there may be something to take.
    pub fn bell(&self) -> Result<Bell> {
        use std::os::fd::AsFd as _;
        let fd = self.ring.as_fd().try_clone_to_owned().context("duplicate the ring")?;
        // SAFETY: it is this descriptor for as long as it lives.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let registered = registered.map_err(io::Error::from);
        Ok(Bell(registered.context("cannot poll the kernel's traces")?))
    }

    fn all_lost(&self) -> Result<u64> {
        Ok(sums(&self.lost)?.iter().sum())
    }

    fn set(&mut self, until_ns: u64) -> Result<()> {
        let value = MapCell(Watch { until_ns, ..self.filter });
        self.watch.set(0, value, 0).context("write TRACE_WATCH")
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Err(error) = self.set(0) {
            tracing::warn!("{error:#}; it ends by itself in a second");
        }
    }
}

/// Rings when the kernel has told of something.
pub struct Bell(AsyncFd<OwnedFd>);

impl Bell {
    /// Waits for it.
    pub async fn rings(&mut self) -> Result<()> {
        let mut ready =
            self.0.readable_mut().await.context("cannot wait for the kernel's traces")?;
        ready.clear_ready();
        Ok(())
    }
}

/// The folder of an instance's pins, locked.
fn lock(instance: &str) -> Result<OwnedFd> {
    let path = pins::folder_of(instance);
    let folder = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder.into()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!("another trace of {instance} is running; end it first");
            Err(coded(Exit::Conflict, message))
        }
        Err(error) => {
            Err(io::Error::from(error)).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}
