//! What DDPO's updates are looked at by: figures for the journal, and whether training finds the probabilities with which the images were sampled
//! before it has changed anything.

use vp_models::NumberFormat;
use vp_models::denoiser::Denoiser;
use vp_models::number_format::is_cpu;
use vp_schedulers::Transition;

use crate::Error;
use crate::environment::Environment;
use crate::losses::PolicyLoss;
use crate::policy::walk::Position;
use crate::run::{Observed, Values, values};

/// How far a ratio may be from 1 before the first update of a rollout, on the CPU in f32, where rounding makes about 1e-6.
const ON_POLICY: f64 = 1e-5;

/// Whether sampling and training round alike.
pub(super) fn is_exact<D: Denoiser>(environment: &Environment<D>) -> bool {
    is_cpu(environment.pipeline.device()) && environment.pipeline.formats.model == NumberFormat::F32
}

/// The same step as a constant.
pub(super) fn off_the_tape(policy: &Transition) -> Transition {
    Transition {
        pred_original_sample: policy.pred_original_sample.clone().without_autodiff(),
        prev_sample_mean: policy.prev_sample_mean.clone().without_autodiff(),
        std_dev_t: policy.std_dev_t.clone().without_autodiff(),
    }
}

/// A warning that rounding is coarse beside `clip_range`.
pub(super) fn too_coarse(apart: f64, clip_range: f64) -> String {
    format!(
        "sampling and training find log-probabilities that differ by up to {apart:.1e} here, by rounding alone, and algo.ddpo.clip_range is \
         {clip_range:.0e}; the ratios use training's, but a change of that size is noise: raise clip_range, or choose model.dtype = \"f32\""
    )
}

/// Checks that before the first update the policy is still the one that sampled the images. A deviation would be a fault of the model or
/// the machine, and training would go wrong. A ratio that is not finite is left to the check of the loss.
pub(super) fn check_on_policy(loss: &PolicyLoss, at: &Position) -> Result<(), Error> {
    let deviations: Vec<f64> = values(&loss.ratio).iter().map(|ratio| (ratio - 1.0).abs()).collect();
    let worst = (0..deviations.len()).max_by(|a, b| deviations[*a].total_cmp(&deviations[*b])).unwrap_or(0);
    let deviation = deviations.get(worst).copied().unwrap_or(0.0);
    if deviation <= ON_POLICY || !deviation.is_finite() {
        return Ok(());
    }
    Err(Error::OffPolicy { image: at.items[worst], epoch: at.epoch + 1, step: at.steps[worst], deviation })
}

/// The values of a micro-batch's loss for the journal.
pub(super) fn told(loss: &PolicyLoss) -> Observed {
    let mut told = vec![
        ("approx_kl".to_string(), Values::from(&loss.approx_kl)),
        ("clipfrac".into(), Values::from(&loss.clipped)),
        ("ratio_max_deviation".into(), Values::from(&(loss.ratio.clone() - 1.0).abs())),
    ];
    told.extend(loss.kl_old.as_ref().map(|kl| ("kl_old".into(), Values::from(kl))));
    told
}
