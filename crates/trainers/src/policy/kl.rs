//! GARDO's regularisation (arXiv 2512.24138, section 4.2): the KL term counts for the images whose reward is least to be trusted, and is measured
//! from a policy that follows the trained one.
//!
//! | paper, GARDO `scripts/train_sd3_grpo_gardo.py` | here |
//! |---|---|
//! | β, `train.beta` | `algo.ddpo.kl_weight` |
//! | k, the share of images that are penalised; `RiskCompensator.beta` | `share` |
//! | U = w(R̃) − mean w(R̂) (equation 7), w the share of images that an image beats | [`uncertainties`] |
//! | auxiliary rewards R̂ | the watched rewards, `[[watch]]` |
//! | ε_KL, `kl_thres` | `reset_above` |
//! | m, `reset_freq` | `reset_every` |
//!
//! It differs from the paper in these ways. Images are ranked among all of an epoch, as in the code, not among those of their prompt (algorithm 1).
//! `share` stays as it is, while the paper moves it by 10 % where the mean uncertainty leaves the range of the last 20 epochs. The divergence that is
//! held against `reset_above` is the journal's `kl`, that of all images of an update; the code's is that of the penalised ones. Advantages are left
//! alone: the paper also multiplies them by how unlike an image is to others of its prompt. `share` is a part of all images; in the code it is a part of
//! those with U ≥ 0, which are about half.
//!
//! It follows the paper where the code does not. The code ranks the best image first, so that it penalises images that the trained reward likes
//! *less* than the others do. Its KL lacks one factor |dt|, which makes it about a tenth of the divergence that is meant at 10 steps, and is a mean over the
//! penalised images of a micro-batch alone; its β and its threshold are in those units.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::policy::rollout::Rollout;
use crate::policy::snapshot;
use crate::run::Run;

/// `[algo.ddpo.kl]`: which images the KL term counts for, and what it is measured from. Absent: every image, and the base model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kl {
    /// Share of an epoch's images for which the KL counts, above 0 and at most 1: those that the trained reward ranks highest above the mean rank
    /// that the watched rewards give them (0.1).
    pub share: f64,
    /// Once the mean KL of an update is above this, the policy of the next epoch's beginning becomes the reference; above 0. Absent: never.
    pub reset_above: Option<f64>,
    /// After this many epochs with one reference, the policy becomes the reference; at least 1. Absent: never.
    pub reset_every: Option<usize>,
}

impl Default for Kl {
    fn default() -> Self {
        Self { share: 0.1, reset_above: None, reset_every: None }
    }
}

impl Kl {
    /// Whether the reference ever becomes another policy than the base model.
    pub fn resets(&self) -> bool {
        self.reset_above.is_some() || self.reset_every.is_some()
    }

    /// Appends a message for each knob that is out of range or does not fit `kl_weight`. `watched` are the names of the watched rewards.
    pub(super) fn findings(&self, kl_weight: f64, watched: &[&str], findings: &mut Vec<String>) {
        if kl_weight == 0.0 {
            findings
                .push("[algo.ddpo.kl] is not used where algo.ddpo.kl_weight is 0; set it (published: 0.04), or remove the section".into());
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            findings.push(format!("algo.ddpo.kl.share is {}; expected above 0 and at most 1 (published: 0.1)", self.share));
        }
        if let Some(above) = self.reset_above
            && !(above > 0.0 && above.is_finite())
        {
            findings.push(format!("algo.ddpo.kl.reset_above is {above}; expected a number above 0 (published: 1e-4), or no such key"));
        }
        if self.reset_every == Some(0) {
            findings.push(
                "algo.ddpo.kl.reset_every is 0; expected at least 1 (published: 100 updates; in the code 15 epochs), or no such key".into(),
            );
        }
        let namesake = watched.iter().enumerate().find(|(i, name)| watched[..*i].contains(name));
        if let Some((_, name)) = namesake.filter(|_| self.share < 1.0) {
            findings.push(format!(
                "algo.ddpo.kl.share ranks the images by each watched reward, and two [[watch]] are called {name}; remove one of them"
            ));
        }
    }

