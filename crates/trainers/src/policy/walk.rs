//! The order in which an epoch's images and their timesteps are trained on.

use vp_core::noise::{Noise, Purpose};
use vp_data::ShuffledOrder;

use crate::ranks::Portion;

/// The inner loops of ddpo-pytorch's `train.py`, for one run:
///
/// ```text
/// for epoch in 0..                                  new images
///     for inner_epoch in 0..num_inner_epochs        the images, shuffled anew
///         for minibatch in images / batch_size
///             for step in 0..num_trained_steps      each image's own timesteps, shuffled anew
///                 one micro-batch
/// ```
///
/// The position of a micro-batch follows from its number in the run alone, so a run can be resumed anywhere without a state to restore.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    /// The run's random numbers.
    pub noise: Noise,
    /// Images per epoch; for D3PO, pairs.
    pub num_items: usize,
    /// Images (or pairs) that are trained on at once.
    pub batch_size: usize,
    /// Number of walks over the images of an epoch.
    pub num_inner_epochs: usize,
    /// Timesteps per image that are trained on in each walk.
    pub num_trained_steps: usize,
    /// Timesteps from which those are drawn: all of the sampling chain, or those of a window.
    pub num_steps: usize,
}

/// The position of a micro-batch in a [`Walk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The micro-batch's number in the epoch, counted from 0.
    pub within: usize,
    /// Whether this is the first micro-batch of its minibatch, at the first timestep of each image.
    pub begins_minibatch: bool,
    /// Whether this is the last micro-batch of its epoch.
    pub ends_epoch: bool,
    /// The images (or pairs) to train on, by their numbers in the epoch.
    pub items: Vec<usize>,
    /// The scheduler step of each of them, counted from 0.
    pub steps: Vec<usize>,
}

impl Walk {
    /// Micro-batches per epoch.
    pub fn micro_batches_per_epoch(&self) -> usize {
        self.num_inner_epochs * self.num_minibatches() * self.num_trained_steps
    }

    fn num_minibatches(&self) -> usize {
        self.num_items / self.batch_size
    }

    /// The position of micro-batch `index` of the run.
    pub fn at(&self, index: u64) -> Position {
        // The loops above, the innermost first.
        let (index, step) = split(index, self.num_trained_steps);
        let (index, minibatch) = split(index, self.num_minibatches());
        let (epoch, inner_epoch) = split(index, self.num_inner_epochs);
        let within = (inner_epoch * self.num_minibatches() + minibatch) * self.num_trained_steps + step;

        // Walks are numbered throughout the run, and each shuffles images and timesteps anew.
        let walk = epoch * self.num_inner_epochs as u64 + inner_epoch as u64;
        let first = walk * self.num_items as u64 + (minibatch * self.batch_size) as u64;
        let items = ShuffledOrder::new(self.num_items, self.noise, Purpose::MINIBATCH_ORDER).entries(first, self.batch_size);
        let mut timesteps = ShuffledOrder::new(self.num_steps, self.noise, Purpose::TIMESTEP_ORDER);
        let steps = items.iter().map(|item| {
            let order_of_item = walk * self.num_items as u64 + *item as u64;
            timesteps.entries(order_of_item * self.num_steps as u64 + step as u64, 1)[0]
        });
        let steps = steps.collect();
        Position { epoch, within, begins_minibatch: step == 0, ends_epoch: within + 1 == self.micro_batches_per_epoch(), items, steps }
    }
}

impl Position {
    /// The items of a part of the micro-batch, which one rank computes.
    pub fn of_part(mut self, part: Portion) -> Self {
        let rows = part.rows(self.items.len());
        (self.items, self.steps) = (self.items[rows.clone()].to_vec(), self.steps[rows].to_vec());
        self
    }

    /// A position among groups of `size` adjacent images as one among images: all images of each group, at the group's step.
    pub fn of_groups(self, size: usize) -> Self {
        let items = self.items.iter().flat_map(|group| size * group..size * (group + 1)).collect();
        let steps = self.steps.iter().flat_map(|step| std::iter::repeat_n(*step, size)).collect();
        Self { items, steps, ..self }
    }
}

