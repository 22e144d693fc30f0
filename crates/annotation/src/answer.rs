//! Questions to annotators, their answers, and the reasons why a question may stay unanswered.

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
    /// Remove anything biased, inconsistent or unsafe from a prompt.
    Polish,
}

impl Task {
    /// The name that files use.
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

/// A prompt from which anything biased, inconsistent or unsafe was removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Polished {
    /// The remaining text; empty if nothing can be kept.
    pub prompt: String,
    /// What was removed: `biased`, `inconsistent`, `unsafe`; empty if nothing was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// Tokens and money that replies cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of instructions, prompts and images.
    pub input_tokens: u64,
    /// Tokens of replies.
    pub output_tokens: u64,
    /// USD, at the prices in the configuration.
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

/// What a question will probably cost, if the first reply is usable.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// 1 for annotators that ask a server, else 0.
    pub requests: u64,
    /// Tokens and their price.
    pub usage: Usage,
}

/// An answer and the cost of its reply. Unusable replies before it are passed to [`Ask::keep`] and not counted here.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered<T> {
    pub value: T,
    /// The cost of the last reply.
    pub usage: Usage,
    /// Whether a first reply was unusable and the annotator repaired it.
    pub repaired: bool,
}

impl<T> Answered<T> {
    /// An answer that cost nothing.
    pub fn free(value: T) -> Self {
        Self { value, usage: Usage::default(), repaired: false }
    }
}

/// A reply that does not answer the question. It was paid for, so it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unusable {
    /// Whether it answers a request to repair an earlier reply.
    pub repair: bool,
    /// The text of the reply.
    pub reply: String,
    /// What is wrong with it, one sentence per finding.
    pub findings: Vec<String>,
    /// Whether it can help to show it to the model again with the findings. It cannot for a refusal or an empty reply.
    pub repairable: bool,
}

/// The circumstances in which a question is put.
pub struct Ask<'a> {
    /// The key under which the answer will be kept: 64 hexadecimal digits.
    pub key: &'a str,
    /// Which of several independent answers to the same question this is, from 0.
    pub repeat: u32,
    /// Tells whether to give up waiting; called often.
    pub stopped: &'a dyn Fn() -> bool,
    /// Is called with what somebody who watches should know, such as a long wait.
    pub notice: &'a dyn Fn(&str),
    /// Every request is announced here before it is sent.
    pub budget: &'a Budget,
    /// Unusable replies to this question from an earlier run, in order: they are not asked for again.
    pub unusable: &'a [Unusable],
    /// Is called with every further unusable reply and its cost, before anything else is asked.
    pub keep: &'a dyn Fn(&Unusable, Usage) -> Result<(), Error>,
}

/// Why there is no answer. It decides what happens to the question.
#[derive(Debug)]
pub enum Unanswered {
    /// The annotator was asked as often as allowed and did not answer. The question is set aside; it is asked again only on request.
    SetAside(String),
    /// The server refused this question; it is set aside likewise. Many refusals in a row end the run, since then the question is not the reason.
    Rejected(String),
    /// The server gave no reply; the next run asks again. Many failures in a row end the run.
    Unreachable(String),
    /// The budget does not allow another request: the run ends.
    BudgetSpent(String),
    /// [`Ask::stopped`] told it to stop.
    Stopped,
    /// No question can be answered: the run ends.
    Fatal(Error),
}

impl From<vp_data::Error> for Unanswered {
    fn from(error: vp_data::Error) -> Self {
        Self::SetAside(error.to_string())
    }
}
