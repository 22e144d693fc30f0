//! Text to image: a model's files loaded, prompts encoded, latents denoised, images decoded.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`, `…_xl/pipeline_stable_diffusion_xl.py`.

mod embeddings;
mod folder;
mod sampling;
mod text;
mod trainable;
mod write;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use regex::Regex;
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_schedulers::Sampler;

use crate::denoiser::Denoiser;
use crate::error::Result;
use crate::lora::{Lora, Names, attach, layers, layers_and_norms};
use crate::number_format::{NumberFormat, is_cpu};
use crate::parameters::{initialize, load, parameter_names};
use crate::unet::UNet2DConditionModel;
use crate::vae::AutoencoderKL;

pub use crate::family::Family;
pub use embeddings::BYTES as EMBEDDINGS_KEPT;
pub use folder::{ModelFolder, ModelOptions};
pub use sampling::{Chain, Guidance, Taken, predict};
pub use text::{TextEncoder, TextEncoders, TextModel};
pub use trainable::Trainable;
pub use write::Component;

/// The denoiser of the pipelines that [`Pipeline::load`] knows.
pub type LoadedDenoiser = UNet2DConditionModel;

/// A text-to-image model without its denoiser, which is passed in wherever it is used: a trainer owns it, an optimizer takes it
/// and gives it back. Everything here is on the plain device and a constant to the tape.
#[derive(Debug)]
pub struct Pipeline {
    /// Turns prompts into conditioning.
    pub text: TextEncoders,
    /// Turns latents into images and back.
    pub vae: AutoencoderKL,
    /// The folder it was loaded from, with its scheduler's config and its sizes.
    pub folder: ModelFolder,
    /// The number formats of these networks and of the denoiser.
    pub formats: Formats,
    device: Device,
}

/// The number formats of a pipeline's networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Formats {
    /// That of the denoiser and the text encoders.
    pub model: NumberFormat,
    /// That of the autoencoder. Published ones overflow in f16.
    pub vae: NumberFormat,
}

impl Formats {
    /// A sentence for each of the formats that `device`, a processor, does not multiply.
    pub fn warnings(&self, device: &Device) -> Vec<String> {
        let mut warnings: Vec<String> = [self.model, self.vae].iter().filter_map(|format| format.warning(device)).collect();
        warnings.dedup();
        warnings
    }
}

/// A batch of images to be drawn.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// One prompt per image.
    pub prompts: &'a [String],
    /// The text that guidance steers away from, the same for all images.
    pub negative_prompt: Option<&'a str>,
    /// Above 1: classifier-free guidance of this strength.
    pub guidance_scale: f64,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

/// Which networks begin with random weights: those that have a parameter whose name (`unet.…`, `text_encoder.…`) matches the pattern.
#[derive(Debug, Clone, Copy)]
pub struct Anew<'a> {
    /// Matches names of parameters.
    pub pattern: &'a Regex,
    /// The weights are drawn from it.
    pub noise: &'a Noise,
}

impl Anew<'_> {
    fn includes<M: Module>(&self, component: &str, network: &M) -> bool {
        parameter_names(network).iter().any(|name| self.pattern.is_match(&format!("{component}.{name}")))
    }
}

/// Loads a model's autoencoder alone.
///
/// # Errors
/// As [`Pipeline::load`].
pub fn load_vae(folder: &ModelFolder, device: &Device) -> Result<AutoencoderKL> {
    let vae = folder.vae_config().init(device);
    let weights = folder.vae_weights(&vae)?;
    Ok(load(vae, weights)?)
}

impl Pipeline {
    /// Loads an opened folder's weights: the pipeline and its denoiser.
    ///
    /// # Errors
    /// On a tensor that is missing, unexpected or mis-shaped, and on a file that is cut short, by name.
    pub fn load(folder: ModelFolder, device: &Device) -> Result<(Self, LoadedDenoiser)> {
        Self::load_or_initialize(folder, device, None)
    }

    /// The same, but the networks that `anew` includes are initialised: the folder needs no weights for them.
    ///
    /// # Errors
    /// As [`load`](Self::load), for the others.
    pub fn load_or_initialize(folder: ModelFolder, device: &Device, anew: Option<Anew<'_>>) -> Result<(Self, LoadedDenoiser)> {
        let text = TextEncoders::load_or_initialize(&folder, device, anew)?;
        let vae = load_vae(&folder, device)?;
        let unet = folder.unet_config().init(device);
        let unet = match anew.filter(|anew| anew.includes(LoadedDenoiser::COMPONENT, &unet)) {
            Some(anew) => initialize(unet, anew.noise),
            None => {
                let weights = folder.denoiser_weights(&unet)?;
                load(unet, weights)?
            }
        };
        Ok((Self { text, vae, folder, formats: Formats::default(), device: device.clone() }, unet))
    }

