//! Signals that ask a process to end: Ctrl-C, SIGTERM, and SIGHUP, which comes when its terminal is closed. The first asks, the second ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use vp_trainers::run::Interrupt;

#[cfg(unix)]
const ASKING: [i32; 3] = [SIGINT, SIGTERM, signal_hook::consts::SIGHUP];
#[cfg(not(unix))]
const ASKING: [i32; 2] = [SIGINT, SIGTERM];

/// The last one that asked.
static RECEIVED: AtomicI32 = AtomicI32::new(SIGINT);

/// Makes the first signal set `interrupt`, and the second end the process at once with 128 + its number: a save under way is then a temporary
/// folder, and older checkpoints are untouched. Signals that the process was started to ignore, as by `nohup`, are still ignored.
pub fn install(interrupt: &Interrupt) -> anyhow::Result<()> {
    let flag = interrupt.flag();
    register(move |signal| flag.store(signal, Ordering::Relaxed))?;
    ignore_file_size_signal()
}

/// As [`install`], for work that only asks a flag whether to go on.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    register(move |_| flag.store(true, Ordering::Relaxed))?;
    Ok(stop)
}

/// The signal that asked; only after one did.
pub fn received() -> i32 {
    RECEIVED.load(Ordering::Relaxed)
}

/// `ask` may only do what is async-signal-safe.
fn register(ask: impl Fn(i32) + Send + Sync + Clone + 'static) -> anyhow::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in ASKING.into_iter().filter(|signal| !is_ignored(*signal)) {
        // In this order: at the first signal the condition is still false.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, asked.clone()).context("install a signal handler")?;
        signal_hook::flag::register(signal, asked.clone()).context("install a signal handler")?;
        let ask = ask.clone();
        let action = move || {
            RECEIVED.store(signal, Ordering::Relaxed);
            ask(signal);
        };
        // SAFETY: the action only stores to atomics, which is async-signal-safe.
        unsafe { signal_hook::low_level::register(signal, action) }.context("install a signal handler")?;
    }
    Ok(())
}

/// Whether the process was started to ignore a signal.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one to `found`.
    unsafe { libc::sigaction(signal, std::ptr::null(), found.as_mut_ptr()) == 0 && found.assume_init().sa_sigaction == libc::SIG_IGN }
}

#[cfg(not(unix))]
fn is_ignored(_: i32) -> bool {
    false
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
