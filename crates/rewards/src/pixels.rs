//! Scores of image tensors, for rewards that look at 8-bit pixels alone.

use burn::tensor::{Device, Tensor};
use vp_data::{RgbImage, from_tensor};

use crate::{Result, Reward, Scored, ScoredRgb, Warning, check_batch, check_pairs};

/// A reward without gradient that sees 8-bit pixels, and scores tensors as the images that would be saved of them.
pub(crate) trait OfPixels: Send + Sync {
    /// The name under which it is registered.
    const NAME: &'static str;

    /// The scores and terms of images and their prompts, of which there are equally many.
    ///
    /// # Errors
    /// When there are no scores to be had.
    fn score_pixels(&self, images: &[RgbImage], prompts: &[String]) -> Result<ScoredRgb>;

    /// [`Reward::term_weights`].
    fn term_weights(&self) -> Vec<(String, f64)> {
        Vec::new()
    }

    /// [`Reward::check_prompts`].
    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        let _ = prompts;
        Vec::new()
    }
}

impl<R: OfPixels> Reward for R {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn differentiable(&self) -> bool {
        false
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        Ok(self.score_with_terms(images, prompts)?.scores)
    }

    fn score_with_terms(&self, images: Tensor<4>, prompts: &[String]) -> Result<Scored> {
        scored(R::NAME, images, prompts, |images, prompts| self.score_pixels(images, prompts))
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        OfPixels::term_weights(self)
    }

    fn score_rgb(&self, images: &[RgbImage], prompts: &[String], _: &Device) -> Result<ScoredRgb> {
        check_pairs(R::NAME, images, prompts)?;
        self.score_pixels(images, prompts)
    }

    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        OfPixels::check_prompts(self, prompts)
    }
}

/// The scores of `images` `[b, 3, h, w]` for `prompts`, without gradient: what `score` says of their pixels, rounded to 8 bits. An image with
/// a NaN in it is not shown to `score`; it and its terms are NaN.
///
/// # Errors
/// As those of [`Reward::score`](crate::Reward::score), and those of `score`.
fn scored(
    reward: &'static str,
    images: Tensor<4>,
    prompts: &[String],
    score: impl FnOnce(&[RgbImage], &[String]) -> Result<ScoredRgb>,
) -> Result<Scored> {
    let [b, ..] = check_batch(reward, &images, prompts)?;
    let images = images.without_autodiff();
    let device = images.device();
    // Zeros in place of the infinities too, which a mean would make of them or of each other.
    let is_nan = images.clone().is_nan();
    let counts: Vec<f32> = is_nan.clone().float().sum_dims(&[1, 2, 3]).reshape([b]).into_data().iter::<f32>().collect();
    let whole: Vec<bool> = counts.iter().map(|count| *count == 0.0).collect();
    let finite = images.mask_fill(is_nan, 0.0).clamp(0.0, 1.0);
    let pixels = from_tensor(finite).expect("a batch was checked to be of images, and is finite");
    let shown = |(item, whole): (RgbImage, &bool)| whole.then_some(item);
    let pixels: Vec<RgbImage> = pixels.into_iter().zip(&whole).filter_map(shown).collect();
    let asked: Vec<String> = prompts.iter().zip(&whole).filter(|(_, whole)| **whole).map(|(prompt, _)| prompt.clone()).collect();
    let ScoredRgb { scores, terms } = if pixels.is_empty() { ScoredRgb::default() } else { score(&pixels, &asked)? };
    let tensor = |values: Vec<f64>| {
        let mut values = values.into_iter();
        let value = |whole: &bool| if *whole { values.next().map_or(f32::NAN, |value| value as f32) } else { f32::NAN };
        let values: Vec<f32> = whole.iter().map(value).collect();
        Tensor::<1>::from_data(values.as_slice(), &device)
    };
    Ok(Scored { scores: tensor(scores), terms: terms.into_iter().map(|(name, values)| (name, tensor(values))).collect() })
}
