//! Ctrl-C and SIGTERM: the first asks, the second ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
pub use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use vp_trainers::run::Interrupt;

/// Makes the first SIGINT or SIGTERM set `interrupt`, and the second end the process at once with 128 + its number: a save under
/// way is then a temporary folder, and older checkpoints are untouched.
pub fn install(interrupt: &Interrupt) -> anyhow::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: at the first signal the condition is still false.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, asked.clone()).context("install a signal handler")?;
        signal_hook::flag::register(signal, asked.clone()).context("install a signal handler")?;
        let flag = interrupt.flag();
        // SAFETY: the action only stores to an atomic, which is async-signal-safe.
        unsafe { signal_hook::low_level::register(signal, move || flag.store(signal, Ordering::Relaxed)) }
            .context("install a signal handler")?;
    }
    ignore_file_size_signal()
}

/// As [`install`], for work that only asks a flag whether to go on.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let (asked, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, asked.clone()).context("install a signal handler")?;
        signal_hook::flag::register(signal, asked.clone()).context("install a signal handler")?;
        signal_hook::flag::register(signal, stop.clone()).context("install a signal handler")?;
    }
    Ok(stop)
}

/// A file that may not grow then fails to be written, like one on a full disk, instead of ending the process.
#[cfg(unix)]
fn ignore_file_size_signal() -> anyhow::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).context("install a signal handler")?;
    Ok(())
}

#[cfg(not(unix))]
fn ignore_file_size_signal() -> anyhow::Result<()> {
    Ok(())
}
