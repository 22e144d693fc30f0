//! How fast a run would be on several devices, each a rank with its share of every batch: the time of an update, from the run's operations and from
//! the bytes that cross between ranks. Nothing is measured; the speeds of a device and of the network are given.
//!
//! Only the gradients of what trains are summed over ranks, once per update. The formulas are those of Thakur, Rabenseifner and Gropp,
//! *Optimization of Collective Communication Operations in MPICH* (2005), section 4, without the time of the additions themselves:
//!
//! | paper | here |
//! |---|---|
//! | p | ranks |
//! | n | bytes of the gradients |
//! | α | [`Link::latency`] |
//! | 1/β | [`Link::bandwidth`] |

use vp_models::GradientCheckpointing;

use super::demand::Demand;
use super::networks::{Laid, Networks};
use super::{Engine, demand, phases};
use crate::Error;
use crate::algorithm::{Driver, Kept};
use crate::config::TrainConfig;

/// What connects two ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Seconds until the first byte of a message has arrived.
    pub latency: f64,
    /// Bytes per second.
    pub bandwidth: f64,
}

/// What an update of a run is made of, whatever computes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Images that an update trains on; of a pair, both images count.
    pub images: u64,
    /// Images of one micro-batch.
    pub at_once: u64,
    /// Multiplications and additions per update: drawing, the forward and the backward pass, decoding and scoring.
    pub operations: f64,
    /// Bytes of the gradients, in the format in which they travel.
    pub bytes: u64,
}

/// An update on so many ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// Ranks.
    pub ranks: u64,
    /// Images of the rank that has the most.
    pub images: u64,
    /// Seconds that it computes.
    pub compute: f64,
    /// Seconds that a sum of the gradients takes along a ring.
    pub ring: f64,
    /// Seconds that it takes along a tree.
    pub tree: f64,
    /// Speed of all ranks as a share of so many times one rank's, with the faster of the two sums.
    pub efficiency: f64,
    /// The same if every rank has one micro-batch, and so the batch grows with the ranks.
    pub grown: f64,
}

impl Link {
    /// Seconds of a sum along a ring: `2 (p - 1) α + 2 (p - 1) / p n β`.
    pub fn ring(&self, ranks: u64, bytes: f64) -> f64 {
        let others = (ranks - 1) as f64;
        2.0 * others * self.latency + 2.0 * others / ranks as f64 * bytes / self.bandwidth
    }

    /// Seconds of a sum up a binomial tree and down again: `2 ⌈log2 p⌉ (α + n β)`.
    pub fn tree(&self, ranks: u64, bytes: f64) -> f64 {
        let levels = ranks.next_power_of_two().trailing_zeros();
        2.0 * f64::from(levels) * (self.latency + bytes / self.bandwidth)
    }
}

impl Work {
    /// The work of an update of `config`.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`](super::MemoryPlan::of).
    pub fn of(config: &TrainConfig, networks: &Networks, engine: Engine) -> Result<Self, Error> {
        let (demand, laid) = (demand(config)?, Laid::out(config, networks, engine)?);
        let micro_batches = config.settings().micro_batches as u64;
        let (at_once, backwards) = (demand.taped.images as u64, backwards(config));
        Ok(Self {
            images: at_once * micro_batches / backwards,
            at_once,
            operations: (at_once * micro_batches) as f64 * operations(config, &laid, &demand),
            bytes: config.run.reduction.bytes() * laid.trained_values(),
        })
    }

    /// An update on `ranks` of `speed` operations per second each.
    pub fn on(&self, ranks: u64, speed: f64, link: Link) -> Predicted {
        let bytes = self.bytes as f64;
        let per_image = self.operations / self.images as f64 / speed;
        let images = self.images.div_ceil(ranks);
        let compute = images as f64 * per_image;
        let (ring, tree) = (link.ring(ranks, bytes), link.tree(ranks, bytes));
        let sum = ring.min(tree);
        let one_batch = self.at_once as f64 * per_image;
        Predicted {
            ranks,
            images,
            compute,
            ring,
            tree,
            efficiency: self.images as f64 * per_image / (ranks as f64 * (compute + sum)),
            grown: one_batch / (one_batch + sum),
        }
    }
}

/// Backward passes of one image in an update.
fn backwards(config: &TrainConfig) -> u64 {
    match config.algo.chosen().driver() {
        Driver::Reward(algorithm) => algorithm.backwards_per_minibatch(config.num_inference_steps()) as u64,
        _ => 1,
    }
}

/// Operations per image and backward pass.
///
/// A backward pass costs as much as the forward pass, because frozen layers need the gradient of their input alone, and twice as much where whole
/// weights train; recomputation adds a forward pass.
fn operations(config: &TrainConfig, laid: &Laid, demand: &Demand) -> f64 {
    let [network, decoding, reward] = phases::operations(laid).map(|operations| operations as f64);
    let rows = |guided: bool| if guided { 2.0 } else { 1.0 };
    let recomputed = if config.model.gradient_checkpointing == GradientCheckpointing::None { 0.0 } else { 1.0 };
    let back = if config.lora().is_some() { 1.0 } else { 2.0 };
    let taped = demand.calls as f64 * rows(demand.taped.guided) * network * (1.0 + back + recomputed);
    let compared = if demand.compared { rows(demand.taped.guided) * network } else { 0.0 };
    let through = demand.decoded as f64 * (decoding + demand.scored as f64 * reward) * (2.0 + recomputed);
    let drawn = demand.drawn.map_or(0.0, |drawn| {
        let chain = config.num_inference_steps() as f64 * rows(drawn.guided) * network;
        match config.algo.chosen().driver() {
            // The images of an epoch are drawn and scored once, and trained on in several backward passes and walks.
            Driver::Reward(algorithm) if algorithm.kept() != Kept::Nothing => {
                (chain + decoding + reward) / (backwards(config) as f64 * demand.walks as f64)
            }
            _ => chain,
        }
    });
    taped + compared + through + drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { latency: 1e-5, bandwidth: 1e9 };

    #[test]
    fn sums_take_what_the_formulas_say() {
        assert_eq!([LINK.ring(1, 1e6), LINK.tree(1, 1e6)], [0.0, 0.0]);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(LINK.ring(4, 1e6), 6e-5 + 1.5e-3);
        close(LINK.tree(4, 1e6), 4.0 * (1e-5 + 1e-3));
        close(LINK.tree(5, 1e6), 6.0 * (1e-5 + 1e-3));
    }

    #[test]
    fn ranks_beyond_the_batch_are_idle() {
        let work = Work { images: 8, at_once: 2, operations: 8e12, bytes: 1_000_000 };
        let on = |ranks| work.on(ranks, 1e12, LINK);
        assert_eq!((on(1).efficiency, on(1).compute), (1.0, 8.0));
        assert_eq!([on(3).images, on(8).images, on(16).images], [3, 1, 1]);
        // Three images on the slowest of three ranks, which are 9 where 8 are wanted.
        assert!((on(3).efficiency - 8.0 / 9.0).abs() < 1e-3);
        assert!(on(16).efficiency < 0.51 && on(16).grown > 0.99);
        // A sum that takes as long as the computation halves the speed.
        let slow = Link { latency: 0.0, bandwidth: 1e6 / 4.0 };
        assert_eq!((work.on(2, 1e12, slow).ring, work.on(2, 1e12, slow).efficiency), (4.0, 0.5));
    }
}
