//! Signals that ask a process to end: Ctrl-C, SIGTERM, and SIGHUP, which comes when its terminal is closed. The first asks, the second ends.
//!
//! A SIGHUP that the process was started to ignore, as by `nohup`, is still ignored. A SIGINT is not: shells start whatever runs in the background
//! of a script to ignore it, and there `kill -INT` should save too. Where a process is one of several ranks, SIGUSR1 asks too: launchers pass it on
//! to all ranks, while they follow SIGTERM with SIGKILL a second later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;
use vp_core::waits;
use vp_trainers::run::Interrupt;

use crate::ranks;

/// The last one that asked.
static RECEIVED: AtomicI32 = AtomicI32::new(SIGINT);

/// Makes the first signal set `interrupt`, and the second end the process at once with 128 + its number: a save under way is then a temporary
/// folder, and older checkpoints are untouched.
pub fn install(interrupt: &Interrupt) -> anyhow::Result<()> {
    let flag = interrupt.flag();
    ask(move |signal| flag.store(signal, Ordering::Relaxed))?;
    let flag = interrupt.flag();
    waits::end_when(move || flag.load(Ordering::Relaxed) != 0);
    ignore_file_size_signal()
}

/// As [`install`], for work that only asks a flag whether to go on.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ask(move |_| flag.store(true, Ordering::Relaxed))?;
    let flag = stop.clone();
    waits::end_when(move || flag.load(Ordering::Relaxed));
    Ok(stop)
}

/// The signal that asked; only after one did.
pub fn received() -> i32 {
    RECEIVED.load(Ordering::Relaxed)
}

/// For work that the first signal just ends: the programs that rewards have started end with it.
pub fn end_programs_too() -> anyhow::Result<()> {
    on(|signal| {
        end_programs();
        let _ = low_level::emulate_default_handler(signal);
    })
}

/// Makes the first signal do `told`, which may only do what is async-signal-safe.
fn ask(told: impl Fn(i32) + Clone + Send + Sync + 'static) -> anyhow::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    on(move |signal| {
        if asked.swap(true, Ordering::Relaxed) {
            end_programs();
            low_level::exit(128 + signal);
        }
        RECEIVED.store(signal, Ordering::Relaxed);
        told(signal);
    })
}

/// Programs of rewards have process groups of their own, which a Ctrl-C does not reach.
fn end_programs() {
    #[cfg(unix)]
    vp_rewards::end_programs();
}

fn on(action: impl Fn(i32) + Clone + Send + Sync + 'static) -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM].into_iter().chain(hangup()).chain(forwarded()) {
        let action = action.clone();
        // SAFETY: the actions above load and store atomics, send signals, and end the process without its clean-up: all async-signal-safe.
        unsafe { low_level::register(signal, move || action(signal)) }.context("install a signal handler")?;
    }
    Ok(())
}

/// The signal that launchers of ranks pass on without ending the ranks themselves soon after: SIGUSR1.
#[cfg(unix)]
fn forwarded() -> Option<i32> {
    ranks::own_name().map(|_| signal_hook::consts::SIGUSR1)
}

#[cfg(not(unix))]
fn forwarded() -> Option<i32> {
    None
}

/// SIGHUP, unless the process was started to ignore it.
#[cfg(unix)]
fn hangup() -> Option<i32> {
    const SIGHUP: i32 = signal_hook::consts::SIGHUP;
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one to `found`.
    let is_ignored =
        unsafe { libc::sigaction(SIGHUP, std::ptr::null(), found.as_mut_ptr()) == 0 && found.assume_init().sa_sigaction == libc::SIG_IGN };
    (!is_ignored).then_some(SIGHUP)
}

#[cfg(not(unix))]
fn hangup() -> Option<i32> {
    None
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
