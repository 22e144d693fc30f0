//! How much of a network the tape keeps.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_ops::{Boundary, recompute, trains};

/// What a network keeps of its forward pass for the backward pass. Gradients are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientCheckpointing {
    /// Everything that a gradient needs.
    #[default]
    None,
    /// What enters each block, which is run again on the way back.
    Blocks,
}

impl GradientCheckpointing {
    /// The same for a module that trains; of one that does not, nothing is to be recomputed. For blocks that are a single convolution,
    /// perhaps behind a norm or a resize: of a frozen one the tape keeps no more than what enters.
    #[must_use]
    pub fn where_trained<M: Module>(self, module: &M) -> Self {
        if self == Self::Blocks && trains(module) { Self::Blocks } else { Self::None }
    }

    /// `block(module, boundary)`, kept in full or recomputed. `block` is a function of these two: see [`recompute`].
    pub fn run<M, B, const D: usize>(
        self,
        module: &M,
        boundary: B,
        block: impl Fn(&M, B) -> Tensor<D> + Clone + Send + 'static,
    ) -> Tensor<D>
    where
        M: Module + 'static,
        B: Boundary,
    {
        match self {
            Self::None => block(module, boundary),
            Self::Blocks => recompute(module, boundary, block),
        }
    }
}
