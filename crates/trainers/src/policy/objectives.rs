//! The estimators of the policy gradient, by name.

use std::fmt;

use burn::tensor::Tensor;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::losses::{Drift, PolicyLoss, corrected_ratio_loss, kl_mask_loss, log_hinge_loss, ppo_clip_loss, score_function_loss};

/// How the policy gradient is estimated: `algo.ddpo.objective`, a name, or a table of one that has knobs, `{ kl_mask = { threshold = 1e-5 } }`.
///
/// Before the first update of a rollout all of them pull alike (`corrected_ratio` by another factor at each step); what each is for shows where a
/// rollout gets several updates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// DDPO-IS: the clipped ratio of PPO, valid for any number of updates per rollout.
    #[default]
    ImportanceSampling,
    /// DDPO-SF: REINFORCE, valid for one update per rollout.
    ScoreFunction,
    /// Flow-DPPO: no clip; a step that has come too far from the policy that sampled it, by the KL divergence, goes no farther.
    KlMask(KlMask),
    /// GRPO-Guard: the clipped ratio, corrected so that it is 1 on average and as wide at every step.
    CorrectedRatio,
    /// PCPO: a hinge of the ratio's logarithm in place of the clip.
    Hinge,
}

/// The knobs of `objective = { kl_mask = … }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlMask {
    /// KL divergence from the policy that sampled the images, as a mean over a latent's values, from which on a step goes no farther; above 0
    /// (1e-5, as in the published code; the paper's runs have 1e-7, and 1e-6 with another sampler).
    pub threshold: f64,
}

impl Default for KlMask {
    fn default() -> Self {
        Self { threshold: 1e-5 }
    }
}

impl Objective {
    /// The names, as a config has them.
    const NAMES: [&'static str; 5] = ["importance_sampling", "score_function", "kl_mask", "corrected_ratio", "hinge"];

    /// The objective of this name, with the defaults of its knobs.
    fn named(name: &str) -> Option<Self> {
        let all = [Self::ImportanceSampling, Self::ScoreFunction, Self::KlMask(KlMask::default()), Self::CorrectedRatio, Self::Hinge];
        Self::NAMES.into_iter().zip(all).find(|(known, _)| *known == name).map(|(_, objective)| objective)
    }

    /// Whether the loss needs the means of the policy that sampled the images.
    pub fn needs_old_policy(self) -> bool {
        matches!(self, Self::KlMask(_) | Self::CorrectedRatio)
    }

    /// Whether `clip_range` has a part in the loss.
    pub fn clips_ratios(self) -> bool {
        !matches!(self, Self::KlMask(_))
    }

    /// The loss for log-probabilities and advantages, `[b]` each. `drift` is asked for only if the objective
    /// [needs it](Self::needs_old_policy).
    pub fn loss(
        self,
        log_probs: Tensor<1>,
        old_log_probs: Tensor<1>,
        advantages: Tensor<1>,
        clip_range: f64,
        drift: impl FnOnce() -> Drift,
    ) -> PolicyLoss {
        match self {
            Self::ImportanceSampling => ppo_clip_loss(log_probs, old_log_probs, advantages, clip_range),
            Self::ScoreFunction => score_function_loss(log_probs, old_log_probs, advantages, clip_range),
            Self::KlMask(KlMask { threshold }) => kl_mask_loss(log_probs, old_log_probs, advantages, drift().kl, threshold),
            Self::CorrectedRatio => corrected_ratio_loss(log_probs, old_log_probs, advantages, drift(), clip_range),
            Self::Hinge => log_hinge_loss(log_probs, old_log_probs, advantages, clip_range),
        }
    }

    /// Appends a message for each knob that is out of range.
    pub(super) fn findings(self, findings: &mut Vec<String>) {
        if let Self::KlMask(KlMask { threshold }) = self
            && !(threshold > 0.0 && threshold.is_finite())
        {
            findings.push(format!("algo.ddpo.objective.kl_mask.threshold is {threshold}; expected a number above 0 (published: 1e-5)"));
        }
    }
}

/// A name, or a table of one objective with its knobs.
impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;

        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Objective;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter
                    .write_str("the name of an objective, or a table of one with its knobs, such as { kl_mask = { threshold = 1e-5 } }")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Objective, E> {
                Objective::named(name).ok_or_else(|| E::unknown_variant(name, &Objective::NAMES))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Objective, A::Error> {
                let name: String = table.next_key()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let objective = match Objective::named(&name) {
                    Some(Objective::KlMask(_)) => Objective::KlMask(table.next_value()?),
                    Some(_) => return Err(de::Error::custom(format!("{name} has no knobs; expected objective = \"{name}\""))),
                    None => return Err(de::Error::unknown_variant(&name, &["kl_mask"])),
                };
                match table.next_key::<String>()? {
                    Some(second) => Err(de::Error::custom(format!("there is one objective, and {name} and {second} are two; remove one"))),
                    None => Ok(objective),
                }
            }
        }

        deserializer.deserialize_any(NameOrTable)
    }
}

#[cfg(test)]
mod tests {
    use vp_core::config::{Validate, parse};

    use super::*;

    #[derive(Deserialize)]
    struct Section {
        objective: Objective,
    }

    impl Validate for Section {
        fn findings(&self, _: &mut Vec<String>) {}
    }

    fn parsed(text: &str) -> Result<Objective, String> {
        parse::<Section>(text, "a config", &[]).map(|section| section.objective).map_err(|error| error.to_string())
    }

    #[test]
    fn an_objective_is_a_name_or_a_table_of_its_knobs() {
        for name in Objective::NAMES {
            let objective = parsed(&format!("objective = \"{name}\"")).unwrap();
            assert_eq!(Some(objective), Objective::named(name));
            // As a checkpoint holds it.
            let json = serde_json::to_value(objective).unwrap();
            assert_eq!(serde_json::from_value::<Objective>(json).unwrap(), objective);
        }
        assert_eq!(serde_json::to_value(Objective::default()).unwrap(), "importance_sampling");
        let table = Objective::KlMask(KlMask { threshold: 0.5 });
        assert_eq!(parsed("objective = { kl_mask = { threshold = 0.5 } }").unwrap(), table);
        assert_eq!(parsed("objective.kl_mask = { threshold = 0.5 }").unwrap(), table);
        assert_eq!(parsed("objective.kl_mask = {}").unwrap(), Objective::KlMask(KlMask::default()));
    }

    #[test]
    fn what_is_none_is_refused_with_what_there_is() {
        for (text, told) in [
            ("objective = \"kl_maks\"", "unknown variant `kl_maks`, expected one of `importance_sampling`, `score_function`, `kl_mask`"),
            ("objective = { hinge = {} }", "hinge has no knobs; expected objective = \"hinge\""),
            ("objective = { clip = {} }", "unknown variant `clip`, expected `kl_mask`"),
            ("objective = { kl_mask = { treshold = 1.0 } }", "unknown field `treshold`, expected `threshold`"),
            ("objective = { kl_mask = {}, score_function = {} }", "kl_mask and score_function are two; remove one"),
            ("objective = {}", "such as { kl_mask = { threshold = 1e-5 } }"),
            ("objective = 3", "expected the name of an objective, or a table of one"),
        ] {
            let message = parsed(text).unwrap_err();
            assert!(message.contains(told), "{text}: {message}");
        }
    }
}
