//! Images to annotate, drawn as VisionPrefer drew its own: several images per prompt, from several models, with varying guidance.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vp_core::config::Validate;
use vp_core::noise::{Noise, Purpose};
use vp_data::{Completion, Parameters, Prompt, Record, RgbImage, write_png};
use vp_models::pipeline::{ModelFolder, ModelOptions};
use vp_models::vae::Splitting;

use crate::args::LoraArg;
use crate::failure::Failure;
use crate::image_generator::{ImageGenerator, ImageRequest, Sampling};
use crate::output_folder;
use crate::progress::{self, Progress};
use crate::terminal::say;
use crate::{embedded, ranks};

/// `[sampling]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingSection {
    /// Diffusers folders. The images of a prompt are drawn by the models in turn.
    pub models: Vec<PathBuf>,
    /// A LoRA for each model, in the same order; an empty path for none.
    pub loras: Vec<PathBuf>,
    /// Images per prompt.
    pub images_per_prompt: usize,
    /// Scales of classifier-free guidance; each image gets one of them at random.
    pub guidance_scales: Vec<f64>,
    /// Denoising steps, with each model's own sampler.
    pub num_inference_steps: usize,
    /// Every image's noise follows from this seed, the prompt's position and the image's number.
    pub seed: u64,
    /// Images drawn at once.
    pub batch_size: usize,
}

impl Default for SamplingSection {
    /// Four images per prompt, as in VisionPrefer, from the model that is part of the program.
    fn default() -> Self {
        Self {
            models: vec![embedded::SHAPES.into()],
            loras: Vec::new(),
            images_per_prompt: 4,
            guidance_scales: vec![1.0, 2.0, 3.0, 5.0],
            num_inference_steps: 20,
            seed: 0,
            batch_size: 4,
        }
    }
}

impl Validate for SamplingSection {
    fn findings(&self, findings: &mut Vec<String>) {
        let lists = [("models", self.models.is_empty()), ("guidance_scales", self.guidance_scales.is_empty())];
        findings
            .extend(lists.iter().filter(|(_, empty)| *empty).map(|(name, _)| format!("sampling.{name} is empty; expected at least one")));
        let counts = [
            ("images_per_prompt", self.images_per_prompt),
            ("num_inference_steps", self.num_inference_steps),
            ("batch_size", self.batch_size),
        ];
        findings.extend(counts.iter().filter(|(_, n)| *n == 0).map(|(name, _)| format!("sampling.{name} is 0; expected at least 1")));
        if self.loras.len() > self.models.len() {
            findings.push(format!(
                "sampling.loras has {} entries and models {}; expected at most one per model",
                self.loras.len(),
                self.models.len()
            ));
        }
        for scale in self.guidance_scales.iter().filter(|scale| !(**scale >= 0.0 && scale.is_finite())) {
            findings.push(format!("sampling.guidance_scales has {scale}; expected numbers of at least 0"));
        }
    }
}

/// One image to draw.
#[derive(Debug, Clone)]
struct Wanted {
    prompt: usize,
    model: usize,
    guidance_scale: f64,
    seed: u64,
    file_name: String,
}

/// Candidate images to draw.
pub struct Candidates<'a> {
    /// What they show.
    pub prompts: &'a [Prompt],
    /// How they are drawn.
    pub section: &'a SamplingSection,
    /// The parts in which they are decoded.
    pub splitting: Splitting,
    /// They lie in `images` below it.
    pub output: &'a Path,
    /// Where they are drawn.
    pub device: &'a Device,
    /// Once it is true, drawing stops.
    pub stop: &'a AtomicBool,
}

impl Candidates<'_> {
    /// Draws the images that are not there yet and describes all of them.
    ///
    /// # Errors
    /// When a model cannot draw them, or the folder holds images that were drawn in another way.
    pub fn draw(&self) -> Result<Vec<Record>, Failure> {
        let Self { prompts, section, output, .. } = self;
        let (wanted, records) = described(prompts, section)?;
        let folder = output.join(FOLDER);
        let texts: Vec<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let mut made_from = json!({ "sampling": section, "prompts": texts });
        // How many are drawn at once changes nothing but rounding.
        made_from["sampling"].as_object_mut().expect("a section is an object").remove("batch_size");
        ranks::first_before_others(|| output_folder::create_or_continue(&folder, MADE_FROM, &made_from))?;
        let ranks = ranks::all();
        // By number among all, so that no rank's part depends on what the others have drawn meanwhile.
        let own = wanted.iter().enumerate().filter(|(number, _)| number % ranks.size() == ranks.rank()).map(|(_, one)| one);
        let missing: Vec<&Wanted> = own.filter(|one| !folder.join(&one.file_name).exists()).collect();
        for (index, model) in section.models.iter().enumerate() {
            let of_model: Vec<&Wanted> = missing.iter().filter(|one| one.model == index).copied().collect();
            if !of_model.is_empty() {
                if !progress::is_quiet() {
                    say(format_args!("drawing {} images with {}", of_model.len(), model.display()));
                }
                self.draw_with(index, &of_model, &folder)?;
            }
        }
        ranks.gather(&[]).map_err(Failure::run)?;
        Ok(records)
    }

    /// Draws some images with the model of this index.
    fn draw_with(&self, model: usize, wanted: &[&Wanted], folder: &Path) -> Result<(), Failure> {
        let Self { prompts, section, device, stop, .. } = self;
        let lora = section.loras.get(model).filter(|lora| !lora.as_os_str().is_empty());
        let loras: Vec<LoraArg> = lora.map(|path| LoraArg { path: path.clone(), weight: 1.0 }).into_iter().collect();
        let sampling = Sampling {
            steps: section.num_inference_steps,
            guidance_scales: &section.guidance_scales,
            files: ModelOptions::default(),
            splitting: self.splitting,
        };
        let generator = ImageGenerator::open(&section.models[model], &loras, &sampling, device).context("[sampling]")?;
        let name = name(&section.models[model], section.loras.get(model));
        let [height, width] = generator.size;
        let progress = Progress::of("images", wanted.len());
        // One request has one guidance scale.
        for scale in &section.guidance_scales {
            let of_scale: Vec<&&Wanted> = wanted.iter().filter(|one| one.guidance_scale == *scale).collect();
            for batch in of_scale.chunks(section.batch_size) {
                if stop.load(Ordering::Relaxed) {
                    let reason = anyhow::anyhow!("stopped while drawing; run the same command again");
                    return Err(Failure::Stopped(crate::signals::received(), reason));
                }
                let request = |one: &&&Wanted| ImageRequest { prompt: &prompts[one.prompt].text, seed: one.seed, sample: 0 };
                let drawn = generator.generate(&batch.iter().map(request).collect::<Vec<_>>(), *scale).map_err(Failure::run)?;
                for (image, one) in drawn.iter().zip(batch) {
                    let parameters = Parameters::new(&prompts[one.prompt].text, "")
                        .with("Steps", section.num_inference_steps.to_string())
                        .with("CFG scale", scale.to_string())
                        .with("Seed", one.seed.to_string())
                        .with("Size", format!("{width}x{height}"))
                        .with("Model", name.clone());
                    write_png(folder.join(&one.file_name), image, &[("parameters", parameters.to_text())]).map_err(Failure::run)?;
                    progress.advance(1);
                }
            }
        }
        Ok(())
    }
}

