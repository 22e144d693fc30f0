//! The arguments of the command line. Their doc comments are the help texts.

mod dataset;
mod diagnosis;
mod export;
mod pages;
mod shell;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use vp_models::pipeline::ModelOptions;
use vp_models::vae::{Splitting, Tiling};
use vp_schedulers::PredictionType;
use vp_trainers::sections::Dtype;

pub use self::dataset::*;
pub use self::diagnosis::*;
pub use self::export::*;
pub use self::pages::*;
pub use self::shell::*;
use crate::shard::Shard;
use crate::{embedded, serve};

/// Reward-driven fine-tuning of text-to-image diffusion models.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 120)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One file per command in `commands/`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fine-tune a diffusion model with a reward.
    Train(TrainArgs),
    /// Print what memory a run will take, from configs alone, and what would take less.
    Plan(PlanArgs),
    /// Rate or compare images of prompts, by a multimodal language model, the judge of the shapes world, a reward, or earlier answers.
    Annotate(AnnotateArgs),
    /// Train a reward model on ranked images.
    TrainReward(TrainRewardArgs),
    /// Draw images from prompts.
    Sample(SampleArgs),
    /// Score images with rewards.
    Score(ScoreArgs),
    /// Compare models on held-out prompts, and write a report.
    Evaluate(EvaluateArgs),
    /// Write the report of a run again, or of one that was killed.
    Report(ReportArgs),
    /// Watch runs in a browser, live; look through evaluations and folders of images.
    Serve(ServeArgs),
    /// Let people compare or rate images in a browser; their answers are records like any annotator's.
    Vote(VoteArgs),
    /// Draw images to train on; inspect, convert and split preference sets.
    Dataset(DatasetArgs),
    /// Merge LoRAs into a model folder, write a model folder in half precision, or convert a LoRA to another format.
    Export(ExportArgs),
    /// List what can be chosen by name: rewards, annotators, schedulers, algorithms, devices.
    List(ListArgs),
    /// Write a commented config to start from.
    Init(InitArgs),
    /// Print what this program is and sees, or check that a device computes rightly.
    Doctor(DoctorArgs),
    /// Print the completions of a shell.
    Completions(CompletionsArgs),
    /// Write the manual pages, or print the program's own.
    Man(ManArgs),
    /// Pack what an issue needs into one file: what `doctor` prints and the texts of a run, without secrets.
    DebugReport(DebugReportArgs),
    /// Write the pages of docs/reference.
    #[command(hide = true)]
    Docs(DocsArgs),
}

impl Command {
    /// Whether `--quiet` was given.
    pub fn is_quiet(&self) -> bool {
        match self {
            Self::Train(args) => args.run.quiet,
            Self::TrainReward(args) => args.run.quiet,
            Self::Annotate(args) => args.quiet,
            Self::Sample(args) => args.quiet,
            Self::Score(args) => args.quiet,
            Self::Evaluate(args) => args.quiet,
            Self::Dataset(args) => args.quiet,
            Self::Export(args) => args.quiet,
            Self::Report(_) | Self::Plan(_) | Self::List(_) | Self::Init(_) | Self::Serve(_) | Self::Vote(_) => false,
            Self::Doctor(_) | Self::DebugReport(_) | Self::Completions(_) | Self::Man(_) | Self::Docs(_) => false,
        }
    }
}

/// `train`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer train --algo refl\n  visionprefer train --config my.toml --set optimizer.learning_rate=1e-5 -o runs/mine"
)]
pub struct TrainArgs {
    /// The algorithm; without --config, its small offline config is used
    #[arg(long, value_name = "NAME", required_unless_present_any = ["config", "resume"])]
    pub algo: Option<String>,
    /// Arguments that every run takes.
    #[command(flatten)]
    pub run: RunArgs,
}

