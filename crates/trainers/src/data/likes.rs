//! Liked and disliked images for training: the split into training and held-out images, the shares in which they are drawn, and random
//! variation.

use burn::tensor::Device;
use vp_core::noise::{Noise, Purpose};
use vp_data::{ImageEntry, Likes, Problem, RgbImage, ShuffledOrder, flip_horizontal, to_tensor};

use crate::Error;
use crate::data::images::{ImageBatch, Variation, number, split};
use crate::data::preferences::PreferencesSection;
use crate::run::Batch;
use crate::run::checkpoint::text_checksum;

/// The order of the disliked images; that of the liked ones is the order of the data.
const DISLIKED_ORDER: Purpose = Purpose::named("kto.disliked_order");

/// Images of which it is known whether they were liked.
#[derive(Debug, Default)]
pub struct Judged {
    /// Those that were liked.
    pub liked: Vec<ImageEntry>,
    /// Those that were disliked.
    pub disliked: Vec<ImageEntry>,
}

/// The liked and disliked images of a `[preferences]` section.
#[derive(Debug)]
pub struct LikedImages {
    /// The images to train on.
    pub training: Judged,
    /// The held-out images, for validation. None of their prompts is trained on.
    pub validation: Judged,
    /// How many images are rated between the thresholds and are not used.
    pub undecided: usize,
    /// What was left out because it cannot be used.
    pub skipped: Vec<Problem>,
    /// Height and width in pixels, to which every image is cropped and resized.
    pub size: [usize; 2],
    liked_share: f64,
    variation: Variation,
    /// Of the liked and of the disliked training images; `None` where there are none.
    orders: [Option<ShuffledOrder>; 2],
    device: Device,
}

impl Judged {
    fn of(images: Vec<(ImageEntry, bool)>) -> Self {
        let (liked, disliked): (Vec<_>, Vec<_>) = images.into_iter().partition(|(_, liked)| *liked);
        let entries = |images: Vec<(ImageEntry, bool)>| images.into_iter().map(|(image, _)| image).collect();
        Self { liked: entries(liked), disliked: entries(disliked) }
    }

    /// All of them, the liked ones first.
    pub fn all(&self) -> impl Iterator<Item = &ImageEntry> {
        self.liked.iter().chain(&self.disliked)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.liked.len() + self.disliked.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl LikedImages {
    /// Reads the list and splits it by prompt. A share `liked_share` of the images that are drawn is liked.
    ///
    /// # Errors
    /// When the list cannot be used, holds problems that are to be refused, or leaves no image to train on of a kind that is to be drawn.
    pub fn open(section: &PreferencesSection, liked_share: f64, size: [usize; 2], noise: Noise, device: &Device) -> Result<Self, Error> {
        let read = Likes::read(&section.file, section.on_problem, section.min_size, section.ratings.as_ref())?;
        let Likes { liked, disliked, undecided, skipped } = read;
        let images = liked.into_iter().map(|image| (image, true)).chain(disliked.into_iter().map(|image| (image, false))).collect();
        let (training, validation) = split(images, section.validation_fraction, |(image, _)| &image.caption);
        let (training, validation) = (Judged::of(training), Judged::of(validation));
        if training.is_empty() {
            return Err(section.all_held_out(validation.len(), "images"));
        }
        for (images, share, kind, other) in
            [(&training.liked, liked_share, "liked", 0), (&training.disliked, 1.0 - liked_share, "disliked", 1)]
        {
            if images.is_empty() && share > 0.0 {
                return Err(Error::Config(format!(
                    "{}: no {kind} image to train on; add some, lower preferences.validation_fraction, or train on the others alone with \
                     algo.kto.liked_share = {other}",
                    section.file.display()
                )));
            }
        }
        let order = |len: usize, purpose| (len > 0).then(|| ShuffledOrder::new(len, noise, purpose));
        let orders = [order(training.liked.len(), Purpose::DATA_ORDER), order(training.disliked.len(), DISLIKED_ORDER)];
        let variation = section.variation(noise);
        Ok(Self { training, validation, undecided, skipped, size, liked_share, variation, orders, device: device.clone() })
    }

    /// The checksum of the prompts, the images' names and what they are, on which the order of a run and the meaning of its validation losses
    /// depend.
    pub fn fingerprint(&self) -> String {
        let parts = [&self.training, &self.validation].into_iter();
        text_checksum(parts.flat_map(|judged| labelled(&judged.liked, "liked").chain(labelled(&judged.disliked, "disliked"))))
    }

    /// The images of a batch of `count` that are this rank's, the liked ones of the batch before all others, and how many of the whole batch are liked. Both kinds are drawn in shuffled orders of their own. Some
    /// images are mirrored and some prompts dropped, as the section says.
    ///
    /// Of the first n images of a run, `liked_share · n` are liked, rounded down. Diffusion-KTO draws each image at random, liked with this
    /// probability; with the share held, no micro-batch lacks one kind by chance.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn batch(&mut self, batch: Batch, count: usize) -> Result<(ImageBatch, usize), Error> {
        let first = batch.index * count as u64;
        let liked_before = |place: u64| (place as f64 * self.liked_share) as u64;
        let start = liked_before(first);
        // The products are rounded, which could make it one more than there are.
        let liked = ((liked_before(first + count as u64) - start) as usize).min(count);
        let mut entries = |kind: usize, start: u64, count: usize| {
            let order = self.orders[kind].as_mut();
            order.map_or_else(Vec::new, |order| order.entries(start, count))
        };
        let (liked_entries, disliked_entries) = (entries(0, start, liked), entries(1, first - start, count - liked));
        let liked_images = liked_entries.into_iter().map(|entry| &self.training.liked[entry]);
        let images: Vec<&ImageEntry> =
            liked_images.chain(disliked_entries.into_iter().map(|entry| &self.training.disliked[entry])).collect();
        let rows = batch.rows(count);
        let samples = || rows.clone().map(|row| row as u64);
        let mirrored: Vec<bool> = samples().map(|sample| self.variation.mirrors(batch, sample)).collect();
        let images = &images[rows.clone()];
        let captions = images.iter().zip(samples()).map(|(image, sample)| self.variation.caption(batch, sample, &image.caption)).collect();
        Ok((self.load(images, &mirrored, captions)?, liked))
    }

    /// Reads held-out images without variation, and gives each a number that depends on its prompt and its name alone.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn held_out(&self, images: &[&ImageEntry]) -> Result<(ImageBatch, Vec<u64>), Error> {
        let captions = images.iter().map(|image| image.caption.clone()).collect();
        let numbers = images.iter().map(|image| number(&text_checksum(texts(image)))).collect();
        Ok((self.load(images, &vec![false; images.len()], captions)?, numbers))
    }

