//! The image encoder: a ViT with a class token and pre-norms.
//!
//! Source: BLIP's `models/vit.py` (timm's `VisionTransformer`), as ImageReward carries it. Inference only: stochastic depth and
//! dropout, which BLIP trains with, are absent.
//!
//! A network that is trained from nothing may have convolutions before its patches: Xiao and others, *Early Convolutions Help Transformers
//! See Better* (arXiv 2106.14881), with group norms for batch norms, so that an image's score does not depend on the other images of its batch.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::BlipConfig;
use super::config::STEM_GROUPS;
use crate::footprint::{Ledger, Traced};
use crate::layers::{Activation, Conv2d, GroupNorm, LayerNorm, Linear, Mask, attention, parameter};
use crate::number_format::NumberFormat;

/// Turns images into tokens. Exact GELU, norms with ε 1e-6, learned positions.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// The class token, `[1, 1, width]`.
    pub cls_token: Param<Tensor<3>>,
    /// The learned positions, `[1, tokens, width]`; row 0 is the class token's.
    pub pos_embed: Param<Tensor<3>>,
    /// Turns pixels into one vector per patch.
    pub patch_embed: PatchEmbed,
    /// The transformer blocks, in order.
    pub blocks: Vec<VisionBlock>,
    /// The norm after the last block.
    pub norm: LayerNorm,
}

/// A convolution whose kernel is as large as its stride, after the stem's if there are any.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// The convolutions before the projection; published files have none.
    pub stem: Vec<StemLayer>,
    /// `[width, 3, patch, patch]`, or after a stem `[width, channels, patch/stride, patch/stride]`.
    pub proj: Conv2d,
}

/// 3×3 convolution, group norm, GELU.
#[derive(Module, Debug)]
pub struct StemLayer {
    /// `[out, in, 3, 3]`, with a stride.
    pub conv: Conv2d,
    /// The norm after the convolution, over each image by itself.
    pub norm: GroupNorm,
}

/// `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
#[derive(Module, Debug)]
pub struct VisionBlock {
    /// The norm before the attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn: VisionAttention,
    /// The norm before the feed-forward part.
    pub norm2: LayerNorm,
    /// The feed-forward part.
    pub mlp: VisionMlp,
}

/// Self-attention with one projection for queries, keys and values.
#[derive(Module, Debug)]
pub struct VisionAttention {
    /// `[3·width, width]`: queries, keys, values.
    pub qkv: Linear,
    /// The output projection, `[width, width]`.
    pub proj: Linear,
    #[module(skip)]
    heads: usize,
}

/// Linear, GELU, linear; four times as wide inside.
#[derive(Module, Debug)]
pub struct VisionMlp {
    /// From the width to four times the width, `[4·width, width]`.
    pub fc1: Linear,
    /// Back to the width, `[width, 4·width]`.
    pub fc2: Linear,
}

impl VisionTransformer {
    /// The encoder that `config` describes.
    pub fn new(config: &BlipConfig, device: &Device) -> Self {
        let (width, eps) = (config.vision_width, config.vision_layer_norm_eps);
        let block = |_| VisionBlock {
            norm1: LayerNorm::new(width, eps, device),
            attn: VisionAttention {
                qkv: Linear::new(width, 3 * width, device),
                proj: Linear::new(width, width, device),
                heads: config.vision_heads,
            },
            norm2: LayerNorm::new(width, eps, device),
            mlp: VisionMlp { fc1: Linear::new(width, 4 * width, device), fc2: Linear::new(4 * width, width, device) },
        };
        Self {
            cls_token: parameter([1, 1, width], 0.0, device),
            pos_embed: parameter([1, config.image_tokens(), width], 0.0, device),
            patch_embed: PatchEmbed::new(config, device),
            blocks: (0..config.vision_depth).map(block).collect(),
            norm: LayerNorm::new(width, eps, device),
        }
    }

