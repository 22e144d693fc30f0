//! AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) as PyTorch writes it (`torch/optim/adamw.py`).

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_models::parameters::map_parameters_where;

use super::moments::{Map, Moment, MomentsFormat};
use super::{Expected, NamedTensors, count, f32};
use crate::Error;

/// AdamW's settings, with PyTorch's names and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay rates of the running means of the gradient and of its square, each in [0, 1) (0.9, 0.999).
    pub betas: [f64; 2],
    /// Added to the denominator; above 0 (1e-8).
    pub eps: f64,
    /// Decoupled weight decay, at least 0 (0.01): each step first scales the weights by `1 - lr · weight_decay`.
    pub weight_decay: f64,
    /// How the running means are kept between updates: `f32` (the default), or `8bit`, which takes 2.03 bytes for each trained value in place
    /// of 8. Parameters with fewer than 4096 values, most of a LoRA's among them, stay in f32. A run may change it when it is resumed.
    pub moments: MomentsFormat,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 1e-2, moments: MomentsFormat::F32 }
    }
}

impl Validate for AdamWConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if self.betas.iter().any(|beta| !(0.0..1.0).contains(beta)) {
            findings.push(format!("AdamW's betas are {:?}; expected two numbers in [0, 1)", self.betas));
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            findings.push(format!("AdamW's eps is {}; expected a number above 0", self.eps));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            findings.push(format!("AdamW's weight_decay is {}; expected a number of at least 0", self.weight_decay));
        }
    }
}

/// The optimizer and its state.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    state: BTreeMap<String, Moments>,
}

/// AdamW's state of one parameter.
#[derive(Debug, Clone)]
struct Moments {
    exp_avg: Moment,
    exp_avg_sq: Moment,
    /// Updates of this parameter. A step without a gradient for it does not count, as in PyTorch.
    step: u64,
}

impl Moments {
    fn new(exp_avg: Tensor<1>, exp_avg_sq: Tensor<1>, step: u64, format: MomentsFormat) -> Self {
        let exp_avg = Moment::new(exp_avg, Map::Signed, format);
        Self { exp_avg, exp_avg_sq: Moment::new(exp_avg_sq, Map::Unsigned, format), step }
    }
}

const WHAT: &str = "AdamW state";

