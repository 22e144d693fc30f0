//! How often a model of the world of shapes does what its captions say, by the world's judge.
//!
//!     cargo run --release --example judge_shapes -- reconstruct MODEL [N]
//!     cargo run --release --example judge_shapes -- draw MODEL [N] [GUIDANCE] [SHEET.png] [train]
//!
//! `reconstruct` sends clean renders through the autoencoder and back: what it passes caps everything. `draw` draws held-out prompts
//! (or, with `train`, prompts of training) in 20 steps of the model's own sampler. MODEL is a diffusers folder.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use image::{RgbImage, imageops};
use vp_core::noise::{Noise, Purpose};
use vp_data::{from_tensor, to_tensor};
use vp_models::pipeline::{ModelFolder, Pipeline, Request, Trainable, load_vae};
use vp_schedulers::build_sampler;
use vp_shapes::split::heldout_of;
use vp_shapes::{Description, Scene, Split, Verdict, judge, render};

const BATCH: usize = 50;
const STEPS: usize = 20;

/// A picture to be made.
struct Wanted {
    caption: String,
    category: String,
    scene: Scene,
}

fn wanted(split: Split, seed: u64, index: u64) -> Wanted {
    let mut rng = Noise::new(seed).stream(Purpose::SCENE, split as u64, index);
    let (description, caption) = split.prompt(&mut rng);
    let category = match &heldout_of(&description)[..] {
        [composition, ..] => composition.category(),
        [] => ["", "one object", "two objects", "three objects"][description.count()],
    };
    Wanted { caption, category: category.into(), scene: Scene::of(&description, &mut rng) }
}

/// Passed and asked, by what was asked.
#[derive(Default)]
struct Tally(BTreeMap<String, [usize; 2]>);

impl Tally {
    fn count(&mut self, name: String, passed: bool) {
        let [passes, total] = self.0.entry(name).or_default();
        *passes += usize::from(passed);
        *total += 1;
    }

    fn add(&mut self, category: &str, verdict: &Verdict) {
        self.count("every claim".into(), verdict.passes());
        self.count(format!("every claim, {category}"), verdict.passes());
        for claim in &verdict.claims {
            self.count(format!("claims: {:?}", claim.kind).to_lowercase(), claim.holds);
        }
    }

    fn print(&self) {
        for (name, [passes, total]) in &self.0 {
            let [low, high] = wilson(*passes, *total);
            println!("{name:28} {passes:5} of {total:5}  {:5.1} %  ({low:.1} to {high:.1})", 100.0 * *passes as f64 / *total as f64);
        }
    }
}

/// Wilson's 95 % interval of a share, in percent.
fn wilson(passes: usize, total: usize) -> [f64; 2] {
    let (n, p, z) = (total as f64, passes as f64 / total as f64, 1.96);
    let (middle, half) = (p + z * z / (2.0 * n), z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt());
    [middle - half, middle + half].map(|end| 100.0 * end / (1.0 + z * z / n))
}

