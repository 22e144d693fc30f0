//! `saturation`: mean colour saturation.
//!
//! ```text
//! score = mean over pixels of (max − min) / (max + ε)        max, min over R, G, B; ε = 0.01
//! ```
//!
//! This is S of HSV with an ε, which keeps the gradient below 1/ε at black pixels, where S has none. At grey pixels max and min are the same
//! channel, and the gradient is 0. Values outside `[0, 1]` are clamped first, so that the quotient stays in `[0, 1]`.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;

use crate::{Build, Result, Reward, check_batch};

const NAME: &str = "saturation";
const EPSILON: f64 = 0.01;

/// The `[reward.saturation]` section; it has no keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaturationConfig {}

impl Validate for SaturationConfig {
    fn findings(&self, _: &mut Vec<String>) {}
}

impl Build for SaturationConfig {
    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Saturation))
    }
}

/// Mean HSV saturation.
#[derive(Debug, Clone, Copy)]
pub struct Saturation;

impl Reward for Saturation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        let [b, ..] = check_batch(NAME, &images, prompts)?;
        let images = images.clamp(0.0, 1.0);
        let (max, min) = (images.clone().max_dim(1), images.min_dim(1));
        let saturation = (max.clone() - min) / (max + EPSILON);
        Ok(saturation.mean_dim(3).mean_dim(2).reshape([b]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn grey_and_black_score_nothing_and_have_finite_gradients() {
        let pixels = [[[[0.5, 0.0]], [[0.5, 0.0]], [[0.5, 0.0]]]];
        let images = Tensor::<4>::from_data(pixels, &Device::flex().autodiff()).require_grad();
        let score = Saturation.score(images.clone(), &["".into()]).unwrap();
        score.clone().into_data().assert_eq(&[0.0f32].into(), true);
        let gradient = images.grad(&score.backward()).expect("saturation is differentiable");
        assert!(gradient.is_finite().all().into_scalar::<bool>());
    }

    #[test]
    fn a_pure_colour_scores_almost_one() {
        let images = Tensor::<4>::from_data([[[[1.0]], [[0.0]], [[0.25]]]], &Device::flex());
        let score = Saturation.score(images, &["".into()]).unwrap();
        score.into_data().assert_approx_eq::<f32>(&[1.0 / 1.01].into(), Tolerance::default());
    }
}
