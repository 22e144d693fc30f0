//! DGPO: direct group preference optimization (Luo et al., arXiv 2510.08425).
//!
//! | paper, the authors' repository Luo-Yihong/DGPO, Flow-Factory `trainers/dgpo.py` | here |
//! |---|---|
//! | g_i = A_i β (ℓ_θ − ℓ_ref) / group, W = σ(Σ_group g) | [`dgpo_weights`], `beta` |
//! | L = mean(W A ℓ_θ) | the same, W off the tape |
//! | ref: the base model, or a moving average after each update, with decay min(0.3, 0.001 · updates) | `reference`, `average`, after each epoch |
//! | `clip_range`: no gradient once exp(ℓ_old − ℓ_θ) is further from 1 in A's direction; ℓ_old of that average | [`dgpo_kept`]; ℓ_old of the policy that began the epoch |
//! | `use_shared_noise`, timesteps shared | one noise and one timestep per group and micro-batch |
//! | steps 0 to `trunc_steps` of 10, from t = 0.67 on with a shift of 3 (GenEval: 0.82) | `train.timestep_range`: shares of the model's own schedule, of which 0.56 is as noisy as t = 0.67 and 0.77 as t = 0.82 |
//!
//! So an epoch's first update clips nothing. The authors' runs sample with the average after some hundred updates; this always samples with the policy.
//!
//! A group takes the place of Diffusion-DPO's pair, and advantages that of chosen and rejected. All images of a group get one noise, so their
//! denoising losses differ by the images alone.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::forward::{Decay, ForwardProcess, Predictions, Role, SampleSection, Shared, TrainSection, sections};
use crate::losses::{dgpo_kept, dgpo_weights, squared_error_changes, squared_errors};
use crate::policy::advantages::GroupStatistics;
use crate::run::{Observed, Values};

/// The knobs of `[algo.dgpo]`. The defaults are those of DGPO's example for PickScore, apart from what the sections say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dgpo {
    /// `[algo.dgpo.sample]`.
    pub sample: SampleSection,
    /// `[algo.dgpo.train]`.
    pub train: TrainSection,
    /// `[algo.dgpo.advantages]`.
    pub advantages: GroupStatistics,
    /// β, above 0: the larger, the sooner a group counts less because the policy already orders it (10; 100 for GenEval and OCR; 2000 to 5000 beside an
    /// average).
    pub beta: f64,
    /// What β's changes are measured from: `base`, or `average`, a moving average of the policy.
    pub reference: Reference,
    /// An image is left alone until the next epoch once exp(ℓ_old − ℓ_θ) is further from 1 than this, in the direction of its advantage; above 0
    /// (0.05; 0.01 for GenEval and OCR; 1e-5 to 1e-4 beside an average).
    pub clip_range: f64,
    /// `[algo.dgpo.average]`: the moving average, if it is the reference.
    pub average: Decay,
}

/// The policy from which DGPO measures changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The base model.
    #[default]
    Base,
    /// The moving average of the policy.
    Average,
}

impl Default for Dgpo {
    fn default() -> Self {
        Self {
            sample: SampleSection::default(),
            train: TrainSection { batch_size: 24, timestep_range: [0.56, 0.99], kl_weight: 1e-3, ..TrainSection::default() },
            advantages: GroupStatistics { global_std: true, ..GroupStatistics::default() },
            beta: 10.0,
            reference: Reference::Base,
            clip_range: 0.05,
            average: Decay { rate: 1e-3, flat: 0, most: 0.3 },
        }
    }
}

impl Dgpo {
    fn reference(&self) -> Role {
        match self.reference {
            Reference::Base => Role::Base,
            Reference::Average => Role::Average,
        }
    }
}

impl ForwardProcess for Dgpo {
    fn shared(&self) -> Shared<'_> {
        Shared { algo: "dgpo", sample: &self.sample, train: &self.train, advantages: &self.advantages }
    }

    fn compares_with(&self) -> &'static [Role] {
        match self.reference {
            Reference::Base => &[Role::Sampler, Role::Base],
            Reference::Average => &[Role::Sampler, Role::Average],
        }
    }

    fn average(&self) -> Option<Decay> {
        (self.reference == Reference::Average).then_some(self.average)
    }

    fn trains_on_groups(&self) -> bool {
        true
    }

    fn loss(&self, predictions: &Predictions) -> (Tensor<1>, Observed) {
        let (target, advantages) = (&predictions.target, &predictions.advantages);
        let detached = predictions.prediction.clone().without_autodiff();
        let change = |from: Role| squared_error_changes(detached.clone(), predictions.of(from), target.clone());
        let changes = change(self.reference());
        let weights = dgpo_weights(changes.clone(), advantages.clone(), self.sample.images_per_prompt, self.beta);
        let kept = dgpo_kept(change(Role::Sampler), advantages.clone(), self.clip_range);
        let told = vec![
            ("clipfrac".to_string(), Values::from(&(-kept.clone() + 1.0))),
            ("group_weight".into(), Values::from(&weights)),
            ("reference_change".into(), Values::from(&changes)),
        ];
        (weights * kept * advantages.clone() * squared_errors(predictions.prediction.clone(), target.clone()), told)
    }
}

impl Algorithm for Dgpo {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        sections::findings(self, config, findings);
        self.average.findings("algo.dgpo.average", findings);
        let Self { beta, clip_range, .. } = *self;
        for (name, value) in [("beta", beta), ("clip_range", clip_range)] {
            if !(value > 0.0 && value.is_finite()) {
                findings.push(format!("algo.dgpo.{name} is {value}; expected a number above 0"));
            }
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}
