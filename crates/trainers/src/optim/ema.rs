//! The exponential moving average of the weights, after diffusers' `training_utils.py` (`EMAModel`).

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_models::parameters::{map_parameters_where, trainable_parameters};

use super::{Expected, NamedTensors, count, f32};
use crate::Error;

/// `[ema]`: how fast the average follows the weights, with diffusers' names and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// The largest decay per update, in [0, 1] (0.9999).
    pub decay: f64,
    /// The smallest decay per update, in [0, `decay`] (0).
    pub min_decay: f64,
    /// Number of first updates during which the average is a copy of the weights (0).
    pub update_after_step: u64,
    /// Whether the decay rises as `1 - (1 + s / inv_gamma)^-power` with the number of updates s, instead of `(1 + s) / (10 + s)` (false).
    pub use_ema_warmup: bool,
    /// Stretches the warm-up in time; above 0 (1).
    pub inv_gamma: f64,
    /// Steepness of the warm-up; above 0 (2/3). 2/3 reaches 0.999 after 31.6k updates, 3/4 after 10k.
    pub power: f64,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.9999, min_decay: 0.0, update_after_step: 0, use_ema_warmup: false, inv_gamma: 1.0, power: 2.0 / 3.0 }
    }
}

impl Validate for EmaConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if !(0.0..=1.0).contains(&self.decay) {
            findings.push(format!("the EMA's decay is {}; expected a number in [0, 1]", self.decay));
        }
        if !(self.min_decay >= 0.0 && self.min_decay <= self.decay) {
            findings.push(format!("the EMA's min_decay is {}; expected a number in [0, decay]", self.min_decay));
        }
        if !(self.inv_gamma > 0.0 && self.inv_gamma.is_finite() && self.power > 0.0 && self.power.is_finite()) {
            findings.push(format!("the EMA's inv_gamma and power are {} and {}; expected numbers above 0", self.inv_gamma, self.power));
        }
    }
}

impl EmaConfig {
    /// The decay of the update that follows `updates` earlier ones.
    ///
    /// diffusers copies the weights in its first update and then uses (1 + s)/(10 + s) from s = 1; here, as in the reference
    /// numbers, the first update has s = 0 and decay 1/10. All later ones agree.
    pub fn decay_after(&self, updates: u64) -> f64 {
        let Some(s) = updates.checked_sub(self.update_after_step) else {
            return 0.0;
        };
        let s = s as f64;
        let rising = if self.use_ema_warmup { 1.0 - (1.0 + s / self.inv_gamma).powf(-self.power) } else { (1.0 + s) / (10.0 + s) };
        rising.min(self.decay).max(self.min_decay)
    }
}

/// The average of a module's trainable parameters.
#[derive(Debug, Clone)]
pub struct Ema {
    config: EmaConfig,
    shadows: NamedTensors,
    updates: u64,
}

const WHAT: &str = "EMA state";
const UPDATES: &str = "updates";

impl Ema {
    /// An average that starts as a copy of the module's trainable parameters.
    pub fn new<M: Module>(config: EmaConfig, module: &M) -> Self {
        Self { config, shadows: trainable(module), updates: 0 }
    }

    /// Moves the average towards the weights after an optimizer step: `shadow -= (1 - decay) · (shadow - weight)`.
    pub fn update<M: Module>(&mut self, module: &M) {
        let rate = 1.0 - self.config.decay_after(self.updates);
        for (name, weight) in trainable(module) {
            let shadow = self.shadows.remove(&name).unwrap_or_else(|| weight.clone());
            self.shadows.insert(name, shadow.clone() - (shadow - weight) * rate);
        }
        self.updates += 1;
    }

    /// `module` with the average in place of its trainable parameters. Clone the module first to keep its own weights.
    #[must_use]
    pub fn apply<M: Module>(&self, module: M) -> M {
        let averaged = |name: &str, _| self.shadows.contains_key(name);
        map_parameters_where(module, averaged, |name, _, values| self.shadows[name].clone().cast(values.dtype()))
    }

