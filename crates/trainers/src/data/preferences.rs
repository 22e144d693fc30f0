//! Preference pairs for training: the split into training and held-out pairs, the order, and random variation.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_core::noise::{Noise, Purpose};
use vp_data::{OnProblem, PreferencePair, Preferences, Problem, RatingThresholds, RgbImage, ShuffledOrder, flip_horizontal, to_tensor};

use crate::Error;
use crate::data::images::{Variation, number, split};
use crate::run::Batch;
use crate::run::checkpoint::text_checksum;
use crate::sections::ImageKnobs;

/// `[preferences]`: pairs of images to train on, or images that were liked or disliked. The defaults for random variation are those of
/// DiffusionDPO and of Diffusion-KTO.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferencesSection {
    /// A file with one JSON object per line: `prompt`, and the paths of the `chosen` and the `rejected` image, relative to the file. For
    /// `[algo.kto]` also `prompt`, `image` and `label` or `rating`, or records as `annotate` writes them.
    pub file: PathBuf,
    /// For `[algo.kto]`: which ratings are likes and which dislikes. Absent: ratings are not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratings: Option<RatingThresholds>,
    /// Probability that a prompt is replaced by the empty one, so that the model can be used with classifier-free guidance; 0 to 1 (0.2).
    #[serde(default = "one_in_five")]
    pub caption_dropout: f64,
    /// Whether the images are mirrored half of the time, both of a pair together (true).
    #[serde(default = "yes")]
    pub horizontal_flip: bool,
    /// Share of the prompts whose pairs or images are held out for validation, at least 0 and below 1 (0.1). A hash of the prompt decides, so
    /// adding some moves none from one side to the other.
    #[serde(default = "one_in_ten")]
    pub validation_fraction: f64,
    /// Updates between two validations; 0 for one before training and one after it (0).
    #[serde(default)]
    pub validation_every: u64,
    /// What to do about pairs and images that cannot be used: `refuse` (the default) or `skip`.
    #[serde(default)]
    pub on_problem: OnProblem,
    /// Smallest width and height of a usable image, in pixels; at least 1 (16).
    #[serde(default = "sixteen")]
    pub min_size: u32,
}

fn one_in_five() -> f64 {
    0.2
}

fn yes() -> bool {
    true
}

fn one_in_ten() -> f64 {
    0.1
}

fn sixteen() -> u32 {
    16
}

impl Validate for PreferencesSection {
    fn findings(&self, findings: &mut Vec<String>) {
        let Self { caption_dropout, validation_fraction, min_size, .. } = *self;
        ImageKnobs { section: "preferences", caption_dropout, validation_fraction, min_size }.findings(findings);
        if let Some(ratings) = &self.ratings {
            ratings.findings_in("preferences.ratings", findings);
        }
    }
}

impl PreferencesSection {
    /// The random variation of an image each time it is used.
    pub(crate) fn variation(&self, noise: Noise) -> Variation {
        Variation { caption_dropout: self.caption_dropout, horizontal_flip: self.horizontal_flip, noise }
    }

    /// The error that nothing is left to train on; `units` are held out.
    pub(crate) fn all_held_out(&self, held_out: usize, units: &str) -> Error {
        let way_out = format!("add {units} of other prompts, or lower preferences.validation_fraction");
        Error::Config(format!("{}: all {held_out} {units} are held out; {way_out}", self.file.display()))
    }
}

/// The pairs of a `[preferences]` section.
#[derive(Debug)]
pub struct PreferencePairs {
    /// The pairs to train on.
    pub training: Vec<PreferencePair>,
    /// The held-out pairs, for validation. None of their prompts is trained on.
    pub validation: Vec<PreferencePair>,
    /// The pairs that were left out because they cannot be used.
    pub skipped: Vec<Problem>,
    /// Height and width in pixels, to which every image is cropped and resized.
    pub size: [usize; 2],
    variation: Variation,
    order: ShuffledOrder,
    device: Device,
}

/// A batch of pairs, read and resized.
#[derive(Debug)]
pub struct PairBatch {
    /// The images, `[2b, 3, h, w]` in [0, 1], the chosen ones first.
    pub images: Tensor<4>,
    /// One caption per image: the pairs' prompts, twice.
    pub captions: Vec<String>,
    /// How probably each chosen image is the better one, `b` values; empty if the list was read without.
    pub probabilities: Vec<f32>,
}

