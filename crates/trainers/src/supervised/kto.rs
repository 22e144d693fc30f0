//! Diffusion-KTO: alignment by Kahneman and Tversky's utility, from likes and dislikes of single images (Li et al., arXiv 2404.04465,
//! equation 8).
//!
//! | paper, `train_kto_sd_v1.5.py` | here |
//! |---|---|
//! | w(x_0) = ±1 | whether the image is liked |
//! | log π_θ / π_ref, `g_term` | the gain g = ℓ_ref − ℓ_θ, for errors ℓ that are means over c, h, w |
//! | Q_ref, `kl` | the reference point z = max(mean(g), 0) over the micro-batch, held constant |
//! | U(x) = σ(x), `halo` | the utility of Kahneman and Tversky's model; the loss is 1 − U |
//! | β, `beta_dpo` | `beta` |
//! | `lambda_d_kto`, `lambda_u_kto` | `liked_weight`, `disliked_weight` |
//! | γ, `positive_ratio` | `liked_share` |
//!
//! Every image has a timestep of its own, uniform over the schedule, and noise of its own. The published method predicts the noise; here a
//! model that predicts v or the clean latents has its own target in the same formula.
//!
//! The reference point is that of the published recipe: the mean over the batch itself, of all GPUs. The paper speaks of unrelated prompts and
//! images, for which the script has `--bce_offset original`: it rolls the prompts of a batch by one, which takes two more predictions, and
//! leaves out the lower bound of 0. Two things differ here. The script draws each image anew, liked with probability γ, while here the share
//! is held from batch to batch; and of the utilities that the paper tries there is only the one that it found best.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_data::ImageEntry;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::data::images::ImageBatch;
use crate::data::likes::LikedImages;
use crate::data::preferences::PreferencesSection;
use crate::denoising::{DenoisingBatch, Rows, random_timesteps};
use crate::losses::{kto_inside, kto_loss, kto_reference_point};
use crate::ranks::Ranks;
use crate::run::{Observed, Run, Values, values};
use crate::sections::PreviewSection;
use crate::supervised::reference::{Facts, FromPreferences, Frozen, PreferenceValidation, look};
use crate::supervised::validation::{Looked, TIMESTEPS, at_timesteps, noise_schedule};

/// The knobs of `[algo.kto]`. The defaults are the paper's; the script's own default of `beta` is 1000.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kto {
    /// Strength of the tie to the base model, above 0; the larger, the closer the model stays to it (5000).
    pub beta: f64,
    /// Weight of the loss of liked images, at least 0 (1).
    pub liked_weight: f64,
    /// Weight of the loss of disliked images, at least 0 (1).
    pub disliked_weight: f64,
    /// Share of liked images among those that are drawn, 0 to 1 (0.8), whatever their share in the list.
    pub liked_share: f64,
    /// Images per micro-batch, over which the reference point is a mean; at least 2 (8: 2 on each of 4 GPUs).
    pub batch_size: usize,
}

impl Default for Kto {
    fn default() -> Self {
        Self { beta: 5000.0, liked_weight: 1.0, disliked_weight: 1.0, liked_share: 0.8, batch_size: 8 }
    }
}

impl Algorithm for Kto {
    fn driver(&self) -> Driver<'_> {
        Driver::Likes(self)
    }

    fn findings(&self, _: &TrainConfig, findings: &mut Vec<String>) {
        let Self { beta, liked_weight, disliked_weight, liked_share, batch_size } = self;
        if !(*beta > 0.0 && beta.is_finite()) {
            findings.push(format!("algo.kto.beta is {beta}; expected a number above 0"));
        }
        for (name, weight) in [("liked_weight", liked_weight), ("disliked_weight", disliked_weight)] {
            if !(*weight >= 0.0 && weight.is_finite()) {
                findings.push(format!("algo.kto.{name} is {weight}; expected a number of at least 0"));
            }
        }
        if *liked_weight == 0.0 && *disliked_weight == 0.0 {
            findings.push("algo.kto.liked_weight and disliked_weight are both 0, so that nothing teaches; leave one above".into());
        }
        if !(0.0..=1.0).contains(liked_share) {
            findings.push(format!("algo.kto.liked_share is {liked_share}; expected a share, 0 to 1"));
        }
        if *batch_size < 2 {
            findings.push(format!(
                "algo.kto.batch_size is {batch_size}; expected at least 2: an image is compared with the mean over the micro-batch"
            ));
        }
    }
}

impl FromPreferences for Kto {
    type Data = LikedImages;

    fn open(&self, section: &PreferencesSection, size: [usize; 2], noise: Noise, device: &Device) -> Result<LikedImages, Error> {
        LikedImages::open(section, self.liked_share, size, noise, device)
    }

