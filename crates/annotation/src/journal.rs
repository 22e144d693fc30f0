//! The journal of an output folder: one JSON line per reply that was paid for, appended and synced before it counts.
//!
//! ```json
//! {"key": "…64 hex digits…", "item": "000123", "task": "rate", "said": {"rated": […]}, "usage": {"input_tokens": 1900, …}}
//! ```
//!
//! A killed process leaves at most a torn last line, which is cut off when the journal is opened again. The file is locked while it is open.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vp_core::{atomic, input_file};
use vp_data::Ratings;

use crate::{Choice, Error, Polished, Result, Task, Unusable, Usage};

const FILE: &str = "journal.jsonl";

/// What a line says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Rated(Vec<Ratings>),
    Compared(Choice),
    Polished(Polished),
    /// The question was set aside, and why.
    SetAside(String),
    /// An unusable reply; the question is still open.
    Unusable(Unusable),
}

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JournalLine {
    pub(crate) key: String,
    /// The record's id, for people who read the file; programs use the key.
    pub(crate) item: String,
    pub(crate) task: Task,
    pub(crate) said: Outcome,
    #[serde(default, skip_serializing_if = "Usage::is_zero")]
    pub(crate) usage: Usage,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) repaired: bool,
}

/// Everything that a journal says, by key.
#[derive(Debug, Default)]
pub(crate) struct KnownAnswers {
    /// Answers and set-asides by key.
    pub(crate) settled: HashMap<String, Outcome>,
    /// Unusable replies to questions that are still open.
    pub(crate) unusable: HashMap<String, Vec<Unusable>>,
    /// The cost of all replies.
    pub(crate) usage: Usage,
    /// How many replies cost anything.
    pub(crate) replies: u64,
}

impl KnownAnswers {
    fn add(&mut self, line: JournalLine) {
        self.usage += line.usage;
        self.replies += u64::from(!line.usage.is_zero());
        match line.said {
            Outcome::Unusable(unusable) => self.unusable.entry(line.key).or_default().push(unusable),
            said => {
                self.unusable.remove(&line.key);
                self.settled.insert(line.key, said);
            }
        }
    }

    /// What the journal in `folder` says, without opening it for writing; nothing if there is none.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let bytes = input_file::read_regular(&path).map_err(Error::io("read", &path))?;
        Ok(parse(&path, &bytes)?.0)
    }
}

/// Every line, and how many bytes of the file they take: less than all if the last one is torn.
fn parse(path: &Path, bytes: &[u8]) -> Result<(KnownAnswers, usize)> {
    let mut known = KnownAnswers::default();
    let (mut at, mut number) = (0, 1);
    while let Some(length) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        let end = at + length + 1;
        match serde_json::from_slice(&bytes[at..end]) {
            Ok(line) => known.add(line),
            // After a power cut a last line may have its length but not its content.
            Err(_) if end == bytes.len() => return Ok((known, at)),
            Err(error) => return Err(Error::BadJournal { path: path.into(), line: number, reason: error.to_string() }),
        }
        (at, number) = (end, number + 1);
    }
    Ok((known, at))
}

/// A journal, open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    pub(crate) known: KnownAnswers,
}

impl Journal {
    /// Opens the journal in `folder`, or begins one. If a torn line had to be cut off, the text says so.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Option<String>)> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(FILE);
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::JournalInUse { path }),
            // Not every file system can lock; that alone is not a reason to refuse.
            Err(TryLockError::Error(_)) => {}
        }
        let bytes = input_file::read_regular(&path).map_err(Error::io("read", &path))?;
        let (known, whole) = parse(&path, &bytes)?;
        let notice = (whole < bytes.len()).then(|| {
            let torn = bytes.len() - whole;
            format!(
                "{}: the last line was torn ({torn} bytes, of a process that was killed) and is cut off; its question is asked again",
                path.display()
            )
        });
        if notice.is_some() {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(Error::io("cut off the torn line of", &path))?;
        }
        atomic::sync_folder_of(&path);
        Ok((Self { path, file, known }, notice))
    }

    /// Appends a line; it is on the disk when this returns.
    pub(crate) fn append(&mut self, line: JournalLine) -> Result<()> {
        let mut text = serde_json::to_string(&line).expect("a line is plain data");
        text.push('\n');
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()).map_err(Error::io("append to", &self.path))?;
        self.known.add(line);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, said: Outcome, usd: f64) -> JournalLine {
        let usage = Usage { input_tokens: 10, output_tokens: 1, usd };
        JournalLine { key: key.into(), item: "7".into(), task: Task::Rate, said, usage, repaired: false }
    }

    fn unusable() -> Outcome {
        Outcome::Unusable(Unusable { repair: false, reply: "no".into(), findings: vec!["bad".into()], repairable: true })
    }

    #[test]
    fn a_torn_last_line_is_cut_off_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let (mut journal, notice) = Journal::open(folder.path()).unwrap();
        assert_eq!(notice, None);
        journal.append(line("a", Outcome::Rated(Vec::new()), 0.5)).unwrap();
        let first = fs::read(&path).unwrap().len();
        journal.append(line("b", Outcome::SetAside("no".into()), 0.25)).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for kept in first..=whole.len() {
            fs::write(&path, &whole[..kept]).unwrap();
            let (mut journal, notice) = Journal::open(folder.path()).unwrap();
            let torn = kept > first && kept < whole.len();
            assert_eq!(notice.is_some(), torn, "{kept}");
            assert_eq!(journal.known.settled.len(), 1 + usize::from(kept == whole.len()), "{kept}");
            if torn {
                journal.append(line("b", Outcome::SetAside("no".into()), 0.25)).unwrap();
                assert_eq!(fs::read(&path).unwrap(), whole, "{kept}");
            }
        }
        let (journal, _) = Journal::open(folder.path()).unwrap();
        assert_eq!((journal.known.usage.usd, journal.known.replies), (0.75, 2));
    }

    #[test]
    fn a_line_of_another_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let good = serde_json::to_string(&line("a", unusable(), 1.0)).unwrap();
        fs::write(folder.path().join(FILE), format!("{good}\nnot a line\n{good}\n")).unwrap();
        assert!(Journal::open(folder.path()).unwrap_err().to_string().contains("journal.jsonl, line 2:"));
        fs::write(folder.path().join(FILE), format!("{good}\n\0\0\0\0\n")).unwrap();
        assert!(Journal::open(folder.path()).unwrap().1.is_some());
    }

    #[test]
    fn replies_of_no_use_are_kept_until_the_question_is_settled() {
        let mut known = KnownAnswers::default();
        known.add(line("a", unusable(), 1.0));
        known.add(line("a", unusable(), 1.0));
        assert_eq!((known.unusable["a"].len(), known.usage.usd), (2, 2.0));
        known.add(line("a", Outcome::SetAside("no".into()), 0.0));
        assert!(known.unusable.is_empty() && known.settled.len() == 1);
    }

    #[test]
    fn two_processes_do_not_share_a_journal() {
        let folder = tempfile::tempdir().unwrap();
        let first = Journal::open(folder.path()).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(Error::JournalInUse { .. })));
        drop(first);
        assert!(Journal::open(folder.path()).is_ok());
    }
}
