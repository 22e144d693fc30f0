//! AWM: advantage weighted matching (Xue et al., arXiv 2509.25050).
//!
//! | paper, advantage_weighted_matching `scripts/train_sd3_awm.py`, `config/dgx_awm.py` | here |
//! |---|---|
//! | log π(x_0) := −w(ℓ_θ) at a random timestep | `weighting`, [`Weighting::log_probs`] |
//! | ρ = exp(log π − log π_old), π_old the policy that drew the images | [`Role::Sampler`] |
//! | `clip_range`, A clipped to ± `adv_clip_max` and divided by it (`advantage_max` = 1) | the same; PPO's objective |
//! | `train.beta`, the distance from the base model | `train.kl_weight` |
//! | `ema_beta`, the distance from a moving average whose decay is min(0.3, 0.001 · updates) | `proximal_weight`, `average` |
//! | `train_timesteps`, stratified over the noisiest `timestep_fraction` | `train.num_timesteps`, `train.timestep_range` |
//!
//! The paper shows that DDPO's objective is this one with noised targets, and so with more variance: DDPO's target for x_t is the sampled
//! x_{t−1}, AWM's the clean x_0. At ρ = 1 the gradient is that of the denoising loss, weighed by the advantages.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::forward::{Decay, ForwardProcess, Predictions, Role, SampleSection, Shared, TrainSection, sections};
use crate::losses::{Weighting, ppo_clip_loss, squared_errors};
use crate::policy::advantages::GroupStatistics;
use crate::run::{Observed, Values};

/// The knobs of `[algo.awm]`. The defaults are those of `geneval_sd3_no_cfg_1node`, apart from what the sections say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Awm {
    /// `[algo.awm.sample]`.
    pub sample: SampleSection,
    /// `[algo.awm.train]`.
    pub train: TrainSection,
    /// `[algo.awm.advantages]`.
    pub advantages: GroupStatistics,
    /// w, how a denoising loss becomes a log-probability: `uniform`, `t`, `t_squared`, `huber` or `ghuber`.
    pub weighting: Weighting,
    /// q of `ghuber`, above 0 and at most 1 (0.25).
    pub ghuber_power: f64,
    /// Probability ratios are clipped to 1 ± this; above 0 (1).
    pub clip_range: f64,
    /// Weight of the mean squared difference from the moving average's predictions, at least 0 (1).
    pub proximal_weight: f64,
    /// `[algo.awm.average]`: the moving average.
    pub average: Decay,
}

impl Default for Awm {
    fn default() -> Self {
        Self {
            sample: SampleSection::default(),
            train: TrainSection { num_timesteps: 6, timestep_range: [0.19, 0.99], kl_weight: 1e-3, ..TrainSection::default() },
            advantages: GroupStatistics { global_std: true, ..GroupStatistics::default() },
            weighting: Weighting::default(),
            ghuber_power: 0.25,
            clip_range: 1.0,
            proximal_weight: 1.0,
            average: Decay { rate: 1e-3, flat: 0, most: 0.3 },
        }
    }
}

impl ForwardProcess for Awm {
    fn shared(&self) -> Shared<'_> {
        Shared { algo: "awm", sample: &self.sample, train: &self.train, advantages: &self.advantages }
    }

    fn compares_with(&self) -> &'static [Role] {
        if self.proximal_weight > 0.0 { &[Role::Sampler, Role::Average] } else { &[Role::Sampler] }
    }

    fn average(&self) -> Option<Decay> {
        (self.proximal_weight > 0.0).then_some(self.average)
    }

    fn loss(&self, predictions: &Predictions) -> (Tensor<1>, Observed) {
        let log_probs = |prediction: Tensor<4>| {
            self.weighting.log_probs(squared_errors(prediction, predictions.target.clone()), predictions.times.clone(), self.ghuber_power)
        };
        let advantages = predictions.advantages.clone() / self.train.adv_clip_max;
        let policy =
            ppo_clip_loss(log_probs(predictions.prediction.clone()), log_probs(predictions.of(Role::Sampler)), advantages, self.clip_range);
        let mut told = vec![
            ("clipfrac".to_string(), Values::from(&policy.clipped)),
            ("ratio_max_deviation".into(), Values::from(&(policy.ratio - 1.0).abs())),
        ];
        let mut loss = policy.loss;
        if self.proximal_weight > 0.0 {
            let distance = squared_errors(predictions.prediction.clone(), predictions.of(Role::Average));
            told.push(("average_distance".into(), Values::from(&distance)));
            loss = loss + distance * self.proximal_weight;
        }
        (loss, told)
    }
}

impl Algorithm for Awm {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        sections::findings(self, config, findings);
        self.average.findings("algo.awm.average", findings);
        let Self { ghuber_power, clip_range, proximal_weight, .. } = *self;
        if !(ghuber_power > 0.0 && ghuber_power <= 1.0) {
            findings.push(format!("algo.awm.ghuber_power is {ghuber_power}; expected above 0 and at most 1"));
        }
        if !(clip_range > 0.0 && clip_range.is_finite()) {
            findings.push(format!("algo.awm.clip_range is {clip_range}; expected a number above 0"));
        }
        if !(proximal_weight >= 0.0 && proximal_weight.is_finite()) {
            findings.push(format!("algo.awm.proximal_weight is {proximal_weight}; expected a number of at least 0"));
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}