    /// Normalised pixels `[b, 3, size, size]` → what the first block takes, `[b, tokens, width]`.
    pub fn embed(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let patches = self.patch_embed.forward(pixel_values);
        let [b, _, width] = patches.dims();
        let format = patches.dtype();
        let cls_token = self.cls_token.val().cast(format).expand([b, 1, width]);
        Tensor::cat(vec![cls_token, patches], 1) + self.pos_embed.val().cast(format)
    }

    /// [`embed`](Self::embed) of shapes.
    pub fn trace_embed(&self, ledger: &Ledger, pixel_values: Traced, format: NumberFormat) -> Traced {
        let stem = &self.patch_embed.stem;
        let x = stem.iter().fold(pixel_values, |x, layer| layer.trace(ledger, x, format));
        let patches = self.patch_embed.proj.trace_patches(ledger, x, format);
        let &[b, count, width] = patches.dims() else { panic!("patches of {:?}", patches.dims()) };
        let class_token = ledger.constant(&[b, 1, width], format);
        let tokens = ledger.cat(vec![class_token, patches], 1);
        ledger.add(tokens, ledger.constant(&[1, count + 1, width], format))
    }

    /// Normalised pixels `[b, 3, size, size]` → `[b, tokens, width]`.
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let x = self.blocks.iter().fold(self.embed(pixel_values), |x, block| block.forward(x));
        self.norm.forward(x)
    }
}

impl PatchEmbed {
    fn new(config: &BlipConfig, device: &Device) -> Self {
        let mut channels = 3;
        let layer = |&[width, stride]: &[usize; 2]| StemLayer {
            conv: Conv2d::strided(std::mem::replace(&mut channels, width), width, 3, stride, (1, 1), device),
            norm: GroupNorm::new(STEM_GROUPS, width, 1e-5, device),
        };
        let stem = config.vision_stem.iter().map(layer).collect();
        let patch = config.patch_size / config.stem_stride();
        Self { stem, proj: Conv2d::strided(channels, config.vision_width, patch, patch, (0, 0), device) }
    }

    /// `[b, 3, h, w]` → `[b, h/patch · w/patch, width]`, row by row.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        self.proj.forward_patches(self.stem.iter().fold(x, |x, layer| layer.forward(x)))
    }
}

impl StemLayer {
    /// `[b, in, h, w]` → `[b, out, h/stride, w/stride]`.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        Activation::Gelu.forward(self.norm.forward(self.conv.forward(x)))
    }

    fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        ledger.activation(self.norm.trace(ledger, self.conv.trace(ledger, x, format), format, false))
    }
}

impl VisionBlock {
    /// `[b, tokens, width]` → the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(self.norm1.forward(x));
        x.clone() + self.mlp.forward(self.norm2.forward(x))
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let shortcut = x.clone();
        let attended = self.attn.trace(ledger, self.norm1.trace(ledger, x, format), format);
        let x = ledger.add(shortcut, attended);
        let shortcut = x.clone();
        let VisionMlp { fc1, fc2 } = &self.mlp;
        let inner = ledger.activation(fc1.trace(ledger, self.norm2.trace(ledger, x, format), format));
        ledger.add(shortcut, fc2.trace(ledger, inner, format))
    }
}

impl VisionAttention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let width = x.dims()[2];
        let qkv = self.qkv.forward(x);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.clone().narrow(2, i * width, width));
        self.proj.forward(attention(q, k, v, self.heads, Mask::None))
    }

    fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let shape = x.dims().to_vec();
        let qkv = self.qkv.trace(ledger, x, format);
        let parts = [(); 3].map(|()| ledger.part(&qkv, &shape));
        drop(qkv);
        self.proj.trace(ledger, ledger.attention(parts, self.heads), format)
    }
}

impl VisionMlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.fc2.forward(Activation::Gelu.forward(self.fc1.forward(x)))
    }
}
