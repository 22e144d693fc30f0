//! `evaluate`: the same prompts, drawn from the same noise by a base model and by each tuned model; scored, compared, reported.

mod journal;
mod report;
mod votes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::Device;
use serde_json::{Value, json};
use vp_data::{ImageEntry, ImageFolder, ImageFolderOptions, NearDuplicate, OnProblem, Prompt, RgbImage, near_duplicates, write_png};
use vp_evaluation::comparison::ImageResult;
use vp_evaluation::pixels::PixelStats;
use vp_models::pipeline::{ModelFolder, ModelOptions};
use vp_models::vae::Tiling;
use vp_trainers::run::checkpoint::fingerprint;

pub use self::journal::image_in;
use self::journal::{Journal, PromptResult};
use crate::args::{EvaluateArgs, LoraArg};
use crate::failure::Failure;
use crate::image_generator::{ImageGenerator, ImageRequest, Sampling, default_guidance_scale};
use crate::named_rewards::{self, NamedReward};
use crate::progress::{self, Progress};
use crate::shard::Shard;
use crate::terminal::{say, warn, warn_of_some};
use crate::{device, embedded, ranks, signals};

/// How many leaks are shown.
const SHOWN: usize = 5;

/// One side of the comparison.
#[derive(Debug, Clone)]
pub struct Side {
    /// Its name in the results and the report.
    pub name: String,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    /// A diffusers folder and the LoRAs that are merged into it.
    Model(PathBuf, Vec<LoraArg>),
    /// A folder of existing images.
    Images(PathBuf),
}

/// Everything checked, nothing drawn yet.
pub struct EvaluationPlan {
    args: EvaluateArgs,
    /// The baseline first.
    sides: Vec<Side>,
    prompts: Vec<Prompt>,
    guidance_scale: f64,
    leaks: Vec<NearDuplicate>,
    training: Vec<String>,
    /// Checksums of the weights that draw and score, by their owner's name and file: with a file overwritten it is another evaluation.
    checksums: BTreeMap<String, String>,
}

/// A plan at work.
struct Evaluation<'a> {
    plan: &'a EvaluationPlan,
    rewards: &'a [NamedReward],
    device: &'a Device,
    journal: &'a Journal,
}

/// The most images per prompt and model.
const MOST_SEEDS: usize = 100_000;

/// The top-level entry point for `evaluate`.
pub fn run(args: EvaluateArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    let device = device::parse(&args.device)?;
    let mut plan = plan(args)?;
    plan.args.shard = Shard::of_rank(plan.args.shard)?;
    signals::end_programs_too()?;
    let rewards = named_rewards::open(&plan.args.rewards, &device)?;
    plan.checksums.extend(checksums_of_rewards(&rewards)?);
    let description = plan.description(&rewards);
    let journal = ranks::first_before_others(|| Journal::open(&plan.args.output, plan.args.shard, &description))?;
    let evaluation = Evaluation { plan: &plan, rewards: &rewards, device: &device, journal: &journal };
    (0..plan.sides.len()).try_for_each(|side| evaluation.evaluate_side(side)).map_err(Failure::run)?;
    // The first rank reports when all have done their part.
    let ranks = ranks::all();
    ranks.gather(&[]).map_err(Failure::run)?;
    if !ranks.is_first() {
        return Ok(());
    }
    let results = journal.read(&plan.sides).map_err(Failure::run)?;
    let found: usize = results.iter().map(|result| result.rows.len()).sum();
    let expected = plan.prompts.len() * plan.seeds().len() * plan.sides.len();
    if plan.args.shard.of > 1 && found < expected {
        say(format_args!("{found} of {expected} images are evaluated; the report is written when all parts are there"));
        return Ok(());
    }
    report::write(&plan, results, &rewards, started).map_err(Failure::run)
}