    fn load(&self, images: &[&ImageEntry], mirrored: &[bool], captions: Vec<String>) -> Result<ImageBatch, Error> {
        let [height, width] = self.size;
        let load = |(entry, mirrored): (&&ImageEntry, &bool)| -> Result<RgbImage, Error> {
            let image = entry.load((width as u32, height as u32))?;
            Ok(if *mirrored { flip_horizontal(&image) } else { image })
        };
        let pixels = images.iter().zip(mirrored).map(load).collect::<Result<Vec<_>, _>>()?;
        Ok(ImageBatch { images: to_tensor(&pixels, &self.device)?, captions })
    }
}

fn texts(image: &ImageEntry) -> [&str; 2] {
    [&image.caption, &image.file_name]
}

/// The texts of images, with what they are behind those of each.
fn labelled<'a>(images: &'a [ImageEntry], kind: &'a str) -> impl Iterator<Item = &'a str> {
    images.iter().flat_map(move |image| texts(image).into_iter().chain([kind]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vp_data::OnProblem;

    /// Six prompts of three images each, two of which are liked: the level of a picture is its number, and brighter on the left.
    fn section(dir: &std::path::Path, label: impl Fn(u8) -> bool) -> PreferencesSection {
        let mut list = String::new();
        for i in 0..18u8 {
            let image = RgbImage::from_fn(16, 16, |x, _| [i + if x < 8 { 60 } else { 0 }, 0, 0].into());
            vp_data::write_png::<&str, &str>(dir.join(format!("{i}.png")), &image, &[]).unwrap();
            list += &format!("{{\"prompt\": \"picture {}\", \"image\": \"{i}.png\", \"label\": {}}}\n", i / 3, label(i));
        }
        std::fs::write(dir.join("likes.jsonl"), list).unwrap();
        PreferencesSection {
            file: dir.join("likes.jsonl"),
            ratings: None,
            caption_dropout: 0.5,
            horizontal_flip: true,
            validation_fraction: 0.3,
            validation_every: 0,
            on_problem: OnProblem::Refuse,
            min_size: 16,
        }
    }

    fn open(section: &PreferencesSection, liked_share: f64) -> Result<LikedImages, Error> {
        LikedImages::open(section, liked_share, [16, 16], Noise::new(0), &Device::flex())
    }

    fn is_liked(i: u8) -> bool {
        !i.is_multiple_of(3)
    }

    /// The numbers of the pictures of a batch.
    fn numbers(batch: &ImageBatch) -> Vec<u8> {
        let darkest = batch.images.clone().narrow(1, 0, 1).min_dims(&[2, 3]);
        darkest.into_data().iter::<f32>().map(|level| (level * 255.0).round() as u8).collect()
    }

    #[test]
    fn prompts_are_held_out_whole_with_both_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(dir.path(), is_liked);
        let images = open(&section, 0.8).unwrap();
        let (training, held_out) = (&images.training, &images.validation);
        assert!(!held_out.is_empty() && training.len() + held_out.len() == 18);
        assert!(held_out.all().all(|held| training.all().all(|image| image.caption != held.caption)));
        for judged in [training, held_out] {
            assert_eq!(judged.liked.len(), 2 * judged.disliked.len());
        }
        let all = PreferencesSection { validation_fraction: 0.0, ..section };
        assert!(open(&all, 0.8).unwrap().validation.is_empty());
    }

    #[test]
    fn a_batch_hangs_on_its_number_alone_and_keeps_the_share() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(dir.path(), is_liked);
        let (mut walked, mut jumped) = (open(&section, 0.8).unwrap(), open(&section, 0.8).unwrap());
        let batch = Batch::first_of_update;
        let batches: Vec<(ImageBatch, usize)> = (0..20).map(|index| walked.batch(batch(index), 4).unwrap()).collect();
        let (again, liked) = jumped.batch(batch(13), 4).unwrap();
        again.images.to_data().assert_eq(&batches[13].0.images.to_data(), true);
        assert_eq!((&again.captions, liked), (&batches[13].0.captions, batches[13].1));
        // Rounded down after every batch: 3, 6, 9, 12 and 16 of 4, 8, 12, 16 and 20.
        assert_eq!(batches.iter().map(|(_, liked)| *liked).collect::<Vec<_>>(), [3, 3, 3, 3, 4].repeat(4));
        let (mut mirrored, mut dropped, mut seen) = (0, 0, [0; 18]);
        for (images, liked) in &batches {
            let column = |x| images.images.clone().narrow(1, 0, 1).narrow(2, 0, 1).narrow(3, x, 1).into_data().iter::<f64>().collect();
            let (left, right): (Vec<f64>, Vec<f64>) = (column(0), column(15));
            for (place, number) in numbers(images).into_iter().enumerate() {
                assert_eq!(is_liked(number), place < *liked);
                seen[number as usize] += 1;
                mirrored += usize::from(left[place] < right[place]);
                dropped += usize::from(images.captions[place].is_empty());
            }
        }
        assert!((25..=55).contains(&mirrored) && (25..=55).contains(&dropped), "{mirrored} and {dropped} of 80");
        // Within each kind every image comes as often as another, or once more.
        for kind in [true, false] {
            let of_kind = (0..18).filter(|i| is_liked(*i) == kind).map(|i| seen[i as usize]).filter(|count| *count > 0);
            let counts: Vec<i32> = of_kind.collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{seen:?}");
        }
    }

    #[test]
    fn one_kind_alone_is_drawn_only_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let liked = section(dir.path(), |_| true);
        let refused = open(&liked, 0.8).unwrap_err().to_string();
        assert!(refused.contains("no disliked image to train on") && refused.contains("algo.kto.liked_share = 1"), "{refused}");
        let (batch, count) = open(&liked, 1.0).unwrap().batch(Batch::first_of_update(2), 4).unwrap();
        assert_eq!((numbers(&batch).len(), count), (4, 4));
        let disliked = section(dir.path(), |_| false);
        let refused = open(&disliked, 0.8).unwrap_err().to_string();
        assert!(refused.contains("no liked image to train on") && refused.contains("algo.kto.liked_share = 0"), "{refused}");
        let (batch, count) = open(&disliked, 0.0).unwrap().batch(Batch::first_of_update(2), 4).unwrap();
        assert_eq!((numbers(&batch).len(), count), (4, 0));
        let all = PreferencesSection { validation_fraction: 0.999999, ..section(dir.path(), is_liked) };
        let refused = open(&all, 0.8).unwrap_err().to_string();
        assert!(refused.contains("images are held out; add images of other prompts"), "{refused}");
    }

    #[test]
    fn the_fingerprint_knows_what_an_image_is() {
        let dir = tempfile::tempdir().unwrap();
        let of = |label: fn(u8) -> bool| open(&section(dir.path(), label), 0.8).unwrap().fingerprint();
        assert_eq!(of(is_liked), of(is_liked));
        assert_ne!(of(is_liked), of(|i| i % 3 > 1));
        assert_ne!(of(is_liked), of(|i| !is_liked(i)));
    }
}
