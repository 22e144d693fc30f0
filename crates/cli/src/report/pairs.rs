//! Images of the same prompt and seed beside each other.

use std::collections::BTreeMap;

use vp_evaluation::comparison::ImageResult;
use vp_evaluation::report::{ImagePair, Picture, ScorePair};

/// Results by model, prompt and seed.
pub type ByImage<'a> = BTreeMap<(&'a str, usize, u64), &'a ImageResult>;

/// Sorts results.
pub fn by_image(results: &[ImageResult]) -> ByImage<'_> {
    results.iter().map(|row| ((row.model.as_str(), row.index, row.seed), row)).collect()
}

/// An image of a model beside the baseline's; none if one is missing.
pub fn pair(
    by_image: &ByImage<'_>,
    [baseline, model]: [&str; 2],
    (index, seed): (usize, u64),
    picture: impl Fn(&ImageResult) -> anyhow::Result<Picture>,
) -> anyhow::Result<Option<ImagePair>> {
    let (Some(before), Some(after)) = (by_image.get(&(baseline, index, seed)), by_image.get(&(model, index, seed))) else {
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
