//! What every sampler shares: the forward process q(x_t | x_0) and the list of time values to visit.

use burn::tensor::Tensor;

use crate::{
    class::SchedulerClass,
    config::{PredictionType, SchedulerConfig, TimestepSpacing},
    prediction::Linear,
    sigma_schedule::alpha_sigma,
    single_step::in_float_type_of,
    transition::Transition,
};

/// One noise level of training: x_t = `signal` x_0 + `noise` ε.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingLevel {
    /// The factor of x_0; √ᾱ_t where samples have unit variance.
    pub signal: f64,
    /// The factor of ε; √(1-ᾱ_t) where samples have unit variance.
    pub noise: f64,
}

impl TrainingLevel {
    /// The level at which the signal's share of a unit variance is `alpha_cumprod`.
    pub(crate) fn variance_preserving(alpha_cumprod: f64) -> Self {
        Self { signal: alpha_cumprod.sqrt(), noise: (1.0 - alpha_cumprod).sqrt() }
    }

    /// The sample at level `to` that has the same x_0 and the same ε as `sample` at this level, if `original_sample` is the x_0 seen in it:
    /// DDIM's step without noise (2010.02502, eq. 12 with σ = 0), between any two levels and in either direction. This level must have noise.
    ///
    /// # Shapes
    /// - `sample`, `original_sample`, output: `[b, c, h, w]`
    pub fn step_to(self, to: Self, sample: Tensor<4>, original_sample: Tensor<4>) -> Tensor<4> {
        let ratio = to.noise / self.noise;
        sample * ratio + original_sample * (to.signal - ratio * self.signal)
    }

    /// The x_0 of a sample at this level whose ε is known, `(sample − noise ε) / signal`.
    ///
    /// # Shapes
    /// - `sample`, `epsilon`, output: `[b, c, h, w]`
    pub fn original_sample(self, sample: Tensor<4>, epsilon: Tensor<4>) -> Tensor<4> {
        (sample - epsilon * self.noise) / self.signal
    }
}

