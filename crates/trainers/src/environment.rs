//! Everything that a reward-driven algorithm uses besides the trained model: frozen networks, rewards, scheduler, prompts and previews.

use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_data::ShuffledOrder;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Pipeline, Trainable};
use vp_rewards::{Reward, Scored};
use vp_schedulers::{Scheduler, build_sampler, build_scheduler, by_name};

use crate::Error;
use crate::optim::Workers;
use crate::ranks::Ranks;
use crate::run::checkpoint::text_checksum;
use crate::run::preview::{Preview, PreviewRequest, draw};
use crate::run::{Observed, Run, Values};
use crate::sections::{PreviewSection, SchedulerSection};

/// Everything that a reward-driven algorithm uses besides the trained model.
pub struct Environment<D: Denoiser> {
    /// The text encoders, the autoencoder and the model's folder. The weights are frozen.
    pub pipeline: Pipeline,
    /// The untuned model, on the device without autodiff.
    pub base: Trainable<D>,
    /// The reward that is maximised.
    pub reward: Box<dyn Reward>,
    /// Rewards that are reported but not trained on.
    pub watched: Vec<Box<dyn Reward>>,
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
    /// `[scheduler]`.
    pub scheduler: SchedulerSection,
    /// `[preview]`.
    pub preview: PreviewSection,
    /// The prompts to draw in training.
    pub prompts: Prompts,
}

/// The prompts of a run, in a shuffled order. Once all have been used, they come again in a new order.
#[derive(Debug)]
pub struct Prompts {
    texts: Vec<String>,
    order: ShuffledOrder,
}

impl Prompts {
    /// `texts`, shuffled by the random numbers of `noise`.
    ///
    /// # Panics
    /// When `texts` is empty.
    pub fn new(texts: Vec<String>, noise: Noise) -> Self {
        let order = ShuffledOrder::new(texts.len(), noise, Purpose::DATA_ORDER);
        Self { texts, order }
    }

    /// The list indices of `count` prompts, from position `start` of the shuffled order on.
    pub fn entries(&mut self, start: u64, count: usize) -> Vec<usize> {
        self.order.entries(start, count)
    }

    /// The prompt at index `entry` of the list.
    pub fn text(&self, entry: usize) -> &str {
        &self.texts[entry]
    }

    /// The prompts of micro-batch `index`, where each micro-batch has `count` prompts.
    pub fn of_batch(&mut self, index: u64, count: usize) -> Vec<String> {
        self.entries(index * count as u64, count).into_iter().map(|entry| self.texts[entry].clone()).collect()
    }

    /// SHA-256 of the prompts in the order of the list, in hexadecimal.
    pub fn checksum(&self) -> String {
        text_checksum(self.texts.iter().map(String::as_str))
    }
}

/// Images and their rewards, on the tape if the latents were.
#[derive(Debug)]
pub struct ScoredImages {
    /// The decoded images, `[b, 3, H, W]` in [0, 1].
    pub images: Tensor<4>,
    /// The trained reward's scores, `[b]`.
    pub rewards: Tensor<1>,
    /// Scores by name for the journal: `reward`, `reward/<term>` for each term of a summed reward, and `watch/<name>` for each watched
    /// reward.
    pub observed: Observed,
}

impl<D: Denoiser> Environment<D> {
    /// Checks, before training begins, that `[scheduler]` and `[preview]` fit the model's folder.
    ///
    /// # Errors
    /// When the scheduler of `[scheduler]` or the preview's sampler cannot be built.
    pub fn check(&self) -> Result<(), Error> {
        self.scheduler()?;
        build_sampler(&self.pipeline.folder.scheduler_config, None, self.preview.num_inference_steps, 0.0)?;
        Ok(())
    }

    /// Builds the scheduler of the `[scheduler]` section.
    ///
    /// # Errors
    /// When the section contradicts the scheduler config of the model's folder.
    pub fn scheduler(&self) -> Result<Box<dyn Scheduler>, Error> {
        let (section, folder) = (&self.scheduler, &self.pipeline.folder.scheduler_config);
        Ok(build_scheduler(&section.apply(folder), Some(by_name(&section.name)?), section.num_inference_steps, section.eta)?)
    }

    /// The shape `[c, h, w]` of one image's latents.
    pub fn latent_shape(&self) -> [usize; 3] {
        self.pipeline.latent_shape(self.size)
    }

