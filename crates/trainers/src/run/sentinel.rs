//! The sentinel's inputs: the figures of a preview, and the distance of the weights from their start.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_data::RgbImage;
use vp_evaluation::pixels::{PixelStats, distances};
use vp_evaluation::sentinel::{Look, SentinelConfig};

use crate::optim::NamedTensors;
use crate::run::preview::Preview;

/// The file of a run's folder that records what the sentinel has looked at.
pub const WATCH: &str = "sentinel.json";

/// The contents of [`WATCH`]: the sentinel's settings and all its looks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// `[sentinel]`.
    pub config: SentinelConfig,
    /// The looks in order, beginning with the one before training.
    pub looks: Vec<Look>,
}

/// Turns a preview into the sentinel's figures. Each reward has one mean per prompt, because the images of a prompt are not independent.
/// The diversity is the root mean square difference of pixels between the images of a prompt.
pub fn look(step: u64, preview: &Preview, weight_distance: f64) -> Look {
    let columns = preview.columns.max(1);
    let of_prompts = |scores: &[f64]| scores.chunks(columns).map(|scores| scores.iter().sum::<f64>() / scores.len() as f64).collect();
    let mut scores = preview.scores.iter().map(|(name, scores)| (name.clone(), of_prompts(scores)));
    let trained_reward = scores.next().map(|(_, scores)| scores).unwrap_or_default();
    let of_image = |image: &RgbImage| PixelStats::of(image.as_raw(), image.width() as usize, image.height() as usize).ok();
    Look {
        step,
        trained_reward,
        watched: scores.collect(),
        weight_distance,
        diversity: diversity(&preview.images, columns),
        pixels: preview.images.iter().filter_map(of_image).collect(),
    }
}

/// The mean over prompts of the mean distance between two images of the prompt; `None` with one image per prompt.
fn diversity(images: &[RgbImage], columns: usize) -> Option<f64> {
    let of_prompt = |images: &[RgbImage]| {
        let distances = distances(&images.iter().map(|image| image.as_raw().as_slice()).collect::<Vec<_>>());
        (!distances.is_empty()).then(|| distances.iter().sum::<f64>() / distances.len() as f64)
    };
    let of_prompts: Vec<f64> = images.chunks(columns).filter_map(of_prompt).collect();
    (!of_prompts.is_empty()).then(|| of_prompts.iter().sum::<f64>() / of_prompts.len() as f64)
}

/// `‖now − first‖ / ‖first‖` over all trained parameters; `‖now − first‖` if those were 0.
pub fn distance(first: &NamedTensors, now: &NamedTensors) -> f64 {
    let squares = |tensor: Tensor<1>| f64::from(tensor.square().sum().into_scalar::<f32>());
    let (mut change, mut size) = (0.0, 0.0);
    for (name, values) in now {
        let Some(before) = first.get(name) else { continue };
        change += squares(values.clone() - before.clone());
        size += squares(before.clone());
    }
    if size > 0.0 { (change / size).sqrt() } else { change.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_has_means_of_prompts_and_the_distance_of_their_images() {
        let image = |level: u8| RgbImage::from_pixel(2, 2, [level; 3].into());
        let preview = Preview {
            images: vec![image(0), image(51), image(255), image(255)],
            columns: 2,
            drawn_from: Vec::new(),
            scores: vec![("a".into(), vec![1.0, 3.0, 5.0, 5.0]), ("b".into(), vec![0.0, 1.0, 2.0, 4.0])],
            terms: vec![],
            lower_is_better: false,
        };
        let look = look(7, &preview, 0.5);
        assert_eq!((look.step, look.trained_reward, look.weight_distance), (7, vec![2.0, 5.0], 0.5));
        assert_eq!(look.watched["b"], [0.5, 3.0]);
        // 51 of 255 apart, and 0.
        assert!((look.diversity.unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(look.pixels.len(), 4);
        assert_eq!(diversity(&preview.images, 1), None);
    }
}
