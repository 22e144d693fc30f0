//! What reward-driven algorithms draw with and are rewarded by.

use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_data::ShuffledOrder;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Pipeline, Trainable};
use vp_rewards::{Reward, Scored};
use vp_schedulers::{Scheduler, build_sampler, build_scheduler, by_name};

use crate::Error;
use crate::run::checkpoint::text_checksum;
use crate::run::preview::{Preview, PreviewRequest, draw};
use crate::run::{Observed, Run, values};
use crate::sections::{PreviewSection, SchedulerSection};

/// Everything around the trained model.
pub struct Environment<D: Denoiser> {
    /// Encoders, autoencoder, folder; constants to the tape.
    pub pipeline: Pipeline,
    /// The untuned model, on the plain device.
    pub base: Trainable<D>,
    /// The reward that is trained on.
    pub reward: Box<dyn Reward>,
    /// Rewards that are looked at and not trained on.
    pub watched: Vec<Box<dyn Reward>>,
    /// Height and width in pixels.
    pub size: [usize; 2],
    /// `[scheduler]`.
    pub scheduler: SchedulerSection,
    /// `[preview]`.
    pub preview: PreviewSection,
    /// What is drawn in training.
    pub prompts: Prompts,
}

/// The prompts of a run, in a shuffled order that begins again when all were taken.
#[derive(Debug)]
pub struct Prompts {
    texts: Vec<String>,
    order: ShuffledOrder,
}

impl Prompts {
    /// `texts` in the order that `noise` gives them.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(texts: Vec<String>, noise: Noise) -> Self {
        let order = ShuffledOrder::new(texts.len(), noise, Purpose::DATA_ORDER);
        Self { texts, order }
    }

    /// The places in the list of `count` prompts, from place `start` of the shuffled order on.
    pub fn entries(&mut self, start: u64, count: usize) -> Vec<usize> {
        self.order.entries(start, count)
    }

    /// The prompt at a place in the list.
    pub fn text(&self, entry: usize) -> &str {
        &self.texts[entry]
    }

    /// The prompts of micro-batch `index`, `count` per micro-batch.
    pub fn of_batch(&mut self, index: u64, count: usize) -> Vec<String> {
        self.entries(index * count as u64, count).into_iter().map(|entry| self.texts[entry].clone()).collect()
    }

    /// SHA-256 of the prompts in the order of the list.
    pub fn checksum(&self) -> String {
        text_checksum(self.texts.iter().map(String::as_str))
    }
}

/// Images and their rewards, on the tape where the latents were.
#[derive(Debug)]
pub struct ScoredImages {
    /// `[b, 3, H, W]` in [0, 1].
    pub images: Tensor<4>,
    /// The trained reward, `[b]`.
    pub rewards: Tensor<1>,
    /// For the journal: `reward`, `reward/<term>` for each term of a sum, and `watch/<name>` for each watched reward.
    pub observed: Observed,
}

impl<D: Denoiser> Environment<D> {
    /// Refuses sections that do not fit the model's folder, before anything is trained.
    ///
    /// # Errors
    /// When the `[scheduler]` section or the preview's sampler does not fit.
    pub fn check(&self) -> Result<(), Error> {
        self.scheduler()?;
        build_sampler(&self.pipeline.folder.scheduler_config, None, self.preview.num_inference_steps, 0.0)?;
        Ok(())
    }

    /// The scheduler of the `[scheduler]` section.
    ///
    /// # Errors
    /// When the folder's config and the section do not fit together.
    pub fn scheduler(&self) -> Result<Box<dyn Scheduler>, Error> {
        let (section, folder) = (&self.scheduler, &self.pipeline.folder.scheduler_config);
        Ok(build_scheduler(&section.apply(folder), Some(by_name(&section.name)?), section.num_inference_steps, section.eta)?)
    }

    /// `[c, h, w]` of an image's latents.
    pub fn latent_shape(&self) -> [usize; 3] {
        self.pipeline.latent_shape(self.size)
    }

    /// Decodes latents `[b, c, h, w]` and asks every reward.
    ///
    /// # Errors
    /// When a reward fails.
    pub fn decode_and_score(&self, latents: Tensor<4>, prompts: &[String]) -> Result<ScoredImages, Error> {
        let images = profile::time(Stage::Decode, || self.pipeline.vae.decode_to_images(latents));
        let Scored { scores: rewards, terms } = profile::time(Stage::Reward, || self.reward.score_with_terms(images.clone(), prompts))?;
        let mut observed: Observed = vec![("reward".into(), values(&rewards))];
        observed.extend(terms.iter().map(|(name, scores)| (format!("reward/{name}"), values(scores))));
        let looked_at = images.clone().without_autodiff();
        profile::time(Stage::Reward, || {
            for reward in &self.watched {
                observed.push((format!("watch/{}", reward.name()), values(&reward.score(looked_at.clone(), prompts)?)));
            }
            Ok::<_, Error>(())
        })?;
        Ok(ScoredImages { images, rewards, observed })
    }

    /// Decodes latents `[b, c, h, w]` and asks the trained reward alone, `[b]`.
    ///
    /// # Errors
    /// When the reward fails.
    pub fn reward_of(&self, latents: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>, Error> {
        let images = profile::time(Stage::Decode, || self.pipeline.vae.decode_to_images(latents));
        Ok(profile::time(Stage::Reward, || self.reward.score(images, prompts))?)
    }

    /// Draws the preview's prompts and seeds with `model` and lets every reward score them, the trained one first.
    ///
    /// # Errors
    /// When a reward fails, or what is drawn is not finite (`step` is named then).
    pub fn draw_preview(&self, model: &Trainable<D>, step: u64) -> Result<Preview, Error> {
        let rewards: Vec<&dyn Reward> = std::iter::once(&*self.reward).chain(self.watched.iter().map(|reward| &**reward)).collect();
        draw(&self.pipeline, model, &PreviewRequest { section: &self.preview, rewards: &rewards, size: self.size, step })
    }

    /// The preview that a run begins with, unless it is resumed.
    ///
    /// # Errors
    /// As [`draw_preview`](Self::draw_preview) and [`Run::record_preview`].
    pub fn preview_at_start(&self, run: &mut Run<Trainable<D>>) -> Result<(), Error> {
        if run.is_at_the_beginning() {
            run.record_preview(&self.draw_preview(&self.base, 0)?)?;
        }
        Ok(())
    }

    /// A preview of the tuned model, if a micro-batch made an update, as [`Run::backward`] says, after which one is due.
    ///
    /// # Errors
    /// As [`draw_preview`](Self::draw_preview) and [`Run::record_preview`].
    pub fn preview_if_due(&self, run: &mut Run<Trainable<D>>, updated: Option<u64>) -> Result<(), Error> {
        match updated.filter(|step| run.preview_is_due(*step)) {
            Some(step) => run.record_preview(&self.draw_preview(&run.tuned(), step)?),
            None => Ok(()),
        }
    }
}
