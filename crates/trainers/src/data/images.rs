//! Captioned images for supervised training: the split into training and held-out images, the order, and random variation.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use sha2::{Digest, Sha256};
use vp_core::noise::{Noise, Purpose};
use vp_data::{ImageEntry, ImageFolder, ImageFolderOptions, Problem, RgbImage, ShuffledOrder, flip_horizontal, to_tensor};

use crate::Error;
use crate::run::Batch;
use crate::run::checkpoint::text_checksum;
use crate::sections::DataSection;

/// The images of a `[data]` section.
#[derive(Debug)]
pub struct CaptionedImages {
    /// The images to train on.
    pub training: Vec<ImageEntry>,
    /// The held-out images, for validation.
    pub validation: Vec<ImageEntry>,
    /// The images that were left out because they cannot be used.
    pub skipped: Vec<Problem>,
    /// What was passed over, and which images count more than once, a sentence each.
    pub notes: Vec<String>,
    /// Height and width in pixels, to which every image is cropped and resized.
    pub size: [usize; 2],
    /// Whether latents are to be kept in memory.
    pub cache_latents: bool,
    variation: Variation,
    /// The training image at each place of an epoch; those that are repeated have several.
    places: Vec<usize>,
    order: ShuffledOrder,
    device: Device,
}

/// The random variation of an entry each time it is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variation {
    /// Probability that a caption is replaced by the empty one.
    pub caption_dropout: f64,
    /// Whether each image is mirrored half of the time.
    pub horizontal_flip: bool,
    /// The run's random numbers.
    pub noise: Noise,
}

impl Variation {
    /// Whether entry number `sample` of a batch is mirrored.
    pub fn mirrors(&self, batch: Batch, sample: u64) -> bool {
        self.horizontal_flip && self.noise.uniform(Purpose::AUGMENTATION, batch.draw(), sample) < 0.5
    }

    /// The caption of entry number `sample` of a batch: `caption` itself, or the empty one.
    pub fn caption(&self, batch: Batch, sample: u64, caption: &str) -> String {
        let dropped = self.noise.uniform(Purpose::CAPTION_DROPOUT, batch.draw(), sample) < self.caption_dropout;
        if dropped { String::new() } else { caption.to_owned() }
    }
}

/// An image of a batch that has not been read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Drawn {
    /// The image's index among the training images.
    pub entry: usize,
    /// Whether the image is mirrored once it has been read.
    pub mirrored: bool,
}

/// A batch of captioned images, read and resized.
#[derive(Debug)]
pub struct ImageBatch {
    /// The images, `[b, 3, h, w]` in [0, 1].
    pub images: Tensor<4>,
    /// One caption per image.
    pub captions: Vec<String>,
}

/// The checksum of the names and captions of images, in their order.
pub fn fingerprint<'a>(entries: impl IntoIterator<Item = &'a ImageEntry>) -> String {
    text_checksum(entries.into_iter().flat_map(|entry| [entry.file_name.as_str(), &entry.caption]))
}

impl CaptionedImages {
    /// Opens the folder and splits its images. `captions` says whether an image without a caption is a problem.
    ///
    /// # Errors
    /// When the folder cannot be used, holds unusable images that are to be refused, or leaves nothing to train on.
    pub fn open(section: &DataSection, captions: bool, size: [usize; 2], noise: Noise, device: &Device) -> Result<Self, Error> {
        let options = ImageFolderOptions { on_problem: section.on_problem, min_size: section.min_size, captions };
        let ImageFolder { entries, repeats, skipped, mut notes } = ImageFolder::open(&section.folder, &options)?;
        notes.extend(repeated(&entries, &repeats));
        let entries: Vec<(ImageEntry, usize)> = entries.into_iter().zip(repeats).collect();
        let (training, validation) = split(entries, section.validation_fraction, |(entry, _)| &entry.file_name);
        let validation: Vec<ImageEntry> = validation.into_iter().map(|(entry, _)| entry).collect();
        let (training, repeats): (Vec<ImageEntry>, Vec<usize>) = training.into_iter().unzip();
        if training.is_empty() {
            let (folder, held_out) = (section.folder.display(), validation.len());
            return Err(Error::Config(format!(
                "{folder}: all {held_out} images are held out; add images, or lower data.validation_fraction"
            )));
        }
        let places: Vec<usize> = repeats.iter().enumerate().flat_map(|(entry, count)| std::iter::repeat_n(entry, *count)).collect();
        let order = ShuffledOrder::new(places.len(), noise, Purpose::DATA_ORDER);
        let variation = Variation { caption_dropout: section.caption_dropout, horizontal_flip: section.horizontal_flip, noise };
        let cache_latents = section.cache_latents;
        Ok(Self { training, validation, skipped, notes, size, cache_latents, variation, places, order, device: device.clone() })
    }

