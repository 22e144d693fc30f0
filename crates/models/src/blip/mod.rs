//! The BLIP reward: a ViT, a BERT that looks at the ViT's tokens, and a linear head on its first token.
//!
//! Source: ImageReward (arXiv 2304.05977), `ImageReward/ImageReward.py` and `ImageReward/models/BLIP`; VP-Score has the same
//! shape. The paths of parameters are the keys of `ImageReward.pt`. Networks here are for inference: the dropout and stochastic
//! depth of the originals are left out, so a forward pass is the same on every call and on every device.

mod checkpoint;
mod config;
mod med;
mod vit;

pub use checkpoint::{BlipCheckpoint, BlipFiles};
pub use config::BlipConfig;
pub use med::{
    BertAttention, BertEmbeddings, BertEncoder, BertIntermediate, BertLayer, BertModel, BertOutput, BertSelfAttention, TextInputs,
};
pub use vit::{PatchEmbed, StemLayer, VisionAttention, VisionBlock, VisionMlp, VisionTransformer};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::footprint::{Ledger, Traced};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::layers::{Activation, Linear};
use crate::number_format::{NumberFormat, in_format};
use crate::parameters::load;
use crate::weights::{LoadError, Weights};

/// The whole reward network; its output is not yet scaled by mean and standard deviation.
#[derive(Module, Debug)]
pub struct BlipReward {
    /// The image encoder and the text encoder.
    pub blip: Blip,
    /// The head, which turns the features into a reward.
    pub mlp: RewardHead,
    /// A head for each aspect. If there are any, [`mlp`](Self::mlp) is their weighted sum.
    pub aspect_heads: Option<AspectHeads>,
    /// How much of each block or layer the tape keeps.
    #[module(skip)]
    pub gradient_checkpointing: GradientCheckpointing,
    /// The number format of the encoders' activations.
    #[module(skip)]
    format: NumberFormat,
}

/// The encoders under the names of the published file.
#[derive(Module, Debug)]
pub struct Blip {
    /// Turns images into tokens.
    pub visual_encoder: VisionTransformer,
    /// Turns the prompt's tokens into hidden states, looking at the image's.
    pub text_encoder: BertModel,
}

/// Five linear layers, with nothing between them (the missing numbers are the original's dropouts) or, in CycleReward, with GELU.
#[derive(Module, Debug)]
pub struct RewardHead {
    /// From the features to `w0` channels: `[w0, hidden]`. The widths are those of [`BlipConfig::mlp`].
    pub layers_0: Linear,
    /// From `w0` to `w1` channels: `[w1, w0]`.
    pub layers_2: Linear,
    /// From `w1` to `w2` channels: `[w2, w1]`.
    pub layers_4: Linear,
    /// From `w2` to `w3` channels: `[w3, w2]`.
    pub layers_6: Linear,
    /// From `w3` channels to the raw reward: `[1, w3]`. CycleReward's files call it number 8.
    pub layers_7: Linear,
    #[module(skip)]
    activation: Option<Activation>,
}

/// One head per aspect, beside the published head: a reader that does not know them passes them over.
#[derive(Module, Debug)]
pub struct AspectHeads {
    /// The image shows what the prompt asks for.
    pub prompt_following: RewardHead,
    /// The image pleases the eye.
    pub aesthetic: RewardHead,
    /// Nothing in the image is broken or out of place.
    pub fidelity: RewardHead,
    /// The image shows nothing harmful.
    pub harmlessness: RewardHead,
}

/// A step of the forward pass that can be recomputed on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlipStage {
    /// From pixels to image tokens.
    PatchEmbed,
    /// One block of the image encoder.
    Block(usize),
    /// The image encoder's last norm, and the embedded prompt.
    Words,
    /// One layer of the text encoder.
    Layer(usize),
    /// From the first token to a reward.
    Head,
}

/// The tensors that cross from one stage to the next.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "handles to tensors, as many as there are stages")]
pub enum Boundary {
    /// Into [`BlipStage::PatchEmbed`]: normalised pixels `[b, 3, size, size]`.
    Pixels(Tensor<4>),
    /// Into [`BlipStage::Block`] and [`BlipStage::Words`]: `[b, image tokens, vision_width]`.
    Image(Tensor<3>),
    /// Into [`BlipStage::Layer`] and [`BlipStage::Head`].
    Fusion {
        /// `[b, image tokens, vision_width]`, the same for every layer.
        image_embeds: Tensor<3>,
        /// `[b, tokens, hidden]`.
        hidden_states: Tensor<3>,
    },
    /// Out of [`BlipStage::Head`]: `[b, 1]`.
    Rewards(Tensor<2>),
}