impl PreferencePairs {
    /// Reads the list and splits it by prompt. `probabilities` says whether each pair must say how probably its chosen image is the better
    /// one.
    ///
    /// # Errors
    /// When the list cannot be used, holds unusable pairs that are to be refused, or leaves nothing to train on.
    pub fn open(section: &PreferencesSection, probabilities: bool, size: [usize; 2], noise: Noise, device: &Device) -> Result<Self, Error> {
        let PreferencesSection { file, on_problem, min_size, .. } = section;
        let read = match probabilities {
            true => Preferences::read_with_probabilities(file, *on_problem, *min_size),
            false => Preferences::read(file, *on_problem, *min_size),
        };
        let Preferences { pairs, skipped } = read?;
        let (training, validation) = split(pairs, section.validation_fraction, |pair| &pair.prompt);
        if training.is_empty() {
            return Err(section.all_held_out(validation.len(), "pairs"));
        }
        let order = ShuffledOrder::new(training.len(), noise, Purpose::DATA_ORDER);
        Ok(Self { training, validation, skipped, size, variation: section.variation(noise), order, device: device.clone() })
    }

    /// The checksum of the prompts, the images' names and the probabilities, on which the course of a run and the meaning of its validation
    /// losses depend.
    pub fn fingerprint(&self) -> String {
        let pairs = || self.training.iter().chain(&self.validation);
        let probabilities: Vec<String> = pairs().filter_map(|pair| pair.probability).map(|probability| probability.to_string()).collect();
        text_checksum(pairs().flat_map(texts).chain(probabilities.iter().map(String::as_str)))
    }

    /// The pairs of a batch of `count` that are this rank's, in the shuffled order. Some are mirrored and some prompts dropped, as the section says.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn batch(&mut self, batch: Batch, count: usize) -> Result<PairBatch, Error> {
        let entries = self.order.entries(batch.index * count as u64, count);
        let rows = batch.rows(count);
        let pairs: Vec<&PreferencePair> = entries[rows.clone()].iter().map(|entry| &self.training[*entry]).collect();
        let samples = || rows.clone().map(|row| row as u64);
        let mirrored: Vec<bool> = samples().map(|sample| self.variation.mirrors(batch, sample)).collect();
        let prompts = pairs.iter().zip(samples()).map(|(pair, sample)| self.variation.caption(batch, sample, &pair.prompt)).collect();
        self.load(&pairs, &mirrored, prompts)
    }

    /// Reads held-out pairs without variation, and gives each a number that depends on its prompt and its images' names alone.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn held_out(&self, pairs: &[PreferencePair]) -> Result<(PairBatch, Vec<u64>), Error> {
        let prompts = pairs.iter().map(|pair| pair.prompt.clone()).collect();
        let numbers = pairs.iter().map(|pair| number(&text_checksum(texts(pair)))).collect();
        Ok((self.load(&pairs.iter().collect::<Vec<_>>(), &vec![false; pairs.len()], prompts)?, numbers))
    }

    fn load(&self, pairs: &[&PreferencePair], mirrored: &[bool], prompts: Vec<String>) -> Result<PairBatch, Error> {
        let [height, width] = self.size;
        let chosen = pairs.iter().map(|pair| &pair.chosen).zip(mirrored);
        let rejected = pairs.iter().map(|pair| &pair.rejected).zip(mirrored);
        let load = |(entry, mirrored): (&vp_data::ImageEntry, &bool)| -> Result<RgbImage, Error> {
            let image = entry.load((width as u32, height as u32))?;
            Ok(if *mirrored { flip_horizontal(&image) } else { image })
        };
        let images = chosen.chain(rejected).map(load).collect::<Result<Vec<_>, _>>()?;
        let probabilities = pairs.iter().filter_map(|pair| pair.probability).map(|probability| probability as f32).collect();
        Ok(PairBatch { images: to_tensor(&images, &self.device)?, captions: [prompts.clone(), prompts].concat(), probabilities })
    }
}

