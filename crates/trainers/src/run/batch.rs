//! A micro-batch of a run, and the random numbers that belong to it.

use std::ops::Range;

use vp_core::noise::{Noise, Purpose};

use crate::ranks::Portion;

/// A micro-batch to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The micro-batch's number in the run, counted from 0.
    pub index: u64,
    /// Whether this is the first micro-batch of an update.
    pub begins_update: bool,
    /// The rows of it that this rank computes.
    pub part: Portion,
}

impl Batch {
    /// The whole micro-batch of this number, the first of an update.
    #[cfg(test)]
    pub(crate) fn first_of_update(index: u64) -> Self {
        Self { index, begins_update: true, part: Portion::WHOLE }
    }

    /// The number that names the random draws of this micro-batch. It is never 0, which belongs to validation and the previews.
    pub fn draw(self) -> u64 {
        self.index + 1
    }

    /// This rank's rows, of `count` in all.
    pub fn rows(self, count: usize) -> Range<usize> {
        self.part.rows(count)
    }
}

/// Names a stream of random numbers: for each purpose, every number of a run has its own stream. The number is that of a micro-batch unless
/// stated otherwise; a policy's rollouts are numbered by their epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The run's random numbers.
    pub noise: Noise,
    /// The stream's number, counted from 1; 0 belongs to validation and the previews.
    pub number: u64,
    /// The rows of the micro-batch that are drawn for.
    pub part: Portion,
}

impl Draw {
    /// The stream of this number, for all rows of a micro-batch.
    pub fn new(noise: Noise, number: u64) -> Self {
        Self { noise, number, part: Portion::WHOLE }
    }

    /// The numbers of these `rows` in the micro-batch.
    pub fn samples(&self, rows: usize) -> Vec<u64> {
        self.part.samples(rows)
    }

    /// A uniform integer in `low..=high`.
    pub fn integer(&self, purpose: Purpose, low: usize, high: usize) -> usize {
        self.noise.integer(purpose, self.number, 0, low, high)
    }
}
