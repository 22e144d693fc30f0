//! What an evaluation says of each image, and which images of two models belong together.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Deserializer, Serialize};

use crate::pixels::PixelStats;
use crate::{Error, Result};

/// One image of one model, scored: a line of an evaluation's JSONL file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageResult {
    /// The prompt's place in the prompt set. Images are paired by it and by `seed`.
    pub index: usize,
    pub prompt: String,
    /// The prompt's category, if its set has any.
    #[serde(default)]
    pub category: Option<String>,
    /// Of the noise that the image was drawn from.
    pub seed: u64,
    /// Which model drew it.
    pub model: String,
    /// Reward name to score, larger is better. One that is not finite (JSON writes it as null) does not count as a score.
    #[serde(deserialize_with = "scores_or_null")]
    pub scores: BTreeMap<String, f64>,
    /// What the image looks like.
    pub pixels: PixelStats,
}

impl ImageResult {
    /// The score by a reward, if there is a finite one.
    pub fn score(&self, reward: &str) -> Option<f64> {
        self.scores.get(reward).copied().filter(|score| score.is_finite())
    }

    fn prompt_and_category(&self) -> String {
        match &self.category {
            Some(category) => format!("{:?} (category {category:?})", self.prompt),
            None => format!("{:?} (no category)", self.prompt),
        }
    }
}

fn scores_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let scores = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(scores.into_iter().map(|(reward, score)| (reward, score.unwrap_or(f64::NAN))).collect())
}

/// The images of one model, by prompt and seed.
pub(super) type Images<'a> = BTreeMap<(usize, u64), &'a ImageResult>;

/// The same prompt and seed, drawn by two models.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub baseline: &'a ImageResult,
    pub candidate: &'a ImageResult,
}

impl Pair<'_> {
    /// The place of their prompt in the list of prompts.
    pub fn index(&self) -> usize {
        self.baseline.index
    }

    /// Candidate and baseline by a reward, if both have a score.
    pub fn scores(&self, reward: &str) -> Option<(f64, f64)> {
        self.candidate.score(reward).zip(self.baseline.score(reward))
    }
}

/// An image of one model that the other has not drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unpaired {
    /// The prompt's place in the prompt set.
    pub index: usize,
    pub seed: u64,
    pub prompt: String,
    /// The model that lacks it.
    pub missing_from: String,
}

/// Sorts rows by model, refusing those that contradict each other.
pub(super) fn by_model<'a>(rows: &'a [ImageResult], models: &[&str]) -> Result<Vec<Images<'a>>> {
    let mut images = vec![Images::new(); models.len()];
    let mut prompts: BTreeMap<usize, &ImageResult> = BTreeMap::new();
    for row in rows {
        let Some(model) = models.iter().position(|model| *model == row.model) else {
            let expected = models.iter().map(ToString::to_string).collect();
            return Err(Error::UnknownModel { found: row.model.clone(), expected });
        };
        let first = prompts.entry(row.index).or_insert(row);
        if (&first.prompt, &first.category) != (&row.prompt, &row.category) {
            let [first, second] = [first.prompt_and_category(), row.prompt_and_category()];
            return Err(Error::Prompts { index: row.index, first, second });
        }
        match images[model].entry((row.index, row.seed)) {
            Entry::Vacant(place) => place.insert(row),
            Entry::Occupied(_) => {
                return Err(Error::RepeatedImage { index: row.index, seed: row.seed, model: row.model.clone() });
            }
        };
    }
    match images.iter().position(Images::is_empty) {
        Some(model) => Err(Error::NoRows(models[model].to_string())),
        None => Ok(images),
    }
}

/// Images that both models have, in order of prompt and seed, and those that one lacks.
pub(super) fn paired<'a>(baseline: &Images<'a>, candidate: &Images<'a>, names: [&str; 2]) -> (Vec<Pair<'a>>, Vec<Unpaired>) {
    let both = baseline
        .iter()
        .filter_map(|(key, of_baseline)| candidate.get(key).map(|of_candidate| Pair { baseline: of_baseline, candidate: of_candidate }));
    let lacking = |missing_from: &str, row: &ImageResult| Unpaired {
        index: row.index,
        seed: row.seed,
        prompt: row.prompt.clone(),
        missing_from: missing_from.to_string(),
    };
    let only = |these: &Images, others: &Images, other: &str| {
        these.iter().filter(|(key, _)| !others.contains_key(key)).map(|(_, row)| lacking(other, row)).collect::<Vec<_>>()
    };
    let mut unpaired = only(baseline, candidate, names[1]);
    unpaired.extend(only(candidate, baseline, names[0]));
    (both.collect(), unpaired)
}
