//! A panic that nothing caught is a fault of the program. It is told in one line that holds what a report needs, and ends it with 70, what
//! BSD's `sysexits.h` calls an internal error.

use std::any::Any;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use vp_core::{contained, shown};

use crate::{run_failure, terminal};

/// The exit code.
const INTERNAL: u8 = 70;
/// How much of the command is shown, in characters.
const COMMAND: usize = 200;

/// The first panic of any thread: what others panic with later, for the want of that thread, says less.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// The folder of the run that is under way.
static RUN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A fault from now on is noted in this run's folder too.
pub fn note_in(run: &Path) {
    *RUN.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.to_path_buf());
}

/// Does `work`; a panic in it is told in one line. With `RUST_BACKTRACE` set, Rust's own report with the backtrace comes first.
pub fn told(work: impl FnOnce() -> ExitCode) -> ExitCode {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        if contained::is_contained() {
            return;
        }
        FIRST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| what_and_where(info));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            usual(info);
        }
    }));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take();
        let what = first.unwrap_or_else(|| text(&*payload).to_owned());
        let line = line(&what, std::env::args_os().skip(1));
        if let Some(run) = RUN.lock().unwrap_or_else(PoisonError::into_inner).take() {
            run_failure::write(&run, &line);
        }
        terminal::complain("error", format_args!("{line}"));
        ExitCode::from(INTERNAL)
    })
}

fn text(payload: &dyn Any) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

fn what_and_where(info: &PanicHookInfo) -> String {
    let message = shown::one_line(text(info.payload())).into_owned();
    let message = shown::value(&message);
    match info.location() {
        // Where the sources of other crates lie is the builder's affair.
        Some(place) => {
            let file = place.file();
            let file = file.split_once("/registry/src/").and_then(|(_, file)| file.split_once('/')).map_or(file, |(_, file)| file);
            format!("{message} ({file}:{}:{})", place.line(), place.column())
        }
        None => message.into(),
    }
}

fn line(what: &str, arguments: impl Iterator<Item = OsString>) -> String {
    // The query of an address may hold a token.
    let argument = |argument: OsString| match argument.to_string_lossy().split_once('?') {
        Some((address, _)) if address.contains("://") => format!("{address}?…"),
        _ => argument.to_string_lossy().into_owned(),
    };
    let command = arguments.map(argument).collect::<Vec<_>>().join(" ");
    let (version, repository) = (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_REPOSITORY"));
    let command = shown::one_line(&command);
    format!(
        "a fault of visionprefer {version}: {what}, in: visionprefer {}; what was written before is intact. Please report this line at \
         {repository}/issues; RUST_BACKTRACE=1 adds how it came there",
        shown::cut(&command, COMMAND)
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The hook is the process's: this test runs itself again in a process of its own.
    #[test]
    fn a_panic_is_one_line_and_exit_code_70() {
        const CHILD: &str = "VP_TEST_FAULT";
        if let Ok(kind) = std::env::var(CHILD) {
            let work = || match kind.as_str() {
                "contained" => ExitCode::from(u8::from(contained::contain(|| panic!("not shown")).is_err())),
                "thread" => std::thread::scope(|scope| {
                    scope.spawn(|| panic!("the true \u{1b} reason"));
                    ExitCode::SUCCESS
                }),
                _ => panic!("a fault\nof two lines"),
            };
            let code = told(work);
            std::process::exit(i32::from(code == ExitCode::from(70)) * 70);
        }
        let run = |kind: &str, backtrace: &str| {
            let name = "fault::tests::a_panic_is_one_line_and_exit_code_70";
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", name, "--nocapture"]).env(CHILD, kind).env("RUST_BACKTRACE", backtrace);
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        for (kind, message) in [("main", "a fault\\u{a}of two lines"), ("thread", "the true \\u{1b} reason")] {
            let (code, told) = run(kind, "0");
            assert_eq!((code, told.lines().count()), (Some(70), 1), "{told}");
            let expected = format!("error: a fault of visionprefer {}: {message} (", env!("CARGO_PKG_VERSION"));
            assert!(told.starts_with(&expected) && told.contains("fault.rs:") && told.contains(", in: visionprefer --exact"), "{told}");
            let (code, told) = run(kind, "1");
            assert!(code == Some(70) && told.contains("stack backtrace:") && told.contains("error: a fault of"), "{told}");
        }
        assert_eq!(run("contained", "1"), (Some(0), String::new()));
    }

    #[test]
    fn the_line_holds_no_token_and_little_of_the_command() {
        let arguments = ["annotate", "--set", "base_url=https://a.example/v1?token=sesame", &"x".repeat(900)].map(OsString::from);
        let told = line("broken (a.rs:1:2)", arguments.into_iter());
        assert!(told.contains("https://a.example/v1?… x") && !told.contains("sesame") && told.len() < 490, "{told}");
    }
}
