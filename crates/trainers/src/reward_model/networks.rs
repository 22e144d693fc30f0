//! The networks that can be trained as reward models: BLIP with a head, and CLIP.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use vp_core::noise::{Noise, Purpose};
use vp_data::RgbImage;
use vp_models::blip::{BlipCheckpoint, BlipConfig, BlipFiles, BlipReward, HEAD_DROPOUT, RewardHead, TextInputs};
use vp_models::clip::{ClipCheckpoint, ClipConfig, ClipModel};
use vp_models::parameters::initialize_reward;
use vp_models::tokenizer::{BertTokenizer, ClipTokenizer};
use vp_models::weights::SaveType;
use vp_rewards::pixel_values;

use crate::Error;
use crate::reward_model::{Dropout, RewardNetwork};

/// The files of a reward model's folder, besides weights and config, that are copied to the trained model's.
const BLIP_FILES: [&str; 1] = ["vocab.txt"];
const CLIP_FILES: [&str; 6] =
    ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"];

/// Prepares images and prompts for a BLIP with a head, and computes its scores.
#[derive(Debug)]
pub struct BlipNetwork {
    /// The sizes of the network, and the scale of its scores.
    pub config: BlipConfig,
    aspect_weights: [f64; 4],
    tokenizer: BertTokenizer,
    files: PathBuf,
    device: Device,
}

impl BlipNetwork {
    /// Reads a reward model, or a BLIP without a reward head. If `initialize`, builds the network of the folder's `config.json` instead,
    /// with random weights from `noise`. `aspects` are the weights of the aspects if each has its own head.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit the others.
    pub fn open(
        path: &Path,
        initialize: bool,
        aspects: Option<[f64; 4]>,
        noise: &Noise,
        device: &Device,
    ) -> Result<(Self, BlipReward), Error> {
        let device = device.clone().without_autodiff();
        let (checkpoint, vocab) = if initialize {
            let config = BlipConfig { aspects: aspects.is_some(), ..BlipConfig::read(&path.join("config.json")).map_err(model)? };
            (BlipCheckpoint::initialize(config, noise, &device), path.join("vocab.txt"))
        } else {
            let files = BlipFiles::find(path).map_err(model)?;
            let vocab = files.vocab.clone().unwrap_or_else(|| files.weights.with_file_name("vocab.txt"));
            (files.load_to_train(aspects.is_some(), noise, &device).map_err(model)?, vocab)
        };
        let tokenizer = BertTokenizer::from_vocab(&vocab).map_err(model)?;
        let BlipCheckpoint { model, config } = checkpoint;
        if tokenizer.vocab_size() > config.vocab_size {
            let (words, rows) = (tokenizer.vocab_size(), config.vocab_size);
            return Err(Error::Config(format!("{} has {words} tokens, but the network only {rows} embeddings", vocab.display())));
        }
        let tokenizer = tokenizer.with_length(config.max_length);
        let aspect_weights = aspects.unwrap_or([1.0; 4]);
        let files = vocab.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok((Self { config, aspect_weights, tokenizer, files, device }, model))
    }

    /// Writes a folder that `--reward` takes: the weights under ImageReward's keys, `config.json` with the scale, and the vocabulary. If
    /// the aspects have heads, `mlp` is set to their weighted sum, so that programs that do not know these heads find the overall score.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, model: &BlipReward, mean: f64, std: f64, folder: &Path) -> Result<(), Error> {
        let mut model = model.clone();
        if let Some(heads) = &model.aspect_heads {
            let weighted: Vec<(&RewardHead, f64)> = heads.all().into_iter().zip(self.aspect_weights).collect();
            model.mlp = RewardHead::weighted_sum(&weighted, &self.config, &self.device);
        }
        let config = BlipConfig { mean, std, ..self.config.clone() };
        carry(&self.files, &BLIP_FILES, folder)?;
        BlipCheckpoint { model, config }.save(folder, SaveType::F32).map_err(self::model)
    }
}

fn model(error: impl Into<vp_models::Error>) -> Error {
    Error::from(error.into())
}

/// Copies those of the files `names` that exist.
fn carry(from: &Path, names: &[&str], to: &Path) -> Result<(), Error> {
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error::Io { path, source }
    };
    std::fs::create_dir_all(to).map_err(io(to))?;
    for (from, to) in names.iter().map(|name| (from.join(name), to.join(name))).filter(|(from, _)| from.is_file()) {
        std::fs::copy(&from, &to).map_err(io(&to))?;
    }
    Ok(())
}

