//! Encoder and decoder as lists of stages whose folds are their `forward`s. One tensor crosses each boundary.

use burn::tensor::Tensor;

use crate::blocks::attention::Attention;
use crate::blocks::resnet::{Downsample2D, ResnetBlock2D, Upsample2D};
use crate::footprint::{Ledger, Traced};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::layers::{Conv2d, GroupNorm};
use crate::number_format::NumberFormat;

/// One step of the encoder or the decoder: `[b, c, h, w]` → `[b, c', h', w']`.
#[derive(Debug, Clone, Copy)]
pub enum VaeStage<'a> {
    /// A convolution.
    Conv(&'a Conv2d),
    /// A residual block.
    Resnet(&'a ResnetBlock2D),
    /// Self-attention over pixels.
    Attention(&'a Attention),
    /// Halves the resolution.
    Downsample(&'a Downsample2D),
    /// Doubles the resolution.
    Upsample(&'a Upsample2D),
    /// Norm, SiLU, convolution.
    Out(&'a GroupNorm, &'a Conv2d),
}

impl VaeStage<'_> {
    /// Runs the stage; `gradient_checkpointing` says how much of it the tape keeps.
    pub fn forward(&self, x: Tensor<4>, gradient_checkpointing: GradientCheckpointing) -> Tensor<4> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Resnet(resnet) => gradient_checkpointing.run(*resnet, (x,), |resnet, (x,)| resnet.forward(x, None)),
            Self::Attention(attention) => gradient_checkpointing.run(*attention, (x,), |attention, (x,)| attention.forward_pixels(x)),
            Self::Downsample(downsample) => downsample.forward(x),
            Self::Upsample(upsample) => {
                let [_, _, h, w] = x.dims();
                let kept = gradient_checkpointing.where_trained(*upsample);
                kept.run(*upsample, (x,), move |upsample, (x,)| upsample.forward(x, [2 * h, 2 * w]))
            }
            Self::Out(norm, conv) => {
                let modules = ((*norm).clone(), (*conv).clone());
                let kept = gradient_checkpointing.where_trained(&modules);
                kept.run(&modules, (x,), |(norm, conv), (x,)| conv.forward(norm.forward_silu(x)))
            }
        }
    }

    /// [`forward`](Self::forward) of shapes.
    pub(super) fn trace(&self, ledger: &Ledger, x: Traced, kept: GradientCheckpointing, format: NumberFormat) -> Traced {
        match self {
            Self::Conv(conv) => conv.trace(ledger, x, format),
            Self::Resnet(resnet) => ledger.block(kept, vec![x], |ledger, mut x| resnet.trace(ledger, x.remove(0), None, format)),
            Self::Attention(attention) => ledger.block(kept, vec![x], |ledger, mut x| attention.trace_pixels(ledger, x.remove(0), format)),
            Self::Downsample(downsample) => downsample.trace(ledger, x, format),
            Self::Upsample(upsample) => {
                let size = [2 * x.dims()[2], 2 * x.dims()[3]];
                let kept = ledger.where_trained(kept, *upsample);
                ledger.block(kept, vec![x], |ledger, mut x| upsample.trace(ledger, x.remove(0), size, format))
            }
            Self::Out(norm, conv) => {
                let kept = ledger.where_trained(kept, &((*norm).clone(), (*conv).clone()));
                ledger.block(kept, vec![x], |ledger, mut x| conv.trace(ledger, norm.trace(ledger, x.remove(0), format, true), format))
            }
        }
    }
}