/// `plan`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer plan --algo refl --preset sd15\n  visionprefer plan --config my.toml --set algo.refl.batch_size=8 --memory 24GiB --device vulkan\n\nNo weight is read and nothing is downloaded. Of a model that is not on this machine, the sizes of the published one are taken that its name\ntells (Stable Diffusion 1.5, 2.1 or XL), and said to be."
)]
pub struct PlanArgs {
    /// The algorithm; without --config, its small offline config is used
    #[arg(long, value_name = "NAME", required_unless_present = "config")]
    pub algo: Option<String>,
    /// Another config of --algo that ships, such as sd15 (`list algos`)
    #[arg(long, value_name = "NAME", requires = "algo", conflicts_with = "config")]
    pub preset: Option<String>,
    /// A TOML config
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a value of the config, e.g. --set model.size=[768,768] (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// cpu, wgpu, vulkan[:n], metal or cuda[:n]; it need not be there
    #[arg(long, value_name = "NAME", env = "VP_DEVICE", hide_env_values = true, default_value = "cpu")]
    pub device: String,
    /// What the run may take, e.g. 24GiB [default: this machine's memory]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Predict the speed on so many devices, one rank each, e.g. --ranks 8,64,512
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub ranks: Vec<u64>,
    /// What a rank computes, in TFLOP/s; 400 is 40 % of an H200 in bf16
    #[arg(long, value_name = "X", default_value = "400", requires = "ranks", value_parser = positive)]
    pub tflops: f64,
    /// What connects two ranks, in Gbit/s
    #[arg(long, value_name = "X", default_value = "100", requires = "ranks", value_parser = positive)]
    pub bandwidth: f64,
    /// How long a message between two ranks takes at least, in microseconds
    #[arg(long, value_name = "X", default_value = "10", requires = "ranks", value_parser = positive)]
    pub latency: f64,
    /// Print one JSON object instead of text; sizes are in bytes, times in seconds
    #[arg(long)]
    pub json: bool,
}

/// A number above zero.
fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0).ok_or_else(|| "expected a number above 0".into())
}

/// Arguments that every run takes.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// A TOML config [default: a small offline one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a value of the config, e.g. --set run.seed=7 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// The run's folder [default: runs/<algo>-<date>]
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Continue the run in this folder exactly where it stopped; `auto` continues the run in --output, or begins it
    #[arg(long, value_name = "DIR|auto")]
    pub resume: Option<PathBuf>,
    /// Check everything, load the weights, print the plan, and train nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Train twice, once stopped half-way and resumed, and check that both runs write the same bytes
    #[arg(long, conflicts_with_all = ["resume", "dry_run", "profile"])]
    pub prove_resume: bool,
    /// cpu, wgpu, vulkan[:n], metal or cuda[:n]
    #[arg(long, value_name = "NAME", env = "VP_DEVICE", hide_env_values = true, default_value = "cpu")]
    pub device: String,
    /// Train on a GPU without checking first that it computes rightly (`doctor --check`)
    #[arg(long)]
    pub unchecked_device: bool,
    /// Serve pages beside the run on which it can be watched, saved and stopped, as `serve` does; they end with the run
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = serve::ADDRESS, conflicts_with_all = ["dry_run", "prove_resume"])]
    pub serve: Option<SocketAddr>,
    /// At the end, print where the time went: seconds, share and calls of each stage
    #[arg(long)]
    pub profile: bool,
    /// Print only warnings and, at the end, where the result is
    #[arg(short, long)]
    pub quiet: bool,
}

/// `annotate`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer annotate --annotator judge --records data/candidates/records.jsonl -o annotations\n  visionprefer annotate --config configs/annotate/openai.toml --prompts prompts.txt -o annotations --dry-run\n\nTo continue a run that was stopped, give the same command again; nothing that was answered is asked twice."
)]
pub struct AnnotateArgs {
    /// openai, judge, reward or replay, with its default settings; --set changes them
    #[arg(short, long, value_name = "NAME")]
    pub annotator: Option<String>,
    /// A TOML config with [annotator.<name>] and, if needed, [questions] and [sampling]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a value of the config, e.g. --set questions.concurrency=8 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Existing images: records, or any published set that `dataset` reads
    #[arg(long, value_name = "PATH", conflicts_with = "prompts")]
    pub records: Option<PathBuf>,
    /// Prompts (.txt, .json, .jsonl, .tsv or .parquet); images of them are drawn first, as [sampling] says
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Polish prompts before images are drawn: a language model removes anything biased, inconsistent or unsafe
    #[arg(long, requires = "prompts")]
    pub polish: bool,
    /// The folder for records.jsonl, the journal and drawn images
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Ask the questions again that were set aside
    #[arg(long)]
    pub retry_set_aside: bool,
    /// Print what it would cost, and ask nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How the images of --prompts are decoded.
    #[command(flatten)]
    pub decoding: VaeArgs,
    /// cpu, wgpu, vulkan[:n], metal or cuda[:n]; images are drawn and rewards computed there
    #[arg(long, value_name = "NAME", env = "VP_DEVICE", hide_env_values = true, default_value = "cpu")]
    pub device: String,
    /// Print only warnings and the result
    #[arg(short, long)]
    pub quiet: bool,
}