    /// The factor of each image's KL in the loss: 1 for the share of the images with the highest uncertainty, 0 for the others. Of equally uncertain
    /// images the earlier come first.
    fn factors(&self, rewards: &[f32], watched: &[&[f32]]) -> Vec<f32> {
        let uncertainties = uncertainties(rewards, watched);
        let count = ((self.share * rewards.len() as f64).round() as usize).max(1);
        let mut order: Vec<usize> = (0..rewards.len()).collect();
        order.sort_by(|a, b| uncertainties[*b].total_cmp(&uncertainties[*a]));
        let mut factors = vec![0.0; rewards.len()];
        order.into_iter().take(count).for_each(|image| factors[image] = 1.0);
        factors
    }
}

/// How much better each image does by the trained reward than by the watched ones: the share of images that it beats by the former, minus the
/// mean share that it beats by each of the latter.
fn uncertainties(rewards: &[f32], watched: &[&[f32]]) -> Vec<f64> {
    let mut uncertainties = win_rates(rewards);
    for scores in watched {
        let others = win_rates(scores);
        uncertainties.iter_mut().zip(others).for_each(|(uncertainty, wins)| *uncertainty -= wins / watched.len() as f64);
    }
    uncertainties
}

/// The share of images that each image beats. A score that is not a number beats none.
fn win_rates(scores: &[f32]) -> Vec<f64> {
    let mut sorted: Vec<f32> = scores.iter().copied().filter(|score| !score.is_nan()).collect();
    sorted.sort_by(f32::total_cmp);
    scores.iter().map(|score| sorted.partition_point(|other| other < score) as f64 / scores.len() as f64).collect()
}

const REFERENCE: &str = "kl.reference";
const SINCE: &str = "kl.since";
const DUE: &str = "kl.due";

/// The KL term of a run: what it is measured from, and for which images of the epoch it counts.
pub(super) struct KlTerm<D> {
    section: Option<Kl>,
    /// `None` while it is the base model.
    reference: Option<Trainable<D>>,
    /// The factor of each image of the epoch; empty where all count.
    factors: Vec<f32>,
}

impl<D: Denoiser> KlTerm<D> {
    /// The term of a run that begins, or of one that goes on in the middle of the epoch of `rollout`.
    pub fn recall(section: Option<Kl>, run: &Run<Trainable<D>>, rollout: &Rollout) -> Self {
        let mut term = Self { section, reference: snapshot::recall(run, REFERENCE), factors: Vec::new() };
        if rollout.epoch.is_some() {
            term.choose_images(rollout);
        }
        term
    }

    /// For an epoch that begins: makes the current policy the reference if it is time, and chooses the images that the term counts for.
    pub fn begin_epoch(&mut self, run: &mut Run<Trainable<D>>, rollout: &Rollout, device: &Device) {
        let (Some(section), Some(epoch)) = (self.section, rollout.epoch) else { return };
        let since = run.memory.get(SINCE).map_or(0, |since| since.clone().into_scalar::<f32>() as u64);
        let of_age = section.reset_every.is_some_and(|every| epoch - since >= every as u64);
        if run.memory.remove(DUE).is_some() || of_age {
            self.reference = Some(snapshot::keep(run, REFERENCE));
            run.memory.insert(SINCE.into(), Tensor::from_data([epoch as f32], device));
        }
        self.choose_images(rollout);
    }

    /// After an update: notes whether the policy has come so far from the reference that the next epoch begins with another.
    pub fn after_update(&self, run: &mut Run<Trainable<D>>, device: &Device) {
        let above = self.section.and_then(|section| section.reset_above);
        if above.zip(run.last_mean("kl")).is_some_and(|(above, kl)| kl > above) {
            run.memory.insert(DUE.into(), Tensor::from_data([1.0f32], device));
        }
    }

