//! Ranked images for training a reward model: the split into training and held-out prompts, their order, and the pairs that the rankings
//! give.

use std::path::PathBuf;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_core::noise::{Noise, Purpose};
use vp_data::{
    Aggregation, Aspect, AspectWeights, Dataset, ImageSource, OnProblem, Problem, ReadRecords, Record, RgbImage, ShuffledOrder,
    UsableRecords, flip_horizontal, open_dataset,
};

use crate::Error;
use crate::data::images::{Variation, split};
use crate::run::Batch;
use crate::run::checkpoint::text_checksum;

/// `[rankings]`: annotated images to learn from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankingsSection {
    /// Files or folders with records as `annotate` writes them, or with any published data set that `dataset` reads; at least one.
    pub files: Vec<PathBuf>,
    /// Files or folders with the held-out records. Empty: a share of the prompts of `files` is held out.
    #[serde(default)]
    pub validation_files: Vec<PathBuf>,
    /// Share of the prompts that is held out for validation, at least 0 and below 1 (0.1). A hash of the prompt decides, so adding prompts
    /// moves none from one side to the other.
    #[serde(default = "one_in_ten")]
    pub validation_fraction: f64,
    /// Updates between two validations; 0 for one before training and one after it (0).
    #[serde(default)]
    pub validation_every: u64,
    /// Weights of the aspects in the sum of ratings that gives the order. VisionPrefer's sum has 1, 1, 1, 1; its ablations use one aspect
    /// alone, or all but one.
    #[serde(default)]
    pub weights: AspectWeights,
    /// Two weighted sums must differ by more than this for a strict order; at least 0 (0).
    #[serde(default)]
    pub margin: f64,
    /// Whether the model gets empty prompts, to measure what can be known from the images alone (false).
    #[serde(default)]
    pub ignore_prompts: bool,
    /// Whether all images of a prompt are mirrored half of the time (false). "left" and "right" then change places in the prompt.
    #[serde(default)]
    pub horizontal_flip: bool,
    /// What to do about records and images that cannot be used: `refuse` (the default) or `skip`.
    #[serde(default)]
    pub on_problem: OnProblem,
}

fn one_in_ten() -> f64 {
    0.1
}

impl RankingsSection {
    /// The rule by which ratings become an order.
    pub fn aggregation(&self) -> Aggregation {
        Aggregation { weights: self.weights.as_array(), margin: self.margin }
    }
}

impl Validate for RankingsSection {
    fn findings(&self, findings: &mut Vec<String>) {
        if self.files.is_empty() {
            findings.push("rankings.files is empty; expected at least one file of records".into());
        }
        let fraction = self.validation_fraction;
        if !(0.0..1.0).contains(&fraction) {
            findings.push(format!("rankings.validation_fraction is {fraction}; expected at least 0 and less than 1"));
        }
        if !(self.margin >= 0.0 && self.margin.is_finite()) {
            findings.push(format!("rankings.margin is {}; expected a number of at least 0", self.margin));
        }
        self.weights.findings_in("rankings.weights", findings);
    }
}

/// The images of one prompt, with their order and their ratings.
#[derive(Debug, Clone)]
pub struct RankedImages {
    /// The prompt that the images were drawn for.
    pub prompt: String,
    /// The sources of the images.
    pub images: Vec<ImageSource>,
    /// Whether the images are mirrored once they have been read.
    pub mirrored: bool,
    /// The overall order, by the weighted sum of the ratings.
    pub overall: Order,
    /// The overall order as ranks, one per image; 1 is the best, and ties share a rank.
    pub ranks: Vec<u32>,
    /// The order on each of [`Aspect::ALL`]; empty for an aspect that was not rated.
    pub aspects: [Order; 4],
    /// The ratings on each of [`Aspect::ALL`], one per image; empty for an aspect on which some image was not rated.
    pub ratings: [Vec<f64>; 4],
}

/// The known order of some images, as pairs of their indices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Order {
    /// Strict pairs, `(better, worse)`.
    pub pairs: Vec<(usize, usize)>,
    /// Pairs of which neither image is better.
    pub ties: Vec<(usize, usize)>,
}

impl Order {
    fn of(record: &Record, aggregation: &Aggregation) -> Self {
        let pairs = record.pairs(aggregation);
        let n = record.completions.len();
        let all = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
        let is_open = |(a, b): &(usize, usize)| !pairs.contains(&(*a, *b)) && !pairs.contains(&(*b, *a));
        let ties = if record.ties(aggregation) > 0 { all.filter(is_open).collect() } else { Vec::new() };
        Self { pairs, ties }
    }
}

