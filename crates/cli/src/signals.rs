//! Ctrl-C and SIGTERM: the first asks, the second ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
pub use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::low_level;
use vp_core::waits;
use vp_trainers::run::Interrupt;

/// Makes the first SIGINT or SIGTERM set `interrupt`, and the second end the process at once with 128 + its number: a save under
/// way is then a temporary folder, and older checkpoints are untouched.
pub fn install(interrupt: &Interrupt) -> anyhow::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let (asked, flag) = (asked.clone(), interrupt.flag());
        on(signal, move || {
            end_if_asked_before(signal, &asked);
            flag.store(signal, Ordering::Relaxed);
        })?;
    }
    let flag = interrupt.flag();
    waits::end_when(move || flag.load(Ordering::Relaxed) != 0);
    ignore_file_size_signal()
}

/// As [`install`], for work that only asks a flag whether to go on.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let (asked, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM] {
        let (asked, stop) = (asked.clone(), stop.clone());
        on(signal, move || {
            end_if_asked_before(signal, &asked);
            stop.store(true, Ordering::Relaxed);
        })?;
    }
    let flag = stop.clone();
    waits::end_when(move || flag.load(Ordering::Relaxed));
    Ok(stop)
}

/// For work that the first signal just ends: the programs that rewards have started end with it.
pub fn end_programs_too() -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        on(signal, move || {
            end_programs();
            let _ = low_level::emulate_default_handler(signal);
        })?;
    }
    Ok(())
}

fn end_if_asked_before(signal: i32, asked: &AtomicBool) {
    if asked.swap(true, Ordering::Relaxed) {
        end_programs();
        low_level::exit(128 + signal);
    }
}

/// Programs of rewards have process groups of their own, which a Ctrl-C does not reach.
fn end_programs() {
    #[cfg(unix)]
    vp_rewards::end_programs();
}

fn on(signal: i32, action: impl Fn() + Send + Sync + 'static) -> anyhow::Result<()> {
    // SAFETY: the actions above load and store atomics, send signals, and end the process without its clean-up: all async-signal-safe.
    unsafe { low_level::register(signal, action) }.context("install a signal handler")?;
    Ok(())
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
