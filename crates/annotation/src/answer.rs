//! What is asked, what comes back, and what becomes of a question that gets no answer.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use vp_data::Preferred;

use crate::{Budget, Error};

/// What an annotator is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Rate all images of a prompt on the four aspects.
    Rate,
    /// Say which of two images is better.
    Compare,
    /// Make a prompt fit to be drawn.
    Polish,
}

impl Task {
    /// As it is written in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Compare => "compare",
            Self::Polish => "polish",
        }
    }
}

/// Which of two images is better, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The one shown first, the one shown second, or neither.
    pub preferred: Preferred,
    /// The annotator's reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rationale: String,
}

/// A prompt made fit to be drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Polished {
    /// What is left of it; empty when nothing can be.
    pub prompt: String,
    /// What was taken out: `biased`, `inconsistent`, `unsafe`; empty when it was fine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// What replies took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of instructions, prompts and images.
    pub input_tokens: u64,
    /// Tokens of replies.
    pub output_tokens: u64,
    /// At the prices of the configuration.
    pub usd: f64,
}

impl Usage {
    /// Nothing was used.
    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.usd += other.usd;
    }
}

/// What a question will probably take, if the first reply is usable.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// 1 for annotators that ask a server, else 0.
    pub requests: u64,
    /// Tokens and their price.
    pub usage: Usage,
}

/// An answer and what its reply took. Replies before it that were of no use are told to [`Ask::keep`] and not counted here.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered<T> {
    /// The answer.
    pub value: T,
    /// What the last reply took.
    pub usage: Usage,
    /// Whether a first reply was of no use and the annotator put it right.
    pub repaired: bool,
}

impl<T> Answered<T> {
    /// An answer that cost nothing.
    pub fn free(value: T) -> Self {
        Self { value, usage: Usage::default(), repaired: false }
    }
}

/// A reply that is no answer. It was paid for, so it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unusable {
    /// Whether it answers a request to put an earlier reply right.
    pub repair: bool,
    /// What was said.
    pub reply: String,
    /// What is wrong with it, a sentence each.
    pub findings: Vec<String>,
    /// Whether showing it to the model again, with the findings, can help: not with a refusal, or with nothing.
    pub repairable: bool,
}

/// The circumstances in which a question is put.
pub struct Ask<'a> {
    /// What the answer will be kept under: 64 hexadecimal digits.
    pub key: &'a str,
    /// Which of several independent answers to the same question this is, from 0.
    pub repeat: u32,
    /// Whether to give up waiting; asked often.
    pub stopped: &'a dyn Fn() -> bool,
    /// Where every request is announced before it is sent.
    pub budget: &'a Budget,
    /// Replies to this question of an earlier run that were of no use, in order: they are not asked for again.
    pub unusable: &'a [Unusable],
    /// Is told of every further such reply and what it took, before anything else is asked.
    pub keep: &'a dyn Fn(&Unusable, Usage) -> Result<(), Error>,
}

/// Why there is no answer, which decides what becomes of the question.
#[derive(Debug)]
pub enum Unanswered {
    /// The annotator was asked as often as is allowed and has no answer: set aside, and left alone until told otherwise.
    SetAside(String),
    /// This question was refused by the server as it stands: set aside likewise. Many in a row end the run, for then it is not the question.
    Rejected(String),
    /// No reply was to be had: the next run asks again. Many in a row end the run.
    Unreachable(String),
    /// The budget does not allow for another request: the run ends.
    BudgetSpent(String),
    /// [`Ask::stopped`] said so.
    Stopped,
    /// No question will be answered: the run ends.
    Fatal(Error),
}

impl From<vp_data::Error> for Unanswered {
    fn from(error: vp_data::Error) -> Self {
        Self::SetAside(error.to_string())
    }
}