    fn facts<'a>(&self, images: &'a LikedImages) -> Facts<'a> {
        let LikedImages { training, validation, undecided, .. } = images;
        let undecided = (*undecided > 0)
            .then(|| format!("{undecided} images are rated above preferences.ratings.dislike_to and below like_from, and are not used"));
        Facts {
            list: "the list of liked and disliked images",
            fingerprint: images.fingerprint(),
            units: "images",
            of_what: "images",
            batch_size: self.batch_size,
            training: training.len(),
            held_out: validation.len(),
            more: format!("; {} of those to train on are liked, {} of those held out", training.liked.len(), validation.liked.len()),
            size: images.size,
            skipped: &images.skipped,
            notes: undecided.into_iter().collect(),
            prompts: training.all().map(|image| image.caption.as_str()).collect(),
        }
    }

    fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        frozen: &Frozen<'_, D>,
        images: &mut LikedImages,
        preview: Option<&PreviewSection>,
    ) -> Result<(), Error> {
        let pipeline = frozen.pipeline;
        let schedule = noise_schedule(pipeline)?;
        let size = images.size;
        if run.is_at_the_beginning() {
            look(self, run, frozen, images, Looked { pipeline, preview, size, step: 0 })?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Images, the liked ones first: cropped, resized, some mirrored, some prompts dropped.
            let (ImageBatch { images: pixels, captions }, liked) = profile::time(Stage::Io, || images.batch(batch, self.batch_size))?;
            let data = DenoisingBatch { images: pixels, captions: &captions, size };
            let rows_of_batch = batch.rows(self.batch_size);
            run.count_images(captions.len());

            // 2. Noised latents, each at a random timestep.
            let samples = run.draw(batch).samples(captions.len());
            let rows = Rows { draw: run.draw(batch), samples: &samples };
            let noised = data.noised(pipeline, &*schedule, random_timesteps(&*schedule, rows), rows);

            // 3. The predictions of both models, the reference off the tape: how much smaller the model's errors are than the reference's.
            let embedded = frozen.embed(&run.model, &data);
            let compared = frozen.compare(&run.model, &noised, &embedded);
            let gains = -compared.changes(&noised);

            // 4. The loss: what is missing from the utility of gaining more than the reference point with liked images, and less with others.
            let all_gains = run.gather_rows(&gains)?;
            let reference_point = kto_reference_point(all_gains.clone());
            let of = |when_liked: f64, otherwise: f64| {
                let value = |row: usize| if row < liked { when_liked } else { otherwise };
                let values: Vec<f32> = rows_of_batch.clone().map(|row| value(row) as f32).collect();
                Tensor::<1>::from_data(&values[..], pipeline.device())
            };
            let inside = kto_inside(gains.clone(), reference_point.clone(), of(1.0, -1.0), self.beta);
            let loss = kto_loss(inside, of(self.liked_weight, self.disliked_weight));

            // 5. Backward, accumulated; after the last micro-batch of an update: clip, step, moving average, journal.
            let observed = observed(compared.errors(&noised), &all_gains, liked, &reference_point);
            let blame = |model: &Trainable<D>| noised.first_non_finite(&model.denoiser, &embedded.model);
            let updated = run.backward(loss, observed, &blame)?;

            // 6. Validate, and draw the preview.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                look(self, run, frozen, images, Looked { pipeline, preview, size, step })?;
            }
        }
        Ok(())
    }

    /// The reference point is that of all held-out images at a timestep, so the results do not depend on `batch_size`.
    fn validate<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        frozen: &Frozen<'_, D>,
        images: &LikedImages,
        noise: Noise,
        ranks: &Ranks,
        step: u64,
    ) -> Result<PreferenceValidation, Error> {
        let pipeline = frozen.pipeline;
        let schedule = noise_schedule(pipeline)?;
        let held_out: Vec<&ImageEntry> = images.validation.all().collect();
        let batches: Vec<_> = held_out.chunks(self.batch_size).collect();
        let gains: [Vec<f64>; TIMESTEPS] = ranks.measure(&batches, |entries| {
            let (ImageBatch { images: pixels, captions }, numbers) = profile::time(Stage::Io, || images.held_out(entries))?;
            let data = DenoisingBatch { images: pixels, captions: &captions, size: images.size };
            let embedded = frozen.embed(model, &data);
            let of_batch = at_timesteps(&*schedule, noise, &numbers, |timestep, rows| {
                let noised = data.noised(pipeline, &*schedule, vec![timestep; entries.len()], rows);
                let gains = values(&-frozen.compare(model, &noised, &embedded).changes(&noised));
                if gains.iter().all(|gain| gain.is_finite()) {
                    return Ok(gains);
                }
                let what = noised.first_non_finite(&model.denoiser, &embedded.model).unwrap_or_else(|| "the validation loss".into());
                Err(Error::NonFinitePreview { step, what })
            })?;
            Ok(of_batch.try_into().expect("one for each timestep"))
        })?;
        Ok(self.judged(&gains, images.validation.liked.len()))
    }
}

