//! What reward-driven algorithms draw with and are rewarded by.

use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_data::ShuffledOrder;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Pipeline;
use vp_models::pipeline::Trainable;
use vp_rewards::{Reward, Scored};
use vp_schedulers::{Scheduler, build_sampler, build_scheduler, by_name};

use crate::Error;
use crate::run::checkpoint::text_checksum;
use crate::run::preview::{Preview, draw};
use crate::run::{Batch, Observed, values};
use crate::sections::{PreviewSection, SchedulerSection};

/// Everything around the trained model.
pub struct Environment<D: Denoiser> {
    /// Encoders, autoencoder, folder; constants to the tape.
    pub pipeline: Pipeline,
    /// The untuned model, on the plain device.
    pub base: Trainable<D>,
    /// What is trained on.
    pub reward: Box<dyn Reward>,
    /// What is looked at.
    pub watched: Vec<Box<dyn Reward>>,
    /// Height and width in pixels.
    pub size: [usize; 2],
    scheduler: SchedulerSection,
    preview: PreviewSection,
    prompts: Vec<String>,
    order: ShuffledOrder,
}

/// What the journal is told of a judgement: `reward`, and `reward/<term>` for each term of a sum.
pub fn observed_rewards(rewards: &Tensor<1>, terms: &[(String, Tensor<1>)]) -> Observed {
    let terms = terms.iter().map(|(name, scores)| (format!("reward/{name}"), values(scores)));
    std::iter::once(("reward".to_string(), values(rewards))).chain(terms).collect()
}

impl<D: Denoiser> Environment<D> {
    /// # Errors
    /// When the scheduler's section or the preview's sampler does not fit the folder.
    pub fn new(
        (pipeline, base): (Pipeline, Trainable<D>),
        (reward, watched): (Box<dyn Reward>, Vec<Box<dyn Reward>>),
        (scheduler, preview): (SchedulerSection, PreviewSection),
        (prompts, noise): (Vec<String>, Noise),
        size: [usize; 2],
    ) -> Result<Self, Error> {
        let order = ShuffledOrder::new(prompts.len(), noise, Purpose::DataOrder);
        let environment = Self { pipeline, base, reward, watched, size, scheduler, preview, prompts, order };
        environment.scheduler()?;
        build_sampler(&environment.pipeline.folder.scheduler_config, None, environment.preview.num_inference_steps, 0.0)?;
        Ok(environment)
    }

    /// The scheduler of the `[scheduler]` section.
    ///
    /// # Errors
    /// When the folder's config and the section do not fit together.
    pub fn scheduler(&self) -> Result<Box<dyn Scheduler>, Error> {
        let (section, folder) = (&self.scheduler, &self.pipeline.folder.scheduler_config);
        Ok(build_scheduler(&section.apply(folder), Some(by_name(&section.name)?), section.num_inference_steps, section.eta)?)
    }

    /// The `count` prompts of a batch, in the shuffled order.
    pub fn prompts(&mut self, batch: Batch, count: usize) -> Vec<String> {
        self.order.entries(batch.index * count as u64, count).into_iter().map(|index| self.prompts[index].clone()).collect()
    }

    /// SHA-256 of the prompts in their order.
    pub fn prompts_checksum(&self) -> String {
        text_checksum(self.prompts.iter().map(String::as_str))
    }

    /// Places in the list of prompts, `count` of them from place `start` of the shuffled order on.
    pub fn prompt_entries(&mut self, start: u64, count: usize) -> Vec<usize> {
        self.order.entries(start, count)
    }

    /// A prompt by its place in the list.
    pub fn prompt(&self, place: usize) -> &str {
        &self.prompts[place]
    }

    /// What the trained reward says of images `[b, 3, h, w]`, `[b]`, and for the journal what its terms and the watched rewards say.
    ///
    /// # Errors
    /// When a reward fails.
    pub fn judge(&self, images: Tensor<4>, prompts: &[String]) -> Result<(Tensor<1>, Observed), Error> {
        let Scored { scores, terms } = profile::time(Stage::Reward, || self.reward.score_with_terms(images.clone(), prompts))?;
        let mut observed = observed_rewards(&scores, &terms).split_off(1);
        observed.extend(self.watch(images, prompts)?);
        Ok((scores, observed))
    }

    /// What the watched rewards say of images `[b, 3, h, w]`, by `watch/<name>`.
    ///
    /// # Errors
    /// When a reward fails.
    pub fn watch(&self, images: Tensor<4>, prompts: &[String]) -> Result<Observed, Error> {
        let images = images.without_autodiff();
        profile::time(Stage::Reward, || {
            let scored = self.watched.iter().map(|reward| (reward.name(), reward.score(images.clone(), prompts)));
            scored.map(|(name, scores)| Ok((format!("watch/{name}"), values(&scores?)))).collect()
        })
    }

    /// Draws the preview's prompts and seeds with `model` and lets every reward judge; the trained one first.
    ///
    /// # Errors
    /// When a reward fails, or what is drawn is not finite (`step` is named then).
    pub fn preview(&self, model: &Trainable<D>, step: u64) -> Result<Preview, Error> {
        let rewards: Vec<&dyn Reward> = std::iter::once(&*self.reward).chain(self.watched.iter().map(|reward| &**reward)).collect();
        draw(&self.preview, &self.pipeline, model, &rewards, (self.size, step))
    }
}