    /// The checksum of the images' names and captions, on which the order of a run and the meaning of its validation losses depend.
    pub fn fingerprint(&self) -> String {
        let of_images = fingerprint(self.training.iter().chain(&self.validation));
        if self.places.len() == self.training.len() {
            return of_images;
        }
        let places: Vec<String> = self.places.iter().map(usize::to_string).collect();
        text_checksum(std::iter::once(of_images.as_str()).chain(places.iter().map(String::as_str)))
    }

    /// Images per epoch: each training image as often as it is repeated.
    pub fn per_epoch(&self) -> usize {
        self.places.len()
    }

    /// The images of a batch of `count` that are this rank's, in the shuffled order. Some are mirrored and some captions dropped, as the section says.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn batch(&mut self, batch: Batch, count: usize) -> Result<ImageBatch, Error> {
        let (drawn, captions) = self.draw(batch, count);
        Ok(ImageBatch { images: self.read(&drawn)?, captions })
    }

    /// Chooses the images of a batch of `count`, as far as they are this rank's, and their captions.
    pub fn draw(&mut self, batch: Batch, count: usize) -> (Vec<Drawn>, Vec<String>) {
        let entries = self.order.entries(batch.index * count as u64, count);
        let one = |(entry, sample): (usize, u64)| {
            let entry = self.places[entry];
            let caption = self.variation.caption(batch, sample, &self.training[entry].caption);
            (Drawn { entry, mirrored: self.variation.mirrors(batch, sample) }, caption)
        };
        let rows = batch.rows(count);
        entries.into_iter().zip(0..).skip(rows.start).take(rows.len()).map(one).unzip()
    }

    /// Reads the pixels of the images `drawn`, `[b, 3, h, w]` in [0, 1].
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn read(&self, drawn: &[Drawn]) -> Result<Tensor<4>, Error> {
        let one = |drawn: &Drawn| {
            let image = self.load(&self.training[drawn.entry])?;
            Ok(if drawn.mirrored { flip_horizontal(&image) } else { image })
        };
        Ok(to_tensor(&drawn.iter().map(one).collect::<Result<Vec<_>, Error>>()?, &self.device)?)
    }

    /// Reads held-out images without variation, and gives each a number that depends on its name alone.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn held_out(&self, entries: &[ImageEntry]) -> Result<(ImageBatch, Vec<u64>), Error> {
        let images = entries.iter().map(|entry| self.load(entry)).collect::<Result<Vec<_>, _>>()?;
        let captions = entries.iter().map(|entry| entry.caption.clone()).collect();
        let numbers = entries.iter().map(|entry| number(&entry.file_name)).collect();
        Ok((ImageBatch { images: to_tensor(&images, &self.device)?, captions }, numbers))
    }

    fn load(&self, entry: &ImageEntry) -> Result<RgbImage, Error> {
        let [height, width] = self.size;
        Ok(entry.load((width as u32, height as u32))?)
    }
}

/// A sentence for each folder whose images count more than once.
fn repeated(entries: &[ImageEntry], repeats: &[usize]) -> Vec<String> {
    let mut folders: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    for (entry, count) in entries.iter().zip(repeats).filter(|(_, count)| **count > 1) {
        let folder = entry.file_name.rsplit_once('/').map_or(".", |(folder, _)| folder);
        *folders.entry((folder, *count)).or_default() += 1;
    }
    folders.iter().map(|((folder, repeats), images)| format!("{folder}: {images} images, each {repeats} times per epoch")).collect()
}

/// Splits entries into (training, held out) by a hash of each entry's key, so that entries with the same key stay together, and adding
/// entries moves none of the others. If `fraction` is above 0, at least one key is held out, provided that another is left to train on.
pub(crate) fn split<T>(entries: Vec<T>, fraction: f64, key: impl Fn(&T) -> &str) -> (Vec<T>, Vec<T>) {
    let share = |entry: &T| number(key(entry)) as f64 / 2f64.powi(64);
    let least = entries.iter().map(share).fold(f64::INFINITY, f64::min);
    let many = entries.iter().any(|entry| share(entry) > least);
    entries.into_iter().partition(|entry| !(fraction > 0.0 && (share(entry) < fraction || (many && share(entry) == least))))
}

