//! A BLIP reward on disk: a folder as this project writes it, `ImageReward.pt` alone, or BLIP itself, whose head is still to be made.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use serde::Deserialize;

use vp_core::noise::Noise;
use vp_core::{atomic, input_file};

use super::config::CYCLE_REWARD_LAST;
use super::{AspectHeads, Blip, BlipConfig, BlipReward, RewardHead};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::number_format::NumberFormat;
use crate::parameters::{initialize_reward, load, named_parameters};
use crate::reward_files::find_weights;
use crate::weights::{LoadError, SaveType, Weights, save_safetensors};

/// Tensors that published files carry and the reward does not use.
const UNUSED: &[&str] = &[
    "blip.vision_proj.weight",
    "blip.vision_proj.bias",
    "blip.text_proj.weight",
    "blip.text_proj.bias",
    "blip.text_encoder.embeddings.position_ids",
];

/// The paths of a BLIP reward's files. To find them, no file is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlipFiles {
    /// The weights: a safetensors file, the index of a sharded one, or a PyTorch file.
    pub weights: PathBuf,
    /// `config.json` beside the weights. Without it, the weights tell the sizes: see [`BlipConfig::from_weights`].
    pub config: Option<PathBuf>,
    /// `vocab.txt` beside the weights: BERT's word pieces.
    pub vocab: Option<PathBuf>,
    /// `{"mean": …, "std": …}` in `<stem of the weights>.json`, as `ImageReward.json`. It takes precedence over `config.json`.
    pub scale: Option<PathBuf>,
}

/// A BLIP reward in memory.
#[derive(Debug)]
pub struct BlipCheckpoint {
    /// The network, on the device that was asked for.
    pub model: BlipReward,
    /// Its sizes and its scale.
    pub config: BlipConfig,
}

impl BlipFiles {
    /// Finds the files of `path`: a weights file, or a folder with `model.safetensors` (or its index, or fp16 variant),
    /// `model.pt`, `ImageReward.pt`, or a single file of weights of any name, such as `CycleReward-Combo.pth`.
    ///
    /// # Errors
    /// When `path` has no weights.
    pub fn find(path: &Path) -> Result<Self, LoadError> {
        let weights = find_weights(path)?;
        let beside = |name: &str| Some(weights.with_file_name(name)).filter(|file| file.exists());
        let stem = weights.file_name().unwrap_or_default().to_string_lossy();
        let stem = stem.split('.').next().unwrap_or_default();
        let scale = beside(&format!("{stem}.json")).filter(|file| file.file_name() != Some("config.json".as_ref()));
        Ok(Self { config: beside("config.json"), vocab: beside("vocab.txt"), scale, weights })
    }

    /// Reads the configs and the weights.
    ///
    /// # Errors
    /// When a file cannot be read, or the weights are not those of the network; every tensor at fault is named.
    pub fn load(&self, device: &Device) -> Result<BlipCheckpoint, LoadError> {
        let mut weights = Weights::open(&self.weights)?;
        let config = match &self.config {
            Some(path) => BlipConfig::read(path)?,
            None => BlipConfig::from_weights(&weights)?,
        };
        let config = match &self.scale {
            Some(path) => with_scale(config, path)?,
            None => config,
        };
        weights.ignore(UNUSED);
        number_head(&mut weights, &config)?;
        Ok(BlipCheckpoint { model: load(BlipReward::new(&config, device), weights)?, config })
    }
}