    /// The state as tensors: `shadow.<name>` for each parameter, and `updates` (one number).
    pub fn export(&self) -> NamedTensors {
        let mut state: NamedTensors = self.shadows.iter().map(|(name, shadow)| (format!("shadow.{name}"), shadow.clone())).collect();
        if let Some(device) = self.shadows.values().next().map(Tensor::device) {
            state.insert(UPDATES.into(), count(self.updates, &device));
        }
        state
    }

    /// Restores the average of `module` whose state [`export`](Self::export) returned.
    ///
    /// # Errors
    /// When the state is incomplete or belongs to another module.
    pub fn import<M: Module>(config: EmaConfig, mut state: NamedTensors, module: &M) -> Result<Self, Error> {
        let expected = Expected::of(module, WHAT);
        let mut shadows = NamedTensors::new();
        for name in expected.lengths.keys() {
            shadows.insert(name.clone(), expected.take(&mut state, &format!("shadow.{name}"), name)?);
        }
        let updates = if shadows.is_empty() { 0 } else { expected.take_count(&mut state, UPDATES)? };
        expected.nothing_left(state)?;
        Ok(Self { config, shadows, updates })
    }
}

fn trainable<M: Module>(module: &M) -> NamedTensors {
    trainable_parameters(module).into_iter().map(|p| (p.name, f32(p.values))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::testing::{assert_values, toy, values};
    use vp_models::parameters::map_parameters;

    #[test]
    fn the_decay_rises_to_its_limit() {
        let config = EmaConfig { decay: 0.5, ..Default::default() };
        let decays: Vec<f64> = [0, 1, 8, 1000].map(|s| config.decay_after(s)).into();
        assert_eq!(decays, [0.1, 2.0 / 11.0, 0.5, 0.5]);
        let later = EmaConfig { update_after_step: 3, ..Default::default() };
        assert_eq!([2, 3, 4].map(|s| later.decay_after(s)), [0.0, 0.1, 2.0 / 11.0]);
        let warm = EmaConfig { use_ema_warmup: true, inv_gamma: 2.0, power: 1.0, min_decay: 0.25, ..Default::default() };
        // 1 - 1/(1 + s/2): 0, raised to min_decay; 1/2.
        assert_eq!([0, 2].map(|s| warm.decay_after(s)), [0.25, 0.5]);
    }

    #[test]
    fn the_average_follows_what_trains_and_leaves_the_module_alone() {
        let start = toy();
        let mut ema = Ema::new(EmaConfig::default(), &start);
        let moved = map_parameters(start, |_, _, values| values + 1.0);
        ema.update(&moved);
        let average = ema.apply(moved.clone());
        // One update at decay 0.1 from 1 towards 2, and from 2 towards 3.
        assert_values(&average.a.val(), &[1.9, 2.9]);
        assert_eq!(values(&average.frozen.val()), [8.0]);
        assert_values(&moved.a.val(), &[2.0, 3.0]);
        assert!(average.a.val().is_require_grad() && !average.frozen.val().is_require_grad());
    }

    #[test]
    fn an_exported_average_continues_bit_for_bit() {
        let grow = |module| map_parameters(module, |_, _, values| values * 1.1);
        let mut straight = Ema::new(EmaConfig::default(), &toy());
        let once = grow(toy());
        straight.update(&once);
        let mut resumed = Ema::import(EmaConfig::default(), straight.export(), &once).unwrap();
        let twice = grow(once);
        straight.update(&twice);
        resumed.update(&twice);
        assert_eq!(values(&resumed.apply(toy()).a.val()), values(&straight.apply(toy()).a.val()));
        let mut state = resumed.export();
        state.remove("shadow.b");
        let error = Ema::import(EmaConfig::default(), state, &twice).unwrap_err().to_string();
        assert_eq!(error, "EMA state: shadow.b: missing; expected 1 values");
    }
}