fn plan(args: EvaluateArgs) -> anyhow::Result<EvaluationPlan> {
    for (flag, value) in [("--seeds", args.seeds), ("--batch-size", args.batch_size), ("--steps", args.steps)] {
        if value == 0 {
            bail!("{flag} is 0; expected at least 1");
        }
    }
    if args.seeds > MOST_SEEDS {
        bail!("--seeds {} is out of range; expected at most {MOST_SEEDS} images per prompt", args.seeds);
    }
    let sides = sides(&args)?;
    let prompts = match (&args.prompts, &args.base_images) {
        (Some(path), None) => embedded::prompts(path)?,
        (None, Some(folder)) => captions(folder)?,
        _ => bail!("expected --prompts FILE, or --base-images and --tuned-images"),
    };
    let guidance_scale = args.guidance_scale.unwrap_or_else(|| default_guidance_scale(&args.base));
    for side in &sides {
        match &side.source {
            Source::Model(path, _) => {
                let folder = ModelFolder::open_with(&embedded::resolve(path)?, args.files_of(path));
                let folder = folder.with_context(|| format!("model {}", path.display()))?;
                folder.check(folder.default_size(), guidance_scale)?;
            }
            Source::Images(folder) => check_names(folder, &prompts)?,
        }
    }
    let mut training = Vec::new();
    for path in &args.train_prompts {
        training.extend(embedded::prompts(path)?.into_iter().map(|prompt| prompt.text));
    }
    let held_out: Vec<String> = prompts.iter().map(|prompt| prompt.text.clone()).collect();
    let leaks = near_duplicates(&held_out, &training);
    say_leaks(&leaks, &held_out, &training);
    if args.strict && !leaks.is_empty() {
        bail!("--strict: {} of {} prompts are near-duplicates of training prompts", leaks.len(), held_out.len());
    }
    let checksums = checksums(&args, &sides)?;
    let plan = EvaluationPlan { args, sides, prompts, guidance_scale, leaks, training, checksums };
    // Votes that do not fit are refused before anything is drawn; there may be more of them when the report is written.
    votes::read(&plan, &plan.args.votes)?;
    Ok(plan)
}

fn say_leaks(leaks: &[NearDuplicate], held_out: &[String], training: &[String]) {
    let nearly = |leak: &NearDuplicate| format!("{:?} is nearly a training prompt: {:?}", held_out[leak.held_out], training[leak.training]);
    warn_of_some(leaks.iter().map(nearly), SHOWN, "more prompts are nearly training prompts (--strict refuses them)");
}

fn sides(args: &EvaluateArgs) -> anyhow::Result<Vec<Side>> {
    if let (Some(base), tuned) = (&args.base_images, &args.tuned_images) {
        if tuned.is_empty() {
            bail!("--base-images needs --tuned-images");
        }
        let named = |path: &PathBuf| Side { name: stem(path), source: Source::Images(path.clone()) };
        return Ok(distinct(std::iter::once(base).chain(tuned).map(named).collect()));
    }
    if args.tuned.is_empty() && args.loras.is_empty() {
        bail!("expected something to compare with the base: --tuned DIR or --lora FILE");
    }
    let base = Side { name: stem(&args.base), source: Source::Model(args.base.clone(), Vec::new()) };
    let tuned = args.tuned.iter().map(|path| Side { name: stem(path), source: Source::Model(path.clone(), Vec::new()) });
    let loras = args.loras.iter().map(|lora| {
        // A run's file is named like every other run's.
        let folder = lora.path.parent().map_or_else(String::new, stem);
        let name = if folder.is_empty() { stem(&lora.path) } else { format!("{folder}/{}", stem(&lora.path)) };
        Side { name, source: Source::Model(args.base.clone(), vec![lora.clone()]) }
    });
    Ok(distinct(std::iter::once(base).chain(tuned).chain(loras).collect()))
}

/// The checksums of the weights of every side.
fn checksums(args: &EvaluateArgs, sides: &[Side]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for side in sides {
        let Source::Model(path, loras) = &side.source else { continue };
        let files = fingerprint(&embedded::resolve(path)?)?.into_iter().filter(|(file, _)| is_weights(file));
        found.extend(files.map(|(file, sum)| (format!("{}: {file}", side.name), sum)));
        if let Some(vae) = &args.files_of(path).vae {
            found.extend(fingerprint(vae)?.into_iter().map(|(file, sum)| (format!("{}: vae {file}", side.name), sum)));
        }
        for lora in loras {
            let files = fingerprint(&lora.path)?;
            found.extend(files.into_iter().map(|(file, sum)| (format!("{}: {}: {file}", side.name, lora.path.display()), sum)));
        }
    }
    Ok(found)
}

/// The checksums of the weights of every reward.
fn checksums_of_rewards(rewards: &[NamedReward]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for NamedReward { name, weights, .. } in rewards {
        for path in weights {
            found.extend(fingerprint(path)?.into_iter().map(|(file, sum)| (format!("{name}: {file}"), sum)));
        }
    }
    Ok(found)
}

fn is_weights(file: &str) -> bool {
    [".safetensors", ".ckpt", ".bin"].iter().any(|end| file.ends_with(end))
}