impl BlipFiles {
    /// Loads the network that training starts from: a reward, or BLIP as published (`model_large.pth`: the encoders' tensors under `model.` or bare, with
    /// momentum copies, queues and a decoder that are left where they are). Heads that the file lacks are drawn from `noise`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_to_train(&self, aspects: bool, noise: &Noise, device: &Device) -> Result<BlipCheckpoint, LoadError> {
        let mut weights = Weights::open(&self.weights)?;
        weights.ignore(UNUSED);
        weights.rename(|name| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            let is_encoder = name.starts_with("visual_encoder.") || name.starts_with("text_encoder.");
            if is_encoder { format!("blip.{name}") } else { name.into() }
        });
        weights.ignore(UNUSED);
        let config = match &self.config {
            Some(path) => BlipConfig::read(path)?,
            None => BlipConfig::from_weights(&weights)?,
        };
        number_head(&mut weights, &config)?;
        let blip = load(Blip::new(&config, device), weights.split_off("blip."))?;
        let mlp = load_or_draw(RewardHead::new(&config, device), weights.split_off("mlp."), noise)?;
        let heads = |weights| load_or_draw(AspectHeads::new(&config, device), weights, noise);
        let aspect_heads = aspects.then(|| heads(weights.split_off("aspect_heads."))).transpose()?;
        let model = BlipReward { blip, mlp, aspect_heads, gradient_checkpointing: GradientCheckpointing::None, format: NumberFormat::F32 };
        Ok(BlipCheckpoint { model, config: BlipConfig { aspects, ..config } })
    }
}

/// Gives the last layer of CycleReward's head the number that it has in ImageReward's.
fn number_head(weights: &mut Weights, config: &BlipConfig) -> Result<(), LoadError> {
    let (is_eighth, is_seventh) = (weights.shape(CYCLE_REWARD_LAST).is_some(), weights.shape("mlp.layers.7.weight").is_some());
    let found = match config.mlp_activation {
        None if is_eighth => "the head's last layer is mlp.layers.8, as in CycleReward, but config.json lacks \"mlp_activation\": \"gelu\"",
        Some(_) if is_seventh => "the head's last layer is mlp.layers.7, as in ImageReward, but config.json has an mlp_activation",
        _ => "",
    };
    if !found.is_empty() {
        return Err(LoadError::Corrupt { path: weights.origin().into(), found: found.into() });
    }
    weights.rename(|name| match name.strip_prefix("mlp.layers.8.") {
        Some(kind) => format!("mlp.layers.7.{kind}"),
        None => name.into(),
    });
    Ok(())
}

fn load_or_draw<M: Module>(module: M, weights: Weights, noise: &Noise) -> Result<M, LoadError> {
    if weights.is_empty() { Ok(initialize_reward(module, noise)) } else { load(module, weights) }
}

impl BlipCheckpoint {
    /// A network of `config`'s sizes with weights drawn from `noise`.
    pub fn initialize(config: BlipConfig, noise: &Noise, device: &Device) -> Self {
        Self { model: initialize_reward(BlipReward::new(&config, device), noise), config }
    }

    /// Writes `model.safetensors` under ImageReward's keys (of a head with an activation, CycleReward's) and `config.json` into `folder`, which [`BlipFiles::find`] finds.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, kind: SaveType) -> Result<(), LoadError> {
        let mut parameters = named_parameters(&self.model);
        if self.config.mlp_activation.is_some() {
            parameters.iter_mut().for_each(|parameter| parameter.name = parameter.name.replace("mlp.layers.7.", "mlp.layers.8."));
        }
        let tensors = parameters.iter().map(|parameter| {
            let values = parameter.values.clone();
            let read: Box<dyn FnOnce() -> Vec<f32>> = Box::new(move || values.into_data().iter::<f32>().collect());
            (parameter.name.as_str(), parameter.shape.as_slice(), read)
        });
        save_safetensors(&folder.join("model.safetensors"), tensors, &[], kind)?;
        let path = folder.join("config.json");
        let text = serde_json::to_string_pretty(&self.config).expect("a config is JSON") + "\n";
        atomic::write(&path, text.as_bytes()).map_err(|source| LoadError::Io { path: path.display().to_string(), source })
    }
}