/// `index` divided by `length`: the number of whole rounds, and the position in the next one.
fn split(index: u64, length: usize) -> (u64, usize) {
    (index / length as u64, (index % length as u64) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn walk() -> Walk {
        Walk { noise: Noise::new(7), num_items: 12, batch_size: 3, num_inner_epochs: 2, num_trained_steps: 5, num_steps: 5 }
    }

    /// The (image, timestep) pairs that one walk trains on, in order.
    fn pairs(walk: &Walk, number: usize) -> Vec<(usize, usize)> {
        let per_walk = walk.micro_batches_per_epoch() / walk.num_inner_epochs;
        let positions = (number * per_walk..(number + 1) * per_walk).map(|index| walk.at(index as u64));
        positions.flat_map(|at| at.items.into_iter().zip(at.steps)).collect()
    }

    #[test]
    fn each_image_meets_each_timestep_once_per_walk() {
        let every: BTreeSet<(usize, usize)> = (0..12).flat_map(|item| (0..5).map(move |step| (item, step))).collect();
        for number in 0..4 {
            let pairs = pairs(&walk(), number);
            assert_eq!(pairs.len(), 60);
            assert_eq!(pairs.into_iter().collect::<BTreeSet<_>>(), every, "walk {number}");
        }
    }

    #[test]
    fn no_two_walks_are_alike_in_images_or_timesteps() {
        let walks: Vec<_> = (0..6).map(|number| pairs(&walk(), number)).collect();
        for (i, a) in walks.iter().enumerate() {
            for b in &walks[..i] {
                assert!(a.iter().zip(b).any(|(a, b)| a.0 != b.0), "two walks visit the images in one order");
                let steps_of =
                    |walk: &[(usize, usize)], item| walk.iter().filter(|pair| pair.0 == item).map(|pair| pair.1).collect::<Vec<_>>();
                let differing = (0..12).filter(|item| steps_of(a, *item) != steps_of(b, *item)).count();
                // Two of 120 orders are the same once in 120 times.
                assert!(differing > 8, "{differing} of 12 images have other timesteps");
            }
        }
        // In one walk, every image has an order of its own.
        let first = walk().at(0);
        assert!(first.steps.iter().any(|step| *step != first.steps[0]) || walk().at(5).steps != first.steps);
    }

    #[test]
    fn a_part_of_the_timesteps_never_repeats_one_and_reaches_all_in_the_end() {
        let walk = Walk { num_trained_steps: 2, ..walk() };
        let mut met = BTreeSet::new();
        for number in 0..20 {
            let pairs = pairs(&walk, number);
            assert_eq!(pairs.len(), 24);
            let distinct: BTreeSet<_> = pairs.into_iter().collect();
            assert_eq!(distinct.len(), 24, "walk {number} repeats a timestep of an image");
            met.extend(distinct);
        }
        assert_eq!(met.len(), 60);
    }

    #[test]
    fn a_minibatch_stays_for_all_its_timesteps_and_epochs_end_where_they_say() {
        let walk = walk();
        for index in 0..2 * walk.micro_batches_per_epoch() as u64 {
            let at = walk.at(index);
            assert_eq!((at.epoch, at.within), (index / 40, (index % 40) as usize));
            assert_eq!((at.begins_minibatch, at.ends_epoch), (index % 5 == 0, index % 40 == 39));
            if !at.begins_minibatch {
                assert_eq!(at.items, walk.at(index - 1).items);
            } else if index % 20 != 0 {
                assert!(at.items.iter().all(|item| !walk.at(index - 1).items.contains(item)));
            }
        }
    }

    #[test]
    fn the_parts_of_a_minibatch_make_it_up() {
        let whole = walk().at(7);
        let parts: Vec<Position> = (0..3).map(|index| whole.clone().of_part(Portion { index, of: 3 })).collect();
        assert_eq!(parts.iter().flat_map(|part| part.items.clone()).collect::<Vec<_>>(), whole.items);
        assert_eq!(parts.iter().flat_map(|part| part.steps.clone()).collect::<Vec<_>>(), whole.steps);
        assert_eq!(whole.clone().of_part(Portion::WHOLE), whole);
    }

    /// The position depends on the number alone, as a resumed run needs; a run with another seed walks in another order.
    #[test]
    fn the_number_alone_says_where_it_stands() {
        let (walk, other) = (walk(), Walk { noise: Noise::new(8), ..walk() });
        let there: Vec<Position> = (0..80).map(|index| walk.at(index)).collect();
        assert!((0..80).rev().all(|index| walk.at(index) == there[index as usize]));
        assert!((0..80).any(|index| other.at(index).items != there[index as usize].items));
        // The order of runs that were started with an earlier version.
        assert_eq!((there[0].items.clone(), there[0].steps.clone()), (vec![4, 10, 7], vec![2, 0, 2]));
    }
}
