//! Ctrl-C: what the benchmark has made of namespaces, programs and settings is taken apart before it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, ensure};
use signal_hook::consts::{SIGHUP, TERM_SIGNALS};
use signal_hook::flag;

/// What a shell says of a process that SIGINT has ended: 128 and the signal's number.
const EXIT: i32 = 130;

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on a signal ends the benchmark at its next [`go_on`], and a second one at once: but for the end of the
/// terminal, which comes with a first one and is not to keep us from cleaning up.
pub fn listen() -> Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in TERM_SIGNALS {
        // In this order: the first signal finds that nobody has asked yet.
        flag::register_conditional_shutdown(*signal, EXIT, Arc::clone(asked))
            .and_then(|_| flag::register(*signal, Arc::clone(asked)))
            .with_context(|| format!("listen for signal {signal}"))?;
    }
    flag::register(SIGHUP, Arc::clone(asked)).map(drop).context("listen for SIGHUP")
}

/// An error if the benchmark is to end. To be asked before each measurement.
pub fn go_on() -> Result<()> {
    let asked = ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed));
    ensure!(!asked, "interrupted; what was measured so far is lost");
    Ok(())
}
