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
pub use vit::{PatchEmbed, VisionAttention, VisionBlock, VisionMlp, VisionTransformer};

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::gradient_checkpointing::GradientCheckpointing;
use crate::layers::Linear;

/// The whole reward network; its output is not yet scaled by mean and standard deviation.
#[derive(Module, Debug)]
pub struct BlipReward {
    /// Both encoders.
    pub blip: Blip,
    /// The head.
    pub mlp: RewardHead,
    /// What the tape keeps of a block or layer.
    #[module(skip)]
    pub gradient_checkpointing: GradientCheckpointing,
}

/// The encoders under the names of the published file.
#[derive(Module, Debug)]
pub struct Blip {
    /// Images to tokens.
    pub visual_encoder: VisionTransformer,
    /// Tokens and image to hidden states.
    pub text_encoder: BertModel,
}

/// Five linear layers and nothing between them; the missing numbers are the original's dropouts.
#[derive(Module, Debug)]
pub struct RewardHead {
    /// `[w0, hidden]`.
    pub layers_0: Linear,
    /// `[w1, w0]`.
    pub layers_2: Linear,
    /// `[w2, w1]`.
    pub layers_4: Linear,
    /// `[w3, w2]`.
    pub layers_6: Linear,
    /// `[1, w3]`.
    pub layers_7: Linear,
}

/// A step of the forward pass that can be recomputed on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Pixels to image tokens.
    PatchEmbed,
    /// One block of the image encoder.
    Block(usize),
    /// The image encoder's last norm, and the embedded prompt.
    Words,
    /// One layer of the text encoder.
    Layer(usize),
    /// The first token to a reward.
    Head,
}

/// What crosses from one stage to the next.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "handles to tensors, as many as there are stages")]
pub enum Boundary {
    /// Into [`Stage::PatchEmbed`]: normalised pixels `[b, 3, size, size]`.
    Pixels(Tensor<4>),
    /// Into [`Stage::Block`] and [`Stage::Words`]: `[b, image tokens, vision_width]`.
    Image(Tensor<3>),
    /// Into [`Stage::Layer`] and [`Stage::Head`].
    Fusion {
        /// `[b, image tokens, vision_width]`, the same for every layer.
        image_embeds: Tensor<3>,
        /// `[b, tokens, hidden]`.
        hidden_states: Tensor<3>,
    },
    /// Out of [`Stage::Head`]: `[b, 1]`.
    Rewards(Tensor<2>),
}

impl BlipReward {
    /// The network that `config` describes.
    ///
    /// # Panics
    /// When the config was not checked: see [`BlipConfig::read`].
    pub fn new(config: &BlipConfig, device: &Device) -> Self {
        let blip = Blip { visual_encoder: VisionTransformer::new(config, device), text_encoder: BertModel::new(config, device) };
        let [w0, w1, w2, w3, w4] = config.mlp[..] else { panic!("the head has five layers, not {}", config.mlp.len()) };
        let mlp = RewardHead {
            layers_0: Linear::new(config.hidden_size, w0, device),
            layers_2: Linear::new(w0, w1, device),
            layers_4: Linear::new(w1, w2, device),
            layers_6: Linear::new(w2, w3, device),
            layers_7: Linear::new(w3, w4, device),
        };
        Self { blip, mlp, gradient_checkpointing: GradientCheckpointing::None }
    }

    /// The stages in order; running them one after another is [`forward`](Self::forward).
    pub fn stages(&self) -> Vec<Stage> {
        let blocks = (0..self.blip.visual_encoder.blocks.len()).map(Stage::Block);
        let layers = (0..self.blip.text_encoder.encoder.layer.len()).map(Stage::Layer);
        [Stage::PatchEmbed].into_iter().chain(blocks).chain([Stage::Words]).chain(layers).chain([Stage::Head]).collect()
    }

    /// One stage.
    ///
    /// # Panics
    /// When `boundary` is not what this stage takes.
    pub fn run(&self, stage: Stage, boundary: Boundary, text: &TextInputs) -> Boundary {
        let Blip { visual_encoder, text_encoder } = &self.blip;
        match (stage, boundary) {
            (Stage::PatchEmbed, Boundary::Pixels(pixel_values)) => Boundary::Image(visual_encoder.embed(pixel_values)),
            (Stage::Block(i), Boundary::Image(x)) => {
                Boundary::Image(self.gradient_checkpointing.run(&visual_encoder.blocks[i], (x,), |block, (x,)| block.forward(x)))
            }
            (Stage::Words, Boundary::Image(x)) => Boundary::Fusion {
                image_embeds: visual_encoder.norm.forward(x),
                hidden_states: text_encoder.embeddings.forward(text.input_ids.clone()),
            },
            (Stage::Layer(i), Boundary::Fusion { image_embeds, hidden_states }) => {
                let (text, boundary) = (text.clone(), (hidden_states, image_embeds.clone()));
                let layer = move |layer: &BertLayer, (hidden_states, image_embeds)| layer.forward(hidden_states, image_embeds, &text);
                let hidden_states = self.gradient_checkpointing.run(&text_encoder.encoder.layer[i], boundary, layer);
                Boundary::Fusion { image_embeds, hidden_states }
            }
            (Stage::Head, Boundary::Fusion { hidden_states, .. }) => Boundary::Rewards(self.mlp.forward(first_token(hidden_states))),
            (stage, boundary) => panic!("stage {stage:?} does not take {boundary:?}"),
        }
    }

    /// Normalised pixels `[b, 3, size, size]` and prompts → raw rewards `[b, 1]`, before mean and standard deviation.
    pub fn forward(&self, pixel_values: Tensor<4>, text: &TextInputs) -> Tensor<2> {
        match self.fold(&self.stages(), pixel_values, text) {
            Boundary::Rewards(rewards) => rewards,
            other => panic!("the last stage left {other:?}"),
        }
    }

    /// Normalised pixels `[b, 3, size, size]` and prompts → what the head sees, `[b, hidden]`.
    pub fn features(&self, pixel_values: Tensor<4>, text: &TextInputs) -> Tensor<2> {
        let stages = self.stages();
        match self.fold(&stages[..stages.len() - 1], pixel_values, text) {
            Boundary::Fusion { hidden_states, .. } => first_token(hidden_states),
            other => panic!("the last layer left {other:?}"),
        }
    }

    fn fold(&self, stages: &[Stage], pixel_values: Tensor<4>, text: &TextInputs) -> Boundary {
        stages.iter().fold(Boundary::Pixels(pixel_values), |boundary, stage| self.run(*stage, boundary, text))
    }
}

/// `[b, tokens, hidden]` → `[b, hidden]`, of `[CLS]`.
fn first_token(hidden_states: Tensor<3>) -> Tensor<2> {
    let [b, _, hidden] = hidden_states.dims();
    hidden_states.narrow(1, 0, 1).reshape([b, hidden])
}

impl RewardHead {
    /// `[b, hidden]` → `[b, 1]`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let Self { layers_0, layers_2, layers_4, layers_6, layers_7 } = self;
        [layers_0, layers_2, layers_4, layers_6, layers_7].into_iter().fold(features, |x, layer| layer.forward(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::named_parameters;

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
        // Twelve in a ViT block, six around them; 26 in a text layer, four in its embeddings; ten in the head.
        assert_eq!(found.len(), 12 + 6 + 26 + 4 + 10);
    }
}
