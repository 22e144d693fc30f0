//! The networks of a run, laid out from their configs: shapes without values.

use std::collections::HashSet;
use std::rc::Rc;

use burn::module::ParamId;
use vp_models::GradientCheckpointing;
use vp_models::NumberFormat;
use vp_models::denoiser::Denoiser;
use vp_models::footprint::{Counted, Engine, Ledger, ModelSizes, Published, ScoringNetwork, bytes_of, counted, nowhere, values};
use vp_models::lora::{attach_unfilled, layers};
use vp_models::parameters::parameter_names;
use vp_models::pipeline::{LoadedDenoiser, TextModel, Trainable};
use vp_models::vae::AutoencoderKL;

use super::format;
use crate::Error;
use crate::config::TrainConfig;

/// The configs of a run's networks.
#[derive(Debug, Clone)]
pub struct Networks {
    /// The model's.
    pub model: ModelSizes,
    /// The published model whose sizes they are, where the model itself is not on this machine.
    pub assumed: Option<Published>,
    /// Those of the reward that is trained on.
    pub reward: Vec<ScoringNetwork>,
    /// Those of the rewards that are watched.
    pub watched: Vec<ScoringNetwork>,
}

/// The networks of a run as it will have them: with factors, in their number formats, with the recomputation that the config asks for.
pub(super) struct Laid {
    pub engine: Engine,
    /// What trains, as the run has it.
    pub model: Trainable<LoadedDenoiser>,
    pub vae: AutoencoderKL,
    /// Every text encoder.
    pub text: Vec<TextModel>,
    pub reward: Vec<ScoringNetwork>,
    pub watched: Vec<ScoringNetwork>,
    /// The format of the denoiser and the text encoders, and that of the autoencoder.
    pub formats: [NumberFormat; 2],
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
    /// `[c, h, w]`.
    pub latent_shape: [usize; 3],
    /// Tokens of a prompt, and the width of their embeddings.
    pub tokens: [usize; 2],
    /// Values of each parameter that trains.
    pub trained: Vec<u64>,
    /// Values and bytes of the denoiser, the text encoders and the autoencoder, without what trains beside them.
    pub sizes: [Size; 3],
    ids: Rc<HashSet<ParamId>>,
}

/// How large a network is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    pub values: u64,
    pub bytes: u64,
}

impl Laid {
    /// The networks of `config`.
    ///
    /// # Errors
    /// When a pattern is not a regular expression, or matches nothing that could train.
    pub fn out(config: &TrainConfig, networks: &Networks, engine: Engine) -> Result<Self, Error> {
        let (sizes, device) = (&networks.model, nowhere());
        let section = config.vae.clone().unwrap_or_default();
        let formats = [format(config.model.dtype, engine), format(section.dtype, engine)];
        let lora = config.lora().map(|section| section.lora()).transpose()?;
        let pattern = config.trainable_pattern()?;
        // Whole weights that train stay f32; factors are attached later.
        let size = |component: &str, parameters: Vec<Counted>| {
            let mut size = Size::default();
            for parameter in parameters {
                let exact = lora.is_none() && pattern.is_match(&format!("{component}.{}", parameter.name));
                size.values += parameter.values;
                size.bytes += parameter.values * if exact { 4 } else { bytes_of(formats[0]) };
            }
            size
        };
        let (mut unet, mut vae) = (sizes.unet.init(&device), sizes.vae.init(&device));
        unet.gradient_checkpointing = config.model.gradient_checkpointing;
        (vae.gradient_checkpointing, vae.splitting) = (config.model.gradient_checkpointing, section.splitting());
        let text: Vec<TextModel> = sizes.text.iter().map(|config| TextModel::Clip(config.init(&device))).collect();
        let encoders = || sizes.text_components.iter().copied().zip(&text);
        let of_text = encoders().map(|(component, model)| size(component, counted(model)));
        let of_text = of_text.fold(Size::default(), |sum, size| Size { values: sum.values + size.values, bytes: sum.bytes + size.bytes });
        let of_vae = values(&vae);
        let of_unet = size(LoadedDenoiser::COMPONENT, counted(&unet));

        let trains = |component: &str, model: &TextModel| {
            let under = |name: &str| format!("{component}.{name}");
            match &lora {
                Some(lora) => layers(model).iter().any(|layer| lora.targets.is_match(&under(&layer.name))),
                None => parameter_names(model).iter().any(|name| pattern.is_match(&under(name))),
            }
        };
        let text_encoders =
            encoders().filter(|(component, model)| trains(component, model)).map(|(component, model)| (component, model.clone()));
        let base = Trainable { text_encoders: text_encoders.collect(), denoiser: unet };
        let model = lora.as_ref().map_or_else(|| Ok(base.clone()), |lora| attach_unfilled(base.clone(), lora))?;
        let of_model: Vec<Counted> = counted(&model).into_iter().filter(|parameter| pattern.is_match(&parameter.name)).collect();
        if of_model.is_empty() {
            let pattern = pattern.as_str();
            return Err(Error::Config(format!(
                "model.trainable {pattern:?} matches no parameter of the model, so that nothing would train; their names begin with unet. and text_encoder."
            )));
        }
        let pixels = config.model.size.unwrap_or(sizes.default_size);
        let factor = sizes.vae.downscale();
        Ok(Self {
            engine,
            latent_shape: [sizes.vae.latent_channels, pixels[0] / factor, pixels[1] / factor],
            tokens: [sizes.text[0].max_position_embeddings, sizes.text.iter().map(|config| config.hidden_size).sum()],
            reward: networks.reward.clone(),
            watched: networks.watched.clone(),
            ids: Rc::new(of_model.iter().map(Counted::id).collect()),
            trained: of_model.iter().map(|parameter| parameter.values).collect(),
            sizes: [of_unet, of_text, Size { values: of_vae, bytes: of_vae * bytes_of(formats[1]) }],
            size: pixels,
            model,
            vae,
            text,
            formats,
        })
    }

    /// Values that train.
    pub fn trained_values(&self) -> u64 {
        self.trained.iter().sum()
    }

    /// A ledger with a tape on which a gradient is wanted of what trains.
    pub fn ledger(&self) -> Ledger {
        Ledger::on_the_tape(self.engine, self.ids.clone())
    }

    /// Bytes of the weights as they are read: all in f32.
    pub fn read_bytes(&self) -> u64 {
        self.sizes.iter().map(|size| 4 * size.values).sum()
    }

    /// The same networks, with another recomputation.
    pub fn keeping(&self, kept: GradientCheckpointing) -> (LoadedDenoiser, AutoencoderKL) {
        let (mut unet, mut vae) = (self.model.denoiser.clone(), self.vae.clone());
        (unet.gradient_checkpointing, vae.gradient_checkpointing) = (kept, kept);
        (unet, vae)
    }
}
