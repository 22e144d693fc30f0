//! What a voter is asked next. It follows from what they have said, so that a page that is loaded again, or a program that is started again, asks the
//! same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vp_core::folder_lock::FolderLock;
use vp_data::{Aspect, Completion, Preferred, Record};

use super::sources::{Contest, Source};
use super::votes::{Repeat, Said, Vote, Votes};
use super::written;

/// After so many answers something is asked again.
const EVERY: usize = 8;
/// What was asked so recently is still remembered.
const RECENT: usize = 4;
/// The longest name of a voter, in characters.
const LONGEST_NAME: usize = 40;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Which of two images is better.
    Compare,
    /// Ratings of one image on the four aspects.
    Rate,
}

/// A question to a voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The place of the record.
    pub record: usize,
    /// The completions, in the order in which they are shown.
    pub shown: Vec<usize>,
    pub repeat: Option<Repeat>,
}

impl Question {
    /// A name of the question that tells nothing of who drew what.
    pub fn id(&self, seed: u64) -> String {
        let shown: Vec<String> = self.shown.iter().map(ToString::to_string).collect();
        format!("{:016x}", hash(seed, &[&self.record.to_string(), &shown.join(" "), &format!("{:?}", self.repeat)]))
    }
}

/// What is voted on, and the votes.
pub struct Ballot {
    pub mode: Mode,
    pub contest: Contest,
    pub votes: Votes,
    source: Source,
    output: PathBuf,
    seed: u64,
    /// Records by their id.
    places: HashMap<String, usize>,
    _lock: FolderLock,
}

impl Ballot {
    /// Opens the folder of the votes, new or begun, and reads what is voted on.
    ///
    /// # Errors
    /// When somebody else writes the folder, or something cannot be read or written.
    pub fn open(source: Source, output: &Path, mode: Mode, seed: u64) -> anyhow::Result<Self> {
        let lock = FolderLock::take(output, "")?;
        let contest = source.read(output)?;
        let votes = Votes::open(output)?;
        let mut ballot = Self { mode, contest, votes, source, output: output.to_path_buf(), seed, places: HashMap::new(), _lock: lock };
        ballot.number();
        if let Some(vote) = ballot.votes.all().flat_map(|(_, votes)| votes).find(|vote| !ballot.fits(vote)) {
            bail!("{} holds votes on other images (record {}); choose another --output", output.display(), vote.record);
        }
        Ok(ballot)
    }

    fn number(&mut self) {
        self.places = self.contest.records.iter().enumerate().map(|(place, record)| (record.id.clone(), place)).collect();
    }

    /// Whether a vote is about images that are here.
    fn fits(&self, vote: &Vote) -> bool {
        let Some(record) = self.record_of(vote) else { return false };
        let is_here = |index: &usize| *index < record.completions.len();
        match &vote.said {
            Said::Compared { shown, .. } => shown.iter().all(is_here),
            Said::Rated { completion, .. } => is_here(completion),
            Said::Skipped { shown } => shown.iter().all(is_here),
            Said::Undone => true,
        }
    }

    /// The record that a vote is about.
    pub fn record_of(&self, vote: &Vote) -> Option<&Record> {
        self.contest.records.get(*self.places.get(&vote.record)?)
    }

    /// The seed of the orders in which things are asked.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The file of an image that is shown.
    pub fn image(&self, question: &Question, at: usize) -> Option<PathBuf> {
        let completion: &Completion = self.contest.records[question.record].completions.get(*question.shown.get(at)?)?;
        Some(self.output.join(&completion.image_path))
    }

    /// Looks for images that came since: an evaluation may still be drawing.
    pub fn look_for_more(&mut self) {
        if let Some(contest) = self.source.read_again(&self.output, &self.contest) {
            self.contest = contest;
            self.number();
        }
    }

    /// How many questions there are, without repeats, and how many of them a voter has answered or skipped.
    pub fn progress(&self, voter: &str) -> (usize, usize) {
        let done = self.votes.of(voter).iter().filter(|vote| vote.repeat.is_none()).count();
        (done, self.contest.records.iter().map(|record| units(record, self.mode).len()).sum())
    }

    /// What a voter is asked next; `None` when everything was asked.
    pub fn question(&self, voter: &str) -> Option<Question> {
        let votes = self.votes.of(voter);
        self.repeated(voter, votes).or_else(|| self.new_question(voter, votes))
    }