impl Blip {
    /// The encoders that `config` describes.
    pub fn new(config: &BlipConfig, device: &Device) -> Self {
        Self { visual_encoder: VisionTransformer::new(config, device), text_encoder: BertModel::new(config, device) }
    }
}

impl BlipReward {
    /// The network that `config` describes.
    ///
    /// # Panics
    /// When the config was not checked: see [`BlipConfig::read`].
    pub fn new(config: &BlipConfig, device: &Device) -> Self {
        let aspect_heads = config.aspects.then(|| AspectHeads::new(config, device));
        let mlp = RewardHead::new(config, device);
        Self {
            blip: Blip::new(config, device),
            mlp,
            aspect_heads,
            gradient_checkpointing: GradientCheckpointing::None,
            format: NumberFormat::F32,
        }
    }

    /// The stages in order; running them one after another is [`forward`](Self::forward).
    pub fn stages(&self) -> Vec<BlipStage> {
        let blocks = (0..self.blip.visual_encoder.blocks.len()).map(BlipStage::Block);
        let layers = (0..self.blip.text_encoder.encoder.layer.len()).map(BlipStage::Layer);
        [BlipStage::PatchEmbed].into_iter().chain(blocks).chain([BlipStage::Words]).chain(layers).chain([BlipStage::Head]).collect()
    }

    /// Runs one stage.
    ///
    /// # Panics
    /// When `boundary` is of another kind than this stage takes.
    pub fn run(&self, stage: BlipStage, boundary: Boundary, text: &TextInputs) -> Boundary {
        let Blip { visual_encoder, text_encoder } = &self.blip;
        match (stage, boundary) {
            (BlipStage::PatchEmbed, Boundary::Pixels(pixel_values)) => Boundary::Image(visual_encoder.embed(pixel_values)),
            (BlipStage::Block(i), Boundary::Image(x)) => {
                Boundary::Image(self.gradient_checkpointing.run(&visual_encoder.blocks[i], (x,), |block, (x,)| block.forward(x)))
            }
            (BlipStage::Words, Boundary::Image(x)) => Boundary::Fusion {
                image_embeds: visual_encoder.norm.forward(x),
                hidden_states: text_encoder.embeddings.forward(text.input_ids.clone()),
            },
            (BlipStage::Layer(i), Boundary::Fusion { image_embeds, hidden_states }) => {
                let (text, boundary) = (text.clone(), (hidden_states, image_embeds.clone()));
                let layer = move |layer: &BertLayer, (hidden_states, image_embeds)| layer.forward(hidden_states, image_embeds, &text);
                let hidden_states = self.gradient_checkpointing.run(&text_encoder.encoder.layer[i], boundary, layer);
                Boundary::Fusion { image_embeds, hidden_states }
            }
            (BlipStage::Head, Boundary::Fusion { hidden_states, .. }) => Boundary::Rewards(self.mlp.forward(first_token(hidden_states))),
            (stage, boundary) => panic!("stage {stage:?} does not take {boundary:?}"),
        }
    }