/// The prompts of a `[rankings]` section.
#[derive(Debug)]
pub struct Rankings {
    /// The prompts to train on.
    pub training: Vec<RankedImages>,
    /// The held-out prompts, for validation.
    pub validation: Vec<RankedImages>,
    /// The records and images that were left out because they cannot be used.
    pub skipped: Vec<Problem>,
    ignore_prompts: bool,
    variation: Variation,
    order: ShuffledOrder,
}

impl Rankings {
    /// Reads the records, decodes their images once, and splits them by prompt. Records without a strict pair teach nothing and are left out.
    ///
    /// # Errors
    /// When a file cannot be used, an image is missing or broken and is to be refused, or nothing is left to train on.
    pub fn open(section: &RankingsSection, noise: Noise) -> Result<Self, Error> {
        let mut skipped = Vec::new();
        let all = ranked(&section.files, section, &mut skipped)?;
        let (training, validation) = match &section.validation_files[..] {
            [] => split(all, section.validation_fraction, |ranked| &ranked.prompt),
            files => (all, ranked(files, section, &mut skipped)?),
        };
        if training.is_empty() {
            let (files, held_out) = (&section.files, validation.len());
            return Err(Error::Config(format!(
                "{files:?}: no prompt with two images in a strict order is left to train on ({held_out} prompts are held out); add records, or \
                 lower rankings.margin or rankings.validation_fraction"
            )));
        }
        let order = ShuffledOrder::new(training.len(), noise, Purpose::DATA_ORDER);
        let variation = Variation { caption_dropout: 0.0, horizontal_flip: section.horizontal_flip, noise };
        Ok(Self { training, validation, skipped, ignore_prompts: section.ignore_prompts, variation, order })
    }

    /// The checksum of prompts, images, orders and ratings, on which the order of a run and the meaning of its validation depend.
    pub fn fingerprint(&self) -> String {
        let texts = self.training.iter().chain(&self.validation).flat_map(|ranked| {
            let images = ranked.images.iter().map(ImageSource::to_string);
            let orders = std::iter::once(&ranked.overall).chain(&ranked.aspects).map(|order| format!("{:?}", order.pairs));
            let ratings = ranked.ratings.iter().map(|ratings| format!("{ratings:?}"));
            std::iter::once(ranked.prompt.clone()).chain(images).chain(orders).chain(ratings).collect::<Vec<_>>()
        });
        let texts: Vec<String> = texts.collect();
        text_checksum(texts.iter().map(String::as_str))
    }

    /// The `count` prompts of a batch, in the shuffled order, some of them mirrored if the section says so.
    pub fn batch(&mut self, batch: Batch, count: usize) -> Vec<RankedImages> {
        let entries = self.order.entries(batch.index * count as u64, count);
        let drawn = entries.into_iter().map(|entry| self.training[entry].clone());
        drawn.zip(0..).map(|(ranked, sample)| if self.variation.mirrors(batch, sample) { ranked.mirrored() } else { ranked }).collect()
    }

    /// The prompt that the network gets for each image of `of`: its own, or the empty one.
    pub fn prompts(&self, of: &RankedImages) -> Vec<String> {
        let prompt = if self.ignore_prompts { String::new() } else { of.prompt.clone() };
        vec![prompt; of.images.len()]
    }
}

impl RankedImages {
    fn of(record: &Record, dataset: &Dataset, aggregation: &Aggregation) -> Result<Self, Error> {
        let images = record.completions.iter().map(|completion| dataset.image(&completion.image_path));
        let images: Vec<ImageSource> = images.collect::<Result<_, _>>()?;
        let rating = |aspect| record.completions.iter().map(move |completion| Some(completion.annotations.get(&aspect)?.rating));
        let ratings = Aspect::ALL.map(|aspect| rating(aspect).collect::<Option<Vec<f64>>>());
        let of = |aspect: Aspect| match ratings[aspect as usize] {
            Some(_) => Order::of(record, &Aggregation::only(aspect)),
            None => Order::default(),
        };
        Ok(Self {
            prompt: record.prompt.clone(),
            images,
            mirrored: false,
            overall: Order::of(record, aggregation),
            ranks: record.ranks(aggregation),
            aspects: Aspect::ALL.map(of),
            ratings: ratings.map(Option::unwrap_or_default),
        })
    }

    /// Reads the images, and mirrors them if they are to be mirrored.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn load(&self) -> Result<Vec<RgbImage>, Error> {
        let as_asked = |image: RgbImage| if self.mirrored { flip_horizontal(&image) } else { image };
        self.images.iter().map(|image| Ok(as_asked(image.load()?))).collect()
    }

    /// The same images, mirrored.
    fn mirrored(self) -> Self {
        Self { prompt: with_sides_exchanged(&self.prompt), mirrored: true, ..self }
    }
}