fn stem(path: impl AsRef<Path>) -> String {
    path.as_ref().file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Names that occur twice get a number.
fn distinct(mut sides: Vec<Side>) -> Vec<Side> {
    for i in 1..sides.len() {
        let namesakes = sides[..i].iter().filter(|side| side.name == sides[i].name).count();
        if namesakes > 0 {
            sides[i].name = format!("{} ({})", sides[i].name, namesakes + 1);
        }
    }
    sides
}

/// The captions of an image folder, in the order of its names.
fn captions(folder: &Path) -> anyhow::Result<Vec<Prompt>> {
    prompts_of(opened(folder)?.entries, folder)
}

/// The captions as prompts, with the images' names as their ids: names without their extension tell the images of a folder apart.
fn prompts_of(entries: Vec<ImageEntry>, folder: &Path) -> anyhow::Result<Vec<Prompt>> {
    let mut names: Vec<&str> = entries.iter().map(|entry| plain_name(&entry.file_name)).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("{}: two images are called {}, and names without their extension tell images apart; rename one", folder.display(), pair[0]);
    }
    let prompt = |entry: ImageEntry| Prompt { id: Some(plain_name(&entry.file_name).to_owned()), ..Prompt::new(entry.caption) };
    Ok(entries.into_iter().map(prompt).collect())
}

/// Every image of the first side must be on the others too, under the same name but for its extension.
fn check_names(folder: &Path, prompts: &[Prompt]) -> anyhow::Result<()> {
    let ImageFolder { entries, notes, .. } = opened(folder)?;
    notes.iter().for_each(|note| warn(format_args!("{}: {note}", folder.display())));
    let named = prompts_of(entries, folder)?;
    let has = |id: &str| named.iter().any(|prompt| prompt.id.as_deref() == Some(id));
    let missing: Vec<&str> = prompts.iter().filter_map(|prompt| prompt.id.as_deref()).filter(|id| !has(id)).collect();
    match missing.as_slice() {
        [] => Ok(()),
        [one] => bail!("{} has no image called {one}, which the other side has", folder.display()),
        [first, more @ ..] => bail!("{} has no image called {first}, nor {} more of the other side", folder.display(), more.len()),
    }
}

/// A name within a folder, without the extension.
fn plain_name(file_name: &str) -> &str {
    let start = file_name.rfind('/').map_or(0, |at| at + 1);
    file_name[start..].rfind('.').filter(|at| *at > 0).map_or(file_name, |at| &file_name[..start + at])
}

fn opened(folder: &Path) -> anyhow::Result<ImageFolder> {
    let options = ImageFolderOptions { on_problem: OnProblem::Refuse, min_size: 1, captions: true };
    Ok(ImageFolder::open(folder, &options)?)
}

impl EvaluationPlan {
    fn seeds(&self) -> Vec<u64> {
        let count = if self.draws() { self.args.seeds as u64 } else { 1 };
        (0..count).map(|seed| self.args.seed.wrapping_add(seed)).collect()
    }

    /// Whether the images are drawn here, and not given.
    fn draws(&self) -> bool {
        self.args.base_images.is_none()
    }

    /// Everything that the results depend on: results of anything else are not added to.
    fn description(&self, rewards: &[NamedReward]) -> Value {
        let source = |side: &Side| match &side.source {
            Source::Images(path) => path.display().to_string(),
            Source::Model(path, loras) => {
                let loras = loras.iter().map(|lora| format!(" + {} x {}", lora.path.display(), lora.weight));
                let files = self.args.files_of(path);
                let files = if files == ModelOptions::default() { String::new() } else { format!(" {files:?}") };
                path.display().to_string() + &loras.collect::<String>() + &files
            }
        };
        let mut description = json!({
            "sides": self.sides.iter().map(|side| [side.name.clone(), source(side)]).collect::<Vec<_>>(),
            "prompts": self.prompts.iter().map(|prompt| prompt.text.as_str()).collect::<Vec<_>>(),
            "seeds": self.seeds(),
            "steps": self.draws().then_some(self.args.steps),
            "guidance_scale": self.draws().then_some(self.guidance_scale),
            "rewards": rewards.iter().map(|reward| reward.name.as_str()).collect::<Vec<_>>(),
            "checksums": self.checksums,
        });
        // Only where it is asked for, so that evaluations from before there were tiles go on.
        if self.args.decoding.tiling != Tiling::Off {
            description["vae_tiling"] = json!(self.args.decoding.tiling);
        }
        description
    }
}

impl EvaluateArgs {
    /// What is said of the files of the model at `path`: that holds for the base.
    fn files_of(&self, path: &Path) -> ModelOptions {
        if path == self.base { (&self.files).into() } else { ModelOptions::default() }
    }
}