    /// The same network with the encoders' weights and activations in `format`. The heads stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(mut self, format: NumberFormat) -> Result<Self, LoadError> {
        self.blip = in_format(self.blip, "blip", format, None)?;
        Ok(Self { format, ..self })
    }

    /// Normalised pixels `[b, 3, size, size]` and prompts → raw rewards `[b, 1]`, before mean and standard deviation.
    pub fn forward(&self, pixel_values: Tensor<4>, text: &TextInputs) -> Tensor<2> {
        match self.fold(&self.stages(), pixel_values, text) {
            Boundary::Rewards(rewards) => rewards,
            other => panic!("the last stage left {other:?}"),
        }
    }

    /// Normalised pixels `[b, 3, size, size]` and prompts → the input of the head, `[b, hidden]`.
    pub fn features(&self, pixel_values: Tensor<4>, text: &TextInputs) -> Tensor<2> {
        let stages = self.stages();
        match self.fold(&stages[..stages.len() - 1], pixel_values, text) {
            Boundary::Fusion { hidden_states, .. } => first_token(hidden_states),
            other => panic!("the last layer left {other:?}"),
        }
    }

    /// [`features`](Self::features) of shapes, with the encoders' weights and activations in `format`: normalised pixels `[b, 3, size, size]`
    /// and prompts of so many tokens. The heads, a few thousand values, are left out.
    pub fn trace(&self, ledger: &Ledger, pixel_values: Traced, tokens: usize, format: NumberFormat) -> Traced {
        let Blip { visual_encoder, text_encoder } = &self.blip;
        let kept = self.gradient_checkpointing;
        let x = visual_encoder.trace_embed(ledger, ledger.cast(pixel_values, format), format);
        let blocks = visual_encoder.blocks.iter();
        let x = blocks.fold(x, |x, block| ledger.block(kept, vec![x], |ledger, mut x| block.trace(ledger, x.remove(0), format)));
        let image_embeds = visual_encoder.norm.trace(ledger, x, format);
        let words = text_encoder.embeddings.word_embeddings.weight.lazy_shape();
        let hidden_states = ledger.constant(&[image_embeds.dims()[0], tokens, words[1]], format);
        let layers = text_encoder.encoder.layer.iter();
        layers.fold(hidden_states, |hidden_states, layer| {
            let inputs = vec![hidden_states, image_embeds.clone()];
            ledger.block(kept, inputs, |ledger, mut inputs| {
                let hidden_states = inputs.remove(0);
                layer.trace(ledger, hidden_states, inputs.remove(0), format)
            })
        })
    }

    fn fold(&self, stages: &[BlipStage], pixel_values: Tensor<4>, text: &TextInputs) -> Boundary {
        stages.iter().fold(Boundary::Pixels(pixel_values.cast(self.format.dtype())), |boundary, stage| self.run(*stage, boundary, text))
    }
}

/// `[b, tokens, hidden]` → `[b, hidden]`, of `[CLS]`, in f32.
fn first_token(hidden_states: Tensor<3>) -> Tensor<2> {
    let [b, _, hidden] = hidden_states.dims();
    hidden_states.narrow(1, 0, 1).reshape([b, hidden]).cast(DType::F32)
}

impl AspectHeads {
    /// Four heads of `config`'s widths.
    pub fn new(config: &BlipConfig, device: &Device) -> Self {
        let head = || RewardHead::new(config, device);
        Self { prompt_following: head(), aesthetic: head(), fidelity: head(), harmlessness: head() }
    }

    /// All four, in the order of VisionPrefer's aspects.
    pub fn all(&self) -> [&RewardHead; 4] {
        [&self.prompt_following, &self.aesthetic, &self.fidelity, &self.harmlessness]
    }
}

/// The probabilities with which ImageReward's head, in training, drops outputs of its first three layers.
pub const HEAD_DROPOUT: [f64; 3] = [0.2, 0.2, 0.1];

impl RewardHead {
    /// A head of `config`'s widths.
    ///
    /// # Panics
    /// When `config.mlp` does not have five widths; configs are checked before this is called.
    pub fn new(config: &BlipConfig, device: &Device) -> Self {
        let [w0, w1, w2, w3, w4] = config.mlp[..] else { panic!("the head has five layers, not {}", config.mlp.len()) };
        Self {
            layers_0: Linear::new(config.hidden_size, w0, device),
            layers_2: Linear::new(w0, w1, device),
            layers_4: Linear::new(w1, w2, device),
            layers_6: Linear::new(w2, w3, device),
            layers_7: Linear::new(w3, w4, device),
            activation: config.mlp_activation,
        }
    }

