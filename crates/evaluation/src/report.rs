//! What an evaluation found, as one HTML file for people, as Markdown for issues and papers, and as JSON for programs.
//!
//! The HTML file stands alone: styles, script and images are inside it, its policy (`Content-Security-Policy`) forbids any request, and it can be
//! read without its script, on a telephone, in the dark and from the keyboard. Every number bears its interval and its `n`. Prompts, names and
//! whatever else comes from outside are data: they are escaped in one place, `report/html.rs`, and could not run if they were not, for the policy names
//! the one script and the one style sheet by their hashes.

mod chart;
mod gallery;
mod html;
mod markdown;
mod numbers;
mod page;
mod panels;
mod rewards;
mod summary;
mod tables;
mod verdict;

pub use page::STYLE;
use serde::{Deserialize, Serialize};

use crate::comparison::ModelComparison;
use crate::sentinel::{Finding, SentinelConfig};
use crate::votes::VoteCounts;

/// Everything that a report shows. Fields that are `None` or empty were not measured; the report says so where that matters.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Report {
    pub title: String,
    /// What was compared, in a sentence or two.
    pub about: String,
    /// The rewards that the models were trained on. They go up by construction, and are marked.
    pub trained_rewards: Vec<String>,
    pub comparison: Option<ModelComparison>,
    /// What people say of the images.
    pub votes: Option<VoteCounts>,
    /// Before and after, in this order.
    pub pairs: Vec<ImagePair>,
    /// Images of the worst regressions and best improvements ([`ModelComparison::extreme_images`] names them), in any order.
    pub extremes: Vec<ImagePair>,
    /// The course of a run.
    pub curves: Vec<Chart>,
    /// What the sentinel saw.
    pub sentinel: Option<SentinelPanel>,
    /// Whether held-out prompts are like training prompts.
    pub leaks: Option<LeakPanel>,
    /// The resolved configuration, as TOML.
    pub config: String,
    /// Where the numbers come from.
    pub provenance: Provenance,
}

/// The same prompt and seed, drawn by two models.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ImagePair {
    /// The prompt's place in the prompt set.
    pub index: usize,
    pub seed: u64,
    pub prompt: String,
    /// The baseline's image.
    pub baseline: Picture,
    /// The candidate's image.
    pub candidate: Picture,
    pub scores: Vec<ScorePair>,
}

/// An image of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Picture {
    pub model: String,
    /// Where the image lies beside the report, if it does.
    pub file: Option<String>,
    /// The bytes of a PNG, JPEG or WebP file. The HTML holds them, the JSON does not.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// A score before and after.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ScorePair {
    pub reward: String,
    /// Of the baseline's image.
    pub baseline: f64,
    /// Of the candidate's image.
    pub candidate: f64,
}

/// Lines over the steps of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Chart {
    /// What the lines show.
    pub title: String,
    /// A sentence on how to read it; may be empty.
    pub note: String,
    /// Whether it is one of the few to look at first.
    pub leads: bool,
    /// The lines, all on one scale.
    pub series: Vec<Series>,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Step and value, in the order of steps. A value that is not finite breaks the line.
    pub points: Vec<(f64, f64)>,
}

/// What the sentinel saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SentinelPanel {
    /// The steps it looked at, the first one included.
    pub steps: Vec<u64>,
    pub config: SentinelConfig,
    /// The rules that fired.
    pub findings: Vec<Finding>,
}

/// Held-out prompts that are nearly training prompts. A reward that rises on them says nothing about other prompts.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LeakPanel {
    /// What counts as alike, such as `3-gram Jaccard similarity of 0.8 or more`.
    pub method: String,
    /// Held-out prompts looked at.
    pub heldout: usize,
    /// Training prompts they were compared with.
    pub training: usize,
    /// Those that are alike.
    pub leaks: Vec<Leak>,
}

/// A held-out prompt and the training prompt most like it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Leak {
    /// The held-out prompt.
    pub heldout: String,
    /// The training prompt.
    pub training: String,
    /// How alike they are, in the panel's measure.
    pub similarity: f64,
}

/// Where the numbers come from, and how to get them again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The command, to be pasted.
    pub command: String,
    /// Versions of the program and its libraries.
    pub versions: Vec<Fact>,
    /// What it ran on.
    pub hardware: Vec<Fact>,
    /// When, and how long.
    pub time: Vec<Fact>,
    /// Of models, prompts and configuration.
    pub hashes: Vec<Fact>,
}

/// A name and its value.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    pub name: String,
    pub value: String,
}

impl Fact {
    /// Of two texts.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

impl Report {
    /// The whole report as one HTML file, images inside.
    pub fn to_html(&self) -> String {
        page::page(self)
    }

    /// The numbers as tables of GitHub's Markdown, without images.
    pub fn to_markdown(&self) -> String {
        markdown::markdown(self)
    }

    /// The verdict, and a row for each reward, in plain text: at most as much as fits on a screen.
    pub fn to_summary(&self) -> String {
        summary::summary(self)
    }

    /// The report as JSON, on one line, without the images' bytes. Numbers that are not finite are null.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("every map of a report has names for keys, which is all that JSON asks for")
    }
}

#[cfg(test)]
mod tests;
