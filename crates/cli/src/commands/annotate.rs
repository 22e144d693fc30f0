//! `annotate`: ratings and comparisons of the images of prompts.

mod candidates;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use vp_annotation::{
    Annotator, AnnotatorConfig, BuildContext, Event, Job, RunOptions, SetAside, Stopped, Summary, dry_run, polish, run as annotate,
};
use vp_core::config::{self, Validate};
use vp_core::folder_lock::FolderLock;
use vp_core::suggest::did_you_mean;
use vp_data::{INSIDE, OnProblem, Prompt, Record, open_dataset, read_prompts};
use vp_models::vae::Splitting;
use vp_rewards::RewardConfig;

use self::candidates::{Candidates, SamplingSection};
use crate::args::AnnotateArgs;
use crate::failure::Failure;
use crate::image_copies::copy_images;
use crate::progress::Progress;
use crate::terminal::{say, warn, warn_of_some};
use crate::{device, embedded, ranks, signals};

/// How many set-aside questions are shown.
const SHOWN: usize = 5;

/// A whole `annotate` configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnnotateConfig {
    /// `[annotator.<name>]`.
    annotator: AnnotatorConfig,
    /// `[questions]`.
    #[serde(default)]
    questions: RunOptions,
    /// `[sampling]`: images are drawn first.
    sampling: Option<SamplingSection>,
    /// `[reward.<name>]`: the annotator `reward` turns its scores into ratings.
    reward: Option<RewardConfig>,
}

impl Validate for AnnotateConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        self.annotator.findings(findings);
        let mut of_questions = Vec::new();
        self.questions.findings(&mut of_questions);
        findings.extend(of_questions.into_iter().map(|finding| format!("questions: {finding}")));
        self.sampling.iter().for_each(|section| section.findings(findings));
        self.reward.iter().for_each(|section| section.findings(findings));
        match (&self.annotator, &self.reward) {
            (AnnotatorConfig::Reward(_), None) => {
                findings.push("[annotator.reward] needs a [reward.<name>], whose scores it cuts into bands".into())
            }
            (AnnotatorConfig::Reward(_), _) | (_, None) => {}
            (other, Some(_)) => findings.push(format!("[reward.<name>] is not used by [annotator.{}]; remove it", other.name())),
        }
    }
}

/// The top-level entry point for `annotate`.
pub fn run(args: AnnotateArgs) -> Result<(), Failure> {
    let (device, ranks) = (device::parse(&args.device)?, ranks::all());
    if args.prompts.is_none() && Splitting::from(args.decoding) != Splitting::default() {
        return Err(anyhow::anyhow!("--vae-tiling and --vae-slicing are for the images that --prompts draws; leave them out").into());
    }
    let config = read_config(&args)?;
    let stop = signals::flag()?;
    let annotator = config.annotator.build(build_context(&config, &device)?).map_err(anyhow::Error::from)?;
    let annotation = Annotation { args: &args, config: &config, annotator: &*annotator, device: &device, stop: &stop };
    // The other ranks help to draw, and that is all that they do.
    if !ranks.is_first() && (args.dry_run || args.prompts.is_none()) {
        return Ok(());
    }
    // A dry run writes nothing there.
    let _lock = if args.dry_run || !ranks.is_first() { None } else { Some(FolderLock::take(&args.output, "")?) };
    if !args.dry_run && args.prompts.is_some() {
        // Nobody draws before the folder is locked.
        ranks.gather(&[])?;
    }
    let (items, root) = annotation.items()?;
    if !ranks.is_first() {
        return Ok(());
    }
    if items.is_empty() {
        return Err(anyhow::anyhow!("there is nothing to annotate: no prompt has an image").into());
    }
    let job = Job { items: &items, images_root: &root, output: &args.output };
    if args.dry_run {
        let found = dry_run(job, &*annotator, &config.questions);
        candidates::remove_blanks(&root);
        say_what_it_would_cost(&found.map_err(anyhow::Error::from)?);
        return Ok(());
    }
    let summary = annotate(job, &*annotator, &config.questions, &news(), &stop).map_err(Failure::run)?;
    conclude(&args.output.join("records.jsonl"), &summary)
}