fn texts(pair: &PreferencePair) -> [&str; 3] {
    [&pair.prompt, &pair.chosen.file_name, &pair.rejected.file_name]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six prompts of three pairs each: bright pictures chosen, dark ones rejected; brighter on the left.
    fn section(dir: &std::path::Path) -> PreferencesSection {
        let mut list = String::new();
        for i in 0..18u8 {
            for (side, level) in [("chosen", 120), ("rejected", 40)] {
                let image = RgbImage::from_fn(16, 16, |x, _| [level + i + if x < 8 { 60 } else { 0 }, 0, 0].into());
                vp_data::write_png::<&str, &str>(dir.join(format!("{side}{i}.png")), &image, &[]).unwrap();
            }
            let prompt = i / 3;
            list += &format!("{{\"prompt\": \"picture {prompt}\", \"chosen\": \"chosen{i}.png\", \"rejected\": \"rejected{i}.png\"}}\n");
        }
        std::fs::write(dir.join("pairs.jsonl"), list).unwrap();
        PreferencesSection {
            file: dir.join("pairs.jsonl"),
            ratings: None,
            caption_dropout: 0.5,
            horizontal_flip: true,
            validation_fraction: 0.3,
            validation_every: 0,
            on_problem: OnProblem::Refuse,
            min_size: 16,
        }
    }

    fn open(section: &PreferencesSection) -> PreferencePairs {
        PreferencePairs::open(section, false, [16, 16], Noise::new(0), &Device::flex()).unwrap()
    }

    #[test]
    fn prompts_are_held_out_whole() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = open(&section(dir.path()));
        assert!(!pairs.validation.is_empty() && pairs.training.len() + pairs.validation.len() == 18);
        assert!(pairs.validation.iter().all(|held| pairs.training.iter().all(|pair| pair.prompt != held.prompt)));
        let all = PreferencesSection { validation_fraction: 0.0, ..section(dir.path()) };
        assert!(open(&all).validation.is_empty());
    }

    #[test]
    fn a_batch_hangs_on_its_number_alone_and_pairs_are_varied_together() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(dir.path());
        let (mut walked, mut jumped) = (open(&section), open(&section));
        let batches: Vec<PairBatch> = (0..20).map(|index| walked.batch(Batch::first_of_update(index), 4).unwrap()).collect();
        let again = jumped.batch(Batch::first_of_update(13), 4).unwrap();
        again.images.to_data().assert_eq(&batches[13].images.to_data(), true);
        assert_eq!(again.captions, batches[13].captions);
        let (mut mirrored, mut dropped) = (0, 0);
        for batch in &batches {
            let column = |x| batch.images.clone().narrow(1, 0, 1).narrow(2, 0, 1).narrow(3, x, 1).into_data().iter::<f64>().collect();
            let (left, right): (Vec<f64>, Vec<f64>) = (column(0), column(15));
            for i in 0..4 {
                // The same number in both names, 80 levels apart.
                assert!((left[i] - left[i + 4] - 80.0 / 255.0).abs() < 1e-6, "{left:?}");
                assert_eq!(left[i] < right[i], left[i + 4] < right[i + 4]);
                assert_eq!(batch.captions[i], batch.captions[i + 4]);
                mirrored += usize::from(left[i] < right[i]);
                dropped += usize::from(batch.captions[i].is_empty());
            }
        }
        assert!((25..=55).contains(&mirrored) && (25..=55).contains(&dropped), "{mirrored} and {dropped} of 80");
    }

    #[test]
    fn probabilities_go_with_their_pairs_and_into_the_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(dir.path());
        let without = open(&section);
        let list = std::fs::read_to_string(&section.file).unwrap();
        let with = |least: usize| {
            let lines = list
                .lines()
                .enumerate()
                .map(|(i, line)| line.replace('}', &format!(", \"probability\": {}}}\n", (least + i) as f64 / 64.0)));
            std::fs::write(&section.file, lines.collect::<String>()).unwrap();
            PreferencePairs::open(&section, true, [16, 16], Noise::new(0), &Device::flex()).unwrap()
        };
        let mut pairs = with(8);
        let batch = pairs.batch(Batch::first_of_update(3), 4).unwrap();
        assert_eq!(batch.probabilities.len(), 4);
        // The level of a chosen picture is 120 and the number of its pair, and 60 more on one side.
        let darkest = batch.images.narrow(0, 0, 4).narrow(1, 0, 1).min_dims(&[2, 3]).into_data().iter::<f32>().collect::<Vec<_>>();
        for (darkest, probability) in darkest.into_iter().zip(batch.probabilities) {
            assert_eq!((darkest * 255.0).round() - 120.0, probability * 64.0 - 8.0);
        }
        assert_ne!(pairs.fingerprint(), with(9).fingerprint());
        // Where they are not asked for, they are passed over, as is everything else that a line says beside.
        assert_eq!(open(&section).fingerprint(), without.fingerprint());
        assert!(open(&section).batch(Batch::first_of_update(3), 4).unwrap().probabilities.is_empty());
    }
}
