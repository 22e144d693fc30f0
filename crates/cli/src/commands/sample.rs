//! `sample`: prompts to PNGs.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::{Device, Tensor, TensorData};
use vp_core::atomic;
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_core::profile::{self, Stage};
use vp_data::{Parameters, from_tensor, write_png};
use vp_models::denoiser::Denoiser;
use vp_models::number_format::is_cpu;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Formats, ModelFolder, Pipeline, Request};
use vp_models::weights::{SaveType, Weights, save_safetensors};
use vp_schedulers::{Sampler, SchedulerEntry, build_sampler, by_name, entry_of};

use crate::args::SampleArgs;
use crate::failure::Failure;
use crate::image_generator::{default_guidance_scale, with_loras};
use crate::progress::Progress;
use crate::terminal::{say, say_where_time_went, warn};
use crate::{device, embedded, memory, ranks};

/// The most images that one command draws.
const MOST_IMAGES: usize = 10_000_000;

/// Everything checked, nothing drawn yet.
struct SamplingPlan {
    args: SampleArgs,
    /// Each is drawn `--num-images` times.
    prompts: Vec<String>,
    /// Of all prompts.
    num_images: usize,
    size: [usize; 2],
    guidance_scale: f64,
    /// The unit noise `[images, c, h, w]` that was given. Otherwise an image's noise follows from its seed when it is drawn.
    latents: Option<Tensor<4>>,
    sampler_name: String,
    model_name: String,
}

/// The top-level entry point for `sample`.
pub fn run(args: SampleArgs) -> Result<(), Failure> {
    let device = device::parse(&args.device)?;
    if args.profile {
        profile::start(&device);
    }
    let folder = ModelFolder::open_with(&embedded::resolve(&args.model)?, (&args.files).into())?;
    let (entry, mut sampler) = sampler(&args, &folder)?;
    let plan = plan(args, &folder, entry, &device)?;
    let (pipeline, unet) = profile::time(Stage::Io, || Pipeline::load(folder, &device))?;
    let model = profile::time(Stage::Io, || with_loras(&pipeline, unet, &plan.args.loras))?;
    let formats = Formats { model: plan.args.dtype.on(&device, "--dtype")?, vae: plan.args.vae_dtype.on(&device, "--vae-dtype")? };
    formats.warnings(&device).iter().for_each(|warning| warn(format_args!("{warning}")));
    let (mut pipeline, model) = pipeline.in_formats(model, formats, None)?;
    pipeline.vae.splitting = plan.args.decoding.into();
    warn_of_cut_prompts(&pipeline, &plan.prompts);
    prepare_output(&plan.args.output)?;
    if let Some(path) = plan.args.save_latents.as_ref().filter(|_| ranks::all().is_first()) {
        profile::time(Stage::Io, || save_latents(path, &plan.latents_of(0, plan.num_images, &pipeline))).map_err(Failure::run)?;
    }
    let first = first_number(&plan.args.output)?;
    draw(&plan, &pipeline, &model, &mut *sampler, first).map_err(Failure::run)?;
    tell_of_other_ranks(&plan, first).map_err(Failure::run)?;
    say_where_time_went();
    Ok(())
}

fn sampler(args: &SampleArgs, folder: &ModelFolder) -> anyhow::Result<(Option<&'static SchedulerEntry>, Box<dyn Sampler>)> {
    let entry = args.scheduler.as_deref().map(by_name).transpose().context("--scheduler")?;
    let sampler = build_sampler(&folder.scheduler_config, entry, args.steps, args.eta)?;
    Ok((entry, sampler))
}

