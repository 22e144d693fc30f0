//! The training loop of DRaFT, AlignProp and DRTune, which back-propagate the reward through sampling. They differ in the steps that let a
//! gradient through.

use burn::tensor::Tensor;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::direct::{self, Call, End, Sampling, ScoredBatch, StartingPoint, TapedChain};
use crate::environment::Environment;
use crate::losses::reward_loss;
use crate::regularizer::{Regularizer, SampledBatch};
use crate::run::{Draw, Run};

/// An algorithm that back-propagates the reward through sampling.
pub trait ThroughSampling {
    /// The knobs for sampling a micro-batch.
    fn sampling(&self) -> Sampling<'_>;

    /// How each step of the chain calls the network; at most `num_inference_steps` of them, fewer if the chain stops early. Random choices
    /// depend on `draw` alone.
    fn calls(&self, num_inference_steps: usize, draw: Draw) -> Vec<Call>;

    /// The latents to decode after the last of those steps.
    fn end(&self) -> End {
        End::Sample
    }

    /// Factor of the reward's loss.
    fn grad_scale(&self) -> f64;

    /// Further latents for the same prompts, `[b, c, h, w]` each. Their rewards count as much as those of the sampled `latents`.
    fn further_samples<D: Denoiser>(&self, chain: &TapedChain<'_, D>, latents: &Tensor<4>, start: &StartingPoint) -> Vec<Tensor<4>> {
        let _ = (chain, latents, start);
        Vec::new()
    }
}

/// Trains until the run has made all its updates.
///
/// # Errors
/// When the run is interrupted, a value is not finite, a reward fails, or the run's folder cannot be written.
pub fn train<D: Denoiser>(
    algorithm: &(impl ThroughSampling + Sync),
    run: &mut Run<Trainable<D>>,
    environment: &mut Environment<D>,
    regularizer: &mut Regularizer,
) -> Result<(), Error> {
    let regularizer = &*regularizer;
    direct::train(run, environment, algorithm.sampling(), |model, environment, scheduler, start| {
        // 1. `start` has prompts, their embeddings, and the noise to start from.

        // 2. Sample from noise to latents, with the calls that the algorithm chooses.
        let calls = algorithm.calls(scheduler.timesteps().len(), start.draw);
        let mut chain = start.chain(&model.denoiser, scheduler);
        let latents = chain.run(start.latents.clone(), &calls, algorithm.end());
        let further = algorithm.further_samples(&chain, &latents, &start);
        let visited = chain.visited;

        // 3. Decode to images and compute their reward, which is maximised.
        let scored = environment.decode_and_score(latents.clone(), &start.prompts)?;
        let mut rewards = vec![scored.rewards.clone()];
        for latents in further {
            rewards.push(environment.reward_of(latents, &start.prompts)?);
        }
        let loss = mean_reward_loss(rewards, algorithm.grad_scale());

        // 4. Add the regulariser, on the same tape.
        let sampled = SampledBatch { visited: &visited, prompts: &start.prompts, size: environment.size };
        let regularization = regularizer.loss(model, environment, scheduler, sampled, start.draw)?;

        // 5. Then `train` goes backward.
        Ok(ScoredBatch { start, visited, latents, scored, loss, regularization })
    })
}

/// The mean loss over several samples of each prompt, with rewards `[b]` per sample → `[1]`.
pub fn mean_reward_loss(rewards: Vec<Tensor<1>>, grad_scale: f64) -> Tensor<1> {
    Tensor::cat(rewards.into_iter().map(|rewards| reward_loss(rewards, grad_scale)).collect(), 0).mean()
}
