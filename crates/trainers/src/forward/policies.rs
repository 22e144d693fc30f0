//! The policies that the trained one is compared with. Their weights are part of the run's memory, so that a resumed run has them.

use serde::{Deserialize, Serialize};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::policy::snapshot;
use crate::run::Run;

/// A policy beside the trained one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The policy at the beginning of the epoch.
    Sampler,
    /// The moving average of the policy.
    Average,
    /// The base model.
    Base,
}

/// How a moving average follows the policy: after each epoch `average ← d · average + (1 − d) · policy` with
/// `d = min(rate · (updates − flat), most)`, and 0 in the first `flat` updates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decay {
    /// Growth of d per update, at least 0 (1e-3).
    pub rate: f64,
    /// Updates after which d begins to grow (0).
    pub flat: u64,
    /// The largest d, 0 to 1 (0.5).
    pub most: f64,
}

impl Default for Decay {
    fn default() -> Self {
        Self { rate: 1e-3, flat: 0, most: 0.5 }
    }
}

impl Decay {
    /// d after so many updates.
    pub fn after(&self, updates: u64) -> f64 {
        (self.rate * updates.saturating_sub(self.flat) as f64).min(self.most)
    }

    /// Appends a message for each number that is out of range; `key` is the place in the config.
    pub fn findings(&self, key: &str, findings: &mut Vec<String>) {
        let Self { rate, most, .. } = *self;
        if !(rate >= 0.0 && rate.is_finite()) {
            findings.push(format!("{key}.rate is {rate}; expected a number of at least 0"));
        }
        if !(0.0..=1.0).contains(&most) {
            findings.push(format!("{key}.most is {most}; expected a number from 0 to 1"));
        }
    }
}

/// The two policies' names in the run's memory.
pub(super) const SAMPLER: &str = "policy.sampler";
pub(super) const AVERAGE: &str = "policy.average";

/// The policies of an epoch, off the tape.
#[derive(Debug, Clone)]
pub struct Policies<D> {
    /// The policy at the beginning of the epoch, if the algorithm compares with it.
    pub sampler: Option<Trainable<D>>,
    /// The moving average, if there is one.
    pub average: Option<Trainable<D>>,
}

impl<D: Denoiser> Policies<D> {
    /// The policies in a run's memory.
    pub fn recall(run: &Run<Trainable<D>>) -> Self {
        Self { sampler: snapshot::recall(run, SAMPLER), average: snapshot::recall(run, AVERAGE) }
    }

    /// The policy with this role; `None` for the base model, which is not kept here.
    pub fn get(&self, role: Role) -> Option<&Trainable<D>> {
        match role {
            Role::Sampler => self.sampler.as_ref(),
            Role::Average => self.average.as_ref(),
            Role::Base => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_more_slowly_with_time() {
        let decay = Decay { rate: 0.0075, flat: 75, most: 0.999 };
        assert_eq!([decay.after(0), decay.after(75), decay.after(1000)], [0.0, 0.0, 0.999]);
        assert!((decay.after(115) - 0.3).abs() < 1e-12);
    }
}
