//! Learning-rate schedules, as diffusers' `optimization.py` (`get_scheduler`).

use serde::{Deserialize, Serialize};

vp_core::registry! {
    /// The `[lr_scheduler.<name>]` section: how the learning rate changes over the updates of a run.
    pub enum LrSchedulerConfig {
        /// The same rate throughout.
        Constant = "constant" => Constant,
        /// Rises linearly from 0 to the full rate, then stays there.
        ConstantWithWarmup = "constant_with_warmup" => Warmup,
        /// Rises linearly from 0 to the full rate, then falls linearly to 0 at the end of the run.
        Linear = "linear" => Warmup,
        /// Rises linearly from 0 to the full rate, then falls along half a cosine to 0 at the end of the run.
        Cosine = "cosine" => Warmup,
    }
}

/// A schedule without settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {}

/// A schedule with a warm-up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Warmup {
    /// Updates of the warm-up (0, for none); the first of them has rate 0. At most half of the run is warm-up, so that a short trial of a
    /// long recipe learns too.
    pub num_warmup_steps: u64,
}

impl Default for LrSchedulerConfig {
    fn default() -> Self {
        Self::Constant(Constant {})
    }
}

impl LrSchedulerConfig {
    fn num_warmup_steps(&self) -> u64 {
        match self {
            Self::Constant(_) => 0,
            Self::ConstantWithWarmup(warmup) | Self::Linear(warmup) | Self::Cosine(warmup) => warmup.num_warmup_steps,
        }
    }
}

/// A learning rate as a function of the update.
#[derive(Debug, Clone)]
pub struct LrSchedule {
    config: LrSchedulerConfig,
    learning_rate: f64,
    num_training_steps: u64,
}

impl LrSchedule {
    /// A schedule whose full rate is `learning_rate`, over a run of `num_training_steps` optimizer updates (not micro-batches).
    pub fn new(config: LrSchedulerConfig, learning_rate: f64, num_training_steps: u64) -> Self {
        Self { config, learning_rate, num_training_steps }
    }

    /// The rate of update `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        let warmup = self.config.num_warmup_steps().min(self.num_training_steps / 2);
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let steps_to_fall = self.num_training_steps.saturating_sub(warmup).max(1);
        let progress = (step - warmup) as f64 / steps_to_fall as f64;
        match self.config {
            LrSchedulerConfig::Constant(_) | LrSchedulerConfig::ConstantWithWarmup(_) => 1.0,
            LrSchedulerConfig::Linear(_) => (1.0 - progress).max(0.0),
            // After the end of the run it rises again, as in diffusers.
            LrSchedulerConfig::Cosine(_) => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(config: LrSchedulerConfig, steps: [u64; 5]) -> [f64; 5] {
        let schedule = LrSchedule::new(config, 2.0, 8);
        steps.map(|step| (schedule.rate(step) * 1e6).round() / 1e6)
    }

    #[test]
    fn rates_at_the_corners() {
        let warmup = || Warmup { num_warmup_steps: 4 };
        assert_eq!(rates(LrSchedulerConfig::default(), [0, 1, 4, 8, 9]), [2.0; 5]);
        assert_eq!(rates(LrSchedulerConfig::ConstantWithWarmup(warmup()), [0, 1, 4, 8, 9]), [0.0, 0.5, 2.0, 2.0, 2.0]);
        assert_eq!(rates(LrSchedulerConfig::Linear(warmup()), [0, 1, 4, 6, 9]), [0.0, 0.5, 2.0, 1.0, 0.0]);
        // (1 + cos(π/4)) and (1 + cos(π/2)), a quarter and half of the way down.
        assert_eq!(rates(LrSchedulerConfig::Cosine(warmup()), [0, 1, 5, 6, 8]), [0.0, 0.5, 1.707107, 1.0, 0.0]);
        // Without a warm-up the first update has the full rate.
        assert_eq!(rates(LrSchedulerConfig::Cosine(Warmup::default()), [0, 0, 4, 4, 8]), [2.0, 2.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn a_section_names_the_schedule() {
        let config: LrSchedulerConfig = serde_json::from_str(r#"{"cosine": {"num_warmup_steps": 3}}"#).unwrap();
        assert_eq!((config.name(), config.num_warmup_steps()), ("cosine", 3));
        assert!(serde_json::from_str::<LrSchedulerConfig>(r#"{"constant": {"num_warmup_steps": 3}}"#).is_err());
    }

    #[test]
    fn a_warm_up_leaves_half_of_a_short_run() {
        let rates = |updates: u64| {
            let schedule = LrSchedule::new(LrSchedulerConfig::Cosine(Warmup { num_warmup_steps: 20 }), 1.0, updates);
            (0..updates).map(|step| (schedule.rate(step) * 1e6).round() / 1e6).collect::<Vec<_>>()
        };
        assert_eq!(rates(1), [1.0]);
        assert_eq!(rates(4), [0.0, 0.5, 1.0, 0.5]);
        assert_eq!(rates(100)[..3], [0.0, 0.05, 0.1]);
    }
}