fn with_scale(config: BlipConfig, path: &Path) -> Result<BlipConfig, LoadError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Scale {
        mean: f64,
        std: f64,
    }
    let name = path.display().to_string();
    let text = input_file::read_regular_to_string(path).map_err(|source| LoadError::Io { path: name.clone(), source })?;
    match serde_json::from_str(&text) {
        Ok(Scale { mean, std }) if mean.is_finite() && std.is_finite() && std > 0.0 => Ok(BlipConfig { mean, std, ..config }),
        Ok(Scale { mean, std }) => {
            Err(LoadError::Corrupt { path: name, found: format!("mean {mean}, std {std}: expected numbers, std above 0") })
        }
        Err(e) => Err(LoadError::Corrupt { path: name, found: format!("expected {{\"mean\": …, \"std\": …}}: {e}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> BlipConfig {
        BlipConfig {
            image_size: 8,
            patch_size: 4,
            vision_width: 64,
            vision_depth: 2,
            vision_heads: 1,
            hidden_size: 64,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 16,
            vocab_size: 9,
            max_position_embeddings: 40,
            mlp: vec![5, 4, 3, 2, 1],
            ..BlipConfig::image_reward()
        }
    }

    fn write(folder: &Path, leave_out: &str) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let parameters = named_parameters(&BlipReward::new(&tiny(), &Device::flex()));
        let path = folder.join("ImageReward.safetensors");
        let tensors = parameters.iter().filter(|p| p.name != leave_out).map(|p| {
            let values = p.values.clone();
            let read: Box<dyn FnOnce() -> Vec<f32>> = Box::new(move || values.into_data().try_into_vec().unwrap());
            (p.name.as_str(), p.shape.as_slice(), read)
        });
        save_safetensors(&path, tensors, &[], SaveType::F32).unwrap();
        path
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vp-blip-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn sizes_come_from_the_shapes_when_there_is_no_config() {
        let folder = scratch("sizes");
        let weights = write(&folder, "");
        assert_eq!(BlipFiles::find(&weights).unwrap().load(&Device::flex()).unwrap().config, tiny());
        // A side-car is found from the folder too, and its scale wins.
        std::fs::write(folder.join("ImageReward.json"), r#"{"mean": 2.0, "std": 4.0}"#).unwrap();
        let config = BlipFiles::find(&folder).unwrap().load(&Device::flex()).unwrap().config;
        assert_eq!((config.mean, config.std), (2.0, 4.0));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_cycle_reward_is_told_by_the_number_of_its_last_layer() {
        let (folder, device) = (scratch("cycle"), Device::flex());
        std::fs::create_dir_all(&folder).unwrap();
        let BlipConfig { mean, std, mlp_activation, .. } = BlipConfig::cycle_reward();
        let config = BlipConfig { mean, std, mlp_activation, ..tiny() };
        let saved = BlipCheckpoint::initialize(config.clone(), &Noise::new(0), &device);
        saved.save(&folder, SaveType::F32).unwrap();
        assert!(Weights::open(&folder.join("model.safetensors")).unwrap().shape("mlp.layers.8.bias").is_some());
        let load = || BlipFiles::find(&folder).unwrap().load(&device);
        assert_eq!(load().unwrap().config, config);
        // A config without a scale and a length means CycleReward's; one that speaks of another head is refused.
        let path = folder.join("config.json");
        let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let fields = json.as_object_mut().unwrap();
        ["mean", "std", "max_length"].iter().for_each(|name| drop(fields.remove(*name)));
        fields["max_position_embeddings"] = 128.into();
        std::fs::write(&path, json.to_string()).unwrap();
        let read = BlipConfig::read(&path).unwrap();
        assert_eq!((read.mean, read.std, read.max_length), (0.0, 1.0, 128));
        json.as_object_mut().unwrap().remove("mlp_activation");
        std::fs::write(&path, json.to_string()).unwrap();
        let error = load().unwrap_err().to_string();
        assert!(error.contains("mlp.layers.8") && error.contains("\"mlp_activation\": \"gelu\""), "{error}");
        // Without a config, the weights tell.
        std::fs::remove_file(&path).unwrap();
        let longest = load().unwrap_err().to_string();
        assert!(longest.contains("max_length = 128: expected 2 to max_position_embeddings = 40"), "{longest}");
        let config = BlipConfig { max_position_embeddings: 128, max_length: 128, ..config };
        BlipCheckpoint::initialize(config.clone(), &Noise::new(0), &device).save(&folder, SaveType::F32).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(load().unwrap().config, config);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_missing_tensor_and_a_missing_file_are_named() {
        let folder = scratch("missing");
        write(&folder, "mlp.layers.6.bias");
        let error = BlipFiles::find(&folder).unwrap().load(&Device::flex()).unwrap_err().to_string();
        assert!(error.contains("1 missing: mlp.layers.6.bias [2]"), "{error}");
        std::fs::remove_file(folder.join("ImageReward.safetensors")).unwrap();
        let error = BlipFiles::find(&folder).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains("ImageReward.pt"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_stem_is_written_and_read_and_one_that_does_not_fit_is_refused() {
        let (folder, device) = (scratch("stem"), Device::flex());
        std::fs::create_dir_all(&folder).unwrap();
        let config = BlipConfig { vision_stem: vec![[8, 2], [16, 2]], ..tiny() };
        let saved = BlipCheckpoint::initialize(config.clone(), &Noise::new(0), &device);
        saved.save(&folder, SaveType::F32).unwrap();
        let again = BlipFiles::find(&folder).unwrap().load(&device).unwrap();
        assert_eq!(again.config, config);
        let stem = |checkpoint: &BlipCheckpoint| checkpoint.model.blip.visual_encoder.patch_embed.stem[1].conv.weight.val().into_data();
        assert_eq!(stem(&again), stem(&saved));

        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let text = text.replace("\"patch_size\": 4", "\"patch_size\": 2");
        std::fs::write(folder.join("config.json"), text).unwrap();
        let error = BlipFiles::find(&folder).unwrap().load(&device).unwrap_err().to_string();
        assert!(error.contains("the strides of vision_stem multiply to 4: expected a divisor of patch_size = 2"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn training_starts_from_a_reward_or_from_blip_itself() {
        let folder = scratch("to-train");
        let (device, noise) = (Device::flex(), Noise::new(0));
        let weights = write(&folder, "");
        let of = |checkpoint: &BlipCheckpoint, name: &str| {
            let found = named_parameters(&checkpoint.model).into_iter().find(|parameter| parameter.name == name);
            found.map(|parameter| parameter.values.into_data().iter::<f32>().sum::<f32>())
        };
        let (head, aspect) = ("mlp.layers.0.weight", "aspect_heads.fidelity.layers.0.weight");
        // The file's parameters are all 0, drawn ones are not.
        let reward = BlipFiles::find(&weights).unwrap().load_to_train(true, &noise, &device).unwrap();
        assert_eq!(of(&reward, head), Some(0.0));
        assert!(of(&reward, aspect).unwrap() != 0.0 && reward.config.aspects);

        // BLIP's own names, with tensors of its other parts, and no head.
        let parameters = named_parameters(&BlipReward::new(&tiny(), &device));
        let named = parameters.iter().filter_map(|p| Some((format!("model.{}", p.name.strip_prefix("blip.")?), p.shape.clone())));
        let named: Vec<_> = named.chain([("model.image_queue".to_string(), vec![3])]).collect();
        let tensors = named.iter().map(|(name, shape)| {
            let count = shape.iter().product();
            let read: Box<dyn FnOnce() -> Vec<f32>> = Box::new(move || vec![0.0; count]);
            (name.as_str(), shape.as_slice(), read)
        });
        let path = folder.join("model_large.safetensors");
        save_safetensors(&path, tensors, &[], SaveType::F32).unwrap();
        let blip = BlipFiles::find(&path).unwrap().load_to_train(false, &noise, &device).unwrap();
        assert_eq!(blip.config, BlipConfig { mlp: BlipConfig::image_reward().mlp, ..tiny() });
        assert!(of(&blip, head).unwrap() != 0.0);

        // What is written is found again, aspects included.
        let saved = folder.join("saved");
        std::fs::create_dir(&saved).unwrap();
        reward.save(&saved, SaveType::F32).unwrap();
        let again = BlipFiles::find(&saved).unwrap().load(&device).unwrap();
        assert_eq!(again.config, reward.config);
        assert_eq!(of(&again, aspect), of(&reward, aspect));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