/// `train-reward`: `train` for reward models.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer train-reward --records annotations/records.jsonl\n  visionprefer train-reward --config my.toml --set rankings.weights.harmlessness=0 -o runs/mine"
)]
pub struct TrainRewardArgs {
    /// Ranked images to learn from: records as `annotate` writes them, or a published set that `dataset` reads (repeatable) [default: the
    /// config's rankings.files]
    #[arg(long, value_name = "PATH")]
    pub records: Vec<PathBuf>,
    /// Arguments that every run takes.
    #[command(flatten)]
    pub run: RunArgs,
}

impl From<TrainRewardArgs> for TrainArgs {
    fn from(TrainRewardArgs { records, mut run }: TrainRewardArgs) -> Self {
        if !records.is_empty() {
            let quoted: Vec<String> =
                records.iter().map(|path| toml::Value::from(path.to_string_lossy().into_owned()).to_string()).collect();
            // --set wins over --records.
            run.overrides.insert(0, format!("rankings.files=[{}]", quoted.join(", ")));
        }
        // A run that continues has its own config.
        let goes_on = run.resume.as_ref().is_some_and(|resume| resume.as_os_str() != "auto");
        Self { algo: (!goes_on).then(|| "reward_model".into()), run }
    }
}

/// `sample`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer sample --model ./sd15 -p \"a red fox in the snow\" -n blurry --steps 25 -g 7.5 -s 42 -o out\n  visionprefer sample --model ./sd15 --prompts prompts.txt --num-images 4 --scheduler ddim"
)]
pub struct SampleArgs {
    /// A diffusers folder, a single-file checkpoint, a hub id (ORG/NAME[@REVISION]), or the model inside this program
    #[arg(long, value_name = "MODEL", default_value = embedded::SHAPES)]
    pub model: PathBuf,
    /// Options for the model's files.
    #[command(flatten)]
    pub files: ModelArgs,
    /// A LoRA file or the folder of an adapter, added with this weight [default: 1] (repeatable)
    #[arg(long = "lora", value_name = "FILE[:WEIGHT]")]
    pub loras: Vec<LoraArg>,
    /// A prompt (repeatable)
    #[arg(short, long = "prompt", value_name = "TEXT", required_unless_present = "prompts_file", conflicts_with = "prompts_file")]
    pub prompt: Vec<String>,
    /// A file of prompts: .txt (one per line), .json, .jsonl, .tsv or .parquet
    #[arg(long = "prompts", value_name = "FILE", id = "prompts_file")]
    pub prompts: Option<PathBuf>,
    /// What to steer away from
    #[arg(short, long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// The sampler [default: the model folder's own]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
    /// Denoising steps
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: usize,
    /// Noise of the DDIM sampler, 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub eta: f64,
    /// Strength of classifier-free guidance; 1 turns it off [default: 7.5; 3 for embedded:shapes]
    #[arg(short, long, value_name = "X", allow_hyphen_values = true)]
    pub guidance_scale: Option<f64>,
    /// Image i is drawn from seed + i, whatever the batch size
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Pixels [default: the model's own]
    #[arg(short = 'W', long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Pixels [default: the model's own]
    #[arg(short = 'H', long, value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Images per prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub num_images: usize,
    /// Images drawn at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch_size: usize,
    /// The folder for the PNGs
    #[arg(short, long, value_name = "DIR", default_value = "samples")]
    pub output: PathBuf,
    /// Start from these latents: a safetensors file with a tensor `latents` [images, c, h, w] of unit noise
    #[arg(long, value_name = "FILE")]
    pub latents: Option<PathBuf>,
    /// Write the unit noise that the images started from, for other software
    #[arg(long, value_name = "FILE")]
    pub save_latents: Option<PathBuf>,
    /// Number format of the UNet and the text encoders: auto, f32, bf16 or f16
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = word::<Dtype>)]
    pub dtype: Dtype,
    /// Number format of the autoencoder
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = word::<Dtype>)]
    pub vae_dtype: Dtype,
    /// How images are decoded.
    #[command(flatten)]
    pub decoding: VaeArgs,
    /// At the end, print where the time went: seconds, share and calls of each stage
    #[arg(long)]
    pub profile: bool,
    /// cpu, wgpu, vulkan[:n], metal or cuda[:n]
    #[arg(long, value_name = "NAME", env = "VP_DEVICE", hide_env_values = true, default_value = "cpu")]
    pub device: String,
    /// Print nothing on standard error but warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// How the autoencoder of a command that draws images is run.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub struct VaeArgs {
    /// Decode large images in overlapping tiles, of the autoencoder's own size or of this many pixels
    #[arg(long = "vae-tiling", value_name = "PIXELS", num_args = 0..=1, default_value = "false", default_missing_value = "true", hide_default_value = true)]
    pub tiling: Tiling,
    /// Decode one image of a batch at a time
    #[arg(long = "vae-slicing")]
    pub slicing: bool,
}