    /// Something that was not asked yet, in an order of the voter's own.
    fn new_question(&self, voter: &str, votes: &[Vote]) -> Option<Question> {
        let asked: HashSet<(usize, Vec<usize>)> =
            votes.iter().filter_map(|vote| Some((*self.places.get(&vote.record)?, sorted(about(&vote.said))))).collect();
        let all = self
            .contest
            .records
            .iter()
            .enumerate()
            .flat_map(|(place, record)| units(record, self.mode).into_iter().map(move |unit| (place, unit)));
        let open = all.filter(|unit| !asked.contains(unit));
        let drawn = |(place, unit): &(usize, Vec<usize>)| {
            let of_unit: String = unit.iter().map(|index| format!("{index} ")).collect();
            hash(self.seed, &[voter, &self.contest.records[*place].id, &of_unit])
        };
        let (record, mut shown) = open.min_by_key(drawn)?;
        // Which one is on the left.
        if drawn(&(record, shown.clone())).is_multiple_of(2) {
            shown.reverse();
        }
        Some(Question { record, shown, repeat: None })
    }

    /// Now and then, something that was asked before: in turn with the images in the other order, and unchanged.
    fn repeated(&self, voter: &str, votes: &[Vote]) -> Option<Question> {
        let is_answer = |vote: &&Vote| !matches!(vote.said, Said::Skipped { .. });
        let repeats = votes.iter().filter(|vote| vote.repeat.is_some()).count();
        let first: Vec<&Vote> = votes.iter().filter(|vote| vote.repeat.is_none()).filter(is_answer).collect();
        if first.len() < EVERY * (repeats + 1) {
            return None;
        }
        let again: HashSet<(&str, Vec<usize>)> =
            votes.iter().filter(|vote| vote.repeat.is_some()).map(|vote| (vote.record.as_str(), sorted(about(&vote.said)))).collect();
        let old = first[..first.len() - RECENT].iter().filter(|vote| !again.contains(&(vote.record.as_str(), sorted(about(&vote.said)))));
        let chosen = old.min_by_key(|vote| hash(self.seed, &[voter, &vote.record, "again", &repeats.to_string()]))?;
        let mut shown = about(&chosen.said);
        let repeat = if self.mode == Mode::Compare && repeats.is_multiple_of(2) { Repeat::Swapped } else { Repeat::Same };
        if repeat == Repeat::Swapped {
            shown.reverse();
        }
        Some(Question { record: *self.places.get(&chosen.record)?, shown, repeat: Some(repeat) })
    }

    /// Takes an answer to the question that a voter is asked now, and writes it, and the records.
    ///
    /// # Errors
    /// When nothing is asked, the answer does not fit the question, or it cannot be written.
    pub fn answer(&mut self, voter: &str, answer: &Answer) -> anyhow::Result<()> {
        let question = self.question(voter).context("nothing is asked any more")?;
        let said = match (answer, self.mode, &question.shown[..]) {
            (Answer::Skip, ..) => Said::Skipped { shown: question.shown.clone() },
            (Answer::Prefer { preferred, both_bad }, Mode::Compare, [left, right]) => {
                Said::Compared { shown: [*left, *right], preferred: *preferred, both_bad: *both_bad }
            }
            (Answer::Rate(ratings), Mode::Rate, [completion]) => {
                let is_rating = |aspect: &Aspect| ratings.get(aspect).is_some_and(|rating| (1.0..=5.0).contains(rating));
                if ratings.len() != Aspect::ALL.len() || !Aspect::ALL.iter().all(is_rating) {
                    bail!("expected a rating from 1 to 5 on every aspect");
                }
                Said::Rated { completion: *completion, ratings: ratings.clone() }
            }
            _ => bail!("the answer does not fit the question"),
        };
        let record = self.contest.records[question.record].id.clone();
        self.votes.add(Vote { voter: voter.to_string(), record, said, repeat: question.repeat })?;
        self.write()
    }

    /// Takes a voter's last answer back; whether there was one.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn undo(&mut self, voter: &str) -> anyhow::Result<bool> {
        let undone = self.votes.undo(voter)?.is_some();
        if undone {
            self.write()?;
        }
        Ok(undone)
    }

    fn write(&self) -> anyhow::Result<()> {
        written::write(&self.output, &self.contest.records, &self.votes)
    }
}

/// An answer from the page.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// One of two images, or neither.
    Prefer { preferred: Preferred, both_bad: bool },
    /// On every aspect.
    Rate(BTreeMap<Aspect, f64>),
    /// Nothing.
    Skip,
}

/// The name of a voter as it is written: one line, without spaces around it. `None` if it cannot be one.
pub fn voter(name: &str) -> Option<String> {
    let name = name.trim();
    (name.chars().count() <= LONGEST_NAME && !name.chars().any(char::is_control)).then(|| name.to_string())
}

/// What can be asked of a record.
fn units(record: &Record, mode: Mode) -> Vec<Vec<usize>> {
    let n = record.completions.len();
    match mode {
        Mode::Compare => (0..n).flat_map(|first| (first + 1..n).map(move |second| vec![first, second])).collect(),
        Mode::Rate => (0..n).map(|index| vec![index]).collect(),
    }
}