/// The records of all candidates, with blank images of the right size, in a folder of their own, in place of drawn ones: what a dry run looks at.
pub fn blank(prompts: &[Prompt], section: &SamplingSection) -> anyhow::Result<(Vec<Record>, PathBuf)> {
    let (_, mut records) = described(prompts, section)?;
    let root = std::env::temp_dir().join(format!("{BLANKS}{}", std::process::id()));
    std::fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    for completion in records.iter_mut().flat_map(|record| &mut record.completions) {
        let (width, height) = (completion.width.unwrap_or(1), completion.height.unwrap_or(1));
        completion.image_path = format!("{width}x{height}.png");
        let path = root.join(&completion.image_path);
        if !path.exists() {
            write_png::<&str, &str>(&path, &RgbImage::new(width, height), &[])?;
        }
    }
    Ok((records, root))
}

/// Removes the folder of [`blank`], if `root` is one.
pub fn remove_blanks(root: &Path) {
    if root.file_name().is_some_and(|name| name.to_string_lossy().starts_with(BLANKS)) {
        let _ = std::fs::remove_dir_all(root);
    }
}

/// The folder of the drawn images, below the output.
const FOLDER: &str = "images";
/// The file in it that says what they were drawn from.
const MADE_FROM: &str = "sampling.json";
/// How the name of a folder of blank images begins.
const BLANKS: &str = "visionprefer-blanks-";

/// Every wanted image, and the records that describe them.
fn described(prompts: &[Prompt], section: &SamplingSection) -> anyhow::Result<(Vec<Wanted>, Vec<Record>)> {
    let size = |model: &PathBuf| Ok(ModelFolder::open(&embedded::resolve(model)?).context("sampling.models")?.default_size());
    let sizes = section.models.iter().map(size).collect::<anyhow::Result<Vec<_>>>()?;
    let wanted: Vec<Wanted> = (0..prompts.len()).flat_map(|prompt| wanted(section, prompt)).collect();
    let completion = |one: &Wanted| Completion {
        image_path: format!("{FOLDER}/{}", one.file_name),
        model: Some(name(&section.models[one.model], section.loras.get(one.model))),
        seed: Some(one.seed),
        steps: Some(section.num_inference_steps as u64),
        guidance_scale: Some(one.guidance_scale),
        width: Some(sizes[one.model][1] as u32),
        height: Some(sizes[one.model][0] as u32),
        ..Completion::default()
    };
    let record = |(index, (prompt, of_prompt)): (usize, (&Prompt, &[Wanted]))| {
        let id = prompt.id.clone().unwrap_or_else(|| format!("{index:06}"));
        Record::new(id, prompt.text.clone(), of_prompt.iter().map(completion).collect())
    };
    let records = prompts.iter().zip(wanted.chunks(section.images_per_prompt)).enumerate().map(record).collect();
    Ok((wanted, records))
}

/// The images of a prompt.
fn wanted(section: &SamplingSection, prompt: usize) -> impl Iterator<Item = Wanted> + '_ {
    let noise = Noise::new(section.seed);
    (0..section.images_per_prompt).map(move |image| {
        let lot = noise.integer(Purpose::GUIDANCE_SCALE, prompt as u64, image as u64, 0, section.guidance_scales.len() - 1);
        let seed = (prompt * section.images_per_prompt + image) as u64;
        Wanted {
            prompt,
            model: image % section.models.len(),
            guidance_scale: section.guidance_scales[lot],
            seed: section.seed.wrapping_add(seed),
            file_name: format!("{prompt:06}_{image}.png"),
        }
    })
}

fn name(model: &Path, lora: Option<&PathBuf>) -> String {
    let stem = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    match lora.filter(|lora| !lora.as_os_str().is_empty()) {
        Some(lora) => format!("{} + {}", stem(model), stem(lora)),
        None => stem(model),
    }
}