/// A fixed number for a name; over many names, uniformly distributed.
pub(crate) fn number(name: &str) -> u64 {
    let hash = Sha256::digest(name.as_bytes());
    u64::from_le_bytes(hash[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: std::ops::Range<usize>) -> Vec<ImageEntry> {
        let entry = |i| ImageEntry { path: format!("{i}.png").into(), file_name: format!("{i}.png"), caption: String::new() };
        names.map(entry).collect()
    }

    fn split(entries: Vec<ImageEntry>, fraction: f64) -> (Vec<ImageEntry>, Vec<ImageEntry>) {
        super::split(entries, fraction, |entry| &entry.file_name)
    }

    #[test]
    fn the_split_does_not_move_when_images_are_added() {
        let (training, validation) = split(entries(0..200), 0.1);
        assert!((10..=30).contains(&validation.len()), "{}", validation.len());
        let (more_training, more_validation) = split(entries(0..400), 0.1);
        assert!(training.iter().all(|entry| more_training.contains(entry)));
        assert!(validation.iter().all(|entry| more_validation.contains(entry)));
    }

    #[test]
    fn a_batch_hangs_on_its_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..7u8 {
            let image = RgbImage::from_fn(16, 16, |x, _| [x as u8 * 16, i * 30, 0].into());
            vp_data::write_png::<&str, &str>(dir.path().join(format!("{i}.png")), &image, &[]).unwrap();
            std::fs::write(dir.path().join(format!("{i}.txt")), format!("picture {i}")).unwrap();
        }
        let section = DataSection {
            folder: dir.path().into(),
            caption_dropout: 0.5,
            horizontal_flip: true,
            validation_fraction: 0.0,
            validation_every: 0,
            on_problem: vp_data::OnProblem::Refuse,
            min_size: 16,
            cache_latents: false,
        };
        let open = || CaptionedImages::open(&section, true, [16, 16], Noise::new(0), &Device::flex()).unwrap();
        let (mut walked, mut jumped) = (open(), open());
        let batches: Vec<ImageBatch> = (0..20).map(|index| walked.batch(Batch::first_of_update(index), 4).unwrap()).collect();
        let again = jumped.batch(Batch::first_of_update(13), 4).unwrap();
        again.images.to_data().assert_eq(&batches[13].images.to_data(), true);
        assert_eq!(again.captions, batches[13].captions);
        // The rows of two ranks are those of one.
        for index in 0..2 {
            let part = crate::ranks::Portion { index, of: 2 };
            let half = jumped.batch(Batch { index: 13, begins_update: true, part }, 4).unwrap();
            half.images.to_data().assert_eq(&batches[13].images.clone().narrow(0, 2 * index, 2).to_data(), true);
            assert_eq!(half.captions, batches[13].captions[2 * index..2 * index + 2]);
        }
        // Half of the captions are gone, half of the images mirrored: brighter on the left.
        let dropped = batches.iter().flat_map(|batch| &batch.captions).filter(|caption| caption.is_empty()).count();
        let edges =
            |batch: &ImageBatch| batch.images.clone().narrow(1, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1).into_data().iter::<f64>().collect();
        let mirrored = batches.iter().flat_map(|batch| -> Vec<f64> { edges(batch) }).filter(|left| *left > 0.5).count();
        assert!((25..=55).contains(&dropped) && (25..=55).contains(&mirrored), "{dropped} and {mirrored} of 80");
    }

    #[test]
    fn repeated_images_fill_an_epoch_in_proportion() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["3_red fox/a.png", "3_red fox/b.png", "plain/c.png"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            vp_data::write_png::<&str, &str>(&path, &RgbImage::new(16, 16), &[]).unwrap();
        }
        std::fs::write(dir.path().join("plain/c.txt"), "a cat").unwrap();
        let section: DataSection = serde_json::from_value(serde_json::json!({ "folder": dir.path(), "validation_fraction": 0.0 })).unwrap();
        let mut images = CaptionedImages::open(&section, true, [16, 16], Noise::new(0), &Device::flex()).unwrap();
        assert_eq!((images.training.len(), images.per_epoch()), (3, 7));
        assert_eq!(images.notes, ["3_red fox: 2 images, each 3 times per epoch"]);
        let (mut drawn, captions) = images.draw(Batch::first_of_update(0), 7);
        drawn.sort_by_key(|drawn| drawn.entry);
        assert_eq!(drawn.iter().map(|drawn| drawn.entry).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2]);
        assert_eq!(captions.iter().filter(|caption| *caption == "red fox").count(), 6);
    }

    #[test]
    fn at_least_one_is_held_out_and_one_is_left() {
        assert_eq!(split(entries(0..3), 1e-9).1.len(), 1);
        assert_eq!(split(entries(0..3), 0.0).1.len(), 0);
        assert_eq!(split(entries(0..1), 1e-9).0.len(), 1);
    }
}
