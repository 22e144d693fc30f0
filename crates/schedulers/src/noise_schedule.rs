//! What every sampler shares: the forward process q(x_t | x_0) and the list of time values to visit.

use burn::tensor::Tensor;

use crate::{
    config::{PredictionType, SchedulerClass, SchedulerConfig, TimestepSpacing},
    sigma_schedule::alpha_sigma,
    transition::Transition,
};

/// The tables of one sampler at one number of steps, on the host and in `f64`.
#[derive(Clone, Debug)]
pub struct DiscreteSchedule {
    pub(crate) prediction_type: PredictionType,
    pub(crate) alphas_cumprod: Vec<f64>,
    pub(crate) timesteps: Vec<f64>,
    pub(crate) sigmas: Option<Vec<f64>>,
    /// Whether a sample is x_0 + σ ε rather than √ᾱ x_0 + √(1-ᾱ) ε, so that the network's input must be scaled down and the first noise up.
    pub(crate) variance_exploding: bool,
    pub(crate) init_noise_sigma: f64,
}

impl DiscreteSchedule {
    /// The tables of a sampler whose samples have unit variance.
    pub(crate) fn variance_preserving(
        config: &SchedulerConfig,
        alphas_cumprod: Vec<f64>,
        timesteps: Vec<f64>,
        sigmas: Option<Vec<f64>>,
    ) -> Self {
        let prediction_type = config.prediction_type.unwrap_or(PredictionType::Epsilon);
        Self { prediction_type, alphas_cumprod, timesteps, sigmas, variance_exploding: false, init_noise_sigma: 1.0 }
    }

    /// The tables of a sampler whose samples carry noise of standard deviation σ.
    pub(crate) fn variance_exploding(
        config: &SchedulerConfig,
        class: SchedulerClass,
        alphas_cumprod: Vec<f64>,
        timesteps: Vec<f64>,
        sigmas: Vec<f64>,
    ) -> Self {
        let sigma_max = sigmas.iter().copied().fold(0.0, f64::max);
        let init_noise_sigma = match config.timestep_spacing(class) {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => sigma_max,
            TimestepSpacing::Leading => (sigma_max * sigma_max + 1.0).sqrt(),
        };
        let preserving = Self::variance_preserving(config, alphas_cumprod, timesteps, Some(sigmas));
        Self { variance_exploding: true, init_noise_sigma, ..preserving }
    }
}

/// A noise schedule laid out for a number of sampling steps.
///
/// A *step* is an index into [`timesteps`](Self::timesteps); a *timestep* is a noise level of training, 0 to `num_train_timesteps - 1`.
pub trait NoiseSchedule: Send + Sync {
    /// The tables behind the methods below.
    fn schedule(&self) -> &DiscreteSchedule;

    /// The time values the network is called with, in order; fractional for Karras spacing. `[number of model calls]`
    fn timesteps(&self) -> &[f64] {
        &self.schedule().timesteps
    }

    /// The noise levels σ the sampler steps along, one more than the model calls, or `None` if it steps along ᾱ.
    fn sigmas(&self) -> Option<&[f64]> {
        self.schedule().sigmas.as_deref()
    }

    /// ᾱ_t of every training timestep.
    fn alphas_cumprod(&self) -> &[f64] {
        &self.schedule().alphas_cumprod
    }

    /// What the network predicts.
    fn prediction_type(&self) -> PredictionType {
        self.schedule().prediction_type
    }

    /// What standard normal noise is multiplied with to give the first sample.
    fn init_noise_sigma(&self) -> f64 {
        self.schedule().init_noise_sigma
    }

    /// ᾱ_t / (1 - ᾱ_t), which min-SNR loss weights (2303.09556) are made of. Panics if `timestep` is past the schedule.
    fn signal_to_noise(&self, timestep: usize) -> f64 {
        let alpha = self.alphas_cumprod()[timestep];
        alpha / (1.0 - alpha)
    }

    /// The network's input at the given step of each sample.
    ///
    /// # Shapes
    /// - `sample`, output: `[b, c, h, w]`; `steps`: `[b]`
    fn scale_model_input(&self, sample: Tensor<4>, steps: &[usize]) -> Tensor<4> {
        match &self.schedule().sigmas {
            Some(sigmas) if self.schedule().variance_exploding => {
                let scale = per_sample(steps.iter().map(|&step| alpha_sigma(sigmas[step]).0), &sample);
                sample * scale
            }
            _ => sample,
        }
    }