    /// Decodes latents `[b, c, h, w]` to images `[b, 3, H, W]` in [0, 1].
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        profile::time(Stage::Decode, || self.pipeline.vae.decode_to_images(latents))
    }

    /// Decodes latents `[b, c, h, w]` and scores the images with every reward.
    ///
    /// # Errors
    /// When a reward fails.
    pub fn decode_and_score(&self, latents: Tensor<4>, prompts: &[String]) -> Result<ScoredImages, Error> {
        self.score(self.decode(latents), prompts)
    }

    /// Scores images `[b, 3, H, W]` in [0, 1] with every reward.
    ///
    /// # Errors
    /// When a reward fails.
    pub fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<ScoredImages, Error> {
        let Scored { scores: rewards, terms } = profile::time(Stage::Reward, || self.reward.score_with_terms(images.clone(), prompts))?;
        let mut observed: Observed = vec![("reward".into(), Values::from(&rewards))];
        observed.extend(terms.iter().map(|(name, scores)| (format!("reward/{name}"), Values::from(scores))));
        let looked_at = images.clone().without_autodiff();
        profile::time(Stage::Reward, || {
            for reward in &self.watched {
                observed.push((format!("watch/{}", reward.name()), Values::from(&reward.score(looked_at.clone(), prompts)?)));
            }
            Ok::<_, Error>(())
        })?;
        Ok(ScoredImages { images, rewards, observed })
    }

    /// Decodes latents `[b, c, h, w]` and scores the images with the trained reward alone, `[b]`.
    ///
    /// # Errors
    /// When the reward fails.
    pub fn reward_of(&self, latents: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>, Error> {
        self.reward_of_images(self.decode(latents), prompts)
    }

    /// Scores images `[b, 3, H, W]` in [0, 1] with the trained reward alone, `[b]`.
    ///
    /// # Errors
    /// When the reward fails.
    pub fn reward_of_images(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>, Error> {
        Ok(profile::time(Stage::Reward, || self.reward.score(images, prompts))?)
    }

    /// Draws the preview's prompts and seeds with `model`, each rank some of the prompts and each worker some of those, and scores the images with
    /// every reward, the trained one first.
    ///
    /// # Errors
    /// When a reward fails, or an image is not finite; that error names `step`.
    pub fn draw_preview(&self, model: &Trainable<D>, step: u64, ranks: &Ranks, workers: &Workers) -> Result<Preview, Error> {
        let rewards: Vec<&dyn Reward> = std::iter::once(&*self.reward).chain(self.watched.iter().map(|reward| &**reward)).collect();
        let request = PreviewRequest { section: &self.preview, rewards: &rewards, size: self.size, step, ranks, workers };
        let preview = draw(&self.pipeline, model, &request);
        self.pipeline.release_memory();
        preview
    }

    /// Draws the preview of the model that a run begins with: the base, or the base with the LoRA that is trained further. A resumed run draws
    /// the preview in which a reward failed, if that is why it ended, and nothing else.
    ///
    /// # Errors
    /// As [`draw_preview`](Self::draw_preview) and [`Run::record_preview`].
    pub fn preview_at_start(&self, run: &mut Run<Trainable<D>>) -> Result<(), Error> {
        match if run.is_at_the_beginning() { Some(0) } else { run.owed_preview() } {
            Some(step) => self.preview_at(run, step),
            None => Ok(()),
        }
    }

    /// Draws a preview of the tuned model if one is due. `updated` is what [`Run::backward`] returned: the number of updates made so far,
    /// or `None` if the micro-batch did not complete an update.
    ///
    /// # Errors
    /// As [`draw_preview`](Self::draw_preview) and [`Run::record_preview`].
    pub fn preview_if_due(&self, run: &mut Run<Trainable<D>>, updated: Option<u64>) -> Result<(), Error> {
        match updated.filter(|step| run.preview_is_due(*step)) {
            Some(step) => self.preview_at(run, step),
            None => Ok(()),
        }
    }

    fn preview_at(&self, run: &mut Run<Trainable<D>>, step: u64) -> Result<(), Error> {
        let workers = run.workers(self.pipeline.device())?;
        run.record_preview(&self.draw_preview(&run.tuned(), step, &run.ranks, &workers)?)
    }
}
