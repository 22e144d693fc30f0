//! Encodes images to the distributions of their latents. With a cache, each image is read and encoded only once.

use std::collections::HashMap;

use burn::tensor::{Tensor, TensorData};
use vp_core::profile::{self, Stage};
use vp_models::pipeline::Pipeline;
use vp_models::vae::Posterior;

use crate::Error;
use crate::data::images::{CaptionedImages, Drawn};
use crate::denoising::encode;

/// Encodes images, and caches the results if asked to, like `cache_latents` in diffusers' and kohya's trainers.
#[derive(Debug, Default)]
pub struct Latents {
    kept: Option<HashMap<Drawn, Kept>>,
}

/// One image's posterior, on the host. It stays the same, because the autoencoder does not train.
#[derive(Debug)]
struct Kept {
    mean: Vec<f32>,
    logvar: Vec<f32>,
}

impl Latents {
    /// An encoder with or without a cache, which starts empty.
    pub fn new(cache: bool) -> Self {
        Self { kept: cache.then(HashMap::new) }
    }

    /// The posteriors of the images of a batch, `[b, c, h, w]`.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn posterior(&mut self, images: &CaptionedImages, drawn: &[Drawn], pipeline: &Pipeline) -> Result<Posterior, Error> {
        let read = |drawn: &[Drawn]| profile::time(Stage::Io, || images.read(drawn));
        let Some(kept) = &mut self.kept else { return Ok(encode(pipeline, read(drawn)?)) };
        let mut missing: Vec<Drawn> = drawn.iter().filter(|drawn| !kept.contains_key(drawn)).copied().collect();
        missing.sort_by_key(|drawn| (drawn.entry, drawn.mirrored));
        missing.dedup();
        if !missing.is_empty() {
            let posterior = encode(pipeline, read(&missing)?);
            let (means, logvars) = (rows(posterior.mean), rows(posterior.logvar));
            kept.extend(missing.into_iter().zip(means.into_iter().zip(logvars).map(|(mean, logvar)| Kept { mean, logvar })));
        }
        let [c, h, w] = pipeline.latent_shape(images.size);
        let stack = |part: &dyn Fn(&Kept) -> &[f32]| {
            let values: Vec<f32> = drawn.iter().flat_map(|drawn| part(&kept[drawn]).iter().copied()).collect();
            Tensor::from_data(TensorData::new(values, [drawn.len(), c, h, w]), pipeline.device())
        };
        Ok(Posterior { mean: stack(&|kept| &kept.mean), logvar: stack(&|kept| &kept.logvar) })
    }
}

/// The values of each row, on the host.
fn rows(tensor: Tensor<4>) -> Vec<Vec<f32>> {
    let [b, ..] = tensor.dims();
    let values: Vec<f32> = tensor.into_data().try_into_vec().expect("latents are f32");
    values.chunks(values.len() / b).map(<[f32]>::to_vec).collect()
}
