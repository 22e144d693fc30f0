//! Waits for others, such as a server that is busy: whoever started the program hears of them, and can end them.

use std::sync::OnceLock;

static NOTICE: OnceLock<fn(&str)> = OnceLock::new();
static STOPPED: OnceLock<Box<dyn Fn() -> bool + Send + Sync>> = OnceLock::new();

/// Lets `notice` tell of waits. It is called from any thread. The first call counts.
pub fn tell_with(notice: fn(&str)) {
    let _ = NOTICE.set(notice);
}

/// Ends waits once `stopped` says so. It is asked often, from any thread. The first call counts.
pub fn end_when(stopped: impl Fn() -> bool + Send + Sync + 'static) {
    let _ = STOPPED.set(Box::new(stopped));
}

/// Tells of a wait: who asks for it, and how long it takes.
pub fn tell(line: &str) {
    NOTICE.get().inspect(|notice| notice(line));
}

/// Whether to give up waiting.
pub fn are_ended() -> bool {
    STOPPED.get().is_some_and(|stopped| stopped())
}