impl From<VaeArgs> for Splitting {
    fn from(VaeArgs { tiling, slicing }: VaeArgs) -> Self {
        Self { tiling, slicing }
    }
}

/// Options for a model's files beyond its path.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct ModelArgs {
    /// Another autoencoder: a file, or a folder with its config
    #[arg(long, value_name = "FILE|DIR")]
    pub vae: Option<PathBuf>,
    /// For a single-file checkpoint: a diffusers folder whose configs and tokenizers fit it [default: what its tensors say]
    #[arg(long, value_name = "DIR")]
    pub model_config: Option<PathBuf>,
    /// Take the averaged (EMA) weights of the UNet
    #[arg(long)]
    pub ema: bool,
    /// What the UNet predicts, epsilon or v_prediction, where the files do not say or say it wrongly
    #[arg(long, value_name = "NAME", value_parser = word::<PredictionType>)]
    pub prediction_type: Option<PredictionType>,
}

impl From<&ModelArgs> for ModelOptions {
    fn from(args: &ModelArgs) -> Self {
        Self { vae: args.vae.clone(), config: args.model_config.clone(), ema: args.ema, prediction_type: args.prediction_type }
    }
}

/// A word of a config as an argument.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error: serde_json::Error| error.to_string())
}

/// `score`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer score --reward ./ImageReward -p \"a red fox in the snow\" out/*.png\n  visionprefer score --reward ./ImageReward --reward brightness --manifest out/metadata.jsonl --json\n  visionprefer score --reward ./ImageReward --records data/imagereward/test.json"
)]
pub struct ScoreArgs {
    /// A reward: the file or folder of a published or trained one, told by what is in it, a config (.toml) with a [reward.<name>], or the name
    /// of one that needs no weights (`list rewards`); repeatable, the first one ranks
    #[arg(short, long = "reward", value_name = "DIR|FILE|NAME", required = true)]
    pub rewards: Vec<String>,
    /// The prompt of all the images
    #[arg(short, long, value_name = "TEXT", required_unless_present_any = ["manifest", "records"], conflicts_with_all = ["manifest", "records"])]
    pub prompt: Option<String>,
    /// PNG, JPEG, WebP or BMP files
    #[arg(value_name = "IMAGE", required_unless_present_any = ["manifest", "records"], conflicts_with_all = ["manifest", "records"])]
    pub images: Vec<PathBuf>,
    /// Images with their prompts: one JSON object per line with file_name (relative to this file) and text, caption or prompt
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Ranked or rated images, ours or a published set: prints how often each reward orders them the same way, by every protocol
    #[arg(long, value_name = "PATH", conflicts_with = "manifest")]
    pub records: Option<PathBuf>,
    /// Print one JSON object per line with file, prompt, score and reward, instead of a table
    #[arg(long)]
    pub json: bool,
    /// Images scored at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// cpu, wgpu, vulkan[:n], metal or cuda[:n]
    #[arg(long, value_name = "NAME", env = "VP_DEVICE", hide_env_values = true, default_value = "cpu")]
    pub device: String,
    /// Print nothing on standard error but warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// `report`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Writes report.html, report.md and report.json into the run's folder, as train does at its end.\n\nExample:\n  visionprefer report runs/refl-2026-01-31-120000"
)]
pub struct ReportArgs {
    /// The folder of a run
    #[arg(value_name = "RUN_DIR")]
    pub run: PathBuf,
}