impl RewardNetwork<BlipReward> for BlipNetwork {
    fn device(&self) -> &Device {
        &self.device
    }

    fn pixel_values(&self, images: &[RgbImage]) -> Tensor<4> {
        pixel_values(images, self.config.image_size, &self.device)
    }

    fn scores(&self, model: &BlipReward, pixel_values: Tensor<4>, prompts: &[String], dropout: Option<Dropout>) -> Tensor<2> {
        let features = model.features(pixel_values, &TextInputs::encode(&self.tokenizer, prompts, &self.device));
        let head = |head: &RewardHead, number: u64| match dropout {
            Some(dropout) => head.forward_dropped(features.clone(), masks_of(dropout, head, number, prompts.len(), &self.device)),
            None => head.forward(features.clone()),
        };
        let Some(heads) = &model.aspect_heads else { return head(&model.mlp, 0) };
        let aspects: Vec<Tensor<2>> = heads.all().into_iter().zip(1..).map(|(one, number)| head(one, number)).collect();
        let weighted = aspects.iter().zip(self.aspect_weights).map(|(score, weight)| score.clone() * weight);
        let overall = weighted.reduce(|sum, score| sum + score).expect("there are four aspects");
        Tensor::cat(std::iter::once(overall).chain(aspects).collect(), 1)
    }
}

/// The dropout masks after the first three layers of a head, `[b, width]` each. Kept values are scaled so that the mean stays the same.
fn masks_of(dropout: Dropout, head: &RewardHead, number: u64, images: usize, device: &Device) -> [Tensor<2>; 3] {
    let widths = head.dropped_widths();
    let mut values: [Vec<f32>; 3] = Default::default();
    for image in 0..images as u64 {
        // At most five heads: the overall one and four aspects.
        let stream = (dropout.first + image) * 5 + number;
        let drawn = dropout.draw.noise.uniform_values(Purpose::DROPOUT, dropout.draw.number, stream, widths.iter().sum());
        let mut drawn = drawn.into_iter();
        for ((values, width), probability) in values.iter_mut().zip(widths).zip(HEAD_DROPOUT) {
            let kept = 1.0 / (1.0 - probability) as f32;
            values.extend(drawn.by_ref().take(width).map(|value| if value < probability { 0.0 } else { kept }));
        }
    }
    let mut widths = widths.into_iter();
    values.map(|values| Tensor::from_data(TensorData::new(values, [images, widths.next().expect("three of both")]), device))
}

/// Prepares images and prompts for a CLIP, and computes its scores: PickScore's `exp(logit_scale) · cos`.
#[derive(Debug)]
pub struct ClipNetwork {
    /// The sizes of the network.
    pub config: ClipConfig,
    tokenizer: ClipTokenizer,
    files: PathBuf,
    device: Device,
}

impl ClipNetwork {
    /// Reads a `CLIPModel`'s folder. If `initialize`, builds the network of its `config.json` instead, with random weights from `noise`.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit the others.
    pub fn open(path: &Path, initialize: bool, noise: &Noise, device: &Device) -> Result<(Self, ClipModel), Error> {
        let device = device.clone().without_autodiff();
        let ClipCheckpoint { model, config } = if initialize {
            let config = ClipConfig::read(&path.join("config.json"))?;
            ClipCheckpoint { model: initialize_reward(config.init(&device), noise), config }
        } else {
            ClipCheckpoint::load(path, &device)?
        };
        let tokenizer = ClipTokenizer::from_folder(path).map_err(self::model)?;
        let (words, rows) = (tokenizer.vocab_size(), config.text.vocab_size);
        let (length, positions) = (tokenizer.length(), config.text.max_position_embeddings);
        if words > rows || length > positions {
            return Err(Error::Config(format!(
                "{}: the tokenizer has {words} tokens, at most {length} per text, but the network only {rows} embeddings and {positions} positions",
                path.display()
            )));
        }
        Ok((Self { config, tokenizer, files: path.to_path_buf(), device }, model))
    }

    /// Writes a folder that transformers can read, with the tokenizer.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, model: &ClipModel, folder: &Path) -> Result<(), Error> {
        carry(&self.files, &CLIP_FILES, folder)?;
        Ok(ClipCheckpoint { model: model.clone(), config: self.config.clone() }.save(folder, SaveType::F32)?)
    }
}

