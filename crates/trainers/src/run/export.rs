//! What a run leaves for other tools, a model folder or LoRA files, and the proof that it is another model.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_models::denoiser::Denoiser;
use vp_models::lora::{Dialect, LoraWeights};
use vp_models::parameters::named_parameters;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Component, ModelFolder, Pipeline, load_vae};
use vp_models::vae::AutoencoderKL;

use crate::Error;
use crate::sections::LoraSection;

/// What was exported, as read back from disk.
#[derive(Debug)]
pub struct Exported {
    /// The diffusers folder, or the LoRA file under kohya's names.
    pub path: PathBuf,
    /// Of a folder `‖W_tuned − W_base‖ / ‖W_base‖` over all parameters, of a LoRA the same of the UNet's [`probe`] output; what was
    /// tuned as reloaded.
    pub relative_change: f64,
}

/// The names of a run's LoRA files: kohya's, and diffusers'.
pub const LORA_FILES: [(&str, Dialect); 2] =
    [("lora.safetensors", Dialect::Kohya), ("pytorch_lora_weights.safetensors", Dialect::Diffusers)];

/// How far the output of a merged LoRA may be from that of its factors, relative to the largest value: float32's, and some.
const MERGED: f64 = 1e-3;

/// Writes the factors of `tuned` as [`LORA_FILES`] into `folder`, reads them back onto the base, and holds the output against that of
/// `tuned` and of the base. `notes` go into the metadata of kohya's file.
///
/// # Errors
/// When a file cannot be written, does not read back, or does not draw as `tuned` does.
pub fn export_lora<D: Denoiser>(
    (pipeline, base): (&Pipeline, &Trainable<D>),
    (tuned, lora): (&Trainable<D>, &LoraSection),
    folder: &Path,
    notes: &[(String, String)],
) -> Result<Exported, Error> {
    let names = pipeline.lora_names(&base.denoiser);
    let weights = LoraWeights::of(tuned, lora.alpha());
    let (before, after) = (probe(pipeline, base), probe(pipeline, tuned));
    let mut change = 0.0;
    for (name, dialect) in LORA_FILES {
        let path = folder.join(name);
        weights.save(&path, dialect, &names, if dialect == Dialect::Kohya { notes } else { &[] })?;
        let reloaded = probe(pipeline, &LoraWeights::read(&path, &names)?.merge(base.clone(), 1.0));
        let largest = |tensor: Tensor<4>| f64::from(tensor.abs().max().into_scalar::<f32>());
        let off = largest(reloaded.clone() - after.clone()) / largest(after.clone());
        if off.is_nan() || off > MERGED {
            let path = path.display();
            return Err(Error::Config(format!("{path} draws otherwise than the tuned model: off by {off:.1e} of the largest value")));
        }
        let norm = |tensor: Tensor<4>| f64::from(tensor.square().sum().sqrt().into_scalar::<f32>());
        change = norm(reloaded - before.clone()) / norm(before.clone());
    }
    Ok(Exported { path: folder.join(LORA_FILES[0].0), relative_change: change })
}

/// What a model predicts for a fixed prompt, fixed latents, and the middle of the noise schedule; `[1, c, h, w]`.
pub fn probe<D: Denoiser>(pipeline: &Pipeline, model: &Trainable<D>) -> Tensor<4> {
    let (size, device) = (pipeline.folder.default_size(), pipeline.device());
    let conditioning = model.text(&pipeline.text).encode(&["a photograph".to_string()], size, device);
    let latents = Noise::new(0).normal(Purpose::InitialLatents, 0, &[0], pipeline.latent_shape(size), device);
    let middle = pipeline.folder.scheduler_config.num_train_timesteps() / 2;
    model.denoiser.forward(latents, &[middle as f32], &conditioning)
}

/// Writes the tuned parts with the rest of the base folder to `destination` (in place of what an earlier export left there),
/// reads it back and compares it with the base.
///
/// # Errors
/// When the folder cannot be written or does not read back.
pub fn export<D: Denoiser>(base: (&Pipeline, &Trainable<D>), tuned: &Trainable<D>, destination: &Path) -> Result<Exported, Error> {
    let (pipeline, base) = base;
    pipeline.folder.export(destination, &tuned.components())?;
    let (reloaded, denoiser) = Pipeline::load(ModelFolder::open(destination)?, pipeline.device())?;
    let denoisers = distance(&base.denoiser, &denoiser);
    let encoders = pipeline.text.encoders.iter().zip(&reloaded.text.encoders);
    let encoders = encoders.map(|(base, tuned)| distance(&base.model, &tuned.model));
    let (change, size) = encoders.fold(denoisers, |(change, size), (c, s)| (change + c, size + s));
    Ok(Exported { path: destination.to_path_buf(), relative_change: (change / size).sqrt() })
}

/// Writes the tuned autoencoder with the rest of its folder to `destination`, reads it back and compares it with the base.
///
/// # Errors
/// As [`export`].
pub fn export_vae(folder: &ModelFolder, base: &AutoencoderKL, tuned: &AutoencoderKL, destination: &Path) -> Result<Exported, Error> {
    folder.export(destination, &[Component::vae(tuned)])?;
    let device = named_parameters(base)[0].values.device();
    let (change, size) = distance(base, &load_vae(&ModelFolder::open(destination)?, &device)?);
    Ok(Exported { path: destination.to_path_buf(), relative_change: (change / size).sqrt() })
}

/// `(‖b − a‖², ‖a‖²)` over all parameters of two networks that have the same.
pub fn distance<A: Module, B: Module>(a: &A, b: &B) -> (f64, f64) {
    let sum = |squares: Tensor<1>| f64::from(squares.sum().into_scalar::<f32>());
    named_parameters(a)
        .into_iter()
        .zip(named_parameters(b))
        .fold((0.0, 0.0), |(change, size), (a, b)| (change + sum((b.values - a.values.clone()).square()), size + sum(a.values.square())))
}