/// `evaluate`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer evaluate --lora runs/refl-…/lora.safetensors --prompts heldout.txt -r judge -o evaluation\n  visionprefer evaluate --base ./sd15 --tuned ./mine --prompts PartiPrompts.tsv -r ./ImageReward -r ./PickScore -o evaluation\n  visionprefer evaluate --base-images a --tuned-images b -r ./ImageReward -o evaluation\n\nTo continue an evaluation that was stopped, give the same command again; to add what people say, with --votes."
)]
pub struct EvaluateArgs {
    /// The base model: a diffusers folder, a single-file checkpoint, a hub id, or the model that is part of this program
    #[arg(long, value_name = "MODEL", default_value = embedded::SHAPES)]
    pub base: PathBuf,
    /// Options for the base model's files.
    #[command(flatten)]
    pub files: ModelArgs,
    /// A tuned model (repeatable)
    #[arg(long, value_name = "DIR")]
    pub tuned: Vec<PathBuf>,
    /// A LoRA for the base model (repeatable; each makes a model of its own)
    #[arg(long = "lora", value_name = "FILE[:WEIGHT]")]
    pub loras: Vec<LoraArg>,
    /// Existing images of the base model, a folder with captions, instead of models
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tuned", "loras", "prompts_file"])]
    pub base_images: Option<PathBuf>,
    /// Images of a tuned model under the same names (repeatable)
    #[arg(long, value_name = "DIR", requires = "base_images")]
    pub tuned_images: Vec<PathBuf>,
    /// Held-out prompts: .txt, .json, .jsonl, .tsv or .parquet
    #[arg(long = "prompts", value_name = "FILE", id = "prompts_file")]
    pub prompts: Option<PathBuf>,
    /// Prompts that the model or a reward was trained on; held-out prompts that nearly equal one of them are listed (repeatable)
    #[arg(long, value_name = "FILE")]
    pub train_prompts: Vec<PathBuf>,
    /// Refuse held-out prompts that are near-duplicates of training prompts
    #[arg(long, requires = "train_prompts")]
    pub strict: bool,
    /// A reward, as for `score` (repeatable)
    #[arg(short, long = "reward", value_name = "DIR|FILE|NAME", required = true)]
    pub rewards: Vec<String>,
    /// A reward that the model was trained on, and which therefore rises; marked in the report (repeatable)
    #[arg(long = "trained-reward", value_name = "NAME")]
    pub trained_rewards: Vec<String>,
    /// What people say of these images: the folder or records.jsonl of `vote --evaluation` (repeatable); the report then shows whom they prefer, and
    /// which rewards agree with them
    #[arg(long, value_name = "PATH")]
    pub votes: Vec<PathBuf>,
    /// The folder for results, images and the report
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Images per prompt and model
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub seeds: usize,
    /// The first seed
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Denoising steps
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: usize,
    /// Strength of classifier-free guidance; 1 turns it off [default: 7.5; 3 for embedded:shapes]
    #[arg(short, long, value_name = "X", allow_hyphen_values = true)]
    pub guidance_scale: Option<f64>,
    /// Images drawn and scored at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// How images are decoded.
    #[command(flatten)]
    pub decoding: VaeArgs,
    /// Evaluate only part i of k of the prompts; the report is written when all parts are there
    #[arg(long, value_name = "I/K", default_value = "1/1")]
    pub shard: Shard,
    /// cpu, wgpu, vulkan[:n], metal or cuda[:n]
    #[arg(long, value_name = "NAME", env = "VP_DEVICE", hide_env_values = true, default_value = "cpu")]
    pub device: String,
    /// Print nothing on standard error but warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// A LoRA file and the weight it is added with.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraArg {
    pub path: PathBuf,
    pub weight: f64,
}

impl std::str::FromStr for LoraArg {
    type Err = String;

    /// The text after the last colon is the weight if it is a number; a path may contain colons.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, weight) = match text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?))) {
            Some((_, weight)) if !weight.is_finite() => return Err(format!("the weight is {weight}; expected a number")),
            Some((path, weight)) => (path, weight),
            None => (text, 1.0),
        };
        if path.is_empty() { Err("expected FILE or FILE:WEIGHT".into()) } else { Ok(Self { path: path.into(), weight }) }
    }
}

/// `list`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  visionprefer list\n  visionprefer list schedulers --json")]
pub struct ListArgs {
    /// What to list [default: everything]
    #[arg(value_enum, value_name = "WHAT")]
    pub kind: Option<Kind>,
    /// Print one JSON object per line, instead of tables
    #[arg(long)]
    pub json: bool,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Kind {
    Rewards,
    Annotators,
    Schedulers,
    Algos,
    #[value(alias = "lr_schedulers")]
    LrSchedulers,
    Regularizers,
    Devices,
}

/// `init`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  visionprefer init refl -o my.toml\n  visionprefer init refl --preset tiny")]
pub struct InitArgs {
    /// The algorithm (`list algos`)
    #[arg(value_name = "ALGO")]
    pub algo: String,
    /// sd15: the published recipe for Stable Diffusion 1.5; tiny, shapes: a small model, offline [default: the published recipe]
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// A new file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `docs`.
#[derive(Debug, ClapArgs)]
pub struct DocsArgs {
    /// The folder for the pages
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
