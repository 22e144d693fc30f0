//! Previews: the same prompts and seeds, drawn before, during and after training.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_core::profile::{self, Stage};
use vp_data::{RgbImage, from_tensor};
use vp_evaluation::comparison::ImageResult;
use vp_evaluation::pixels::PixelStats;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Pipeline, Request};
use vp_rewards::Reward;
use vp_schedulers::{Sampler, build_sampler};

use crate::Error;
use crate::non_finite::{in_prediction, is_finite};
use crate::optim::Workers;
use crate::ranks::{Ranks, scores_from, scores_to};
use crate::sections::PreviewSection;
use crate::statistics::mean;

/// Images for fixed prompts and seeds, with their scores.
#[derive(Debug, Default)]
pub struct Preview {
    /// The images, prompt by prompt, and seed by seed within a prompt.
    pub images: Vec<RgbImage>,
    /// Columns of the grid: images per prompt.
    pub columns: usize,
    /// The prompt and the seed of each image; empty if the images were not drawn from prompts.
    pub drawn_from: Vec<(String, u64)>,
    /// Scores by name, one per image. The first of them decides which checkpoint is the best.
    pub scores: Vec<(String, Vec<f64>)>,
    /// The terms of the scores by name, such as `judge/pass`. They are reported, but decide nothing.
    pub terms: Vec<(String, Vec<f64>)>,
    /// Whether the first score is a loss, so that lower values are better.
    pub lower_is_better: bool,
}

impl Preview {
    /// A preview whose scores are losses on held-out data, the first of which decides, with the images of `drawn`, if there are any.
    pub fn of_losses(losses: Vec<(String, Vec<f64>)>, drawn: Option<Self>) -> Self {
        let drawn = drawn.unwrap_or(Self { columns: 1, ..Self::default() });
        Self { scores: losses, lower_is_better: true, ..drawn }
    }

    /// The scores, then their terms.
    pub fn values(&self) -> impl Iterator<Item = &(String, Vec<f64>)> {
        self.scores.iter().chain(&self.terms)
    }

    /// The scores and pixel statistics of each image that was drawn from a prompt, in the form of an evaluation's results; the model is
    /// called `step <step>`. Losses are left out, because they are not of these images.
    pub fn results(&self, step: u64) -> Vec<ImageResult> {
        let of_image = |(place, (image, (prompt, seed))): (usize, (&RgbImage, &(String, u64)))| {
            let scores = self.values().filter(|_| !self.lower_is_better);
            Some(ImageResult {
                index: place / self.columns.max(1),
                prompt: prompt.clone(),
                category: None,
                seed: *seed,
                model: format!("step {step}"),
                scores: scores.filter_map(|(name, scores)| Some((name.clone(), *scores.get(place)?))).collect::<BTreeMap<_, _>>(),
                pixels: PixelStats::of(image.as_raw(), image.width() as usize, image.height() as usize).ok()?,
            })
        };
        self.images.iter().zip(&self.drawn_from).enumerate().filter_map(of_image).collect()
    }

    /// The mean of the second score, which is that of a watched reward; the mean of the first if nothing is watched.
    pub fn watched_score(&self) -> Option<f64> {
        match self.scores.get(1) {
            Some((_, scores)) => Some(mean(scores)),
            None => self.score(),
        }
    }

    /// The mean of the first score, negated if lower is better.
    pub fn score(&self) -> Option<f64> {
        let (_, scores) = self.scores.first()?;
        let mean = mean(scores);
        Some(if self.lower_is_better { -mean } else { mean })
    }
}

/// The prompts, seeds and rewards of a preview.
#[derive(Clone, Copy)]
pub struct PreviewRequest<'a> {
    /// `[preview]`.
    pub section: &'a PreviewSection,
    /// The rewards that score the images, the trained one first.
    pub rewards: &'a [&'a dyn Reward],
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
    /// Updates made so far.
    pub step: u64,
    /// The ranks that draw, each some of the prompts.
    pub ranks: &'a Ranks,
    /// The threads that draw a rank's prompts side by side.
    pub workers: &'a Workers,
}

/// Draws the preview with the model's own sampler, one row of the grid per prompt, and scores its images.
///
/// # Errors
/// When the folder's scheduler cannot be built, a reward fails, or an image is not finite.
pub fn draw<D: Denoiser>(pipeline: &Pipeline, model: &Trainable<D>, request: &PreviewRequest<'_>) -> Result<Preview, Error> {
    let PreviewRequest { section, rewards, size, ranks, workers, .. } = *request;
    let mine = &section.prompts[ranks.share(section.prompts.len())];
    let of_prompts: Vec<Drawn> = match workers.count() {
        // On this thread, so that a profile sees the stages.
        1 => mine.iter().map(|prompt| draw_prompt(pipeline, model, request, prompt)).collect::<Result<_, _>>()?,
        count => {
            let parts = mine.chunks(mine.len().div_ceil(count).max(1)).map(|part| (model.clone(), part)).collect();
            // Where one fails, the others begin no other prompt.
            let failed = AtomicBool::new(false);
            let draw_part = |(model, part): (Trainable<D>, &[String])| {
                let going_on = part.iter().take_while(|_| !failed.load(Ordering::Relaxed));
                let drawn = going_on.map(|prompt| draw_prompt(pipeline, &model, request, prompt)).collect::<Result<Vec<_>, _>>();
                failed.fetch_or(drawn.is_err(), Ordering::Relaxed);
                drawn
            };
            let parts = profile::time(Stage::Rollout, || workers.map(parts, draw_part));
            parts.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect()
        }
    };
    let mut all = Drawn { scores: rewards.iter().map(|reward| (reward.name().to_string(), Vec::new())).collect(), ..Drawn::default() };
    of_prompts.into_iter().for_each(|drawn| all.append(drawn));
    let Drawn { images, scores, terms } = all.of_all(ranks, size)?;
    let of_prompt = |prompt: &String| section.seeds.iter().map(|seed| (prompt.clone(), *seed)).collect::<Vec<_>>();
    let drawn_from = section.prompts.iter().flat_map(of_prompt).collect();
    Ok(Preview { images, columns: section.seeds.len(), drawn_from, scores, terms, lower_is_better: false })
}