impl Evaluation<'_> {
    /// Draws, scores and measures those images of a side that are not in the journal yet.
    fn evaluate_side(&self, number: usize) -> anyhow::Result<()> {
        let Self { plan, device, journal, .. } = self;
        let (side, shard) = (&plan.sides[number], plan.args.shard);
        let known = journal.known(number)?;
        let mine = |index: &usize| shard.has(*index as u64) && !known.contains(index);
        let open: Vec<usize> = (0..plan.prompts.len()).filter(mine).collect();
        if open.is_empty() {
            return Ok(());
        }
        if !progress::is_quiet() {
            say(format_args!("{}: {} prompts", side.name, open.len()));
        }
        let mut source = match &side.source {
            Source::Model(path, loras) => {
                let sampling = Sampling {
                    steps: plan.args.steps,
                    guidance_scales: &[plan.guidance_scale],
                    files: plan.args.files_of(path),
                    splitting: plan.args.decoding.into(),
                };
                Pictures::Drawn(Box::new(ImageGenerator::open(path, loras, &sampling, device)?))
            }
            Source::Images(folder) => Pictures::There(opened(folder)?.entries),
        };
        // Whole prompts, as many as fill a batch.
        let at_once = (plan.args.batch_size / plan.seeds().len()).max(1);
        let progress = Progress::of("images", open.len() * plan.seeds().len());
        for indices in open.chunks(at_once) {
            let images = source.get(plan, indices)?;
            for (index, images) in indices.iter().zip(images) {
                let result = self.evaluate_prompt(side, *index, &images)?;
                for (image, seed) in images.iter().zip(plan.seeds()) {
                    write_png::<&str, &str>(journal.image(number, *index, seed), image, &[])?;
                }
                journal.add(number, shard, &result)?;
                progress.advance(images.len());
            }
        }
        Ok(())
    }

    /// Scores and measures a side's images of one prompt, one image per seed.
    fn evaluate_prompt(&self, side: &Side, index: usize, images: &[RgbImage]) -> anyhow::Result<PromptResult> {
        let prompt = &self.plan.prompts[index];
        let prompts = vec![prompt.text.clone(); images.len()];
        let mut scores: Vec<(String, Vec<f64>)> = Vec::new();
        for NamedReward { name, reward, .. } in self.rewards {
            let scored = reward.score_rgb(images, &prompts, self.device).with_context(|| format!("--reward {name}"))?;
            scores.push((name.clone(), scored.scores));
            scores.extend(scored.terms.into_iter().map(|(term, scores)| (format!("{name}/{term}"), scores)));
        }
        let row = |(number, (image, seed)): (usize, (&RgbImage, u64))| {
            let [width, height] = [image.width() as usize, image.height() as usize];
            Ok(ImageResult {
                index,
                prompt: prompt.text.clone(),
                category: prompt.category.clone(),
                seed,
                model: side.name.clone(),
                scores: scores.iter().map(|(name, scores)| (name.clone(), scores[number])).collect(),
                pixels: PixelStats::of(image.as_raw(), width, height)?,
            })
        };
        let rows = images.iter().zip(self.plan.seeds()).enumerate().map(row).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(PromptResult { rows, distances: report::distances(images, self.rewards) })
    }
}

/// Where a side's images come from.
enum Pictures {
    Drawn(Box<ImageGenerator>),
    There(Vec<ImageEntry>),
}

impl Pictures {
    /// The images of some prompts, one per seed.
    fn get(&mut self, plan: &EvaluationPlan, indices: &[usize]) -> anyhow::Result<Vec<Vec<RgbImage>>> {
        match self {
            Self::There(entries) => {
                let load = |index: &usize| {
                    let wanted = plan.prompts[*index].id.as_deref();
                    let entry = entries.iter().find(|entry| Some(plain_name(&entry.file_name)) == wanted);
                    let entry = entry.with_context(|| format!("{} is missing on one of the two sides", wanted.unwrap_or_default()))?;
                    Ok(vec![vp_data::load_image(&entry.path)?])
                };
                indices.iter().map(load).collect()
            }
            Self::Drawn(generator) => {
                let seeds = plan.seeds();
                let one = |index: &usize| {
                    let prompt = plan.prompts[*index].text.as_str();
                    seeds.iter().map(move |seed| ImageRequest { prompt, seed: *seed, sample: *index as u64 }).collect::<Vec<_>>()
                };
                let requests: Vec<ImageRequest<'_>> = indices.iter().flat_map(one).collect();
                let mut images = Vec::new();
                for batch in requests.chunks(plan.args.batch_size) {
                    images.extend(generator.generate(batch, plan.guidance_scale)?);
                }
                Ok(images.chunks(seeds.len()).map(<[RgbImage]>::to_vec).collect())
            }
        }
    }
}