impl Kto {
    /// The losses of images with these gains at each timestep, of which the first `liked` are liked, and for each liked one the share of the
    /// disliked ones that gained less; equal gains, as of the untrained model, count one half.
    fn judged(&self, gains: &[Vec<f64>], liked: usize) -> PreferenceValidation {
        let mut losses: Vec<f64> = Vec::new();
        let mut accuracies: Vec<f64> = Vec::new();
        for of_timestep in gains {
            let reference_point = (of_timestep.iter().sum::<f64>() / of_timestep.len() as f64).max(0.0);
            let loss = |(row, gain): (usize, &f64)| {
                let (sign, weight) = if row < liked { (1.0, self.liked_weight) } else { (-1.0, self.disliked_weight) };
                weight / (1.0 + (sign * self.beta * (gain - reference_point)).exp())
            };
            add(&mut losses, of_timestep.iter().enumerate().map(loss));
            let (of_liked, of_disliked) = of_timestep.split_at(liked);
            let wins = |gain: f64| {
                of_disliked.iter().map(|other| if gain == *other { 0.5 } else { f64::from(u8::from(gain > *other)) }).sum::<f64>()
            };
            let share = |gain: &f64| wins(*gain) / of_disliked.len() as f64;
            add(&mut accuracies, of_liked.iter().filter(|_| !of_disliked.is_empty()).map(share));
        }
        let means = |sums: Vec<f64>| sums.into_iter().map(|sum| sum / gains.len() as f64).collect();
        PreferenceValidation { losses: means(losses), implicit_accuracies: means(accuracies) }
    }
}

/// Adds `values` to `sums`, which are empty at first.
fn add(sums: &mut Vec<f64>, values: impl Iterator<Item = f64>) {
    for (index, value) in values.enumerate() {
        match sums.get_mut(index) {
            Some(sum) => *sum += value,
            None => sums.push(value),
        }
    }
}

/// The values for the journal. The changes are the differences of the loss from the reference's: training should lower them for liked images
/// and raise them for disliked ones.
fn observed([model_losses, reference_losses]: [Tensor<1>; 2], gains: &Tensor<1>, liked: usize, reference_point: &Tensor<1>) -> Observed {
    let count = gains.dims()[0];
    let gains = gains.clone().without_autodiff();
    let mut observed =
        vec![("model_loss", model_losses), ("reference_loss", reference_losses), ("reference_point", reference_point.clone())];
    let of_kind = |start: usize, count: usize| (count > 0).then(|| gains.clone().narrow(0, start, count));
    let (of_liked, of_disliked) = (of_kind(0, liked), of_kind(liked, count - liked));
    observed.extend(of_liked.clone().map(|gains| ("liked_change", -gains)));
    observed.extend(of_disliked.clone().map(|gains| ("disliked_change", -gains)));
    observed.extend(of_liked.zip(of_disliked).map(|(liked, disliked)| ("implicit_accuracy", implicit_accuracies(liked, disliked))));
    observed.into_iter().map(|(name, values)| (name.to_string(), Values::from(&values))).collect()
}

/// For each of the `n` liked and `m` disliked images, `[n · m]`: 1 where the liked one gained more, 0 where it gained less, and one half
/// where both gained as much, as of the untrained model.
fn implicit_accuracies(liked: Tensor<1>, disliked: Tensor<1>) -> Tensor<1> {
    let (n, m) = (liked.dims()[0], disliked.dims()[0]);
    let differences: Tensor<2> = liked.reshape([n, 1]) - disliked.reshape([1, m]);
    ((differences.sign() + 1.0) / 2.0).reshape([n * m])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_images_are_judged_by_hand() {
        let kto = Kto { beta: 2.0, liked_weight: 1.0, disliked_weight: 3.0, ..Kto::default() };
        // The reference points are 0.25 and 0, since a mean of −0.5 counts as 0.
        let gains = [vec![1.0, -0.25, 0.25, 0.0], vec![0.0, -1.0, -1.0, 0.0]];
        let PreferenceValidation { losses, implicit_accuracies } = kto.judged(&gains, 2);
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        let expected =
            [(sigma(-1.5) + 0.5) / 2.0, (sigma(1.0) + sigma(2.0)) / 2.0, 3.0 * (0.5 + sigma(-2.0)) / 2.0, 3.0 * (sigma(-0.5) + 0.5) / 2.0];
        assert!(losses.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{losses:?}, not {expected:?}");
        // The first beats both and then one and a tie; the second none, and then a tie.
        assert_eq!(implicit_accuracies, [(1.0 + 0.75) / 2.0, (0.0 + 0.25) / 2.0]);
        // With one kind alone nothing can be compared.
        assert!(kto.judged(&gains, 4).implicit_accuracies.is_empty() && kto.judged(&[vec![], vec![]], 0).losses.is_empty());
    }

    #[test]
    fn every_liked_image_is_compared_with_every_disliked_one() {
        let of = |values: &[f32]| Tensor::<1>::from_data(values, &Device::flex());
        assert_eq!(values(&implicit_accuracies(of(&[1.0, -0.25]), of(&[0.25, 0.0, 1.0]))), [1.0, 1.0, 0.5, 0.0, 0.0, 0.0]);
        let zero = of(&[0.0]);
        let names = |liked| observed([zero.clone(), zero.clone()], &of(&[1.0, 2.0]), liked, &zero).into_iter().map(|(name, _)| name);
        assert!(names(1).any(|name| name == "implicit_accuracy"));
        assert!(names(0).chain(names(2)).all(|name| name != "implicit_accuracy") && names(2).all(|name| name != "disliked_change"));
    }
}
