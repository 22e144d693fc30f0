//! Images of the same prompt and seed beside each other.

use std::collections::BTreeMap;

use vp_evaluation::comparison::ImageResult;
use vp_evaluation::report::{ImagePair, Picture, ScorePair};

/// Results of images by model, prompt and seed.
pub struct ResultsByImage<'a>(BTreeMap<(&'a str, usize, u64), &'a ImageResult>);

impl<'a> ResultsByImage<'a> {
    /// Sorts `results`.
    pub fn new(results: &'a [ImageResult]) -> Self {
        Self(results.iter().map(|row| ((row.model.as_str(), row.index, row.seed), row)).collect())
    }

    /// The images of prompt `index` and `seed` by two models, the baseline first; `None` if one of the two is missing. `picture` reads an image.
    pub fn pair(
        &self,
        [baseline, model]: [&str; 2],
        index: usize,
        seed: u64,
        picture: impl Fn(&ImageResult) -> anyhow::Result<Picture>,
    ) -> anyhow::Result<Option<ImagePair>> {
        let (Some(before), Some(after)) = (self.0.get(&(baseline, index, seed)), self.0.get(&(model, index, seed))) else {
            return Ok(None);
        };
        let scores = before.scores.iter().filter_map(|(reward, baseline)| {
            Some(ScorePair { reward: reward.clone(), baseline: *baseline, candidate: *after.scores.get(reward)? })
        });
        Ok(Some(ImagePair {
            index,
            seed,
            prompt: before.prompt.clone(),
            baseline: picture(before)?,
            candidate: picture(after)?,
            scores: scores.collect(),
        }))
    }
}
