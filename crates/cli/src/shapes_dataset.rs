//! Captioned images of the world of shapes, written into a folder. Image `i` depends on the seed, the split and `i` alone, so an interrupted folder
//! can be filled further, and parts that several machines draw make up the whole.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use vp_core::atomic;
use vp_core::noise::{Noise, Purpose};
use vp_data::{Completion, Record, write_png, write_records};
use vp_shapes::pretraining::{Captioned, PRETRAINING};
use vp_shapes::{Description, Scene, Split, Variant, render, variant};

use crate::output_folder;
use crate::progress::Progress;
use crate::shard::Shard;

/// The file that says what the folder is made from.
const DATASET: &str = "dataset.json";
/// The file of captions, written last, when every image of the part is there.
const METADATA: &str = "metadata.jsonl";
/// The file that takes its place where captions have several images.
const RECORDS: &str = "records.jsonl";
/// The largest number of images per caption.
pub const MOST_CANDIDATES: u64 = 26;

/// A folder of captioned images.
#[derive(Debug, Clone)]
pub struct ShapesDataset {
    /// Where the images and their captions go.
    pub folder: PathBuf,
    /// How many captions.
    pub captions: u64,
    /// Every scene follows from it.
    pub seed: u64,
    /// From which part of the world the captions are.
    pub split: Split,
    /// Images per caption, at most [`MOST_CANDIDATES`]. The first of several is as the caption says; the others may be of other scenes, noised,
    /// blurred or partly covered.
    pub images_per_caption: u64,
    /// Height and width in pixels.
    pub side: u32,
    /// Which part of the images is drawn.
    pub shard: Shard,
}

impl ShapesDataset {
    /// Creates the folder, or goes on with it.
    ///
    /// # Errors
    /// When the folder holds anything else, or cannot be written.
    pub fn create(&self) -> anyhow::Result<()> {
        let mut made_from =
            json!({ "world": "shapes", "n": self.captions, "seed": self.seed, "split": self.split.name(), "side": self.side });
        if self.images_per_caption > 1 {
            made_from["per_caption"] = self.images_per_caption.into();
        }
        output_folder::create_or_continue(&self.folder, DATASET, &made_from)
    }

    /// Draws the images that are not there yet and writes all captions; how many images are new.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn fill(&self) -> anyhow::Result<u64> {
        let Shard { index, of } = self.shard;
        let progress = Progress::of("captions", self.captions.saturating_sub(index).div_ceil(of) as usize);
        let draw = |index: u64| {
            let drawn = self.draw(index);
            progress.advance(1);
            drawn
        };
        let part = (0..self.captions).filter(|index| self.shard.has(*index));
        let drawn = part.map(draw).sum::<anyhow::Result<u64>>()?;
        if self.images_per_caption > 1 { self.write_candidates() } else { self.write_metadata() }?;
        Ok(drawn)
    }

    /// Scene `index`, what is described of it, and its caption.
    fn scene(&self, index: u64) -> (Scene, Description, String) {
        let mut rng = Noise::new(self.seed).stream(Purpose::SCENE, self.split as u64, index);
        let (description, caption) = self.split.prompt(&mut rng);
        (Scene::of(&description, &mut rng), description, caption)
    }

    /// Image `index` of the pre-training mixture.
    fn pretraining(&self, index: u64) -> Captioned {
        PRETRAINING.draw(self.side, &mut Noise::new(self.seed).stream(Purpose::SCENE, self.split as u64, index))
    }

    /// The files and images of caption `index` where there are several: the first is as the caption says, the others are random variants.
    fn candidates(&self, index: u64, description: &Description) -> impl Iterator<Item = (String, Variant)> {
        let draw = move |number: u64| {
            let mut rng = Noise::new(self.seed).stream(Purpose::SPOILING, self.split as u64, index * MOST_CANDIDATES + number);
            let variant = if number == 0 { variant::clean } else { variant::variant };
            (format!("{index:06}_{number}.png"), variant(description, self.side, &mut rng))
        };
        (0..self.images_per_caption).map(draw)
    }

    /// Draws the images of caption `index` that are not there yet; how many were drawn.
    fn draw(&self, index: u64) -> anyhow::Result<u64> {
        if self.split == Split::Pretraining {
            return write_new(&self.folder.join(file_name(index)), || self.pretraining(index).image);
        }
        let (scene, description, _) = self.scene(index);
        if self.images_per_caption == 1 {
            return write_new(&self.folder.join(file_name(index)), || render(&scene, self.side));
        }
        self.candidates(index, &description).map(|(name, variant)| write_new(&self.folder.join(name), || variant.image)).sum()
    }

    /// What is written of an image.
    fn row(&self, index: u64) -> serde_json::Value {
        let file_name = file_name(index);
        if self.split == Split::Pretraining {
            let Captioned { caption, shows, caption_is, fault, has_emblem, .. } = self.pretraining(index);
            let image_is = fault.map_or("clean", |fault| fault.name());
            let shows = shows.to_string();
            return json!({ "file_name": file_name, "text": caption, "caption_is": caption_is.name(), "shows": shows, "image_is": image_is, "emblem": has_emblem });
        }
        let (_, description, caption) = self.scene(index);
        let mut row = json!({ "file_name": file_name, "text": caption });
        if let Some(category) = self.split.category(&description) {
            row["category"] = category.into();
        }
        row
    }

    /// One line per image.
    fn write_metadata(&self) -> anyhow::Result<()> {
        let lines: String = (0..self.captions).map(|index| format!("{}\n", self.row(index))).collect();
        let path = self.folder.join(METADATA);
        atomic::write(&path, lines.as_bytes()).with_context(|| format!("write {}", path.display()))
    }

    /// One record per caption, without any ratings.
    fn write_candidates(&self) -> anyhow::Result<()> {
        let mut records = Vec::new();
        for index in 0..self.captions {
            let (_, description, caption) = self.scene(index);
            let completion = |(image_path, variant): (String, Variant)| Completion {
                image_path,
                width: Some(self.side),
                height: Some(self.side),
                extra: [("made".to_string(), variant.made.into())].into_iter().collect(),
                ..Completion::default()
            };
            let completions = self.candidates(index, &description).map(completion).collect();
            let mut record = Record::new(format!("{index:06}"), caption, completions);
            record.source = Some(format!("shapes {}", self.split.name()));
            records.push(record);
        }
        Ok(write_records(self.folder.join(RECORDS), &records)?)
    }
}

fn file_name(index: u64) -> String {
    format!("{index:06}.png")
}

/// Writes an image unless its file is there; how many were written.
fn write_new(path: &Path, image: impl FnOnce() -> vp_data::RgbImage) -> anyhow::Result<u64> {
    if path.exists() {
        return Ok(0);
    }
    write_png::<&str, &str>(path, &image(), &[])?;
    Ok(1)
}