impl RewardNetwork<ClipModel> for ClipNetwork {
    fn device(&self) -> &Device {
        &self.device
    }

    fn pixel_values(&self, images: &[RgbImage]) -> Tensor<4> {
        pixel_values(images, self.config.vision.image_size, &self.device)
    }

    fn scores(&self, model: &ClipModel, pixel_values: Tensor<4>, prompts: &[String], _: Option<Dropout>) -> Tensor<2> {
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| self.tokenizer.encode(prompt).ids).collect();
        model.logits(pixel_values, &ids, &self.device).reshape([prompts.len(), 1])
    }
}

/// Regular expression that matches the names of the parameters that train when the first `rate` of each encoder's blocks are frozen, with
/// the embeddings before them. Whole blocks are frozen, while ImageReward's `fix_rate` may end within a block. `blocks` are the name
/// prefixes and the number of blocks of each encoder; `rest` matches the layers after them.
fn pattern(rate: f64, blocks: &[(&str, usize)], rest: &str) -> String {
    let of = |(prefix, count): &(&str, usize)| {
        let first = (*count as f64 * rate) as usize;
        let numbers: Vec<String> = (first..*count).map(|number| number.to_string()).collect();
        format!("{}({})\\.", prefix.replace('.', "\\."), numbers.join("|"))
    };
    format!("^({}|{rest})", blocks.iter().map(of).collect::<Vec<_>>().join("|"))
}

/// Regular expression for the parameters of a BLIP reward that train at this `fix_rate`. If the aspects have heads, these train, and not
/// the overall head.
pub fn trainable_of_blip(config: &BlipConfig, rate: f64) -> String {
    let blocks = [("blip.visual_encoder.blocks.", config.vision_depth), ("blip.text_encoder.encoder.layer.", config.num_hidden_layers)];
    let head = if config.aspects { "aspect_heads\\." } else { "mlp\\." };
    match rate {
        0.0 => format!("^(blip\\.|{head})"),
        _ => pattern(rate, &blocks, &format!("blip\\.visual_encoder\\.norm\\.|{head}")),
    }
}

/// Regular expression for the parameters of a CLIP that train at this `fix_rate`.
pub fn trainable_of_clip(config: &ClipConfig, rate: f64) -> String {
    if rate == 0.0 {
        return ".".into();
    }
    let blocks =
        [("text_model.encoder.layers.", config.text.num_hidden_layers), ("vision_model.encoder.layers.", config.vision.num_hidden_layers)];
    pattern(
        rate,
        &blocks,
        r"text_model\.final_layer_norm\.|vision_model\.post_layernorm\.|visual_projection\.|text_projection\.|logit_scale",
    )
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[test]
    fn whole_blocks_are_frozen_from_below() {
        let config = BlipConfig::image_reward();
        let trained = |aspects, rate, name: &str| {
            Regex::new(&trainable_of_blip(&BlipConfig { aspects, ..config.clone() }, rate)).unwrap().is_match(name)
        };
        // 0.7 of 24 and of 12, rounded down: 16 and 8, as in ImageReward's released recipe.
        for (name, expected) in [
            ("blip.visual_encoder.cls_token", false),
            ("blip.visual_encoder.blocks.15.norm1.weight", false),
            ("blip.visual_encoder.blocks.16.norm1.weight", true),
            ("blip.visual_encoder.blocks.1.norm1.weight", false),
            ("blip.visual_encoder.norm.weight", true),
            ("blip.text_encoder.embeddings.LayerNorm.weight", false),
            ("blip.text_encoder.encoder.layer.7.output.dense.weight", false),
            ("blip.text_encoder.encoder.layer.8.output.dense.weight", true),
            ("mlp.layers.0.weight", true),
        ] {
            assert_eq!(trained(false, 0.7, name), expected, "{name}");
            assert!(trained(false, 0.0, name), "{name}");
        }
        assert!(trained(true, 0.7, "aspect_heads.fidelity.layers.0.weight") && !trained(true, 0.7, "mlp.layers.0.weight"));
        assert!(trained(true, 0.0, "blip.visual_encoder.cls_token") && !trained(true, 0.0, "mlp.layers.0.weight"));
    }
}
