//! Every answer on disk as soon as it is given: a line each, in `votes.jsonl`. What a voter takes back is a line too.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vp_core::input_file;
use vp_data::{Aspect, Preferred};

/// The file of all answers, in the order in which they were given.
const FILE: &str = "votes.jsonl";

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Said {
    /// Which of two images is better, in the order in which they were shown.
    Compared {
        shown: [usize; 2],
        preferred: Preferred,
        /// They are alike in that both are bad.
        #[serde(default, skip_serializing_if = "is_false")]
        both_bad: bool,
    },
    /// How good an image is on each aspect.
    Rated { completion: usize, ratings: BTreeMap<Aspect, f64> },
    /// Nothing, about these images.
    Skipped { shown: Vec<usize> },
    /// The voter's last line does not count.
    Undone,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Why something is asked that was asked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// The two images have changed places: whether the place matters.
    Swapped,
    /// Nothing has changed: whether the voter is of one mind.
    Same,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// A name, or nothing.
    pub voter: String,
    /// The id of the record.
    pub record: String,
    #[serde(flatten)]
    pub said: Said,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
}

/// The answers of every voter.
#[derive(Debug)]
pub struct Votes {
    path: PathBuf,
    file: File,
    by_voter: BTreeMap<String, Vec<Vote>>,
}

impl Votes {
    /// Goes on with those in a folder. A line that a killed process left unfinished is removed.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds something else.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        let shown = path.display();
        let text =
            if path.exists() { input_file::read_regular_to_string(&path).with_context(|| format!("read {shown}"))? } else { String::new() };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut by_voter = BTreeMap::new();
        for (number, line) in text[..whole].lines().enumerate() {
            let vote = serde_json::from_str(line).with_context(|| format!("{shown}, line {}: this is not a vote", number + 1))?;
            count(&mut by_voter, vote);
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("open {shown}"))?;
        if whole < text.len() {
            file.set_len(whole as u64).with_context(|| format!("remove half a line from {shown}"))?;
        }
        Ok(Self { path, file, by_voter })
    }

    /// Adds an answer; it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written; it does not count then.
    pub fn add(&mut self, vote: Vote) -> anyhow::Result<()> {
        let line = serde_json::to_string(&vote).context("write a vote")? + "\n";
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("write {}", self.path.display()))?;
        count(&mut self.by_voter, vote);
        Ok(())
    }

    /// Takes a voter's last answer back; which it was, if there is one.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn undo(&mut self, voter: &str) -> anyhow::Result<Option<Vote>> {
        let Some(last) = self.of(voter).last().cloned() else { return Ok(None) };
        self.add(Vote { said: Said::Undone, repeat: None, ..last.clone() })?;
        Ok(Some(last))
    }

    /// The answers of a voter that count, in order.
    pub fn of(&self, voter: &str) -> &[Vote] {
        self.by_voter.get(voter).map_or(&[], Vec::as_slice)
    }

    /// The answers of all voters.
    pub fn all(&self) -> impl Iterator<Item = (&str, &[Vote])> {
        self.by_voter.iter().map(|(voter, votes)| (voter.as_str(), votes.as_slice()))
    }
}

fn count(by_voter: &mut BTreeMap<String, Vec<Vote>>, vote: Vote) {
    let of_voter = by_voter.entry(vote.voter.clone()).or_default();
    match vote.said {
        Said::Undone => drop(of_voter.pop()),
        _ => of_voter.push(vote),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn answers_outlive_the_process_and_half_a_line_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let vote = |voter: &str, preferred| Vote {
            voter: voter.into(),
            record: "1".into(),
            said: Said::Compared { shown: [1, 0], preferred, both_bad: false },
            repeat: None,
        };
        let mut votes = Votes::open(dir.path()).unwrap();
        votes.add(vote("a", Preferred::First)).unwrap();
        votes.add(vote("b", Preferred::Tie)).unwrap();
        votes.add(vote("a", Preferred::Second)).unwrap();
        assert_eq!(votes.undo("a").unwrap(), Some(vote("a", Preferred::Second)));
        assert_eq!(votes.undo("c").unwrap(), None);
        drop(votes);
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("{\"voter\":\"a\",\"record\":\"1\",\"kind\":\"compared\",\"shown\":[1,0],\"preferred\":\"first\"}\n"),
            "{text}"
        );
        fs::write(&path, text + "{\"voter\":\"a\",\"rec").unwrap();
        let mut votes = Votes::open(dir.path()).unwrap();
        assert_eq!((votes.of("a"), votes.of("b").len()), (&[vote("a", Preferred::First)][..], 1));
        votes.add(vote("a", Preferred::Tie)).unwrap();
        assert_eq!(Votes::open(dir.path()).unwrap().of("a").len(), 2);
        fs::write(&path, "nonsense\n").unwrap();
        assert!(Votes::open(dir.path()).unwrap_err().to_string().contains("line 1: this is not a vote"));
    }
}
