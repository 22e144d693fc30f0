//! Whether a model draws different images for one prompt. Fine-tuning on a reward tends to draw the same one again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::contrast::Difference;
use crate::bootstrap::Bootstrap;

/// How far apart the images of each prompt are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distances {
    /// What was measured, such as `1 − cosine of CLIP embeddings`; larger is more diverse.
    pub metric: String,
    /// Model to prompt number to the distances of all pairs of that prompt's images.
    pub models: BTreeMap<String, BTreeMap<usize, Vec<f64>>>,
}

impl Distances {
    /// The mean distance of a prompt's pairs of images; `None` without a pair, or if a distance is not finite.
    fn mean(&self, model: &str, index: usize) -> Option<f64> {
        let distances = self.models.get(model)?.get(&index)?;
        let mean = distances.iter().sum::<f64>() / distances.len() as f64;
        mean.is_finite().then_some(mean)
    }

    fn prompts(&self, model: &str) -> impl Iterator<Item = usize> {
        self.models.get(model).into_iter().flat_map(|prompts| prompts.keys().copied())
    }
}

/// A prompt for which one model has no distance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Undiverse {
    /// The prompt's place in the prompt set.
    pub index: usize,
    /// The model without one: fewer than two images of it, or a distance that is not finite.
    pub missing_from: String,
}

/// The diversity of two models on the same prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiversityContrast {
    /// What was measured.
    pub metric: String,
    /// The mean over prompts of the mean pairwise distance, and its difference; `None` if no prompt has distances of both.
    pub paired: Option<Difference>,
    /// Prompts left out.
    pub unpaired: Vec<Undiverse>,
}

impl DiversityContrast {
    pub(super) fn of(distances: &Distances, [baseline, candidate]: [&str; 2], options: &Bootstrap) -> Self {
        let indices: BTreeSet<usize> = distances.prompts(baseline).chain(distances.prompts(candidate)).collect();
        let (mut prompts, mut unpaired) = (Vec::new(), Vec::new());
        for index in indices {
            let [of_baseline, of_candidate] = [baseline, candidate].map(|model| distances.mean(model, index));
            prompts.extend(of_candidate.zip(of_baseline));
            let missing = [(baseline, of_baseline), (candidate, of_candidate)].into_iter().filter(|(_, mean)| mean.is_none());
            unpaired.extend(missing.map(|(model, _)| Undiverse { index, missing_from: model.to_string() }));
        }
        Self { metric: distances.metric.clone(), paired: Difference::of(&prompts, options), unpaired }
    }
}
