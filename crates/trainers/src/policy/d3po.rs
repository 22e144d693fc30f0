//! D3PO: direct preference for denoising diffusion policy optimization (Yang et al., arXiv 2311.13231).
//!
//! | paper, d3po `scripts/rm/train_d3po.py` | here |
//! |---|---|
//! | two trajectories of a prompt from the same latents | a pair: images 2k and 2k + 1 of a [`Rollout`] |
//! | h = (+1, −1), (−1, +1) or (0, 0) | `Rollout::advantages`, by the reward |
//! | π_ref | the base model: the frozen weights without the factors |
//! | β, the clamp of the ratios | `beta`, `clip_range` |
//!
//! The policy's ratios are to the base model, not to the policy that drew; everything else is walked as DDPO walks it.

use burn::tensor::Tensor;
use burn::tensor::activation::log_sigmoid;
use serde::{Deserialize, Serialize};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;
use vp_schedulers::Scheduler;

use crate::Error;
use crate::direct::preview_first;
use crate::environment::Environment;
use crate::optim::NamedTensors;
use crate::policy::rollout::{Rollout, RolloutPlan};
use crate::policy::{Layout, Minibatch, Place, guided_transition, kl_divergence, learn, sampling_findings};
use crate::run::{Observed, Run, values};
use crate::sections::SchedulerSection;

/// The knobs of `[algo.d3po]`, with d3po's values where the file is silent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct D3po {
    /// Images drawn at once; the two of a pair stand together.
    pub sample_batch_size: usize,
    /// Of those, batches an epoch.
    pub num_batches_per_epoch: usize,
    /// Classifier-free guidance, in rollout and training.
    pub guidance_scale: f64,
    /// What to steer away from, under guidance.
    pub negative_prompt: Option<String>,
    /// Pairs trained on at once, each at one timestep.
    pub train_batch_size: usize,
    /// Times that an epoch's pairs are walked.
    pub num_inner_epochs: usize,
    /// Share of each pair's timesteps that is trained on.
    pub timestep_fraction: f64,
    /// Strength of the tie to the base model: the larger, the closer.
    pub beta: f64,
    /// Ratios to the base model are clamped to 1 ± this.
    pub clip_range: f64,
}

impl Default for D3po {
    fn default() -> Self {
        Self {
            sample_batch_size: 10,
            num_batches_per_epoch: 2,
            guidance_scale: 5.0,
            negative_prompt: None,
            train_batch_size: 2,
            num_inner_epochs: 1,
            timestep_fraction: 1.0,
            beta: 0.1,
            clip_range: 0.1,
        }
    }
}

/// `−log σ(β Σ_k h_k log clamp(ρ_k, 1 − ε, 1 + ε))` for each pair, `[b]`, where log ρ = log π − log π_ref; all arguments `[b, 2]`.
pub fn d3po_loss(log_ratios: Tensor<2>, preferences: Tensor<2>, beta: f64, clip_range: f64) -> Tensor<1> {
    // The clamp of a ratio is that of its logarithm.
    let clamped = log_ratios.clamp((1.0 - clip_range).ln(), (1.0 + clip_range).ln());
    -log_sigmoid((clamped * preferences).sum_dim(1).squeeze_dim::<1>(1) * beta)
}

impl D3po {
    /// Images an epoch.
    pub fn images(&self) -> usize {
        self.sample_batch_size * self.num_batches_per_epoch
    }

    /// Timesteps of each pair that are trained on.
    pub fn trained_steps(&self, num_inference_steps: usize) -> usize {
        ((num_inference_steps as f64 * self.timestep_fraction) as usize).max(1)
    }

    /// How an epoch's pairs are walked.
    pub fn layout(&self, num_inference_steps: usize) -> Layout {
        Layout {
            items: self.images() / 2,
            batch_size: self.train_batch_size,
            inner_epochs: self.num_inner_epochs,
            steps: self.trained_steps(num_inference_steps),
            of_steps: num_inference_steps,
        }
    }

