//! Settles questions: each of several threads takes one question after the other, looks it up, and asks only if it was not answered before.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::Serialize;

use crate::cache::Cache;
use crate::journal::{Journal, JournalLine, KnownAnswers, Outcome};
use crate::questions::Question;
use crate::{Annotator, Answered, Ask, Budget, Error, Picture, Result, RunOptions, Task, Unanswered, Usage};

/// The run ends after this many questions in a row, or twice as many as there are threads if that is more, that fail through no fault of their own.
const LEAST_GIVEN_UP: usize = 5;

/// What a run reports while it runs, from several threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Another question is settled.
    Settled {
        /// Questions settled so far.
        done: usize,
        /// Questions in all.
        of: usize,
        /// Spent by this run so far.
        usd: f64,
    },
    /// Something worth showing, such as a long wait.
    Notice(&'a str),
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// The record's id.
    pub id: String,
    /// What was asked.
    pub task: Task,
    /// Indices of the completions, as shown.
    pub shown: Vec<usize>,
    /// Which of several independent answers it would have been.
    pub repeat: u32,
    /// Why there is none.
    pub reason: String,
}

/// Why a run ended before its last question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// The caller's flag was set.
    Told,
    /// The budget does not allow another request: which limit, and how far it is used.
    BudgetSpent(String),
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// Questions in all.
    pub questions: usize,
    /// Answered by the annotator in this run.
    pub asked: usize,
    /// Answered or set aside before, in an earlier run or as an equal question of this run.
    pub known: usize,
    /// Answered from the cache folder.
    pub cached: usize,
    /// How many of those asked had an unusable first reply that was then repaired.
    pub repaired: usize,
    /// Requests sent to a server, those that failed included.
    pub requests: u64,
    /// Questions without an answer, in the input's order; the next run leaves them alone unless it is told otherwise.
    pub set_aside: Vec<SetAside>,
    /// Questions to which the server gave no reply; the next run asks them again.
    pub unreached: Vec<SetAside>,
    /// Questions that are neither answered nor set aside; those unreached included.
    pub open: usize,
    /// The cost of this run's replies, including unusable ones.
    pub usage: Usage,
    /// Why it ended early, if it did.
    pub stopped: Option<Stopped>,
    /// How much of `max_usd` is left.
    pub usd_left: Option<f64>,
    /// How many of `max_requests` are left.
    pub requests_left: Option<u64>,
}

/// What is known of a question.
#[derive(Debug, Clone)]
pub(crate) enum QuestionState {
    /// If it was settled, its answer is under this key.
    Key(String),
    /// One of its images cannot be read.
    Unreadable(String),
    /// The run ended before it was asked.
    Open,
}

/// Every question's state, and what is known by key.
pub(crate) struct Settled {
    pub(crate) states: Vec<QuestionState>,
    pub(crate) known: KnownAnswers,
    pub(crate) summary: Summary,
    /// The error that ended the run; answers before it are kept.
    pub(crate) failure: Option<Error>,
}

struct QuestionQueue<'a> {
    questions: &'a [Question<'a>],
    annotator: &'a dyn Annotator,
    options: &'a RunOptions,
    progress: &'a (dyn Fn(Event) + Sync),
    stop: &'a AtomicBool,
    cache: Cache,
    budget: Budget,
    journal: Mutex<Journal>,
    /// Keys that a thread of this run works on, or has worked on.
    claimed: Mutex<HashSet<String>>,
    tally: Mutex<Tally>,
    next: AtomicUsize,
    failures_in_a_row: AtomicUsize,
    failed: AtomicBool,
    budget_is_spent: AtomicBool,
}

