//! Recomputation: how much of a network's forward pass the tape keeps.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_ops::{Boundary, recompute, trains};

/// How much of a network's forward pass the tape keeps for the backward pass. Gradients are the same either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientCheckpointing {
    /// Everything that a gradient needs: fastest, and the most memory.
    #[default]
    None,
    /// Only the inputs of each block; the block is run again in the backward pass.
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