    /// The pipeline and `model` in these formats. Parameters whose full names match `exact` train and stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_formats(
        self,
        model: Trainable<LoadedDenoiser>,
        formats: Formats,
        exact: Option<&Regex>,
    ) -> Result<(Self, Trainable<LoadedDenoiser>)> {
        let (text, vae) = (self.text.in_format(formats.model, exact)?, self.vae.in_format(formats.vae, exact)?);
        let encoders = model.text_encoders.into_iter();
        let text_encoders = encoders.map(|(component, encoder)| Ok((component, encoder.in_format(component, formats.model, exact)?)));
        let text_encoders = text_encoders.collect::<Result<_>>()?;
        let model = Trainable { denoiser: model.denoiser.in_format(formats.model, exact)?, text_encoders };
        Ok((Self { text, vae, formats, ..self }, model))
    }

    /// The device of all tensors here, without autodiff.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Gives the device's memory that nothing uses back to it, between two phases of a run that need it in other sizes. On the CPU there is
    /// nothing to give back.
    pub fn release_memory(&self) {
        if !is_cpu(&self.device) {
            self.device.memory_cleanup();
        }
    }

    /// `denoiser` with those text encoders that have a parameter whose name matches `pattern` (`text_encoder.…`, `text_encoder_2.…`).
    pub fn trainable<D: Denoiser>(&self, denoiser: D, pattern: &Regex) -> Trainable<D> {
        self.with_encoders(denoiser, |prefix, model| {
            parameter_names(model).iter().any(|name| pattern.is_match(&format!("{prefix}.{name}")))
        })
    }

    /// The base (`denoiser` and those text encoders that `lora` targets) and the same with factors attached.
    ///
    /// # Errors
    /// When `lora.targets` matches no layer.
    pub fn adapted<D: Denoiser>(&self, denoiser: D, lora: &Lora, noise: &Noise) -> Result<(Trainable<D>, Trainable<D>)> {
        let base = self.with_encoders(denoiser, |prefix, model| {
            layers(model).iter().any(|layer| lora.targets.is_match(&format!("{prefix}.{}", layer.name)))
        });
        Ok((base.clone(), attach(base, lora, noise)?))
    }

    /// `denoiser` with all text encoders: everything that a LoRA may change.
    pub fn adaptable<D: Denoiser>(&self, denoiser: D) -> Trainable<D> {
        self.with_encoders(denoiser, |_, _| true)
    }

    /// What the layers of this pipeline with `denoiser` are called in LoRA files.
    pub fn lora_names<D: Denoiser>(&self, denoiser: &D) -> Names {
        Names::new(&layers_and_norms(&self.adaptable(denoiser.clone())), self.folder.family(), self.folder.unet_config())
    }

    fn with_encoders<D: Denoiser>(&self, denoiser: D, which: impl Fn(&str, &TextModel) -> bool) -> Trainable<D> {
        let picked = self.text.encoders.iter().filter(|encoder| which(encoder.component, &encoder.model));
        Trainable { denoiser, text_encoders: picked.map(|encoder| (encoder.component, encoder.model.clone())).collect() }
    }

    /// Shape of the latents of one image.
    pub fn latent_shape(&self, [height, width]: [usize; 2]) -> [usize; 3] {
        let (channels, factor) = (self.vae.config().latent_channels, self.vae.config().downscale());
        [channels, height / factor, width / factor]
    }

    /// Encodes prompts and negative prompt with `text`, which may be the pipeline's own encoders or tuned ones. There is no
    /// negative branch at a guidance scale of 1 or less.
    pub fn encode(&self, text: &TextEncoders, request: &Request<'_>) -> Guidance {
        let conditional = text.encode(request.prompts, request.size, &self.device);
        let unconditional = (request.guidance_scale > 1.0)
            .then(|| text.encode_negative(request.negative_prompt, request.prompts.len(), request.size, &self.device));
        Guidance { conditional, unconditional, scale: request.guidance_scale }
    }

    /// Draws images `[b, 3, H, W]` in [0, 1] from unit noise `[b, c, h, w]`. `noise` gives the noise of a stochastic step.
    pub fn generate<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        sampler: &mut dyn Sampler,
        request: &Request<'_>,
        latents: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Tensor<4> {
        let guidance = self.encode(&model.text(&self.text), request);
        let (start, steps) = (latents * sampler.init_noise_sigma(), 0..sampler.timesteps().len());
        let latents = Chain { denoiser: &model.denoiser, sampler, guidance: &guidance, noise, observe: &mut |_| {} }.run(start, steps);
        profile::time(Stage::Decode, || self.vae.decode_to_images(latents))
    }
}
