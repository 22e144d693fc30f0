//! Whether a run exploits its reward: rules over looks at the same held-out images as training goes on.
//!
//! A reward that is trained goes up, whatever happens to the images. The numbers to watch are those that are not trained: other rewards, how
//! different images of one prompt are, and what the pixels look like ([`crate::pixels`]). Every rule compares a look with the first one, image by
//! image, and fires only if the mean has moved by several standard errors, at several looks in a row.

mod config;
mod rules;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use config::{
    Action, DarkImages, DiversityCollapse, Drift, EdgeCollapse, RewardUpHeldoutDown, Rule, SentinelConfig, WatchedRewardDown,
    WeightsRunAway,
};

use crate::pixels::PixelStats;
use crate::{Error, Result};

/// An evaluation of a model in training. Lists hold a value for each held-out image, the same images (prompt and seed) in the same order at every
/// look. Where several images are of one prompt, a mean for each prompt is better: standard errors take the values as independent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// The number of updates before the look. The others are compared with the first look, usually at 0.
    pub step: u64,
    /// The reward that is trained.
    pub trained_reward: Vec<f64>,
    /// Rewards that are not, by name.
    pub watched: BTreeMap<String, Vec<f64>>,
    /// How far the weights are from where they started, 0 or more, in whatever unit the limit is given in.
    pub weight_distance: f64,
    /// How different images of one prompt are: the mean over prompts of their mean pairwise distance, 0 or more; `None` if not measured.
    pub diversity: Option<f64>,
    /// Of each image; empty if not measured.
    pub pixels: Vec<PixelStats>,
}

/// A rule that fired.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub rule: Rule,
    /// What the config wants done.
    pub action: Action,
    /// The step of the look at which the rule fired: the last of as many looks in a row as the rule needs.
    pub step: u64,
    /// The watched reward; nothing for rules that have one subject.
    pub subject: Option<String>,
    /// The mean, or the number, at the first look.
    pub start: f64,
    /// The same now.
    pub now: f64,
    /// By how many standard errors of the paired difference it has moved; `None` for numbers without one.
    pub standard_errors: Option<f64>,
    /// Over how many values; `None` as above.
    pub images: Option<usize>,
    /// A sentence.
    pub reason: String,
}

/// All findings in a history of looks, in the order of steps. A rule fires at the look at which its condition has held as often in a row as it has
/// to, and not again before the condition has failed. What it says of a look depends on that look and earlier ones alone, so that the findings of
/// a longer history begin with those of a shorter one, and the new ones are those of the last step.
///
/// # Errors
/// For a setting out of its range; if steps do not increase, looks differ in what they hold, or a number is not finite.
pub fn findings(history: &[Look], config: &SentinelConfig) -> Result<Vec<Finding>> {
    config.validate()?;
    check(history)?;
    let Some((start, later)) = history.split_first() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    // How often in a row each condition has held.
    let mut streaks: BTreeMap<(Rule, Option<String>), usize> = BTreeMap::new();
    for look in later {
        let mut holding = BTreeMap::new();
        for finding in rules::conditions(start, look, config) {
            let key = (finding.rule, finding.subject.clone());
            let streak = 1 + streaks.get(&key).copied().unwrap_or(0);
            // A fall is told once: in its worse form, where the trained reward rose meanwhile, if that rule is on.
            let worse = (Rule::RewardUpHeldoutDown, finding.subject.clone());
            let is_told = finding.rule == Rule::WatchedRewardDown
                && config.action(worse.0) != Action::Off
                && holding.get(&worse).is_some_and(|streak| *streak >= config.looks);
            holding.insert(key, streak);
            if streak == config.looks(finding.rule) && finding.action != Action::Off && !is_told {
                found.push(finding);
            }
        }
        streaks = holding;
    }
    Ok(found)
}

/// Whether all looks are comparable with the first.
fn check(history: &[Look]) -> Result<()> {
    let Some(first) = history.first() else { return Ok(()) };
    let expected = shape(first);
    for (place, look) in history.iter().enumerate() {
        let refuse = |what: String, found: String, expected: String| Err(Error::Look { step: look.step, what, found, expected });
        if let Some(before) = place.checked_sub(1).map(|before| history[before].step).filter(|before| *before >= look.step) {
            return refuse("the step of a look".into(), look.step.to_string(), format!("one after {before}"));
        }
        let found = shape(look);
        if let Some(((name, n), (other, m))) = expected.iter().zip(&found).find(|(expected, found)| expected != found) {
            return refuse("numbers of images".into(), format!("{m} of {other}"), format!("{n} of {name}"));
        }
        if expected.len() != found.len() {
            return refuse("watched rewards".into(), look.watched.len().to_string(), first.watched.len().to_string());
        }
        let pixels = look.pixels.iter().flat_map(PixelStats::values);
        let rewards = look.trained_reward.iter().chain(look.watched.values().flatten()).copied();
        let others = look.diversity.into_iter().chain([look.weight_distance]);
        if let Some(value) = rewards.chain(pixels).chain(others).find(|value| !value.is_finite()) {
            return refuse("a number".into(), value.to_string(), "a finite one".into());
        }
    }
    Ok(())
}

/// What a look holds, and of how many images.
fn shape(look: &Look) -> Vec<(&str, usize)> {
    let own = [("trained_reward", look.trained_reward.len()), ("pixels", look.pixels.len())];
    own.into_iter().chain(look.watched.iter().map(|(name, values)| (name.as_str(), values.len()))).collect()
}

#[cfg(test)]
mod tests;