    /// A linear head whose widths its tensors tell, named `layers.0.weight` and so on: ImageReward's, or an aesthetic predictor's.
    ///
    /// # Errors
    /// When a tensor is missing, is not a matrix, or does not follow on the one before; all that do not fit are named.
    pub fn from_weights(weights: Weights, device: &Device) -> Result<Self, LoadError> {
        let size = |layer: usize, axis: usize| {
            let name = format!("layers.{layer}.weight");
            let found = weights.shape(&name).and_then(|shape| shape.get(axis)).copied().filter(|size| *size > 0);
            found.ok_or_else(|| LoadError::Corrupt {
                path: weights.origin().into(),
                found: format!("lacks the matrix {name} of a head of five layers"),
            })
        };
        let mlp = [0, 2, 4, 6, 7].map(|layer| size(layer, 0)).into_iter().collect::<Result<_, _>>()?;
        let config = BlipConfig { hidden_size: size(0, 1)?, mlp, ..BlipConfig::image_reward() };
        load(Self::new(&config, device), weights)
    }

    /// Channels of the features that the head reads.
    pub fn hidden_size(&self) -> usize {
        self.layers_0.weight.dims()[1]
    }

    fn layers(&self) -> [&Linear; 5] {
        let Self { layers_0, layers_2, layers_4, layers_6, layers_7, .. } = self;
        [layers_0, layers_2, layers_4, layers_6, layers_7]
    }

