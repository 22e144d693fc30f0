//! `brightness`: mean luma.
//!
//! ```text
//! score = mean over pixels of 0.299 R + 0.587 G + 0.114 B        in [0, 1] for images in [0, 1]
//! ```
//!
//! Luma as in Rec. 601 and Pillow's mode `L`. It is linear, so its gradient is the same everywhere: a good reward to try an algorithm with.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;

use crate::{Build, Result, Reward, check_batch};

const NAME: &str = "brightness";
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// The `[reward.brightness]` section; it has no keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrightnessConfig {}

impl Validate for BrightnessConfig {
    fn findings(&self, _: &mut Vec<String>) {}
}

impl Build for BrightnessConfig {
    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Brightness))
    }
}

/// Mean luma.
#[derive(Debug, Clone, Copy)]
pub struct Brightness;

impl Reward for Brightness {
    fn name(&self) -> &'static str {
        NAME
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        let [b, ..] = check_batch(NAME, &images, prompts)?;
        let luma = Tensor::<1>::from_data(LUMA, &images.device().without_autodiff());
        // The mean over pixels comes first, so that only three numbers per image are weighed.
        let channels = images.mean_dim(3).mean_dim(2).reshape([b, 3]);
        Ok((channels * luma.unsqueeze()).sum_dim(1).reshape([b]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn green_counts_most() {
        let images = Tensor::<4>::from_data([[[[0.0]], [[1.0]], [[0.0]]], [[[1.0]], [[1.0]], [[1.0]]]], &Device::flex());
        let scores = Brightness.score(images, &["".into(), "".into()]).unwrap();
        scores.into_data().assert_approx_eq::<f32>(&[0.587, 1.0].into(), Tolerance::default());
    }
}