    fn choose_images(&mut self, rollout: &Rollout) {
        if let Some(section) = self.section {
            self.factors = section.factors(&rollout.rewards, &rollout.watched());
        }
    }

    /// The policy that the divergence is measured from.
    pub fn reference<'a>(&'a self, base: &'a Trainable<D>) -> &'a Trainable<D> {
        self.reference.as_ref().unwrap_or(base)
    }

    /// The term of `images` with the divergences `kl` `[b]`, `[1]`: the mean, in which those that it does not count for are 0.
    pub fn mean(&self, kl: Tensor<1>, images: &[usize]) -> Tensor<1> {
        if self.factors.is_empty() {
            return kl.mean();
        }
        let factors: Vec<f32> = images.iter().map(|image| self.factors[*image]).collect();
        (Tensor::from_data(factors.as_slice(), &kl.device().without_autodiff()) * kl).mean()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of five images: the best by the reward is the worst by both others; equal scores beat each other no more than they beat themselves.
    #[test]
    fn uncertainty_by_hand() {
        let (rewards, one, other) = ([5.0, 4.0, 3.0, 2.0, 1.0], [0.0, 9.0, 7.0, 7.0, 8.0], [1.0, 2.0, 3.0, 5.0, 4.0]);
        assert_eq!(win_rates(&one), [0.0, 0.8, 0.2, 0.2, 0.6]);
        let found = uncertainties(&rewards, &[&one, &other]);
        for (found, expected) in found.iter().zip([0.8, 0.6 - 0.5, 0.4 - 0.3, 0.2 - 0.5, -0.6]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        let of = |share| Kl { share, ..Default::default() }.factors(&rewards, &[&one, &other]);
        assert_eq!(of(0.2), [1.0, 0.0, 0.0, 0.0, 0.0]);
        // One at least; at 1 all of them.
        assert_eq!(of(0.01), of(0.2));
        assert_eq!(of(1.0), [1.0; 5]);
        assert_eq!(of(0.6), [1.0, 1.0, 1.0, 0.0, 0.0]);
        // What cannot be told by a watched reward is not trusted.
        assert_eq!(win_rates(&[f32::NAN, 1.0, f32::NEG_INFINITY, 2.0]), [0.0, 0.25, 0.0, 0.5]);
    }

    #[test]
    fn equally_uncertain_images_come_in_their_order() {
        let scores: Vec<f32> = (0..10).map(|image| image as f32).collect();
        // Both rank alike: no image is more uncertain than another.
        assert_eq!(uncertainties(&scores, &[&scores]), [0.0; 10]);
        let factors = Kl { share: 0.3, ..Default::default() }.factors(&scores, &[&scores]);
        assert_eq!(factors, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_out_of_range_is_told_with_the_way_out() {
        let findings = |kl: Kl, weight: f64, watched: &[&str]| {
            let mut findings = Vec::new();
            kl.findings(weight, watched, &mut findings);
            findings
        };
        let every = Kl { share: 1.0, reset_above: Some(1e-4), reset_every: Some(1) };
        assert_eq!(findings(every, 0.04, &["saturation", "brightness"]), [""; 0]);
        // All images need no ranks.
        assert_eq!(findings(every, 0.04, &["saturation", "saturation"]), [""; 0]);
        let none = Kl { share: 0.0, reset_above: Some(0.0), reset_every: Some(0) };
        let told = findings(none, 0.0, &["brightness", "saturation", "saturation"]);
        let expected = [
            "kl_weight is 0",
            "share is 0; expected above 0",
            "reset_above is 0; expected",
            "reset_every is 0; expected",
            "called saturation",
        ];
        assert!(told.len() == 5 && told.iter().zip(expected).all(|(told, part)| told.contains(part)), "{told:?}");
        assert_eq!(findings(Kl { share: f64::NAN, ..every }, 0.04, &[]).len(), 1);
        assert_eq!(findings(Kl { reset_above: Some(f64::INFINITY), ..every }, 0.04, &[]).len(), 1);
    }
}