fn plan(args: SampleArgs, folder: &ModelFolder, entry: Option<&'static SchedulerEntry>, device: &Device) -> anyhow::Result<SamplingPlan> {
    for (flag, value) in [("--num-images", args.num_images), ("--batch-size", args.batch_size)] {
        if value == 0 {
            bail!("{flag} is 0; expected at least 1");
        }
    }
    let prompts = match &args.prompts {
        Some(path) => embedded::prompts(path)?.into_iter().map(|prompt| prompt.text).collect(),
        None => args.prompt.clone(),
    };
    let num_images = prompts.len().checked_mul(args.num_images).filter(|count| *count <= MOST_IMAGES).with_context(|| {
        format!("--num-images {} of {} prompts: expected at most {MOST_IMAGES} images in all", args.num_images, prompts.len())
    })?;
    let factor = folder.vae_config().downscale();
    let given = args.latents.as_deref().map(|path| read_latents(path, device)).transpose()?;
    let [default_height, default_width] = match &given {
        Some(latents) => [latents.dims()[2] * factor, latents.dims()[3] * factor],
        None => folder.default_size(),
    };
    let size = [args.height.unwrap_or(default_height), args.width.unwrap_or(default_width)];
    let guidance_scale = args.guidance_scale.unwrap_or_else(|| default_guidance_scale(&args.model));
    folder.check(size, guidance_scale)?;
    if is_cpu(device) {
        let images = if args.decoding.slicing { 1 } else { args.batch_size.min(num_images) };
        memory::check_decoding(folder.vae_config(), size, images, args.decoding.tiling)?;
    }
    let shape = [folder.vae_config().latent_channels, size[0] / factor, size[1] / factor];
    if let Some(latents) = &given {
        let (expected, found) = ([num_images, shape[0], shape[1], shape[2]], latents.dims());
        if found != expected {
            bail!("--latents: the tensor has shape {found:?}, expected {expected:?} for these prompts and this size");
        }
    }
    let named = entry.or_else(|| entry_of(&folder.scheduler_config));
    let sampler_name = named.map_or(folder.scheduler_config.class_name.clone(), |entry| entry.a1111[0].to_string());
    let model_path = fs::canonicalize(&args.model).unwrap_or_else(|_| args.model.clone());
    let name = if model_path.is_file() { model_path.file_stem() } else { model_path.file_name() };
    let model_name = name.map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(SamplingPlan { args, prompts, num_images, size, guidance_scale, latents: given, sampler_name, model_name })
}

/// Draws this rank's share of the images, whose names begin with their number after `first`.
fn draw<D: Denoiser>(
    plan: &SamplingPlan,
    pipeline: &Pipeline,
    model: &Trainable<D>,
    sampler: &mut dyn Sampler,
    first: usize,
) -> anyhow::Result<()> {
    let Range { start, end } = ranks::all().share(plan.num_images);
    let shape = pipeline.latent_shape(plan.size);
    let progress = Progress::of("images", end - start);
    for start in (start..end).step_by(plan.args.batch_size) {
        let rows = plan.args.batch_size.min(end - start);
        let seeds: Vec<u64> = (start..start + rows).map(|i| plan.args.seed.wrapping_add(i as u64)).collect();
        let prompts: Vec<String> = (start..start + rows).map(|i| plan.prompts[i / plan.args.num_images].clone()).collect();
        let request = Request {
            prompts: &prompts,
            negative_prompt: plan.args.negative_prompt.as_deref(),
            guidance_scale: plan.guidance_scale,
            size: plan.size,
        };
        let mut noise = |step| {
            let one = |seed: &u64| Noise::new(*seed).normal(Purpose::SAMPLER_STEP, chain_step(0, step), &[0], shape, pipeline.device());
            Tensor::cat(seeds.iter().map(one).collect(), 0)
        };
        let latents = plan.latents_of(start, rows, pipeline);
        let images = from_tensor(pipeline.generate(model, sampler, &request, latents, &mut noise))?;
        for (row, ((image, prompt), seed)) in images.iter().zip(&prompts).zip(&seeds).enumerate() {
            let path = plan.path(first, start + row);
            let parameters = plan.parameters(prompt, *seed).to_text();
            profile::time(Stage::Io, || write_png(&path, image, &[("parameters", parameters)]))?;
            say(format_args!("{}", path.display()));
        }
        progress.advance(rows);
    }
    Ok(())
}

/// Names, once they are there, the images that other ranks have drawn.
fn tell_of_other_ranks(plan: &SamplingPlan, first: usize) -> anyhow::Result<()> {
    let ranks = ranks::all();
    ranks.gather(&[])?;
    let own = ranks.share(plan.num_images);
    (0..plan.num_images).filter(|image| !own.contains(image)).for_each(|image| say(format_args!("{}", plan.path(first, image).display())));
    Ok(())
}

impl SamplingPlan {
    /// Where an image goes, if the first of all has the number `first`.
    fn path(&self, first: usize, image: usize) -> PathBuf {
        self.args.output.join(format!("{:05}-{}.png", first + image, self.args.seed.wrapping_add(image as u64)))
    }

