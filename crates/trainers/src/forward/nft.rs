//! NFT: negative-aware fine-tuning on the forward process (Zheng et al., arXiv 2509.16117).
//!
//! | paper, DiffusionNFT `scripts/train_nft_sd3.py`, `config/nft.py` | here |
//! |---|---|
//! | v_old, which draws the images and follows the policy after each epoch | [`Role::Average`], `average` |
//! | r = clip(A / A_max / 2 + ½, 0, 1), the probability that an image is a good one | the same, with `train.adv_clip_max` as A_max |
//! | v⁺, v⁻, the implicit policies; β, how far apart they are | [`nft_loss`], `beta` |
//! | errors of x̂_0, t times those of v | errors of v, times t |
//! | the policy loss times A_max | the same |
//! | `train.beta`, the distance from the base model | `train.kl_weight` |
//! | `decay_type` 1: min(0.001 · updates, 0.5); 2: 0 until 75, then min(0.0075 · (updates − 75), 0.999), for OCR alone | `average = { rate, flat, most }` |
//!
//! No likelihood is needed, and the optimum has a closed form: the policy moves from v_old along the direction that tells good images from
//! bad ones. An image with r = ½ gives no gradient at v_old.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::forward::{Decay, ForwardProcess, Predictions, Role, SampleSection, Shared, TrainSection, sections};
use crate::losses::{nft_loss, squared_errors};
use crate::policy::advantages::GroupStatistics;
use crate::run::{Observed, Values};

/// The knobs of `[algo.nft]`. The defaults are those of `config/nft.py`, apart from what the sections say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nft {
    /// `[algo.nft.sample]`.
    pub sample: SampleSection,
    /// `[algo.nft.train]`.
    pub train: TrainSection,
    /// `[algo.nft.advantages]`.
    pub advantages: GroupStatistics,
    /// β, above 0: how far the implicit positive and negative policies lie from the old one (1; 0.1 for several rewards at once and for OCR).
    pub beta: f64,
    /// `[algo.nft.average]`: how the old policy follows the trained one.
    pub average: Decay,
}

impl Default for Nft {
    fn default() -> Self {
        Self {
            sample: SampleSection::default(),
            train: TrainSection::default(),
            advantages: GroupStatistics { global_std: true, ..GroupStatistics::default() },
            beta: 1.0,
            average: Decay::default(),
        }
    }
}

impl ForwardProcess for Nft {
    fn shared(&self) -> Shared<'_> {
        Shared { algo: "nft", sample: &self.sample, train: &self.train, advantages: &self.advantages }
    }

    fn compares_with(&self) -> &'static [Role] {
        &[Role::Average]
    }

    fn average(&self) -> Option<Decay> {
        Some(self.average)
    }

    fn average_samples(&self) -> bool {
        true
    }

    fn loss(&self, predictions: &Predictions) -> (Tensor<1>, Observed) {
        let most = self.train.adv_clip_max;
        let (prediction, old) = (predictions.prediction.clone(), predictions.of(Role::Average));
        let optimality = (predictions.advantages.clone() / (2.0 * most) + 0.5).clamp(0.0, 1.0);
        let distance = squared_errors(prediction.clone().without_autodiff(), old.clone());
        let loss = nft_loss(prediction, old, predictions.target.clone(), [optimality, predictions.times.clone()], self.beta) * most;
        (loss, vec![("average_distance".into(), Values::from(&distance))])
    }
}

impl Algorithm for Nft {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        sections::findings(self, config, findings);
        self.average.findings("algo.nft.average", findings);
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            findings.push(format!("algo.nft.beta is {}; expected a number above 0", self.beta));
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}