/// The tables of one sampler at one number of steps, on the host and in `f64`.
#[derive(Clone, Debug)]
pub struct DiscreteSchedule {
    pub(crate) prediction_type: PredictionType,
    /// One level per training timestep.
    pub(crate) training_levels: Vec<TrainingLevel>,
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
        alphas_cumprod: &[f64],
        timesteps: Vec<f64>,
        sigmas: Option<Vec<f64>>,
    ) -> Self {
        let prediction_type = config.prediction_type.unwrap_or(PredictionType::Epsilon);
        let training_levels = alphas_cumprod.iter().copied().map(TrainingLevel::variance_preserving).collect();
        Self { prediction_type, training_levels, timesteps, sigmas, variance_exploding: false, init_noise_sigma: 1.0 }
    }

    /// The tables of a sampler whose samples carry noise of standard deviation σ.
    pub(crate) fn variance_exploding(
        config: &SchedulerConfig,
        class: &SchedulerClass,
        alphas_cumprod: &[f64],
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
/// A *step* is an index into [`timesteps`](Self::timesteps). A *timestep* is a time value on the scale of training, 0 to
/// [`num_train_timesteps`](Self::num_train_timesteps) - 1; samplers may visit fractional ones.
pub trait NoiseSchedule: Send + Sync {
    /// The tables behind the methods below.
    fn schedule(&self) -> &DiscreteSchedule;

    /// The time values that the network is called with, in order; fractional for Karras spacing. `[number of model calls]`
    fn timesteps(&self) -> &[f64] {
        &self.schedule().timesteps
    }

    /// The noise levels σ that the sampler steps along, one more than the model calls, or `None` if it steps along ᾱ.
    fn sigmas(&self) -> Option<&[f64]> {
        self.schedule().sigmas.as_deref()
    }

    /// The noise level of every training timestep. `[num_train_timesteps]`
    fn training_levels(&self) -> &[TrainingLevel] {
        &self.schedule().training_levels
    }

    /// T, the number of noise levels in training.
    fn num_train_timesteps(&self) -> usize {
        self.training_levels().len()
    }

    /// The noise level of a training timestep; the nearest one if `timestep` is fractional. Panics if it lies outside the schedule.
    fn training_level(&self, timestep: f64) -> TrainingLevel {
        let (levels, nearest) = (self.training_levels(), timestep.round());
        let level = if nearest >= 0.0 { levels.get(nearest as usize) } else { None };
        *level.unwrap_or_else(|| panic!("timestep {timestep} is outside the schedule's {} training timesteps", levels.len()))
    }

    /// The noise level of the network's input at a step of the sampler, which may lie between those of training.
    fn level(&self, step: usize) -> TrainingLevel {
        match self.sigmas() {
            Some(sigmas) => {
                let (signal, noise) = alpha_sigma(sigmas[step]);
                TrainingLevel { signal, noise }
            }
            None => self.training_level(self.timesteps()[step]),
        }
    }

    /// What the network predicts.
    fn prediction_type(&self) -> PredictionType {
        self.schedule().prediction_type
    }

    /// What standard normal noise is multiplied by to give the first sample.
    fn init_noise_sigma(&self) -> f64 {
        self.schedule().init_noise_sigma
    }

    /// The signal's power over the noise's, (signal / noise)²: ᾱ_t / (1-ᾱ_t) where samples have unit variance. Min-SNR loss weights
    /// (2303.09556) are made of it. Panics if `timestep` lies outside the schedule.
    fn signal_to_noise(&self, timestep: f64) -> f64 {
        let TrainingLevel { signal, noise } = self.training_level(timestep);
        (signal / noise).powi(2)
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

    /// The forward process, `signal` x_0 + `noise` ε at each sample's training level: what the network is trained on, whatever the
    /// sampler's own parametrisation. Panics if a timestep lies outside the schedule.
    ///
    /// For the σ-samplers (Euler, Heun) diffusers' `add_noise` returns the same divided by √ᾱ_t, before `scale_model_input`.
    ///
    /// # Shapes
    /// - `original`, `noise`, output: `[b, c, h, w]`; `timesteps`: `[b]`, training timesteps
    fn add_noise(&self, original: Tensor<4>, noise: Tensor<4>, timesteps: &[f64]) -> Tensor<4> {
        let (on_original, on_noise) = self.signal_and_noise(&original, timesteps);
        original * on_original + noise * on_noise
    }

    /// What the network should answer to [`add_noise`](Self::add_noise)'s sample: ε, v or x_0, by `prediction_type`.
    ///
    /// # Shapes
    /// - `original`, `noise`, output: `[b, c, h, w]`; `timesteps`: `[b]`, training timesteps
    fn training_target(&self, original: Tensor<4>, noise: Tensor<4>, timesteps: &[f64]) -> Tensor<4> {
        match self.prediction_type() {
            PredictionType::Epsilon => noise,
            PredictionType::Sample => original,
            PredictionType::VPrediction => {
                let (signal, sigma) = self.signal_and_noise(&original, timesteps);
                noise * signal - original * sigma
            }
        }
    }

    /// The x_0 that the network sees in a sample of [`add_noise`](Self::add_noise), by its answer: the inverse of
    /// [`training_target`](Self::training_target), at any training timestep, visited by the sampler or not. It is not clipped. Panics if a
    /// timestep lies outside the schedule.
    ///
    /// # Shapes
    /// - `model_output`, `sample`, output: `[b, c, h, w]`; `timesteps`: `[b]`, training timesteps
    fn pred_original_sample(&self, model_output: Tensor<4>, sample: Tensor<4>, timesteps: &[f64]) -> Tensor<4> {
        let model_output = in_float_type_of(model_output, &sample);
        let at = |timestep: f64| {
            let TrainingLevel { signal, noise } = self.training_level(timestep);
            self.prediction_type().original_sample(signal, noise)
        };
        let column = |factor: fn(Linear) -> f64| per_sample(timesteps.iter().map(|&timestep| factor(at(timestep))), &sample);
        let (on_sample, on_output) = (column(|linear| linear.sample), column(|linear| linear.output));
        sample * on_sample + model_output * on_output
    }

    /// The two factors of each sample's training level as constants beside `like`, each `[b, 1, 1, 1]`.
    fn signal_and_noise(&self, like: &Tensor<4>, timesteps: &[f64]) -> (Tensor<4>, Tensor<4>) {
        let levels = || timesteps.iter().map(|&timestep| self.training_level(timestep));
        (per_sample(levels().map(|level| level.signal), like), per_sample(levels().map(|level| level.noise), like))
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

/// What a sampling loop needs: one call per model evaluation, in the order of `timesteps()`.
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    struct Table(DiscreteSchedule);

    impl NoiseSchedule for Table {
        fn schedule(&self) -> &DiscreteSchedule {
            &self.0
        }
    }

    fn table(training_levels: Vec<TrainingLevel>) -> Table {
        Table(DiscreteSchedule {
            prediction_type: PredictionType::Epsilon,
            training_levels,
            timesteps: Vec::new(),
            sigmas: None,
            variance_exploding: false,
            init_noise_sigma: 1.0,
        })
    }

    /// Flow matching (2210.02747) is another table: x_t = (1-t) x_0 + t ε.
    #[test]
    fn a_table_of_straight_paths_gives_the_forward_process_of_flow_matching() {
        let flow = table((1..=4).map(|i| f64::from(i) / 4.0).map(|t| TrainingLevel { signal: 1.0 - t, noise: t }).collect());
        assert_eq!(flow.num_train_timesteps(), 4);
        let device = Device::flex();
        let (x0, noise) = (Tensor::from_data([[[[8.0]]], [[[8.0]]]], &device), Tensor::from_data([[[[-4.0]]], [[[16.0]]]], &device));
        let sample: Vec<f32> = flow.add_noise(x0, noise, &[0.0, 2.0]).into_data().try_to_vec().unwrap();
        // 3/4 of 8 and 1/4 of -4; 1/4 of 8 and 3/4 of 16.
        assert_eq!(sample, [5.0, 14.0]);
        assert_eq!([0.0, 1.0, 2.0, 3.0].map(|t| flow.signal_to_noise(t)), [9.0, 1.0, (1.0_f64 / 3.0).powi(2), 0.0]);
    }

    fn vp_table(prediction_type: PredictionType, alphas: [f64; 3]) -> Table {
        let mut table = table(alphas.map(TrainingLevel::variance_preserving).to_vec());
        table.0.prediction_type = prediction_type;
        table
    }

    #[test]
    fn what_the_network_should_answer_gives_back_the_original_whatever_its_type() {
        let device = Device::flex();
        let rows = |values: [f32; 2]| Tensor::<4>::from_data([[[[values[0]]]], [[[values[1]]]]], &device);
        let (x0, epsilon, timesteps) = (rows([0.7, -0.4]), rows([-1.3, 2.0]), [0.0, 2.0]);
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
            let schedule = vp_table(prediction_type, [0.9, 0.5, 0.1]);
            let answer = schedule.training_target(x0.clone(), epsilon.clone(), &timesteps);
            let sample = schedule.add_noise(x0.clone(), epsilon.clone(), &timesteps);
            let got: Vec<f32> = schedule.pred_original_sample(answer, sample, &timesteps).into_data().try_to_vec().unwrap();
            assert!((got[0] - 0.7).abs() < 1e-5 && (got[1] + 0.4).abs() < 1e-5, "{prediction_type:?}: {got:?}");
        }
    }

    /// From x = 0.8 x_0 + 0.6 ε to 0.6 x_0 + 0.8 ε and back, for x_0 = 2 and ε = -1.
    #[test]
    fn a_step_between_two_levels_keeps_the_original_and_the_noise() {
        let constant = |value: f32| Tensor::<4>::from_data([[[[value]]]], &Device::flex());
        let (clean, noisy) = (TrainingLevel { signal: 0.8, noise: 0.6 }, TrainingLevel { signal: 0.6, noise: 0.8 });
        let close = |got: Tensor<4>, expected: f32| assert!((got.into_scalar::<f32>() - expected).abs() < 1e-6);
        close(clean.step_to(noisy, constant(1.0), constant(2.0)), 0.4);
        close(noisy.step_to(clean, constant(0.4), constant(2.0)), 1.0);
        // Of another x_0, 1, the noise in x = 1 is 1/3: 0.6 + 0.8/3.
        close(clean.step_to(noisy, constant(1.0), constant(1.0)), 0.6 + 0.8 / 3.0);
        close(noisy.original_sample(constant(0.4), constant(-1.0)), 2.0);
    }

    #[test]
    fn the_level_of_a_step_is_that_of_its_sigma_or_of_its_timestep() {
        let mut schedule = vp_table(PredictionType::Epsilon, [0.9, 0.5, 0.1]);
        schedule.0.timesteps = vec![2.0, 0.0];
        assert_eq!([0, 1].map(|step| schedule.level(step)), [0.1, 0.9].map(TrainingLevel::variance_preserving));
        schedule.0.sigmas = Some(vec![0.75, 0.5, 0.0]);
        let TrainingLevel { signal, noise } = schedule.level(0);
        assert!((signal - 0.8).abs() < 1e-12 && (noise - 0.6).abs() < 1e-12, "{signal} {noise}");
    }

    #[test]
    fn a_fractional_timestep_is_at_the_nearest_level() {
        let levels = [0.9, 0.5, 0.1].map(TrainingLevel::variance_preserving);
        let schedule = table(levels.to_vec());
        assert_eq!([0.4, 0.6, 1.3, 2.4].map(|t| schedule.training_level(t)), [levels[0], levels[1], levels[1], levels[2]]);
    }

    #[test]
    #[should_panic(expected = "timestep 2.5 is outside the schedule's 3 training timesteps")]
    fn a_timestep_past_the_schedule_is_refused() {
        table([0.9, 0.5, 0.1].map(TrainingLevel::variance_preserving).to_vec()).training_level(2.5);
    }

    #[test]
    #[should_panic(expected = "timestep -1 is outside the schedule's 3 training timesteps")]
    fn a_timestep_before_the_schedule_is_refused() {
        table([0.9, 0.5, 0.1].map(TrainingLevel::variance_preserving).to_vec()).training_level(-1.0);
    }
}