    /// `[b, hidden]` → `[b, 1]`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let [inner @ .., last] = self.layers();
        last.forward(inner.into_iter().fold(features, |x, layer| self.activated(layer.forward(x))))
    }

    fn activated(&self, x: Tensor<2>) -> Tensor<2> {
        self.activation.map_or(x.clone(), |activation| activation.forward(x))
    }

    /// The widths of the layers that [`HEAD_DROPOUT`] is for.
    pub fn dropped_widths(&self) -> [usize; 3] {
        [&self.layers_0, &self.layers_2, &self.layers_4].map(|layer| layer.weight.dims()[0])
    }

    /// As [`forward`](Self::forward), with the outputs of the first three layers multiplied by one mask each, `[b, width]`.
    pub fn forward_dropped(&self, features: Tensor<2>, masks: [Tensor<2>; 3]) -> Tensor<2> {
        let [first, second, third, fourth, last] = self.layers();
        let layers = [first, second, third].into_iter().zip(masks);
        let dropped = layers.fold(features, |x, (layer, mask)| self.activated(layer.forward(x)) * mask);
        last.forward(self.activated(fourth.forward(dropped)))
    }

    /// The vector `[1, hidden]` and the number that the linear layers amount to.
    fn folded(&self) -> (Tensor<2>, Tensor<1>) {
        let [first, rest @ ..] = self.layers();
        let bias = |layer: &Linear| layer.bias.as_ref().expect("a head's layers have biases").val();
        let start = (first.weight.val(), bias(first));
        rest.into_iter().fold(start, |(weight, offset), layer| {
            let [width] = offset.dims();
            let out = layer.weight.dims()[0];
            let offset = layer.weight.val().matmul(offset.reshape([width, 1])).reshape([out]) + bias(layer);
            (layer.weight.val().matmul(weight), offset)
        })
    }

    /// A head of these widths that yields `Σ weight · head`: linear layers sum to linear layers. The first unit of each layer carries
    /// the value, the others nothing. Configs see to it that such heads have no activation.
    ///
    /// # Panics
    /// When `heads` is empty.
    pub fn weighted_sum(heads: &[(&Self, f64)], config: &BlipConfig, device: &Device) -> Self {
        let folded = heads.iter().map(|(head, weight)| {
            let (vector, offset) = head.folded();
            (vector * *weight, offset * *weight)
        });
        let (vector, offset) = folded.reduce(|(vector, offset), (v, o)| (vector + v, offset + o)).expect("at least one head");
        let mut head = Self::new(config, device);
        let carry = |layer: &mut Linear| {
            let [out, width] = layer.weight.dims();
            let unit = Tensor::<2>::ones([1, 1], device).pad([(0, out - 1), (0, width - 1)], 0.0);
            layer.weight = Param::from_tensor(unit);
        };
        let out = head.layers_0.weight.dims()[0];
        head.layers_0.weight = Param::from_tensor(vector.pad([(0, out - 1), (0, 0)], 0.0));
        [&mut head.layers_2, &mut head.layers_4, &mut head.layers_6, &mut head.layers_7].into_iter().for_each(carry);
        head.layers_7.bias = Some(Param::from_tensor(offset));
        head
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tolerance;
    use vp_core::noise::{Noise, Purpose};

    use super::*;
    use crate::parameters::{initialize, named_parameters};

    #[test]
    fn paths_are_imagerewards_keys() {
        let config = BlipConfig { vision_depth: 1, num_hidden_layers: 1, vocab_size: 8, ..BlipConfig::image_reward() };
        let found = named_parameters(&BlipReward::new(&config, &Device::flex()));
        let shape = |name: &str| found.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name}")).shape.clone();
        assert_eq!(shape("blip.visual_encoder.cls_token"), [1, 1, 1024]);
        assert_eq!(shape("blip.visual_encoder.pos_embed"), [1, 197, 1024]);
        assert_eq!(shape("blip.visual_encoder.blocks.0.attn.qkv.weight"), [3072, 1024]);
        assert_eq!(shape("blip.text_encoder.embeddings.LayerNorm.weight"), [768]);
        assert_eq!(shape("blip.text_encoder.encoder.layer.0.attention.self.key.weight"), [768, 768]);
        assert_eq!(shape("blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"), [768, 1024]);
        assert_eq!(shape("blip.text_encoder.encoder.layer.0.output.LayerNorm.bias"), [768]);
        assert_eq!(shape("mlp.layers.7.weight"), [1, 16]);
        let with_heads = named_parameters(&BlipReward::new(&BlipConfig { aspects: true, ..config }, &Device::flex()));
        assert!(with_heads.iter().any(|p| p.name == "aspect_heads.fidelity.layers.0.weight"));
        // Twelve in a ViT block, six around them; 26 in a text layer, four in its embeddings; ten in the head.
        assert_eq!(found.len(), 12 + 6 + 26 + 4 + 10);
    }

    #[test]
    fn a_stem_lets_patches_see_beyond_their_edges() {
        let bare =
            BlipConfig { image_size: 8, patch_size: 4, vision_width: 64, vision_depth: 0, vocab_size: 8, ..BlipConfig::image_reward() };
        let config = BlipConfig { vision_stem: vec![[8, 2], [16, 1]], ..bare.clone() };
        let device = Device::flex();
        let encoder = |config| initialize(BlipReward::new(config, &device), &Noise::new(0)).blip.visual_encoder;
        let found = named_parameters(&encoder(&config));
        let shape = |name: &str| found.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name}")).shape.clone();
        assert_eq!(shape("patch_embed.stem.0.conv.weight"), [8, 3, 3, 3]);
        assert_eq!(shape("patch_embed.stem.1.norm.weight"), [16]);
        assert_eq!(shape("patch_embed.proj.weight"), [64, 16, 2, 2]);

        // A pixel at the left edge of the second patch, of four: which tokens hear of it?
        let black = Tensor::<4>::zeros([1, 3, 8, 8], &device);
        let dotted = black.clone().slice_assign([0..1, 0..3, 0..1, 4..5], Tensor::ones([1, 3, 1, 1], &device));
        let changed = |config| {
            let encoder = encoder(config);
            let change = (encoder.embed(dotted.clone()) - encoder.embed(black.clone())).abs().sum_dim(2);
            change.into_data().iter::<f32>().map(|sum| sum > 0.0).collect::<Vec<_>>()
        };
        assert_eq!(changed(&bare), [false, false, true, false, false]);
        assert_eq!(changed(&config)[..3], [false, true, true]);
    }

    #[test]
    fn a_weighted_sum_of_heads_is_a_head() {
        let config = BlipConfig { hidden_size: 6, mlp: vec![5, 4, 3, 2, 1], ..BlipConfig::image_reward() };
        let device = Device::flex();
        let head = |seed| initialize(RewardHead::new(&config, &device), &Noise::new(seed));
        let offset = |mut head: RewardHead, by: f64| {
            head.layers_2.bias = Some(Param::from_tensor(Tensor::full([4], by, &device)));
            head
        };
        let (a, b) = (offset(head(1), 0.5), offset(head(2), -2.0));
        let features = Noise::new(3).normal(Purpose::INITIAL_LATENTS, 0, &[0], [1, 3, 6], &device).reshape([3, 6]);
        let expected = a.forward(features.clone()) * 0.25 + b.forward(features.clone()) * 3.0;
        let sum = RewardHead::weighted_sum(&[(&a, 0.25), (&b, 3.0)], &config, &device);
        sum.forward(features).into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::default());
    }
}