fn read_config(args: &AnnotateArgs) -> anyhow::Result<AnnotateConfig> {
    let config: AnnotateConfig = match (&args.config, &args.annotator) {
        (Some(path), None) => config::read(path, &args.overrides)?,
        (Some(_), Some(_)) => bail!("--annotator and --config: the config has its own [annotator.<name>]; use --set for its keys"),
        (None, None) => bail!("expected --annotator NAME or --config FILE"),
        (None, Some(name)) => {
            let known = || AnnotatorConfig::ENTRIES.iter().map(|entry| entry.name);
            if !known().any(|known| known == name) {
                let list = known().collect::<Vec<_>>().join(", ");
                bail!("--annotator {name}: no such annotator{} (known: {list})", did_you_mean(name, known()));
            }
            config::parse(&format!("[annotator.{name}]\n"), "--annotator", &args.overrides)?
        }
    };
    let questions = RunOptions { retry_set_aside: config.questions.retry_set_aside || args.retry_set_aside, ..config.questions };
    Ok(AnnotateConfig { questions, ..config })
}

/// What building the annotator takes besides its section.
fn build_context(config: &AnnotateConfig, device: &Device) -> anyhow::Result<BuildContext> {
    let Some(reward) = &config.reward else { return Ok(BuildContext::default()) };
    let reward = embedded::resolve_reward(reward).and_then(|reward| Ok(reward.build(device)?)).context("[reward]")?;
    let device = device.clone();
    let score = move |images: &[vp_data::RgbImage], prompt: &str| {
        let prompts = vec![prompt.to_string(); images.len()];
        reward.score_rgb(images, &prompts, &device).map(|scored| scored.scores).map_err(|error| error.to_string())
    };
    Ok(BuildContext { score: Some(Box::new(score)), ..BuildContext::default() })
}

/// Everything checked, nothing asked yet.
struct Annotation<'a> {
    args: &'a AnnotateArgs,
    config: &'a AnnotateConfig,
    annotator: &'a dyn Annotator,
    device: &'a Device,
    /// Once it is true, no more questions are asked.
    stop: &'a AtomicBool,
}

impl Annotation<'_> {
    /// What is to be annotated, and the folder that its paths start from.
    fn items(&self) -> Result<(Vec<Record>, PathBuf), Failure> {
        let args = self.args;
        match (&args.records, &args.prompts) {
            (Some(path), None) => Ok(records(path, args)?),
            (None, Some(path)) => {
                let prompts = embedded::prompts(path)?;
                let prompts = if args.polish { self.polished(prompts)? } else { prompts };
                let section = self.config.sampling.clone().unwrap_or_default();
                if args.dry_run {
                    let images = prompts.len() * section.images_per_prompt;
                    say(format_args!("would draw {images} images of {} prompts first", prompts.len()));
                    return Ok(candidates::blank(&prompts, &section)?);
                }
                let Self { device, stop, .. } = *self;
                let splitting = args.decoding.into();
                let items = Candidates { prompts: &prompts, section: &section, splitting, output: &args.output, device, stop }.draw()?;
                Ok((items, args.output.clone()))
            }
            _ => {
                let expected = "expected --records FILE for images that exist, or --prompts FILE to draw images first";
                Err(anyhow::anyhow!(expected).into())
            }
        }
    }

    /// The prompts without anything biased, inconsistent or unsafe.
    fn polished(&self, prompts: Vec<Prompt>) -> Result<Vec<Prompt>, Failure> {
        let args = self.args;
        if args.dry_run {
            say(format_args!("would polish {} prompts first", prompts.len()));
            return Ok(prompts);
        }
        let folder = args.output.join("prompts");
        let (path, ranks) = (folder.join("prompts.jsonl"), ranks::all());
        if ranks.is_first() {
            create(&folder)?;
            let questions = &self.config.questions;
            let summary = polish(&prompts, self.annotator, questions, &folder, &news(), self.stop).map_err(Failure::run)?;
            conclude(&path, &summary)?;
        }
        ranks.gather(&[]).map_err(Failure::run)?;
        Ok(read_prompts(&path).map_err(anyhow::Error::from)?)
    }
}