/// The images that something was said of, as they were shown.
fn about(said: &Said) -> Vec<usize> {
    match said {
        Said::Compared { shown, .. } => shown.to_vec(),
        Said::Rated { completion, .. } => vec![*completion],
        Said::Skipped { shown } => shown.clone(),
        Said::Undone => Vec::new(),
    }
}

fn sorted(mut indices: Vec<usize>) -> Vec<usize> {
    indices.sort_unstable();
    indices
}

/// FNV-1a, then mixed (SplitMix64's finisher): the same in every version of the program, so that votes go on in the same order.
fn hash(seed: u64, parts: &[&str]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(folder: &Path, prompts: usize, mode: Mode) -> Ballot {
        let completion =
            |name: &str| Completion { image_path: format!("images/{name}.png"), model: Some(name.into()), ..Completion::default() };
        let records = (0..prompts).map(|i| Record::new(i.to_string(), "a", vec![completion("x"), completion("y")])).collect();
        Ballot::open(Source::Given(records), folder, mode, 7).unwrap()
    }

    const LEFT: Answer = Answer::Prefer { preferred: Preferred::First, both_bad: false };

    #[test]
    fn every_pair_is_asked_once_with_sides_by_chance_and_some_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut ballot = ballot(dir.path(), 200, Mode::Compare);
        let mut asked = Vec::new();
        while let Some(question) = ballot.question("anna") {
            assert_eq!(Some(&question), ballot.question("anna").as_ref(), "asked again, it is the same");
            asked.push(question);
            ballot.answer("anna", &LEFT).unwrap();
        }
        let new: Vec<&Question> = asked.iter().filter(|question| question.repeat.is_none()).collect();
        assert_eq!(new.iter().map(|question| question.record).collect::<HashSet<_>>().len(), 200);
        let turned = new.iter().filter(|question| question.shown == [1, 0]).count();
        // Within four standard deviations of a half.
        assert!((72..=128).contains(&turned), "{turned}");
        let again = |repeat| asked.iter().filter(|question| question.repeat == Some(repeat)).count();
        assert_eq!((again(Repeat::Swapped), again(Repeat::Same)), (13, 12));
        for (place, question) in asked.iter().enumerate().filter(|(_, question)| question.repeat.is_some()) {
            let first = asked.iter().position(|other| other.record == question.record && other.repeat.is_none()).unwrap();
            assert!(place - first > RECENT, "it is asked again when it is forgotten");
            let turned: Vec<usize> = asked[first].shown.iter().rev().copied().collect();
            assert_eq!(question.shown, if question.repeat == Some(Repeat::Swapped) { turned } else { asked[first].shown.clone() });
        }
        assert_ne!(ballot.question("ben").unwrap(), asked[0], "another voter has another order");
        assert_eq!(ballot.progress("anna"), (200, 200));
    }

    #[test]
    fn what_is_undone_is_asked_again_and_skipped_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut ballot = ballot(dir.path(), 3, Mode::Compare);
        let first = ballot.question("").unwrap();
        ballot.answer("", &LEFT).unwrap();
        let second = ballot.question("").unwrap();
        assert_ne!(first, second);
        assert!(ballot.undo("").unwrap());
        assert_eq!(ballot.question("").unwrap(), first);
        ballot.answer("", &Answer::Skip).unwrap();
        assert_eq!(ballot.question("").unwrap(), second);
        drop(ballot);
        let mut again = self::ballot(dir.path(), 3, Mode::Compare);
        assert_eq!((again.question("").unwrap(), again.progress("")), (second, (1, 3)));
        let ratings = Aspect::ALL.into_iter().map(|aspect| (aspect, 3.0)).collect();
        assert!(again.answer("", &Answer::Rate(ratings)).is_err(), "a rating answers no comparison");
        drop(again);
        let other = Ballot::open(Source::Given(vec![]), dir.path(), Mode::Compare, 7).err().unwrap().to_string();
        assert!(other.contains("holds votes on other images"), "{other}");
    }

    #[test]
    fn ratings_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut ballot = ballot(dir.path(), 1, Mode::Rate);
        let rate = |rating| Answer::Rate(Aspect::ALL.into_iter().map(|aspect| (aspect, rating)).collect());
        assert!(
            ballot.answer("", &rate(6.0)).is_err()
                && ballot.answer("", &Answer::Rate(BTreeMap::new())).is_err()
                && ballot.answer("", &LEFT).is_err()
        );
        ballot.answer("", &rate(5.0)).unwrap();
        ballot.answer("", &rate(1.0)).unwrap();
        assert_eq!((ballot.question(""), ballot.progress("")), (None, (2, 2)));
    }

    #[test]
    fn names_are_one_line() {
        assert_eq!(voter("  anna "), Some("anna".into()));
        assert_eq!((voter("a\nb"), voter(&"a".repeat(41)), voter("")), (None, None, Some(String::new())));
    }
}