#[derive(Default)]
struct Tally {
    summary: Summary,
    settled: usize,
    failure: Option<Error>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Settles `questions` with the journal in `output`.
pub(crate) fn settle(
    questions: &[Question],
    annotator: &dyn Annotator,
    options: &RunOptions,
    output: &Path,
    progress: &(dyn Fn(Event) + Sync),
    stop: &AtomicBool,
) -> Result<Settled> {
    let (journal, notice) = Journal::open(output)?;
    if let Some(notice) = notice {
        progress(Event::Notice(&notice));
    }
    let earlier = (journal.known.usage.usd, journal.known.replies);
    let queue = QuestionQueue {
        questions,
        annotator,
        options,
        progress,
        stop,
        cache: Cache(options.cache.clone()),
        budget: Budget::new(options.max_usd, options.max_requests, earlier.0, earlier.1),
        journal: Mutex::new(journal),
        claimed: Mutex::default(),
        tally: Mutex::default(),
        next: AtomicUsize::new(0),
        failures_in_a_row: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        budget_is_spent: AtomicBool::new(false),
    };
    let states: Vec<Mutex<QuestionState>> = questions.iter().map(|_| Mutex::new(QuestionState::Open)).collect();
    thread::scope(|scope| {
        for _ in 0..options.concurrency.min(questions.len()) {
            scope.spawn(|| queue.work(&states));
        }
    });
    let states = states.into_iter().map(|state| state.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    Ok(queue.close(states, earlier.1))
}

impl QuestionQueue<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    fn work(&self, states: &[Mutex<QuestionState>]) {
        while !self.stopped() && !self.budget_is_spent.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(question) = self.questions.get(index) else { return };
            match self.take(question) {
                Ok(state) => *locked(&states[index]) = state,
                Err(error) => self.fail(error),
            }
        }
    }

    fn fail(&self, error: Error) {
        self.failed.store(true, Ordering::Relaxed);
        locked(&self.tally).failure.get_or_insert(error);
    }

    /// One question, from its images to its state.
    fn take(&self, question: &Question) -> Result<QuestionState> {
        let pictures = match question.pictures() {
            Ok(pictures) => pictures,
            Err(error) => {
                self.settled(|_| {});
                return Ok(QuestionState::Unreadable(error.to_string()));
            }
        };
        let key = question.key(self.annotator, &pictures);
        let is_first = locked(&self.claimed).insert(key.clone());
        let known = match locked(&self.journal).known.settled.get(&key) {
            Some(Outcome::SetAside(_)) => !(self.options.retry_set_aside && is_first),
            other => other.is_some(),
        };
        if known || !is_first {
            self.settled(|summary| summary.known += 1);
        } else if let Some(line) = self.cache.find(&key)? {
            // Whoever put it there has paid for it.
            self.append(JournalLine { item: question.id.to_owned(), usage: Usage::default(), ..line })?;
            self.settled(|summary| summary.cached += 1);
        } else {
            self.ask(question, &pictures, &key)?;
        }
        Ok(QuestionState::Key(key))
    }

    fn ask(&self, question: &Question, pictures: &[Picture], key: &str) -> Result<()> {
        let line = |said: Outcome, usage: Usage, repaired: bool| JournalLine {
            key: key.to_owned(),
            item: question.id.to_owned(),
            task: question.task,
            said,
            usage,
            repaired,
        };
        let unusable = match locked(&self.journal).known.unusable.get(key) {
            Some(unusable) => unusable.clone(),
            None => Vec::new(),
        };
        let keep = |unusable: &crate::Unusable, usage: Usage| {
            locked(&self.tally).summary.usage += usage;
            self.append(line(Outcome::Unusable(unusable.clone()), usage, false))
        };
        let stopped = || self.stopped();
        let notice = |line: &str| (self.progress)(Event::Notice(line));
        let ask = Ask {
            key,
            repeat: question.repeat,
            stopped: &stopped,
            notice: &notice,
            budget: &self.budget,
            unusable: &unusable,
            keep: &keep,
        };
        match self.put(question, pictures, &ask) {
            Ok(Answered { value, usage, repaired }) => {
                let line = line(value, usage, repaired);
                self.cache.store(&line)?;
                self.append(line)?;
                self.failures_in_a_row.store(0, Ordering::Relaxed);
                self.settled(|summary| {
                    summary.asked += 1;
                    summary.repaired += usize::from(repaired);
                    summary.usage += usage;
                });
            }
            Err(Unanswered::SetAside(reason)) => {
                self.append(line(Outcome::SetAside(reason), Usage::default(), false))?;
                self.settled(|_| {});
            }
            Err(Unanswered::Rejected(reason)) => {
                self.append(line(Outcome::SetAside(reason.clone()), Usage::default(), false))?;
                self.settled(|_| {});
                self.count_failure(reason);
            }
            Err(Unanswered::Unreachable(reason)) => {
                locked(&self.tally).summary.unreached.push(set_aside(question, reason.clone()));
                self.count_failure(reason);
            }
            Err(Unanswered::BudgetSpent(reason)) => {
                self.budget_is_spent.store(true, Ordering::Relaxed);
                locked(&self.tally).summary.stopped.get_or_insert(Stopped::BudgetSpent(reason));
            }
            Err(Unanswered::Stopped) => {}
            Err(Unanswered::Fatal(error)) => return Err(error),
        }
        Ok(())
    }

