//! What Diffusion-DPO and Diffusion-KTO share: they compare the denoising errors of the model with those of the frozen model it started from.

use burn::tensor::{Device, Tensor};
use vp_core::noise::Noise;
use vp_data::Problem;
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::pipeline::{Pipeline, Trainable};

use crate::Error;
use crate::data::preferences::PreferencesSection;
use crate::denoising::{DenoisingBatch, Noised};
use crate::losses::squared_error_changes;
use crate::ranks::Ranks;
use crate::run::Run;
use crate::sections::PreviewSection;
use crate::supervised::validation::Looked;

/// The frozen networks beside the trained model.
#[derive(Debug)]
pub struct Frozen<'a, D: Denoiser> {
    /// The text encoders, the autoencoder and the model's folder.
    pub pipeline: &'a Pipeline,
    /// The reference: the untuned model, on the device without autodiff.
    pub base: &'a Trainable<D>,
}

/// The embeddings of a batch's captions.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// By the model that trains, whose text encoder may train too.
    pub model: Conditioning,
    /// By the reference.
    pub reference: Conditioning,
}

/// The predictions of both models for the same noised latents, `[b, c, h, w]`; those of the reference off the tape.
#[derive(Debug, Clone)]
pub struct Compared {
    model: Tensor<4>,
    reference: Tensor<4>,
}

impl<D: Denoiser> Frozen<'_, D> {
    /// The captions' embeddings for `model` and for the reference.
    pub fn embed(&self, model: &Trainable<D>, data: &DenoisingBatch<'_>) -> Embedded {
        Embedded { model: data.conditioning(model, self.pipeline), reference: data.conditioning(self.base, self.pipeline) }
    }

    /// The predictions of `model` and of the reference.
    pub fn compare(&self, model: &Trainable<D>, noised: &Noised, embedded: &Embedded) -> Compared {
        let predicted = noised.predictions(&model.denoiser, embedded.model.clone());
        Compared { model: predicted, reference: noised.predictions(&self.base.denoiser, embedded.reference.clone()) }
    }
}

impl Compared {
    /// By how much the model's error of each row exceeds that of the reference, `[b]`.
    pub fn changes(&self, noised: &Noised) -> Tensor<1> {
        squared_error_changes(self.model.clone(), self.reference.clone(), noised.target.clone())
    }

    /// The errors of the model and of the reference, `[b]` each and off the tape.
    pub fn errors(self, noised: &Noised) -> [Tensor<1>; 2] {
        [noised.errors_of(self.model.without_autodiff()), noised.errors_of(self.reference)]
    }
}

/// A model's results on held-out preferences, as means over the timesteps.
#[derive(Debug, Clone, Default)]
pub struct PreferenceValidation {
    /// The losses, of each pair or image.
    pub losses: Vec<f64>,
    /// How often the model, compared with the reference, prefers what it should, of each pair or image.
    pub implicit_accuracies: Vec<f64>,
}

impl PreferenceValidation {
    /// The values by name; the first decides which checkpoint is the best.
    pub fn by_name(self) -> Vec<(&'static str, Vec<f64>)> {
        vec![("validation_loss", self.losses), ("validation_implicit_accuracy", self.implicit_accuracies)]
    }
}

/// What the program says of the preferences before a run begins.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What the list is called.
    pub list: &'static str,
    /// The checksum of all in it that the run depends on.
    pub fingerprint: String,
    /// What is counted: "pairs".
    pub units: &'static str,
    /// What that consists of: "pairs of images".
    pub of_what: &'static str,
    /// Units per micro-batch.
    pub batch_size: usize,
    /// Units to train on.
    pub training: usize,
    /// Units held out.
    pub held_out: usize,
    /// More about these numbers, the end of a sentence; may be empty.
    pub more: String,
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
    /// What was left out.
    pub skipped: &'a [Problem],
    /// What else to warn of, a sentence each.
    pub notes: Vec<String>,
    /// The prompts that are trained on.
    pub prompts: Vec<&'a str>,
}

/// An algorithm that learns from what people or a reward prefer, and compares the model with the frozen one that it started from.
pub trait FromPreferences: Clone {
    /// The preferences, training and held-out.
    type Data;

    /// Reads the preferences of a `[preferences]` section. Images are brought to `size`, height and width in pixels.
    ///
    /// # Errors
    /// When the list cannot be used, holds problems that are to be refused, or leaves nothing to train on.
    fn open(&self, section: &PreferencesSection, size: [usize; 2], noise: Noise, device: &Device) -> Result<Self::Data, Error>;

    /// What the program says of the preferences before a run begins.
    fn facts<'a>(&self, data: &'a Self::Data) -> Facts<'a>;

    /// Trains until the run has made all its updates.
    ///
    /// # Errors
    /// When the run is interrupted, a value is not finite, an image cannot be read, or the run's folder cannot be written.
    fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        frozen: &Frozen<'_, D>,
        data: &mut Self::Data,
        preview: Option<&PreviewSection>,
    ) -> Result<(), Error>;

    /// Validates `model` on the held-out preferences.
    ///
    /// # Errors
    /// When an image can no longer be read, or a loss is not finite; that error names `step`.
    fn validate<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        frozen: &Frozen<'_, D>,
        data: &Self::Data,
        noise: Noise,
        ranks: &Ranks,
        step: u64,
    ) -> Result<PreferenceValidation, Error>;
}

/// Validates the tuned model and draws the preview, and writes both to the journal.
///
/// # Errors
/// When an image can no longer be read, a loss or an image of the preview is not finite, or the run's folder cannot be written.
pub(crate) fn look<A: FromPreferences, D: Denoiser>(
    algorithm: &A,
    run: &mut Run<Trainable<D>>,
    frozen: &Frozen<'_, D>,
    data: &A::Data,
    looked: Looked<'_>,
) -> Result<(), Error> {
    let tuned = run.tuned();
    let found = algorithm.validate(&tuned, frozen, data, run.noise, &run.ranks, looked.step)?;
    looked.record(run, &tuned, found.by_name())
}
