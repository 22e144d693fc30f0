//! Answers that runs with different output folders share: one file per answer, named by its key.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use vp_core::{atomic, input_file};

use crate::journal::{JournalLine, Outcome};
use crate::{Error, Result};

/// A folder of answers, or none. Only answers are shared: a question that was set aside may fare better elsewhere.
#[derive(Debug)]
pub(crate) struct Cache(pub(crate) Option<PathBuf>);

impl Cache {
    fn path(folder: &Path, key: &str) -> PathBuf {
        // Two digits first, for folders with hundreds of thousands of files are slow.
        folder.join(&key[..2]).join(format!("{key}.json"))
    }

    /// The line under `key`; a file that holds anything else counts as missing.
    pub(crate) fn find(&self, key: &str) -> Result<Option<JournalLine>> {
        let Some(folder) = &self.0 else { return Ok(None) };
        let path = Self::path(folder, key);
        match input_file::read_regular(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().filter(|line: &JournalLine| line.key == key)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Keeps an answer.
    pub(crate) fn store(&self, line: &JournalLine) -> Result<()> {
        let (Some(folder), false) = (&self.0, matches!(line.said, Outcome::SetAside(_) | Outcome::Unusable(_))) else { return Ok(()) };
        let path = Self::path(folder, &line.key);
        let parent = path.parent().expect("it was joined to a folder");
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        atomic::write(&path, &serde_json::to_vec(line).expect("a line is plain data")).map_err(Error::io("write", &path))
    }
}