    fn put(&self, question: &Question, pictures: &[Picture], ask: &Ask) -> Result<Answered<Outcome>, Unanswered> {
        fn said<T>(answered: Answered<T>, said: impl Fn(T) -> Outcome) -> Answered<Outcome> {
            Answered { value: said(answered.value), usage: answered.usage, repaired: answered.repaired }
        }
        match (question.task, pictures) {
            (Task::Rate, images) => Ok(said(self.annotator.rate(question.prompt, images, ask)?, Outcome::Rated)),
            (Task::Compare, [first, second]) => Ok(said(self.annotator.compare(question.prompt, [first, second], ask)?, Outcome::Compared)),
            (Task::Compare, _) => unreachable!("pairs are of two"),
            (Task::Polish, _) => Ok(said(self.annotator.polish(question.prompt, ask)?, Outcome::Polished)),
        }
    }

    fn append(&self, line: JournalLine) -> Result<()> {
        locked(&self.journal).append(line)
    }

    fn settled(&self, count: impl FnOnce(&mut Summary)) {
        let event = {
            let mut tally = locked(&self.tally);
            count(&mut tally.summary);
            tally.settled += 1;
            Event::Settled { done: tally.settled, of: self.questions.len(), usd: tally.summary.usage.usd }
        };
        (self.progress)(event);
    }

    /// Ends the run when many questions in a row fail: then the questions are not the reason, and going on would only set them aside.
    fn count_failure(&self, reason: String) {
        let count = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if count >= LEAST_GIVEN_UP.max(2 * self.options.concurrency) {
            self.fail(Error::GivenUp { count, reason });
        }
    }

    fn close(self, states: Vec<QuestionState>, earlier_replies: u64) -> Settled {
        let (Tally { mut summary, failure, .. }, known) = {
            let tally = self.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
            (tally, self.journal.into_inner().unwrap_or_else(PoisonError::into_inner).known)
        };
        summary.questions = self.questions.len();
        for (question, state) in self.questions.iter().zip(&states) {
            match state {
                QuestionState::Unreadable(reason) => summary.set_aside.push(set_aside(question, reason.clone())),
                QuestionState::Open => summary.open += 1,
                QuestionState::Key(key) => match known.settled.get(key) {
                    None => summary.open += 1,
                    Some(Outcome::SetAside(reason)) => summary.set_aside.push(set_aside(question, reason.clone())),
                    Some(_) => {}
                },
            }
        }
        if summary.open > 0 && summary.stopped.is_none() && self.stop.load(Ordering::Relaxed) {
            summary.stopped = Some(Stopped::Told);
        }
        summary.requests = self.budget.requests() - earlier_replies;
        (summary.usd_left, summary.requests_left) = (self.budget.usd_left(), self.budget.requests_left());
        Settled { states, known, summary, failure }
    }
}

fn set_aside(question: &Question, reason: String) -> SetAside {
    let Question { id, task, repeat, shown, .. } = question;
    SetAside { id: (*id).to_owned(), task: *task, shown: shown.clone(), repeat: *repeat, reason }
}