    /// The forward process √ᾱ_t x_0 + √(1-ᾱ_t) ε: what the network is trained on, whatever the sampler's own parametrisation.
    ///
    /// For the σ-samplers (Euler, Heun) diffusers' `add_noise` returns the same divided by √ᾱ_t, before `scale_model_input`.
    ///
    /// # Shapes
    /// - `original`, `noise`, output: `[b, c, h, w]`; `timesteps`: `[b]`, training timesteps
    fn add_noise(&self, original: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        let (alpha, sigma) = self.signal_and_noise(&original, timesteps);
        original * alpha + noise * sigma
    }

    /// What the network should answer to [`add_noise`](Self::add_noise)'s sample: ε, v or x_0, by `prediction_type`.
    ///
    /// # Shapes
    /// - `original`, `noise`, output: `[b, c, h, w]`; `timesteps`: `[b]`, training timesteps
    fn training_target(&self, original: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        match self.prediction_type() {
            PredictionType::Epsilon => noise,
            PredictionType::Sample => original,
            PredictionType::VPrediction => {
                let (alpha, sigma) = self.signal_and_noise(&original, timesteps);
                noise * alpha - original * sigma
            }
        }
    }

    /// (√ᾱ_t, √(1-ᾱ_t)) as constants beside `like`, each `[b, 1, 1, 1]`.
    fn signal_and_noise(&self, like: &Tensor<4>, timesteps: &[usize]) -> (Tensor<4>, Tensor<4>) {
        let table = self.alphas_cumprod();
        let at =
            |t: &usize| *table.get(*t).unwrap_or_else(|| panic!("timestep {t} is past the schedule's {} training timesteps", table.len()));
        (per_sample(timesteps.iter().map(|t| at(t).sqrt()), like), per_sample(timesteps.iter().map(|t| (1.0 - at(t)).sqrt()), like))
    }
}

/// A single-step sampler: each step is a distribution that depends on the current sample alone.
pub trait Scheduler: Sampler {
    /// p(x_{t-1} | x_t) at the given step of each sample. Differentiable in `model_output` and `sample`.
    ///
    /// # Shapes
    /// - `model_output`, `sample`: `[b, c, h, w]`; `steps`: `[b]`, indices into `timesteps()`, which may differ, as DDPO's shuffled minibatches need
    fn transition(&self, model_output: Tensor<4>, steps: &[usize], sample: Tensor<4>) -> Transition;

    /// σ of a step, known without a model.
    fn std_dev_t(&self, step: usize) -> f64;
}

/// What a sampling loop needs: one call a model evaluation, in the order of `timesteps()`.
///
/// Every [`Scheduler`] is one. Samplers with history start afresh at step 0 and on [`reset`](Self::reset).
pub trait Sampler: NoiseSchedule {
    /// The next sample. Differentiable in `model_output` and `sample`.
    ///
    /// `noise` is standard normal; it may be `None` where [`needs_noise`](Self::needs_noise) is false, and is ignored there.
    ///
    /// # Shapes
    /// - all tensors: `[b, c, h, w]`
    fn step(&mut self, model_output: Tensor<4>, step: usize, sample: Tensor<4>, noise: Option<Tensor<4>>) -> Tensor<4>;

    /// Whether any step draws noise.
    fn needs_noise(&self) -> bool;

    /// Forgets the history, for a chain that does not begin at step 0.
    fn reset(&mut self);
}

impl<S: Scheduler> Sampler for S {
    fn step(&mut self, model_output: Tensor<4>, step: usize, sample: Tensor<4>, noise: Option<Tensor<4>>) -> Tensor<4> {
        let [batch, ..] = sample.dims();
        let transition = self.transition(model_output, &vec![step; batch], sample);
        if self.std_dev_t(step) == 0.0 {
            return transition.prev_sample_mean;
        }
        transition.sample(noise.unwrap_or_else(|| panic!("step {step} draws noise, and none was given")))
    }

    fn needs_noise(&self) -> bool {
        (0..self.timesteps().len()).any(|step| self.std_dev_t(step) > 0.0)
    }

    fn reset(&mut self) {}
}

/// Host values as a constant `[n, 1, 1, 1]` beside `like`: on its device without the tape, in its float type.
pub(crate) fn per_sample(values: impl Iterator<Item = f64>, like: &Tensor<4>) -> Tensor<4> {
    let values: Vec<f64> = values.collect();
    let [batch, ..] = like.dims();
    assert_eq!(values.len(), batch, "one step or timestep per sample of the batch is needed");
    Tensor::<1>::from_data(values.as_slice(), (&like.device().without_autodiff(), like.dtype())).reshape([batch, 1, 1, 1])
}
