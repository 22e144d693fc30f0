//! What a user sees of a fault in the program itself.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::process::ExitCode;

use vp_core::containment::is_contained;

use crate::shown;
use crate::terminal::complain;

/// The exit code of a fault in the program (`EX_SOFTWARE` of sysexits).
const FAULT: u8 = 70;

/// Runs the program. A panic is told in one line with what to report, unless `RUST_BACKTRACE` asks for more, and ends with exit code 70.
pub fn caught(program: impl FnOnce() -> ExitCode) -> ExitCode {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        if is_contained() {
            return;
        }
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            usual(info);
        }
        let payload = info.payload();
        let message =
            payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let place = info.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        complain(
            "fault",
            format_args!(
                "this is a mistake in visionprefer {}, not in what you gave it. Please report it with the command and this line: {}{place}. What \
                 was saved is as it was; RUST_BACKTRACE=1 tells more",
                env!("CARGO_PKG_VERSION"),
                shown::line(message.trim())
            ),
        );
    }));
    catch_unwind(AssertUnwindSafe(program)).unwrap_or_else(|_| ExitCode::from(FAULT))
}