/// Exchanges "left" and "right" where they are whole words. Capitalised words are exchanged too, because text encoders ignore case.
fn with_sides_exchanged(prompt: &str) -> String {
    static SIDES: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b([Ll]eft|LEFT|[Rr]ight|RIGHT)\b").expect("it is well formed"));
    let other = |found: &Captures<'_>| match &found[0] {
        "left" => "right",
        "Left" => "Right",
        "LEFT" => "RIGHT",
        "right" => "left",
        "Right" => "Left",
        _ => "LEFT",
    };
    SIDES.replace_all(prompt, other).into_owned()
}

/// The records of some data sets, without those that have no strict pair. Each annotator's ratings are a record of their own. What cannot be
/// used is refused or goes to `skipped`, as the section says.
fn ranked(paths: &[PathBuf], section: &RankingsSection, skipped: &mut Vec<Problem>) -> Result<Vec<RankedImages>, Error> {
    let (aggregation, on_problem) = (&section.aggregation(), section.on_problem);
    let is_ranked = |record: &Record| !Order::of(record, aggregation).pairs.is_empty();
    let mut found = Vec::new();
    for path in paths {
        let dataset = open_dataset(path)?;
        let ReadRecords { mut records, skipped: bad, .. } = dataset.read(on_problem)?;
        records.retain(is_ranked);
        let usable = dataset.usable(records, on_problem).map_err(|error| {
            let way_out = "restore them, or leave them out with rankings.on_problem = \"skip\"";
            Error::Config(format!("{}: {error}\n  {way_out}", path.display()))
        })?;
        let UsableRecords { mut records, skipped: broken } = usable;
        skipped.extend(bad.into_iter().chain(broken));
        // Without its broken images a record may have nothing left to teach.
        records.retain(is_ranked);
        for record in &records {
            found.push(RankedImages::of(record, &dataset, aggregation)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vp_data::{Completion, Rating, write_png, write_records};

    #[test]
    fn sides_change_places_as_whole_words() {
        for (prompt, mirrored) in [
            ("a red circle left of a blue cross", "a red circle right of a blue cross"),
            ("Right of the cleft, bright: left", "Left of the cleft, bright: right"),
            ("LEFT-hand, upright", "RIGHT-hand, upright"),
            ("two green squares", "two green squares"),
        ] {
            assert_eq!((with_sides_exchanged(prompt).as_str(), with_sides_exchanged(mirrored).as_str()), (mirrored, prompt));
        }
    }

    #[test]
    fn images_and_prompts_are_mirrored_together_half_of_the_time_and_never_where_they_are_held_out() {
        let dir = tempfile::tempdir().unwrap();
        let completion = |number: u8| {
            let image = RgbImage::from_fn(4, 4, |x, _| [number, if x < 2 { 200 } else { 0 }, 0].into());
            write_png::<&str, &str>(dir.path().join(format!("{number}.png")), &image, &[]).unwrap();
            let rating = |_| Rating { rating: f64::from(number), rationale: String::new() };
            let annotations = Aspect::ALL.into_iter().map(|aspect| (aspect, rating(aspect))).collect();
            Completion { image_path: format!("{number}.png"), annotations, ..Completion::default() }
        };
        let record = Record::new("0", "a circle left of a cross", vec![completion(1), completion(2)]);
        write_records(dir.path().join("records.jsonl"), &[record]).unwrap();
        let section = |horizontal_flip| RankingsSection {
            files: vec![dir.path().into()],
            validation_files: vec![dir.path().into()],
            validation_fraction: 0.0,
            validation_every: 0,
            weights: AspectWeights::default(),
            margin: 0.0,
            ignore_prompts: false,
            horizontal_flip,
            on_problem: OnProblem::Refuse,
        };
        let is_mirrored = |ranked: &RankedImages| {
            let image = &ranked.load().unwrap()[0];
            let mirrored = image.get_pixel(0, 0)[1] == 0;
            assert_eq!(image.get_pixel(3, 0)[1] == 0, !mirrored);
            assert_eq!(ranked.prompt, if mirrored { "a circle right of a cross" } else { "a circle left of a cross" });
            mirrored
        };
        let count = |horizontal_flip| {
            let mut data = Rankings::open(&section(horizontal_flip), Noise::new(0)).unwrap();
            assert!(!is_mirrored(&data.validation[0]));
            (0..80).filter(|index| is_mirrored(&data.batch(Batch::first_of_update(*index), 1)[0])).count()
        };
        assert_eq!(count(false), 0);
        assert!((25..=55).contains(&count(true)), "{} of 80", count(true));
    }
}
