//! The arguments of `dataset`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use vp_data::{Aggregation, Aspect};
use vp_shapes::Split;

use crate::shard::Shard;

/// `dataset`.
#[derive(Debug, ClapArgs)]
pub struct DatasetArgs {
    /// What to do
    #[command(subcommand)]
    pub kind: DatasetKind,
    /// Print nothing on standard error but warnings and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What `dataset` does.
#[derive(Debug, Subcommand)]
pub enum DatasetKind {
    /// Draw coloured shapes with captions that describe them
    Shapes(ShapesArgs),
    /// Read every record of a preference set and decode every image
    Validate(ValidateArgs),
    /// Count what a preference set holds: prompts, images, usable pairs, dropped ties, ratings
    Stats(StatsArgs),
    /// Convert a preference set to records, to ImageReward's JSON, or to chosen and rejected pairs
    Convert(ConvertArgs),
    /// Hold prompts out, keeping near-duplicates on one side
    Split(SplitArgs),
    /// Print how far annotators agree, with each other and with themselves
    Agreement(AgreementArgs),
}

/// `dataset validate`.
#[derive(Debug, ClapArgs)]
pub struct ValidateArgs {
    /// Records, or ImageReward, ImageRewardDB, HPD v2, Pick-a-Pic, an image folder: a file or a folder
    pub path: PathBuf,
}

/// `dataset stats`.
#[derive(Debug, ClapArgs)]
pub struct StatsArgs {
    /// Records, or ImageReward, ImageRewardDB, HPD v2, Pick-a-Pic, an image folder: a file or a folder
    pub path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `dataset convert`.
#[derive(Debug, ClapArgs)]
pub struct ConvertArgs {
    /// Records, or ImageReward, ImageRewardDB, HPD v2, Pick-a-Pic, an image folder: a file or a folder
    pub path: PathBuf,
    /// The format to write
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "records")]
    pub to: ConvertTo,
    /// The folder for the converted set and copies of the images
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Where the images are [default: beside the set]
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Do not copy images; their paths stay as they are
    #[arg(long)]
    pub without_images: bool,
    /// Leave out records and images that cannot be used instead of refusing the set
    #[arg(long)]
    pub skip_problems: bool,
    /// The weight of an aspect in the overall order, e.g. --weight harmlessness=0 (repeatable) [default: 1 each]
    #[arg(long = "weight", value_name = "ASPECT=X")]
    pub weights: Vec<AspectWeight>,
    /// By how much two weighted sums of ratings must differ for a strict order
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub margin: f64,
}

impl ConvertArgs {
    /// How ratings become an order.
    pub fn aggregation(&self) -> Aggregation {
        let mut aggregation = Aggregation { margin: self.margin, ..Aggregation::default() };
        for AspectWeight { aspect, weight } in &self.weights {
            let at = Aspect::ALL.iter().position(|other| other == aspect).expect("all aspects are in the list");
            aggregation.weights[at] = *weight;
        }
        aggregation
    }
}

/// The formats that `convert` writes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ConvertTo {
    /// One JSON object per prompt, as `annotate` writes them
    Records,
    /// `{id, prompt, generations, ranking}`
    Imagereward,
    /// One `{prompt, chosen, rejected}` per line, as `train --algo dpo` and `kto` read them, with scores where ratings order the images
    Pairs,
}

/// The weight of an aspect.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AspectWeight {
    pub aspect: Aspect,
    pub weight: f64,
}

impl std::str::FromStr for AspectWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weight) = text.split_once('=').ok_or("expected ASPECT=X, as in harmlessness=0")?;
        let names = || Aspect::ALL.iter().map(|aspect| aspect.name()).collect::<Vec<_>>().join(", ");
        let aspect = Aspect::ALL.into_iter().find(|aspect| aspect.name() == name);
        let aspect = aspect.ok_or_else(|| format!("{name} is not an aspect (known: {})", names()))?;
        match weight.parse::<f64>() {
            Ok(weight) if weight >= 0.0 && weight.is_finite() => Ok(Self { aspect, weight }),
            _ => Err(format!("{weight} is not a weight; expected a number of at least 0")),
        }
    }
}

/// `dataset split`.
#[derive(Debug, ClapArgs)]
pub struct SplitArgs {
    /// Records; NAME.train.jsonl and NAME.heldout.jsonl are written beside them
    pub path: PathBuf,
    /// The share of records to hold out
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    pub fraction: f64,
    /// Decides which prompts are held out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// `dataset agreement`.
#[derive(Debug, ClapArgs)]
pub struct AgreementArgs {
    /// Records by several annotators, with repeats or comparisons in both orders; or a published set with people's ranks
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `dataset shapes`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer dataset shapes --out data/shapes --n 20000\n  visionprefer dataset shapes --out data/test --n 400 --split test --shard 1/4\n  visionprefer dataset shapes --out data/candidates --n 4000 --per-caption 6\n\nImage i depends on the seed, the split and i alone. To continue an interrupted folder, give the same command again; the parts drawn by several machines make up the whole."
)]
pub struct ShapesArgs {
    /// The folder for the images and their metadata.jsonl
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,
    /// The number of captions
    #[arg(short, long, value_name = "N")]
    pub n: u64,
    /// The seed of every scene
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// The part of the world that captions come from
    #[arg(long, value_enum, value_name = "NAME", default_value = "train")]
    pub split: SplitArg,
    /// Images per caption. With more than one there is something to rank: the first is as the caption says, others show other scenes or are
    /// noised, blurred or partly covered; records.jsonl says which
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub per_caption: u64,
    /// Height and width in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 32)]
    pub side: u32,
    /// Draw only part i of k; the folder is complete when all parts are drawn
    #[arg(long, value_name = "I/K", default_value = "1/1")]
    pub shard: Shard,
}

/// A part of the world of shapes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SplitArg {
    /// Clean images with true captions, without the listed combinations: for an autoencoder
    Train,
    /// To train a base model as on the web: every combination, a share of wrong captions and of spoilt images
    Pretraining,
    /// To learn from feedback and to tune: captions without the listed combinations
    Feedback,
    /// Says nothing that feedback says, half of it with a listed combination; to choose settings with
    Validation,
    /// Says nothing that the other two say; for reported results
    Test,
}

impl From<SplitArg> for Split {
    fn from(split: SplitArg) -> Self {
        match split {
            SplitArg::Train => Self::Train,
            SplitArg::Pretraining => Self::Pretraining,
            SplitArg::Feedback => Self::Feedback,
            SplitArg::Validation => Self::Validation,
            SplitArg::Test => Self::Test,
        }
    }
}
