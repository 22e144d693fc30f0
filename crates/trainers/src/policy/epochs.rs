//! The loop around a policy gradient, which DDPO, D3PO and the algorithms on the forward process share: an epoch of images is sampled and scored,
//! then trained on in many backward passes, then forgotten. How the images are sampled, what they are weighed by, and the loss are the algorithm's.

use burn::tensor::Tensor;
use vp_core::noise::Noise;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;
use vp_schedulers::Scheduler;

use crate::Error;
use crate::environment::Environment;
use crate::optim::Workers;
use crate::policy::rollout::{Rollout, RolloutPlan};
use crate::policy::walk::{Position, Walk};
use crate::regularizer::{Regularizer, SampledBatch};
use crate::run::{Batch, Draw, Observed, Run};

/// The epochs of a run.
pub(crate) struct Epochs<'a> {
    plan: RolloutPlan<'a>,
    walk: Walk,
    workers: Workers,
    /// The images of the epoch under way; empty before anything has been sampled, and between two epochs.
    pub rollout: Rollout,
    /// Whether the epoch ends with what is due.
    ends: bool,
}

/// Micro-batches that are computed side by side, each with the images and steps that it trains on. They are of one update, and so of one epoch.
pub(crate) type Due = Vec<(Batch, Position)>;

/// The rows of a micro-batch, in which a tensor that is not finite can be looked for.
pub(crate) trait Rows<D: Denoiser> {
    /// The first tensor that is not finite in what `model` makes of these rows, by name.
    fn first_non_finite(&self, model: &Trainable<D>, environment: &Environment<D>, scheduler: &dyn Scheduler) -> Option<String>;
}

impl<'a> Epochs<'a> {
    /// The epochs of a run that begins, or goes on in the middle of one. Draws the preview of its beginning.
    ///
    /// # Errors
    /// As [`Run::workers`] and [`Environment::preview_at_start`].
    pub fn begin<D: Denoiser>(
        run: &mut Run<Trainable<D>>,
        environment: &Environment<D>,
        plan: RolloutPlan<'a>,
        walk: Walk,
    ) -> Result<Self, Error> {
        let (images, ranks) = (plan.num_images, run.ranks.size());
        if images < ranks {
            return Err(Error::Config(format!("an epoch has {images} images, which {ranks} ranks share; expected at most {images} ranks")));
        }
        let workers = run.workers(environment.pipeline.device())?;
        environment.preview_at_start(run)?;
        let rollout = Rollout::recall(&run.memory, environment.latent_shape()).unwrap_or_default();
        Ok(Self { plan, walk, workers, rollout, ends: false })
    }

    /// What to compute next; `None` when the run is over. Where an epoch begins, `sample` draws its images, off the tape, and they are scored;
    /// then `weigh` finds the weight of each in the loss. The rollout is saved with the run, so that a resumed run goes on from there.
    /// A reward that is not finite leaves out an update, and the images are drawn again.
    ///
    /// # Errors
    /// When the run is interrupted, a reward fails, or a reward is not finite and no more updates may be left out; and the errors of `sample` and `weigh`.
    pub fn next<D: Denoiser>(
        &mut self,
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        mut sample: impl FnMut(&mut Run<Trainable<D>>, &mut Environment<D>, &RolloutPlan<'_>, &Workers, u64) -> Result<Rollout, Error>,
        mut weigh: impl FnMut(&mut Rollout, &mut Run<Trainable<D>>, &Environment<D>) -> Result<(), Error>,
    ) -> Result<Option<Due>, Error> {
        while let Some(batches) = run.next_batches(self.workers.count())? {
            self.ends = batches.last().is_some_and(|last| self.walk.at(run.last_at_the_time_of(*last)).ends_epoch);
            let place = |batch: Batch| (batch, self.plan.in_windows(self.walk.at(batch.index).of_part(batch.part), run.noise));
            let due: Due = batches.into_iter().map(place).collect();
            let epoch = due[0].1.epoch;
            if self.rollout.epoch == Some(epoch) {
                return Ok(Some(due));
            }
            self.rollout = sample(run, environment, &self.plan, &self.workers, epoch)?;
            self.rollout.score(run, environment, &self.plan)?;
            self.rollout.gather(&run.ranks, environment.latent_shape(), environment.pipeline.device())?;
            if let Some(what) = self.rollout.first_non_finite() {
                self.rollout = Rollout::default();
                run.leave_out(what)?;
                continue;
            }
            weigh(&mut self.rollout, run, environment)?;
            self.rollout.save(&mut run.memory, environment.pipeline.device());
            return Ok(Some(due));
        }
        Ok(None)
    }

    /// The backward passes of what is `due`, side by side, accumulated over timesteps and minibatches; after the last micro-batch of an update:
    /// clip, step, moving average, journal. `loss` returns a micro-batch's loss `[1]`, its observed values, and its rows. At the end of its epoch
    /// the rollout is forgotten. Returns the number of updates made so far if this call made one.
    ///
    /// # Errors
    /// As [`Run::backward_side_by_side`].
    pub fn backward<D: Denoiser, R: Rows<D> + Send>(
        &mut self,
        run: &mut Run<Trainable<D>>,
        environment: &Environment<D>,
        due: Due,
        loss: impl Fn(&Trainable<D>, &Rollout, Batch, &Position) -> Result<(Tensor<1>, Observed, R), Error> + Sync,
    ) -> Result<Option<u64>, Error> {
        run.count_images(due.iter().filter(|(_, at)| at.begins_minibatch).map(|(_, at)| at.items.len()).sum());
        let (scheduler, rollout) = (environment.scheduler()?, &self.rollout);
        let compute = |model: &Trainable<D>, (batch, at): (Batch, Position)| loss(model, rollout, batch, &at);
        let blame = |model: &Trainable<D>, rows: &R| rows.first_non_finite(model, environment, &*scheduler);
        let updated = run.backward_side_by_side(&self.workers, due, compute, blame)?;
        if self.ends {
            self.rollout = Rollout::default();
            Rollout::forget(&mut run.memory);
        }
        Ok(updated)
    }
}

/// The regulariser's loss of a minibatch, `[1]`: once for all timesteps of the minibatch, at its first. `None` elsewhere, and without a
/// regulariser.
///
/// # Errors
/// As [`Regularizer::loss`].
pub(crate) fn regularization<D: Denoiser>(
    regularizer: &Regularizer,
    model: &Trainable<D>,
    environment: &Environment<D>,
    scheduler: &dyn Scheduler,
    (batch, at, prompts): (Batch, &Position, &[String]),
    (walk, noise): (Walk, Noise),
) -> Result<Option<Tensor<1>>, Error> {
    if !at.begins_minibatch {
        return Ok(None);
    }
    let sampled = SampledBatch { visited: &[], prompts, size: environment.size };
    let draw = Draw { part: batch.part, ..Draw::new(noise, batch.index / walk.num_trained_steps as u64 + 1) };
    regularizer.loss(model, environment, scheduler, sampled, draw)
}
