//! Whoever tells people how a run is going. The program's terminal is one; tests, and those who call this crate from their own code, may have
//! nothing told.

use std::fmt::{Arguments, Debug};

/// Tells people, line by line, how a run is going. It never fails: a reader who went away is no reason to lose a run.
pub trait Voice: Debug + Send {
    /// One line of news.
    fn say(&self, line: Arguments<'_>);

    /// One line that must not be missed, even by those who want no news.
    fn warn(&self, line: Arguments<'_>);

    /// One line that tells what the whole run was for, even to those who want no news. Progress is over.
    fn conclude(&self, line: Arguments<'_>);

    /// Whether progress is shown, so that single updates need no lines.
    fn shows_progress(&self) -> bool {
        false
    }

    /// Work begins: `of` updates in all, `done` of them before this process began.
    fn begin(&mut self, done: u64, of: u64) {
        let _ = (done, of);
    }

    /// The first `done` of `of` updates are done; `note` describes the last one.
    fn advance(&mut self, done: u64, of: u64, note: &str) {
        let _ = (done, of, note);
    }

    /// Work is over: progress need not be shown any more.
    fn finish(&self) {}
}

/// Tells nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Voice for Silent {
    fn say(&self, _: Arguments<'_>) {}
    fn warn(&self, _: Arguments<'_>) {}
    fn conclude(&self, _: Arguments<'_>) {}
}
