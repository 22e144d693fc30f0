//! What an algorithm holds at once, in numbers of images and of calls.

use crate::algorithm::Driver;
use crate::config::TrainConfig;

/// Images that are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtOnce {
    /// Images at once.
    pub images: usize,
    /// Whether the network is called for both branches of guidance, and so for twice as many rows.
    pub guided: bool,
    /// The key of `[algo.<name>]` that says how many.
    pub key: &'static str,
    /// Images per unit of that key: 2 where it counts pairs.
    pub per_unit: usize,
}

impl AtOnce {
    /// So many images, as `key` says.
    pub fn new(key: &'static str, images: usize, guidance_scale: f64) -> Self {
        Self { images, guided: guidance_scale > 1.0, key, per_unit: 1 }
    }

    /// So many pairs, as `key` says.
    pub fn pairs(key: &'static str, pairs: usize, guidance_scale: f64) -> Self {
        Self { per_unit: 2, ..Self::new(key, 2 * pairs, guidance_scale) }
    }

    /// Rows that the network sees.
    pub fn of_network(&self) -> usize {
        if self.guided { 2 * self.images } else { self.images }
    }
}

/// What an algorithm holds at once, in numbers of images and of calls of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Images drawn at once, off the tape; `None` for an algorithm that draws none in training.
    pub drawn: Option<AtOnce>,
    /// Images of one tape.
    pub taped: AtOnce,
    /// Calls of the network on one tape.
    pub calls: usize,
    /// Images decoded on the tape, for each of its rows: 0 where the reward gives no gradient.
    pub decoded: usize,
    /// Scores on the tape, for each decoded image.
    pub scored: usize,
    /// Whether another policy's prediction, off the tape, is held against that on the tape.
    pub compared: bool,
    /// Walks over the drawn images before others are drawn.
    pub walks: usize,
}

impl Demand {
    /// Of an algorithm that differentiates a reward: so many calls on one tape, and `decoded` images of each row, each scored once.
    pub fn through_reward(rows: AtOnce, calls: usize, decoded: usize) -> Self {
        Self { drawn: Some(rows), taped: rows, calls, decoded, scored: 1, compared: false, walks: 1 }
    }

    /// Of an algorithm that draws images off the tape, then walks over them so many times and trains on one call of the network for each of them.
    pub fn through_steps(drawn: AtOnce, taped: AtOnce, walks: usize) -> Self {
        Self { drawn: Some(drawn), taped, calls: 1, decoded: 0, scored: 0, compared: true, walks }
    }

    /// Of an algorithm that trains on the denoising of images from a data set.
    pub fn on_images(taped: AtOnce, compared: bool) -> Self {
        Self { drawn: None, taped, calls: 1, decoded: 0, scored: 0, compared, walks: 1 }
    }
}

impl Driver<'_> {
    /// What the algorithm holds at once. `None` for those that train another network than the denoiser, which are not planned.
    pub fn demand(&self, config: &TrainConfig) -> Option<Demand> {
        const KEY: &str = "batch_size";
        match self {
            Self::Reward(algorithm) => Some(algorithm.demand(config)),
            Self::Captions(sft) => Some(Demand::on_images(AtOnce::new(KEY, sft.batch_size, 1.0), false)),
            Self::Pairs(dpo) => Some(Demand::on_images(AtOnce::pairs(KEY, dpo.batch_size, 1.0), true)),
            Self::Likes(kto) => Some(Demand::on_images(AtOnce::new(KEY, kto.batch_size, 1.0), true)),
            Self::Autoencoder(_) | Self::Rankings(_) => None,
        }
    }
}
