//! Floor 3: images and prompts to ratings.
//!
//! 1. An [`Annotator`] rates all images of a prompt at once on VisionPrefer's four aspects (arXiv 2404.15100, section 3), compares two of
//!    them, or polishes a prompt. There are four: a model behind an OpenAI-compatible server, the judge of the world of shapes, a reward, and
//!    earlier records.
//! 2. [`run`] puts every question of a list of prompts to it, several at a time, and writes each answer to a journal before it counts. A
//!    run that was killed goes on where it stopped, asks nothing twice, and writes the same records as a run that was never interrupted.
//! 3. [`dry_run`] says what that would cost.
//! 4. An [`OnlineRater`] rates images while a model is trained on the ratings; a [`Client`] asks any other server that speaks JSON.
//!
//! A new annotator is one file (a config that is [`Build`] and [`Validate`], a type that is [`Annotator`]) and one line in the table below.

mod annotators;
mod answer;
mod cache;
mod concurrently;
mod error;
mod estimate;
mod journal;
mod online;
mod picture;
mod polish;
mod questions;
mod records;
pub mod rubric;
mod run;
mod server;
mod settle;

pub use annotators::judge::{Judge, JudgeConfig};
pub use annotators::openai::{Detail, OpenAi, OpenAiConfig};
pub use annotators::replay::{Replay, ReplayConfig};
pub use annotators::reward::{RewardBands, RewardBandsConfig, Score, bands_at};
pub use answer::{Answered, Ask, Choice, Estimate, Polished, Task, Unanswered, Unusable, Usage};
pub use concurrently::concurrently;
pub use error::{Error, Result};
pub use estimate::{DryRun, dry_run};
pub use online::OnlineRater;
pub use picture::Picture;
pub use polish::polish;
pub use run::{Job, RunOptions, run};
pub use server::budget::Budget;
pub use server::client::{Client, Connection, Failure, Prices, RefusedMember, Reply, Sending};
pub use server::clock::Clock;
pub use server::secret::ApiKey;
pub use settle::{Event, SetAside, Stopped, Summary};

use serde_json::Value;
use vp_core::config::Validate;
use vp_data::Ratings;

/// Rates, compares or polishes.
///
/// Questions are put from several threads at once. What an answer depends on must be in [`model`](Self::model),
/// [`rubric`](Self::rubric) or [`settings`](Self::settings): answers are kept under keys made from these.
pub trait Annotator: Sync {
    /// The name under which it is registered.
    fn name(&self) -> &'static str;

    /// The model behind it, if there is one; written to records.
    fn model(&self) -> Option<&str> {
        None
    }

    /// The version of the instructions that it follows, if it follows any; written to records.
    fn rubric(&self, task: Task) -> Option<&'static str> {
        let _ = task;
        None
    }

    /// Whatever else its answers depend on.
    fn settings(&self) -> Value {
        Value::Null
    }

    /// Rates every image of one prompt, all at once so that the same scale is used. Returns one rating per image, in their order.
    ///
    /// # Errors
    /// [`Unanswered`] says what happens to the question.
    fn rate(&self, prompt: &str, images: &[Picture], ask: &Ask) -> Result<Answered<Vec<Ratings>>, Unanswered>;

    /// Says which of two images of a prompt is better, in the order in which they are shown.
    ///
    /// # Errors
    /// As [`rate`](Self::rate).
    fn compare(&self, prompt: &str, pair: [&Picture; 2], ask: &Ask) -> Result<Answered<Choice>, Unanswered>;

    /// Removes anything biased, inconsistent or unsafe from a prompt and keeps its meaning. Only language models can do this.
    ///
    /// # Errors
    /// As [`rate`](Self::rate).
    fn polish(&self, prompt: &str, ask: &Ask) -> Result<Answered<Polished>, Unanswered> {
        let _ = (prompt, ask);
        let reason = "it cannot polish prompts; choose `openai`, which asks a language model".into();
        Err(Unanswered::Fatal(Error::Unable { annotator: self.name(), reason }))
    }

    /// What a question will probably cost; nothing for an annotator that asks no server.
    fn estimate(&self, task: Task, prompt: &str, images: &[Picture]) -> Estimate {
        let _ = (task, prompt, images);
        Estimate::default()
    }
}

/// What building an annotator takes besides its configuration.
pub struct BuildContext {
    /// Scores images for a prompt; the annotator `reward` makes ratings of the scores.
    pub score: Option<Score>,
    /// Measures waiting times.
    pub clock: Clock,
}

impl Default for BuildContext {
    fn default() -> Self {
        Self { score: None, clock: Clock::system() }
    }
}

/// A configuration that an annotator is made from.
pub trait Build: Validate {
    /// Makes the annotator, ready to be asked.
    ///
    /// # Errors
    /// When a file that it reads, or a part of the context that it needs, is missing or wrong.
    fn build(&self, context: BuildContext) -> Result<Box<dyn Annotator>>;
}

vp_core::registry! {
    /// The `[annotator.<name>]` section.
    pub enum AnnotatorConfig: Build {
        /// A multimodal language model behind an OpenAI-compatible server (OpenAI, vLLM, Ollama, llama.cpp).
        OpenAi = "openai" => OpenAiConfig,
        /// The judge of the world of shapes: exact, free, for its captions only.
        Judge = "judge" => JudgeConfig,
        /// Pseudo-labels: a reward's scores, cut into five bands.
        Reward = "reward" => RewardBandsConfig,
        /// Earlier records, found again by prompt and image content.
        Replay = "replay" => ReplayConfig,
    }
}

impl AnnotatorConfig {
    /// Checks the configuration, then makes the annotator.
    ///
    /// # Errors
    /// When the configuration has findings, or a file that it reads is missing or wrong.
    pub fn build(&self, context: BuildContext) -> Result<Box<dyn Annotator>> {
        let mut findings = Vec::new();
        self.findings(&mut findings);
        if !findings.is_empty() {
            return Err(Error::Invalid { annotator: self.name(), findings });
        }
        self.chosen().build(context)
    }
}

impl Validate for AnnotatorConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        self.chosen().findings(findings);
    }
}