    /// Appends what cannot work together with the scheduler's section and `accumulation` minibatches an update.
    pub fn findings(&self, scheduler: &SchedulerSection, accumulation: usize, findings: &mut Vec<String>) {
        let counts = [
            ("sample_batch_size", self.sample_batch_size),
            ("num_batches_per_epoch", self.num_batches_per_epoch),
            ("train_batch_size", self.train_batch_size),
            ("num_inner_epochs", self.num_inner_epochs),
        ];
        let fine = counts.iter().all(|(_, count)| *count > 0);
        sampling_findings("d3po", &counts, (self.guidance_scale, self.timestep_fraction), scheduler, findings);
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            findings.push(format!("algo.d3po.beta is {}; expected a number above 0", self.beta));
        }
        if !(self.clip_range > 0.0 && self.clip_range < 1.0) {
            findings.push(format!("algo.d3po.clip_range is {}; expected above 0 and below 1", self.clip_range));
        }
        let (images, update) = (self.images(), 2 * self.train_batch_size * accumulation);
        if fine && accumulation > 0 && !images.is_multiple_of(update) {
            findings.push(format!(
                "an epoch has {images} images (algo.d3po.sample_batch_size {} x num_batches_per_epoch {}), which an update of {update} (2 x \
                 train_batch_size {} x optimizer.gradient_accumulation_steps {accumulation}) does not divide",
                self.sample_batch_size, self.num_batches_per_epoch, self.train_batch_size
            ));
        }
    }

    fn plan(&self) -> RolloutPlan<'_> {
        RolloutPlan {
            images: self.images(),
            batch_size: self.sample_batch_size,
            images_per_prompt: 2,
            share_initial_latents: true,
            guidance_scale: self.guidance_scale,
            negative_prompt: self.negative_prompt.as_deref(),
        }
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// When the run is interrupted, something is not finite, or the run's folder cannot be written.
    pub fn train<D: Denoiser>(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>) -> Result<(), Error> {
        let scheduler = environment.scheduler()?;
        let layout = self.layout(scheduler.timesteps().len());
        preview_first(run, environment)?;
        let mut rollout = Rollout::recall(&run.memory, environment.pipeline.latent_shape(environment.size));
        while let Some(batch) = run.next_batch()? {
            let place = as_images(layout.place(run.noise, batch.index));

            // 1. Once an epoch: two images of each prompt, off the tape; 2. their rewards; 3. which of the two is preferred.
            let preferred = |rollout: &Rollout, _: &mut NamedTensors| preferences(&rollout.rewards);
            let plan = (&self.plan(), place.epoch);
            let Some(current) = Rollout::of_epoch(rollout.take(), run, environment, plan, preferred)? else { continue };

            // 4. The loss of a minibatch of pairs, each at a timestep of its own.
            let objective = self.objective(run, environment, &*scheduler, &current, &place);

            // 5. Backward, accumulated over timesteps and minibatches; update, look, and save where that is due.
            rollout = learn(run, environment, &*scheduler, (current, &layout, &place), objective)?;
        }
        Ok(())
    }

    /// The loss `[1]` of a micro-batch on the tape, and what the journal is told.
    fn objective<D: Denoiser>(
        &self,
        run: &Run<Trainable<D>>,
        environment: &Environment<D>,
        scheduler: &dyn Scheduler,
        rollout: &Rollout,
        place: &Place,
    ) -> (Tensor<1>, Observed) {
        let minibatch = Minibatch::of(rollout, &place.items, &place.steps);
        let guided =
            |model: &Trainable<D>| guided_transition(model, environment, scheduler, &self.plan(), (rollout, &place.items), &minibatch);
        let (policy, reference) = (guided(&run.model), guided(&environment.base));
        let log_prob = |transition: &vp_schedulers::Transition| transition.log_prob(minibatch.prev_sample.clone());
        let pairs = place.items.len() / 2;
        let log_ratios = (log_prob(&policy) - log_prob(&reference)).reshape([pairs, 2]);
        let preferred: Vec<f32> = place.items.iter().map(|image| rollout.advantages[*image]).collect();
        let preferred = Tensor::<1>::from_data(preferred.as_slice(), environment.pipeline.device()).reshape([pairs, 2]);
        let loss = d3po_loss(log_ratios.clone(), preferred, self.beta, self.clip_range);
        let log_ratios = log_ratios.without_autodiff().reshape([2 * pairs]);
        let mut observed = vec![
            ("clipfrac".to_string(), values(&log_ratios).iter().map(|log| f64::from((log.exp() - 1.0).abs() > self.clip_range)).collect()),
            ("kl".into(), values(&kl_divergence(&policy, &reference))),
        ];
        if place.within.is_multiple_of(run.settings.micro_batches) {
            observed.extend(rollout.scores());
        }
        (loss.mean(), observed)
    }
}