/// Records, and the folder that their paths start from. That is the output folder, into which the images are linked or copied, so that it is
/// complete in itself. A dry run copies nothing.
fn records(path: &Path, args: &AnnotateArgs) -> anyhow::Result<(Vec<Record>, PathBuf)> {
    let dataset = open_dataset(path).with_context(|| format!("--records {}", path.display()))?;
    let mut records = dataset.read(OnProblem::Refuse)?.records;
    // The parent of a bare file name is the empty path, which the system cannot open.
    let folder = if path.is_dir() { path } else { path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new(".")) };
    let is_beside = std::path::absolute(folder)? == std::path::absolute(&args.output)?;
    let in_archive = || records.iter().flat_map(|record| &record.completions).any(|completion| completion.image_path.contains(INSIDE));
    if (args.dry_run || is_beside) && !in_archive() {
        return Ok((records, folder.to_path_buf()));
    }
    if args.dry_run {
        bail!(
            "{}: images in archives have to be unpacked into --output, and --dry-run does not do that; use dataset convert",
            path.display()
        );
    }
    copy_images(&dataset, &mut records, &args.output)?;
    Ok((records, args.output.clone()))
}

fn create(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Tells of notices, and of how many questions are settled.
fn news() -> impl Fn(Event<'_>) + Sync {
    let progress: OnceLock<Progress> = OnceLock::new();
    move |event| match event {
        Event::Notice(line) => warn(format_args!("{line}")),
        Event::Settled { done, of, usd } => {
            let spent = if usd > 0.0 { format!("{usd:.4} USD") } else { String::new() };
            progress.get_or_init(|| Progress::of("questions", of)).reach(done, &spent);
        }
    }
}

fn say_what_it_would_cost(dry: &vp_annotation::DryRun) {
    let vp_annotation::DryRun { questions, known, unreadable, requests, usage } = dry;
    let (input, output, usd) = (usage.input_tokens, usage.output_tokens, usage.usd);
    say(format_args!("{questions} questions, {known} of them settled already; {unreadable} have an image that cannot be read"));
    say(format_args!(
        "would send about {requests} requests, {input} tokens in and {output} out, for {usd:.4} USD; nothing was sent (--dry-run)"
    ));
}

/// Prints how it went; a failure if questions are still open.
fn conclude(written: &Path, summary: &Summary) -> Result<(), Failure> {
    let Summary { questions, asked, known, cached, repaired, requests, set_aside, unreached, open, usage, stopped, .. } = summary;
    say(format_args!(
        "{questions} questions: {asked} asked ({repaired} put right), {known} known, {cached} from the cache, {requests} requests"
    ));
    if usage.input_tokens + usage.output_tokens > 0 {
        say(format_args!("{} tokens in, {} out, {:.4} USD", usage.input_tokens, usage.output_tokens, usage.usd));
    }
    if let Some(usd) = summary.usd_left {
        say(format_args!("{usd:.4} USD of the budget is left"));
    }
    let show = |heading: &str, of: &[SetAside]| {
        let line = |SetAside { id, task, reason, .. }: &SetAside| format!("{heading}: {} {id}: {reason}", task.name());
        warn_of_some(of.iter().map(line), SHOWN, &format!("more {heading}"));
    };
    show("set aside", set_aside);
    show("not reached", unreached);
    say(format_args!("{}", written.display()));
    match stopped {
        Some(Stopped::BudgetSpent(limit)) => {
            Err(Failure::run(anyhow::anyhow!("{open} questions are open: {limit}; raise it and run the same command again")))
        }
        Some(Stopped::Told) => {
            Err(Failure::Stopped(signals::received(), anyhow::anyhow!("{open} questions are open; run the same command again")))
        }
        None if *open > 0 => Err(Failure::run(anyhow::anyhow!("{open} questions are open; run the same command again"))),
        None => Ok(()),
    }
}
