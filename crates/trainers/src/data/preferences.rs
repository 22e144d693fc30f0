//! Preference pairs for training: the split into training and held-out pairs, the order, and random variation.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_core::noise::{Noise, Purpose};
use vp_data::{OnProblem, PreferencePair, Preferences, Problem, RgbImage, ShuffledOrder, flip_horizontal, to_tensor};

use crate::Error;
use crate::data::images::{Variation, number, split};
use crate::run::Batch;
use crate::run::checkpoint::text_checksum;
use crate::sections::ImageKnobs;

/// `[preferences]`: pairs of images to train on. The defaults for random variation are DiffusionDPO's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferencesSection {
    /// A file with one JSON object per line: `prompt`, and the paths of the `chosen` and the `rejected` image, relative to the file.
    pub file: PathBuf,
    /// Probability that a prompt is replaced by the empty one, so that the model can be used with classifier-free guidance; 0 to 1 (0.2).
    #[serde(default = "one_in_five")]
    pub caption_dropout: f64,
    /// Whether both images of a pair are mirrored half of the time (true).
    #[serde(default = "yes")]
    pub horizontal_flip: bool,
    /// Share of the prompts whose pairs are held out for validation, at least 0 and below 1 (0.1). A hash of the prompt decides, so adding
    /// pairs moves none from one side to the other.
    #[serde(default = "one_in_ten")]
    pub validation_fraction: f64,
    /// Updates between two validations; 0 for one before training and one after it (0).
    #[serde(default)]
    pub validation_every: u64,
    /// What to do about pairs that cannot be used: `refuse` (the default) or `skip`.
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
}

impl PreferencePairs {
    /// Reads the list and splits it by prompt.
    ///
    /// # Errors
    /// When the list cannot be used, holds unusable pairs that are to be refused, or leaves nothing to train on.
    pub fn open(section: &PreferencesSection, size: [usize; 2], noise: Noise, device: &Device) -> Result<Self, Error> {
        let Preferences { pairs, skipped } = Preferences::read(&section.file, section.on_problem, section.min_size)?;
        let (training, validation) = split(pairs, section.validation_fraction, |pair| &pair.prompt);
        if training.is_empty() {
            let (file, held_out) = (section.file.display(), validation.len());
            let way_out = "add pairs of other prompts, or lower preferences.validation_fraction";
            return Err(Error::Config(format!("{file}: all {held_out} pairs are held out; {way_out}")));
        }
        let order = ShuffledOrder::new(training.len(), noise, Purpose::DATA_ORDER);
        let variation = Variation { caption_dropout: section.caption_dropout, horizontal_flip: section.horizontal_flip, noise };
        Ok(Self { training, validation, skipped, size, variation, order, device: device.clone() })
    }

    /// The checksum of the prompts and the images' names, on which the order of a run and the meaning of its validation losses depend.
    pub fn fingerprint(&self) -> String {
        text_checksum(self.training.iter().chain(&self.validation).flat_map(texts))
    }

    /// The `count` pairs of a batch, in the shuffled order. Some are mirrored and some prompts dropped, as the section says.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn batch(&mut self, batch: Batch, count: usize) -> Result<PairBatch, Error> {
        let entries = self.order.entries(batch.index * count as u64, count);
        let pairs: Vec<&PreferencePair> = entries.into_iter().map(|entry| &self.training[entry]).collect();
        let mirrored: Vec<bool> = (0..count as u64).map(|sample| self.variation.mirrors(batch, sample)).collect();
        let prompts = pairs.iter().zip(0..).map(|(pair, sample)| self.variation.caption(batch, sample, &pair.prompt)).collect();
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
        Ok(PairBatch { images: to_tensor(&images, &self.device)?, captions: [prompts.clone(), prompts].concat() })
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
            caption_dropout: 0.5,
            horizontal_flip: true,
            validation_fraction: 0.3,
            validation_every: 0,
            on_problem: OnProblem::Refuse,
            min_size: 16,
        }
    }

    fn open(section: &PreferencesSection) -> PreferencePairs {
        PreferencePairs::open(section, [16, 16], Noise::new(0), &Device::flex()).unwrap()
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
        let batches: Vec<PairBatch> = (0..20).map(|index| walked.batch(Batch { index, begins_update: true }, 4).unwrap()).collect();
        let again = jumped.batch(Batch { index: 13, begins_update: true }, 4).unwrap();
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
}