/// A row of the grid.
fn draw_prompt<D: Denoiser>(pipeline: &Pipeline, model: &Trainable<D>, request: &PreviewRequest<'_>, prompt: &str) -> Result<Drawn, Error> {
    let PreviewRequest { section, rewards, size, step, .. } = *request;
    let mut sampler = build_sampler(&pipeline.folder.scheduler_config, None, section.num_inference_steps, 0.0)?;
    let (shape, device) = (pipeline.latent_shape(size), pipeline.device());
    let prompts = vec![prompt.to_string(); section.seeds.len()];
    let rows = |purpose, scheduler_step| {
        let one = |seed: &u64| Noise::new(*seed).normal(purpose, chain_step(0, scheduler_step), &[0], shape, device);
        Tensor::cat(section.seeds.iter().map(one).collect(), 0)
    };
    let negative_prompt = section.negative_prompt.as_deref();
    let request = Request { prompts: &prompts, negative_prompt, guidance_scale: section.guidance_scale, size };
    let latents = rows(Purpose::INITIAL_LATENTS, 0);
    let mut noise = |step| rows(Purpose::SAMPLER_STEP, step);
    let images = pipeline.generate(model, &mut *sampler, &request, latents.clone(), &mut noise);
    if !is_finite(&images) {
        return Err(Error::NonFinitePreview { step, what: blame(pipeline, model, &mut *sampler, &request, latents) });
    }
    let mut drawn = Drawn::default();
    for reward in rewards {
        let scored = profile::time(Stage::Reward, || reward.score_with_terms(images.clone(), &prompts))?;
        let values = |scores: Tensor<1>| scores.into_data().iter::<f64>().collect::<Vec<_>>();
        drawn.scores.push((reward.name().to_string(), values(scored.scores)));
        drawn.terms.extend(scored.terms.into_iter().map(|(term, scores)| (format!("{}/{term}", reward.name()), values(scores))));
    }
    drawn.images = from_tensor(images)?;
    Ok(drawn)
}

/// What has been drawn of a preview.
#[derive(Default)]
struct Drawn {
    images: Vec<RgbImage>,
    scores: Vec<(String, Vec<f64>)>,
    terms: Vec<(String, Vec<f64>)>,
}

impl Drawn {
    /// Adds what was drawn of the prompts that follow. Scores belong together by place, for two rewards may have one name.
    fn append(&mut self, next: Self) {
        self.images.extend(next.images);
        for (all, more) in [(&mut self.scores, next.scores), (&mut self.terms, next.terms)] {
            all.resize_with(all.len().max(more.len()), Default::default);
            for ((name, values), (known, more)) in all.iter_mut().zip(more) {
                *name = known;
                values.extend(more);
            }
        }
    }

    /// What all ranks have drawn, whose images are of this height and width.
    fn of_all(self, ranks: &Ranks, [height, width]: [usize; 2]) -> Result<Self, Error> {
        if ranks.are_one() {
            return Ok(self);
        }
        let scores = serde_json::to_vec(&[scores_to(&self.scores), scores_to(&self.terms)]).expect("names and numbers are JSON");
        let pixels: Vec<u8> = self.images.iter().flat_map(|image| image.as_raw().iter().copied()).collect();
        let image = |pixels: &[u8]| RgbImage::from_raw(width as u32, height as u32, pixels.to_vec()).expect("as many bytes as pixels have");
        let mut all = Self::default();
        for (pixels, bytes) in ranks.gather(&pixels)?.iter().zip(ranks.gather(&scores)?) {
            let [scores, terms]: [Vec<(String, Vec<u64>)>; 2] =
                serde_json::from_slice(&bytes).map_err(|error| Error::Config(format!("a rank of another version: {error}")))?;
            let images = pixels.chunks_exact(3 * height * width).map(image).collect();
            // A rank without a prompt has no terms.
            all.append(Self { images, scores: scores_from(&scores), terms: scores_from(&terms) });
        }
        Ok(all)
    }
}

/// The first part of the model whose output is not finite at the first step of a chain; if there is none, the decoded image.
fn blame<D: Denoiser>(
    pipeline: &Pipeline,
    model: &Trainable<D>,
    sampler: &mut dyn Sampler,
    request: &Request<'_>,
    latents: Tensor<4>,
) -> String {
    let guidance = pipeline.encode(&model.text(&pipeline.text), request);
    let timesteps = vec![sampler.timesteps()[0] as f32; request.prompts.len()];
    let input = latents * sampler.init_noise_sigma();
    in_prediction(&model.denoiser, input, &timesteps, &guidance.conditional).unwrap_or_else(|| "the decoded image".into())
}