    /// The unit noise of `rows` images from `start` on, `[rows, c, h, w]`.
    fn latents_of(&self, start: usize, rows: usize, pipeline: &Pipeline) -> Tensor<4> {
        if let Some(given) = &self.latents {
            return given.clone().narrow(0, start, rows);
        }
        let (shape, device) = (pipeline.latent_shape(self.size), pipeline.device());
        let seed = |i: usize| self.args.seed.wrapping_add(i as u64);
        let one = |i: usize| Noise::new(seed(i)).normal(Purpose::INITIAL_LATENTS, 0, &[0], shape, device);
        Tensor::cat((start..start + rows).map(one).collect(), 0)
    }

    /// The generation parameters in the form that A1111's web UI writes and reads.
    fn parameters(&self, prompt: &str, seed: u64) -> Parameters {
        let [height, width] = self.size;
        let parameters = Parameters::new(prompt, self.args.negative_prompt.as_deref().unwrap_or_default())
            .with("Steps", self.args.steps.to_string())
            .with("Sampler", self.sampler_name.clone())
            .with("CFG scale", self.guidance_scale.to_string())
            .with("Seed", seed.to_string())
            .with("Size", format!("{width}x{height}"))
            .with("Model", self.model_name.clone());
        let loras = self.args.loras.iter().map(|lora| {
            let name = lora.path.file_stem().unwrap_or_default().to_string_lossy();
            format!("{name}: {}", lora.weight)
        });
        let loras = loras.collect::<Vec<_>>().join(", ");
        let parameters = if loras.is_empty() { parameters } else { parameters.with("Lora", loras) };
        let parameters = if self.args.eta == 0.0 { parameters } else { parameters.with("Eta", self.args.eta.to_string()) };
        parameters.with("Version", concat!("visionprefer ", env!("CARGO_PKG_VERSION")))
    }
}

fn warn_of_cut_prompts(pipeline: &Pipeline, prompts: &[String]) {
    let mut warned: Vec<&String> = Vec::new();
    for prompt in prompts {
        if let Some(warning) = pipeline.text.warning(prompt)
            && !warned.contains(&prompt)
        {
            warn(format_args!("{warning}"));
            warned.push(prompt);
        }
    }
}

/// Creates the folder and makes sure that files can be written to it, before anything is drawn. What a killed command left half written in it
/// is removed.
fn prepare_output(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create output folder {}", folder.display()))?;
    atomic::sweep(folder);
    let probe = atomic::temporary_beside(&folder.join("probe"));
    fs::write(&probe, []).and_then(|()| fs::remove_file(&probe)).with_context(|| format!("write to output folder {}", folder.display()))
}

/// The number of the first image: for all ranks what the first finds, before anybody draws.
fn first_number(folder: &Path) -> anyhow::Result<usize> {
    let own = first_free_number(folder)? as u64;
    let all = ranks::all().gather(&own.to_le_bytes())?;
    let first = all[0].as_slice().try_into().context("the first rank is of another version")?;
    Ok(u64::from_le_bytes(first) as usize)
}

/// The number after the highest in the folder, so that no image is overwritten.
fn first_free_number(folder: &Path) -> anyhow::Result<usize> {
    let mut next = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some((number, _)) = name.strip_suffix(".png").and_then(|name| name.split_once('-'))
            && let Ok(number) = number.parse::<usize>()
        {
            next = next.max(number + 1);
        }
    }
    Ok(next)
}

fn read_latents(path: &Path, device: &Device) -> anyhow::Result<Tensor<4>> {
    let stored =
        Weights::open(path)?.take("latents").with_context(|| format!("--latents {}: no tensor named `latents`", path.display()))?;
    let shape: [usize; 4] = stored.shape().try_into().map_err(|_| {
        anyhow::anyhow!(
            "--latents {}: `latents` has shape {:?}, expected [images, channels, height, width]",
            path.display(),
            stored.shape()
        )
    })?;
    Ok(Tensor::from_data(TensorData::new(stored.read().context("--latents")?, shape), device))
}

fn save_latents(path: &Path, latents: &Tensor<4>) -> anyhow::Result<()> {
    let shape = latents.dims();
    let values: Vec<f32> = latents.to_data().try_to_vec().context("latents are f32")?;
    let tensor = ("latents", shape.as_slice(), Box::new(|| values) as Box<dyn FnOnce() -> Vec<f32>>);
    Ok(save_safetensors(path, [tensor], &[], SaveType::F32)?)
}
