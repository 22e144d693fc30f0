use std::io;
use std::path::{Path, PathBuf};

/// Why an annotation run ends early or does not start. What concerns a single question is [`Unanswered`](crate::Unanswered).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The values of a configuration cannot work together.
    #[error("annotator {annotator}: {}", findings.join("\n  and "))]
    Invalid {
        /// Which annotator, or `options` for those of the run.
        annotator: &'static str,
        /// One sentence per finding.
        findings: Vec<String>,
    },
    /// A prompt, image or record could not be read.
    #[error(transparent)]
    Data(#[from] vp_data::Error),
    /// Another process annotates into the same folder.
    #[error("{}: another process is writing this journal; wait for it to end, or choose another output folder", path.display())]
    JournalInUse { path: PathBuf },
    /// A journal holds a line, not the last one, that was not written by a run.
    #[error(
        "{}, line {line}: {reason}; it was changed by hand or by another program. Remove that line (its question is asked again), or choose another output folder",
        path.display()
    )]
    BadJournal {
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of earlier records or scores holds a line that is not one.
    #[error("{}, line {line}: {reason}", path.display())]
    BadLine {
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What was expected and what was found.
        reason: String,
    },
    /// The server refuses every request of this kind; asking again is useless.
    #[error("{url}: {status}: {said}\n  {advice}")]
    Refused {
        /// Where the request went.
        url: String,
        /// The HTTP status, with its meaning.
        status: String,
        /// What the server said, cut short and without the key.
        said: String,
        /// What to check.
        advice: String,
    },
    /// Question after question failed.
    #[error(
        "{count} questions in a row went unanswered, the last one because: {reason}\n  What was answered is kept: see to the cause, then start again with the same output folder"
    )]
    GivenUp {
        count: usize,
        /// Why the last of them failed.
        reason: String,
    },
    /// A question that cannot be left open has no answer.
    #[error("{reason}")]
    NoAnswer {
        /// Which server did not reply, or which limit is reached.
        reason: String,
    },
    /// An annotator was asked for something that it cannot do.
    #[error("annotator {annotator}: {reason}")]
    Unable {
        annotator: &'static str,
        /// What is missing, and the way out.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// The result of operations that can end a run.
pub type Result<T, E = Error> = std::result::Result<T, E>;