/// A place among pairs as one among images: both of each pair, at the pair's step.
fn as_images(place: Place) -> Place {
    let twice = |values: &[usize], of: fn(usize) -> [usize; 2]| values.iter().flat_map(|value| of(*value)).collect();
    Place { items: twice(&place.items, |pair| [2 * pair, 2 * pair + 1]), steps: twice(&place.steps, |step| [step, step]), ..place }
}

/// +1 for the better of a pair, −1 for the other, 0 for both of equals.
fn preferences(rewards: &[f32]) -> Vec<f32> {
    let sign = |a: f32, b: f32| {
        if a > b {
            1.0
        } else if a < b {
            -1.0
        } else {
            0.0
        }
    };
    rewards.chunks_exact(2).flat_map(|pair| [sign(pair[0], pair[1]), sign(pair[1], pair[0])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn the_better_one_is_pushed_up_and_the_other_down() {
        let device = Device::flex().autodiff();
        let log_ratios = Tensor::<2>::from_data([[0.0, 0.0], [0.05, -0.02], [0.0, 0.0]], &device).require_grad();
        let preferences = Tensor::<2>::from_data([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], &Device::flex());
        let loss = d3po_loss(log_ratios.clone(), preferences, 0.1, 0.1);
        let expected = [2f64.ln(), (1.0 + (0.1f64 * 0.07).exp()).ln(), 2f64.ln()];
        let got = values(&loss);
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
        let gradient: Vec<f32> = log_ratios.grad(&loss.sum().backward()).unwrap().into_data().try_to_vec().unwrap();
        // −β σ(−x) h: half of β at the start, nothing for a tie.
        assert!((gradient[0] + 0.05).abs() < 1e-6 && (gradient[1] - 0.05).abs() < 1e-6, "{gradient:?}");
        assert!(gradient[2] > 0.0 && gradient[3] < 0.0, "{gradient:?}");
        assert_eq!(gradient[4..], [0.0, 0.0]);
    }

    #[test]
    fn a_ratio_beyond_the_clamp_gives_no_gradient() {
        let device = Device::flex().autodiff();
        let log_ratios = Tensor::<2>::from_data([[0.2, -0.01]], &device).require_grad();
        let loss = d3po_loss(log_ratios.clone(), Tensor::from_data([[1.0, -1.0]], &Device::flex()), 0.1, 0.1);
        let gradient: Vec<f32> = log_ratios.grad(&loss.sum().backward()).unwrap().into_data().try_to_vec().unwrap();
        assert!(gradient[0] == 0.0 && gradient[1] > 0.0, "{gradient:?}");
    }

    #[test]
    fn ties_prefer_neither() {
        assert_eq!(preferences(&[1.0, 2.0, 3.0, 3.0]), [-1.0, 1.0, 0.0, 0.0]);
    }
}