fn verdicts(tally: &mut Tally, images: &[RgbImage], wanted: &[Wanted]) -> Result<Vec<Verdict>, Box<dyn Error>> {
    let mut verdicts = Vec::new();
    for (image, wanted) in images.iter().zip(wanted) {
        let verdict = judge(image, &Description::parse(&wanted.caption)?);
        tally.add(&wanted.category, &verdict);
        if std::env::var_os("EXPLAIN").is_some() {
            println!("{}: {} fidelity {:.2}", wanted.caption, verdict.prompt_following.rationale, verdict.fidelity.score);
        }
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

fn reconstruct(folder: &ModelFolder, count: u64) -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let (vae, side) = (load_vae(folder, &device)?, folder.default_size()[0] as u32);
    let (mut tally, mut squares, mut latents) = (Tally::default(), Vec::new(), Vec::new());
    for start in (0..count).step_by(BATCH) {
        let batch: Vec<Wanted> = (start..count.min(start + BATCH as u64)).map(|index| wanted(Split::Train, 12345, index)).collect();
        let images: Vec<RgbImage> = batch.iter().map(|wanted| render(&wanted.scene, side)).collect();
        let pixels = to_tensor(&images, &device)?;
        let posterior = vae.encode(pixels.clone() * 2.0 - 1.0);
        let decoded = (vae.decode(posterior.mean.clone()) / 2.0 + 0.5).clamp(0.0, 1.0);
        squares.push(f64::from((decoded.clone() - pixels).square().mean().into_scalar::<f32>()));
        latents.push(f64::from(posterior.mean.square().mean().into_scalar::<f32>()));
        verdicts(&mut tally, &from_tensor(decoded)?, &batch)?;
    }
    tally.print();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    println!("PSNR {:.2} dB; root mean square of the latents {:.4}", -10.0 * mean(&squares).log10(), mean(&latents).sqrt());
    Ok(())
}

fn draw(folder: ModelFolder, count: u64, guidance_scale: f64, sheet: Option<&str>, split: Split) -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let (pipeline, unet) = Pipeline::load(folder, &device)?;
    let (model, size) = (Trainable::of(unet), pipeline.folder.default_size());
    let mut sampler = build_sampler(&pipeline.folder.scheduler_config, None, STEPS, 0.0)?;
    let (mut tally, mut shown, began) = (Tally::default(), Vec::new(), Instant::now());
    for start in (0..count).step_by(BATCH) {
        let numbers: Vec<u64> = (start..count.min(start + BATCH as u64)).collect();
        let batch: Vec<Wanted> = numbers.iter().map(|index| wanted(split, 0, *index)).collect();
        let prompts: Vec<String> = batch.iter().map(|wanted| wanted.caption.clone()).collect();
        let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale, size };
        let latents = Noise::new(0).normal(Purpose::INITIAL_LATENTS, 0, &numbers, pipeline.latent_shape(size), &device);
        let mut noise = |_: usize| -> Tensor<4> { unreachable!("the model's own sampler draws no noise") };
        let images = from_tensor(pipeline.generate(&model, &mut *sampler, &request, latents, &mut noise))?;
        let verdicts = verdicts(&mut tally, &images, &batch)?;
        shown.extend(images.into_iter().zip(verdicts.iter().map(Verdict::passes)));
    }
    tally.print();
    println!("{count} images in {:.1} s", began.elapsed().as_secs_f64());
    sheet.map_or(Ok(()), |path| contact_sheet(&shown, Path::new(path)))
}

/// The first 96 images, four times as large; those that pass have a green frame, the others a red one.
fn contact_sheet(shown: &[(RgbImage, bool)], path: &Path) -> Result<(), Box<dyn Error>> {
    const COLUMNS: u32 = 12;
    let side = shown[0].0.width() * 4;
    let (cell, count) = (side + 8, shown.len().min(96) as u32);
    let mut sheet = RgbImage::new(COLUMNS * cell, count.div_ceil(COLUMNS) * cell);
    for (i, (image, passes)) in (0..count).zip(shown) {
        let (x, y) = (i % COLUMNS * cell, i / COLUMNS * cell);
        let frame = RgbImage::from_pixel(cell, cell, image::Rgb(if *passes { [0, 200, 0] } else { [220, 0, 0] }));
        imageops::replace(&mut sheet, &frame, x.into(), y.into());
        imageops::replace(&mut sheet, &imageops::resize(image, side, side, imageops::FilterType::Nearest), (x + 4).into(), (y + 4).into());
    }
    Ok(sheet.save(path)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let at = |i: usize| arguments.get(i).map(String::as_str);
    let folder = ModelFolder::open(Path::new(at(1).ok_or("expected a model folder")?))?;
    match at(0) {
        Some("reconstruct") => reconstruct(&folder, at(2).unwrap_or("400").parse()?),
        Some("draw") => {
            let split = if at(5) == Some("train") { Split::Train } else { Split::Test };
            draw(folder, at(2).unwrap_or("400").parse()?, at(3).unwrap_or("3").parse()?, at(4), split)
        }
        _ => Err("expected reconstruct or draw".into()),
    }
}
