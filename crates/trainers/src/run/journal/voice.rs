//! The interface through which a run tells people how it is going. The program's terminal implements it; tests and other callers of this
//! crate may use [`Silent`].

use std::fmt::{Arguments, Debug};

/// Tells people, line by line, how a run is going. It never fails, because a closed terminal must not end a run.
pub trait Voice: Debug + Send {
    /// Says a line of news.
    fn say(&self, line: Arguments<'_>);

    /// Says a line that must not be missed, even by those who want no news.
    fn warn(&self, line: Arguments<'_>);

    /// Says a line about the result of the run, even to those who want no news. The progress is over by then.
    fn conclude(&self, line: Arguments<'_>);

    /// Whether this voice shows the progress, so that single updates need no lines of their own.
    fn shows_progress(&self) -> bool {
        false
    }

    /// Begins to show the progress of `of` updates, `done` of which were made before this process began.
    fn begin(&mut self, done: u64, of: u64) {
        let _ = (done, of);
    }

    /// Shows that the first `done` of `of` updates have been made; `note` describes the last of them.
    fn advance(&mut self, done: u64, of: u64, note: &str) {
        let _ = (done, of, note);
    }

    /// Stops showing the progress.
    fn finish(&self) {}
}

/// A voice that says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Voice for Silent {
    fn say(&self, _: Arguments<'_>) {}
    fn warn(&self, _: Arguments<'_>) {}
    fn conclude(&self, _: Arguments<'_>) {}
}
