//! The tuned model as a folder that other tools open, and the proof that it is another model.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Tensor;
use vp_models::parameters::named_parameters;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Component, ModelFolder, Pipeline, load_vae};
use vp_models::unet::UNet2DConditionModel;
use vp_models::vae::AutoencoderKL;

use crate::Error;

/// What was exported, as read back from disk.
#[derive(Debug)]
pub struct Exported {
    /// The diffusers folder.
    pub path: PathBuf,
    /// `‖W_tuned − W_base‖ / ‖W_base‖` over all parameters, the tuned ones as reloaded.
    pub relative_change: f64,
}

/// Writes the tuned parts with the rest of the base folder to `destination` (in place of what an earlier export left there),
/// reads it back and compares it with the base.
///
/// # Errors
/// When the folder cannot be written or does not read back.
pub fn export(
    base: (&Pipeline, &Trainable<UNet2DConditionModel>),
    tuned: &Trainable<UNet2DConditionModel>,
    destination: &Path,
) -> Result<Exported, Error> {
    let (pipeline, base) = base;
    let encoders = [("text_encoder", &tuned.text_encoder), ("text_encoder_2", &tuned.text_encoder_2)];
    let encoders = encoders.into_iter().filter_map(|(name, model)| Some(Component::text_encoder(name, model.as_ref()?)));
    let components: Vec<Component> = std::iter::once(Component::unet(&tuned.unet)).chain(encoders).collect();
    pipeline.folder.export(destination, &components)?;
    let (reloaded, unet) = Pipeline::load(ModelFolder::open(destination)?, pipeline.device())?;
    let text = |pipeline: &Pipeline, index: usize| pipeline.text.encoders.get(index).map(|encoder| encoder.model.clone());
    let unets = distance(&base.unet, &unet);
    let encoders = (0..2).filter_map(|index| Some(distance(&text(pipeline, index)?, &text(&reloaded, index)?)));
    let (change, size) = encoders.fold(unets, |(change, size), (c, s)| (change + c, size + s));
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

/// `(‖b − a‖², ‖a‖²)` over all parameters.
pub fn distance<M: Module>(a: &M, b: &M) -> (f64, f64) {
    let sum = |squares: Tensor<1>| f64::from(squares.sum().into_scalar::<f32>());
    named_parameters(a)
        .into_iter()
        .zip(named_parameters(b))
        .fold((0.0, 0.0), |(change, size), (a, b)| (change + sum((b.values - a.values.clone()).square()), size + sum(a.values.square())))
}