impl AdamW {
    /// An optimizer without state.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, state: BTreeMap::new() }
    }

    /// `module` after one update at learning rate `lr`. A trainable parameter without a gradient stays as it is, without weight decay.
    /// Gradients whose names are not in `module` are ignored.
    #[must_use]
    pub fn step<M: Module>(&mut self, module: M, gradients: &NamedTensors, lr: f64) -> M {
        let updated = |name: &str, trainable: bool| trainable && gradients.contains_key(name);
        map_parameters_where(module, updated, |name, _, values| self.update(name, values, f32(gradients[name].clone()), lr))
    }

    fn update(&mut self, name: &str, values: Tensor<1>, gradient: Tensor<1>, lr: f64) -> Tensor<1> {
        let AdamWConfig { betas: [beta1, beta2], eps, weight_decay, moments } = self.config;
        let dtype = values.dtype();
        let (exp_avg, exp_avg_sq, step) = match self.state.remove(name) {
            Some(Moments { exp_avg, exp_avg_sq, step }) => (exp_avg.into_values(), exp_avg_sq.into_values(), step + 1),
            None => (gradient.zeros_like(), gradient.zeros_like(), 1),
        };
        let exp_avg = exp_avg.clone() + (gradient.clone() - exp_avg) * (1.0 - beta1);
        let exp_avg_sq = exp_avg_sq * beta2 + gradient.square() * (1.0 - beta2);
        // In f64, because 1 - 0.999 in f32 has a relative error of 1e-5.
        let bias_correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let denominator = exp_avg_sq.clone().sqrt() / bias_correction(beta2).sqrt() + eps;
        let decayed = f32(values) * (1.0 - lr * weight_decay);
        let updated = decayed - exp_avg.clone() / denominator * (lr / bias_correction(beta1));
        self.state.insert(name.into(), Moments::new(exp_avg, exp_avg_sq, step, moments));
        updated.cast(dtype)
    }

    /// The state as tensors: `exp_avg.<name>`, `exp_avg_sq.<name>` and `step.<name>` (one number) for each parameter updated so far.
    /// Moments in 8 bits are widened to f32, on the host; [`import`](Self::import) finds the same 8 bits again.
    pub fn export(&self) -> NamedTensors {
        let entries = self.state.iter().flat_map(|(name, Moments { exp_avg, exp_avg_sq, step })| {
            let (exp_avg, exp_avg_sq) = (exp_avg.export(), exp_avg_sq.export());
            let step = count(*step, &exp_avg.device());
            [(format!("exp_avg.{name}"), exp_avg), (format!("exp_avg_sq.{name}"), exp_avg_sq), (format!("step.{name}"), step)]
        });
        entries.collect()
    }

    /// Restores the optimizer of `module` whose state [`export`](Self::export) returned, with the moments in the format of `config`. The state
    /// must be on the module's device.
    ///
    /// # Errors
    /// When the state is incomplete or belongs to another module.
    pub fn import<M: Module>(config: AdamWConfig, mut state: NamedTensors, module: &M) -> Result<Self, Error> {
        let expected = Expected::of(module, WHAT);
        let names: Vec<String> = state.keys().filter_map(|key| key.strip_prefix("step.").map(String::from)).collect();
        let mut moments = BTreeMap::new();
        for name in names {
            let exp_avg = expected.take(&mut state, &format!("exp_avg.{name}"), &name)?;
            let exp_avg_sq = expected.take(&mut state, &format!("exp_avg_sq.{name}"), &name)?;
            let step = expected.take_count(&mut state, &format!("step.{name}"))?;
            moments.insert(name, Moments::new(exp_avg, exp_avg_sq, step, config.moments));
        }
        expected.nothing_left(state)?;
        Ok(Self { config, state: moments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::testing::{Toy, assert_values, toy, values};
    use burn::module::Param;
    use burn::tensor::Device;
    use vp_core::noise::{Noise, Purpose};

    fn gradients(entries: &[(&str, &[f32])]) -> NamedTensors {
        entries.iter().map(|(name, values)| ((*name).into(), Tensor::from_floats(*values, &Device::flex()))).collect()
    }

    fn no_decay() -> AdamWConfig {
        AdamWConfig { weight_decay: 0.0, ..Default::default() }
    }

    #[test]
    fn the_first_update_is_the_rate_times_the_sign() {
        // With bias correction m = g and v = g², so the update is lr·g/(|g| + eps).
        let toy = AdamW::new(no_decay()).step(toy(), &gradients(&[("a", &[0.5, -2.0])]), 0.1);
        assert_values(&toy.a.val(), &[1.0 - 0.1, 2.0 + 0.1]);
    }

    #[test]
    fn decay_comes_before_the_update_and_needs_no_gradient_state() {
        // A zero gradient moves nothing: the weights are scaled by 1 - 0.1·0.5 alone.
        let config = AdamWConfig { weight_decay: 0.5, ..Default::default() };
        let toy = AdamW::new(config).step(toy(), &gradients(&[("a", &[0.0, 0.0])]), 0.1);
        assert_values(&toy.a.val(), &[0.95, 1.9]);
    }

    #[test]
    fn a_parameter_without_a_gradient_is_untouched() {
        let config = AdamWConfig { weight_decay: 0.5, ..Default::default() };
        let mut optimizer = AdamW::new(config);
        let toy = optimizer.step(toy(), &gradients(&[("a", &[1.0, 1.0]), ("frozen", &[1.0])]), 0.1);
        assert_eq!(values(&toy.b.val()), [3.0]);
        assert_eq!(values(&toy.frozen.val()), [7.0], "a gradient does not make a frozen parameter train");
        // Its own first update later is a first update.
        let toy = optimizer.step(toy, &gradients(&[("b", &[4.0])]), 0.1);
        assert_values(&toy.b.val(), &[3.0 * 0.95 - 0.1]);
    }

    #[test]
    fn an_exported_state_continues_bit_for_bit() {
        let run = |mut optimizer: AdamW, mut toy: Toy, steps: std::ops::Range<usize>| {
            for step in steps {
                let g = 0.3 + step as f32;
                toy = optimizer.step(toy, &gradients(&[("a", &[g, -g * g]), ("b", &[1.0 / g])]), 0.01);
            }
            (optimizer, toy)
        };
        let (_, straight) = run(AdamW::new(AdamWConfig::default()), toy(), 0..7);
        let (optimizer, half) = run(AdamW::new(AdamWConfig::default()), toy(), 0..3);
        let resumed = AdamW::import(AdamWConfig::default(), optimizer.export(), &half).unwrap();
        let (_, resumed) = run(resumed, half, 3..7);
        assert_eq!(values(&resumed.a.val()), values(&straight.a.val()));
        assert_eq!(values(&resumed.b.val()), values(&straight.b.val()));
    }

    #[test]
    fn a_state_of_another_model_is_refused_by_name() {
        let mut optimizer = AdamW::new(AdamWConfig::default());
        let toy = optimizer.step(toy(), &gradients(&[("a", &[1.0, 1.0])]), 0.1);
        let refused = |edit: fn(&mut NamedTensors)| {
            let mut state = optimizer.export();
            edit(&mut state);
            AdamW::import(AdamWConfig::default(), state, &toy).unwrap_err().to_string()
        };
        let short = Tensor::<1>::zeros([1], &Device::flex());
        assert_eq!(refused(|s| drop(s.remove("exp_avg_sq.a"))), "AdamW state: exp_avg_sq.a: missing; expected 2 values");
        assert_eq!(refused(|s| drop(s.remove("step.a"))), "AdamW state: exp_avg.a: expected no tensor of this name");
        let mut state = optimizer.export();
        state.insert("exp_avg.a".into(), short);
        let error = AdamW::import(AdamWConfig::default(), state, &toy).unwrap_err().to_string();
        assert_eq!(error, "AdamW state: exp_avg.a: expected 2 values, found 1");
        assert!(refused(|s| drop(s.insert("step.frozen".into(), s["step.a"].clone()))).contains("no trainable parameter"));
    }

    /// One parameter that is large enough for 8 bits, and not a whole number of blocks.
    #[derive(Module, Debug)]
    struct Large {
        weight: Param<Tensor<1>>,
    }

    const VALUES: usize = 5000;

    fn drawn(number: u64) -> Tensor<1> {
        let values = Noise::new(3).normal_values(Purpose::PARAMETER_INIT, number, 0, VALUES);
        Tensor::from_floats(values.as_slice(), &Device::flex())
    }

    fn large() -> Large {
        Large { weight: Param::from_tensor(drawn(0).autodiff().require_grad()) }
    }

    fn config(moments: MomentsFormat) -> AdamWConfig {
        AdamWConfig { moments, ..Default::default() }
    }

    /// Makes `steps` updates down the noisy slope of `Σ curvature · weight² / 2`, whose curvatures span two decades within each block.
    fn descend(mut optimizer: AdamW, mut model: Large, steps: std::ops::Range<u64>) -> (AdamW, Large) {
        let curvature: Vec<f32> = (0..VALUES).map(|i| 10f32.powf((i * 7 % 41) as f32 / 20.0 - 2.0)).collect();
        let curvature = Tensor::<1>::from_floats(curvature.as_slice(), &Device::flex());
        for step in steps {
            let weight = model.weight.val().without_autodiff();
            let gradient = curvature.clone() * (weight + drawn(step + 1) * 0.1);
            model = optimizer.step(model, &NamedTensors::from([("weight".into(), gradient)]), 0.02);
        }
        (optimizer, model)
    }

    #[test]
    fn with_moments_in_8_bits_the_first_update_is_the_same() {
        let after = |format| descend(AdamW::new(config(format)), large(), 0..1).1;
        assert_eq!(values(&after(MomentsFormat::EightBit).weight.val()), values(&after(MomentsFormat::F32).weight.val()));
        assert_ne!(values(&after(MomentsFormat::F32).weight.val()), values(&large().weight.val()));
    }

    #[test]
    fn with_moments_in_8_bits_a_descent_ends_where_that_of_f32_does() {
        let size = |tensor: Tensor<1>| tensor.square().mean().sqrt().into_scalar::<f32>();
        let after = |format| descend(AdamW::new(config(format)), large(), 0..150).1.weight.val().without_autodiff();
        let (exact, coarse) = (after(MomentsFormat::F32), after(MomentsFormat::EightBit));
        let (start, end, apart) = (size(drawn(0)), size(exact.clone()), size(coarse.clone() - exact));
        println!("from {start:.4} to {end:.4} in f32 and {:.4} in 8 bits, {apart:.4} apart", size(coarse));
        assert!(end < 0.1 * start, "the problem is too hard for f32: {start} became {end}");
        assert!(apart > 0.0 && apart < 0.05 * start, "{apart} apart, of {start}");
    }

    #[test]
    fn moments_in_8_bits_continue_bit_for_bit_and_may_become_f32() {
        use MomentsFormat::{EightBit, F32};
        let (_, straight) = descend(AdamW::new(config(EightBit)), large(), 0..7);
        let (optimizer, half) = descend(AdamW::new(config(EightBit)), large(), 0..3);
        let resumed = |state: NamedTensors, format| AdamW::import(config(format), state, &half).unwrap();
        let (_, continued) = descend(resumed(optimizer.export(), EightBit), half.clone(), 3..7);
        assert_eq!(values(&continued.weight.val()), values(&straight.weight.val()));
        // To f32 and back, without an update in between.
        let there_and_back = resumed(resumed(optimizer.export(), F32).export(), EightBit);
        let (_, continued) = descend(there_and_back, half.clone(), 3..7);
        assert_eq!(values(&continued.weight.val()), values(&straight.weight.val()));
        let (_, in_f32) = descend(resumed(optimizer.export(), F32), half.clone(), 3..7);
        assert_ne!(values(&in_f32.weight.val()), values(&straight.weight.val()));
        let apart = (in_f32.weight.val() - straight.weight.val()).abs().max().into_scalar::<f32>();
        assert!(apart < 4.0 * 0.02, "{apart}, more than four updates can amount to");
    }

    #[test]
    fn the_format_is_named_in_the_config() {
        let read = |json| serde_json::from_str::<AdamWConfig>(json).unwrap();
        assert_eq!(read("{}").moments, MomentsFormat::F32);
        assert_eq!(read(r#"{ "moments": "f32" }"#).moments, MomentsFormat::F32);
        assert_eq!(read(r#"{ "moments": "8bit" }"#).moments, MomentsFormat::EightBit);
    }
}
