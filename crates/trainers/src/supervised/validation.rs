//! How supervised fine-tuning, Diffusion-DPO and Diffusion-KTO validate: on held-out images, with the same timesteps and the same noise every time.

use vp_core::noise::Noise;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Pipeline, Trainable};
use vp_schedulers::{Scheduler, build_scheduler, by_name};

use crate::Error;
use crate::denoising::Rows;
use crate::run::preview::{Preview, PreviewRequest, draw};
use crate::run::{Draw, Run};
use crate::sections::PreviewSection;

/// The number of timesteps at which each held-out image is denoised: the middles of that many equal parts of the schedule.
pub const TIMESTEPS: usize = 4;
/// The number of validation's random draw; training counts its draws from 1.
const DRAW: u64 = 0;

/// The noise schedule of a model's folder, which is the same for all schedulers.
///
/// # Errors
/// When the folder's scheduler config cannot be used.
pub fn noise_schedule(pipeline: &Pipeline) -> Result<Box<dyn Scheduler>, Error> {
    Ok(build_scheduler(&pipeline.folder.scheduler_config, Some(by_name("ddpm")?), 1, 0.0)?)
}

/// Calls `measure` at each timestep, and returns the mean over the timesteps of the `N` values that it gives for each row of a held-out
/// batch. `numbers` identify the rows, independent of the batch they are in. `measure` takes a timestep and the rows' random numbers there.
///
/// # Errors
/// Those of `measure`.
pub fn over_timesteps<const N: usize>(
    schedule: &dyn Scheduler,
    noise: Noise,
    numbers: &[u64],
    measure: impl FnMut(f64, Rows<'_>) -> Result<[Vec<f64>; N], Error>,
) -> Result<[Vec<f64>; N], Error> {
    let mut means: [Vec<f64>; N] = std::array::from_fn(|_| vec![0.0; numbers.len()]);
    for of_timestep in at_timesteps(schedule, noise, numbers, measure)? {
        for (means, values) in means.iter_mut().zip(of_timestep) {
            means.iter_mut().zip(values).for_each(|(mean, value)| *mean += value / TIMESTEPS as f64);
        }
    }
    Ok(means)
}

/// As [`over_timesteps`], but returns what `measure` gives at each of the [`TIMESTEPS`].
///
/// # Errors
/// Those of `measure`.
pub fn at_timesteps<T>(
    schedule: &dyn Scheduler,
    noise: Noise,
    numbers: &[u64],
    mut measure: impl FnMut(f64, Rows<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let count = schedule.num_train_timesteps();
    let one = |part: usize| {
        let timestep = ((2 * part + 1) * count / (2 * TIMESTEPS)) as f64;
        let samples: Vec<u64> = numbers.iter().map(|number| number.wrapping_add(part as u64)).collect();
        measure(timestep, Rows { draw: Draw::new(noise, DRAW), samples: &samples })
    };
    (0..TIMESTEPS).map(one).collect()
}

/// The circumstances of a validation: the frozen networks, the preview to draw, and the number of updates.
#[derive(Debug, Clone, Copy)]
pub struct Looked<'a> {
    /// The text encoders, the autoencoder and the model's folder.
    pub pipeline: &'a Pipeline,
    /// The `[preview]` section, if there is one.
    pub preview: Option<&'a PreviewSection>,
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
    /// Updates made so far.
    pub step: u64,
}

impl Looked<'_> {
    /// Draws the preview, if there is one, and writes it to the journal with the held-out `values`. The first of these decides which
    /// checkpoint is the best; empty ones are left out.
    ///
    /// # Errors
    /// When an image of the preview is not finite, or the run's folder cannot be written.
    pub fn record<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        tuned: &Trainable<D>,
        values: Vec<(&str, Vec<f64>)>,
    ) -> Result<(), Error> {
        let Self { pipeline, size, step, .. } = *self;
        let workers = run.workers(pipeline.device())?;
        let request =
            self.preview.map(|section| PreviewRequest { section, rewards: &[], size, step, ranks: &run.ranks, workers: &workers });
        let drawn = request.map(|request| draw(pipeline, tuned, &request)).transpose()?;
        let values = values.into_iter().filter(|(_, values)| !values.is_empty()).map(|(name, values)| (name.to_string(), values));
        run.record_preview(&Preview::of_losses(values.collect(), drawn))
    }
}
