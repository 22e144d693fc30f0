//! Prompts to conditioning.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use vp_core::profile::{self, Stage};

use super::Anew;
use super::folder::{Family, ModelFolder};
use crate::clip::{ClipTextConfig, ClipTextModel, rename_published};
use crate::config_json::NetworkConfig;
use crate::denoiser::{AddedConditioning, Conditioning};
use crate::error::Result;
use crate::parameters::{initialize, load};
use crate::tokenizer::ClipTokenizer;
use crate::weights::Weights;

/// A tokenizer and its encoder.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    tokenizer: Arc<ClipTokenizer>,
    /// The network; public so that a trainer can take it out and put it back.
    pub model: ClipTextModel,
}

/// The one or two text encoders of a pipeline.
#[derive(Debug, Clone)]
pub struct TextEncoders {
    /// One for SD 1.x and 2.x, two for XL.
    pub encoders: Vec<TextEncoder>,
    family: Family,
    force_zeros_for_empty_prompt: bool,
}

impl TextEncoder {
    fn load(folder: &Path, suffix: &str, device: &Device, anew: Option<Anew<'_>>) -> Result<Self> {
        let name = format!("text_encoder{suffix}");
        let weights_folder = folder.join(&name);
        let model = ClipTextConfig::read(&weights_folder.join("config.json"))?.init(device);
        let tokenizer = ClipTokenizer::from_folder(&folder.join(format!("tokenizer{suffix}")))?;
        let model = match anew.filter(|anew| anew.includes(&name, &model)) {
            Some(anew) => initialize(model, anew.noise),
            None => {
                let mut weights = Weights::open_component(&weights_folder, "model")?;
                rename_published(&mut weights);
                load(model, weights)?
            }
        };
        Ok(Self { tokenizer: Arc::new(tokenizer), model })
    }

    fn tokenize(&self, prompts: &[String]) -> Vec<Vec<u32>> {
        prompts.iter().map(|prompt| self.tokenizer.encode(prompt).ids).collect()
    }
}

impl TextEncoders {
    /// Loads what the folder has.
    ///
    /// # Errors
    /// As loading any component.
    pub fn load(folder: &ModelFolder, device: &Device) -> Result<Self> {
        Self::load_or_initialize(folder, device, None)
    }

    pub(super) fn load_or_initialize(folder: &ModelFolder, device: &Device, anew: Option<Anew<'_>>) -> Result<Self> {
        let suffixes: &[&str] = if folder.family() == Family::StableDiffusionXl { &["", "_2"] } else { &[""] };
        let encoders = suffixes.iter().map(|suffix| TextEncoder::load(folder.path(), suffix, device, anew)).collect::<Result<_>>()?;
        let force_zeros_for_empty_prompt = folder.force_zeros_for_empty_prompt();
        Ok(Self { encoders, family: folder.family(), force_zeros_for_empty_prompt })
    }

    /// The same with other networks where one is given.
    pub fn with_models(&self, models: [Option<&ClipTextModel>; 2]) -> Self {
        let mut text = self.clone();
        for (encoder, model) in text.encoders.iter_mut().zip(models) {
            if let Some(model) = model {
                encoder.model = model.clone();
            }
        }
        text
    }

    /// One line for the user if a prompt does not fit into the encoder's tokens, with what is lost.
    pub fn warning(&self, prompt: &str) -> Option<String> {
        self.encoders[0].tokenizer.encode(prompt).warning()
    }

    /// Conditioning for `prompts`, at images of `[height, width]` pixels (which SDXL is told).
    ///
    /// SD 1.x and 2.x: the last hidden states. XL: both encoders' penultimate states side by side, the second's projected pooled
    /// state, and the sizes.
    pub fn encode(&self, prompts: &[String], size: [usize; 2], device: &Device) -> Conditioning {
        profile::time(Stage::Encode, || self.conditioning(prompts, size, device))
    }

    fn conditioning(&self, prompts: &[String], size: [usize; 2], device: &Device) -> Conditioning {
        let outputs = self.encoders.iter().map(|encoder| encoder.model.forward(&encoder.tokenize(prompts), device));
        match self.family {
            Family::StableDiffusion => {
                let output = outputs.into_iter().next().expect("a pipeline has a text encoder");
                Conditioning { encoder_hidden_states: output.last_hidden_state, added: None }
            }
            Family::StableDiffusionXl => {
                let outputs: Vec<_> = outputs.collect();
                let states = outputs.iter().map(|output| output.penultimate.clone()).collect();
                let text_embeds = outputs[1].text_embeds.clone().expect("XL's second text encoder has a projection; checked on loading");
                let added = AddedConditioning { text_embeds, time_ids: time_ids(prompts.len(), size, device) };
                Conditioning { encoder_hidden_states: Tensor::cat(states, 2), added: Some(added) }
            }
        }
    }

    /// Conditioning for `rows` times the negative prompt. An absent one is the empty text, or zeros where the folder says so.
    pub fn encode_negative(&self, negative: Option<&str>, rows: usize, size: [usize; 2], device: &Device) -> Conditioning {
        let encoded = self.encode(&vec![negative.unwrap_or_default().to_string(); rows], size, device);
        if negative.is_some() || self.family == Family::StableDiffusion || !self.force_zeros_for_empty_prompt {
            return encoded;
        }
        let zeroed = |added: AddedConditioning| AddedConditioning { text_embeds: added.text_embeds.zeros_like(), ..added };
        Conditioning { encoder_hidden_states: encoded.encoder_hidden_states.zeros_like(), added: encoded.added.map(zeroed) }
    }
}

/// Original height and width, crop top and left, target height and width; `[rows, 6]`.
fn time_ids(rows: usize, [height, width]: [usize; 2], device: &Device) -> Tensor<2> {
    let (h, w) = (height as f32, width as f32);
    Tensor::from_data(TensorData::new([h, w, 0.0, 0.0, h, w].repeat(rows), [rows, 6]), device)
}
