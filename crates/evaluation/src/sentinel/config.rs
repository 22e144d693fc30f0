//! Settings of the sentinel: which rules are on, from which size of a change they fire, and what then happens.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a finding does to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The rule is off.
    Off,
    /// A warning is printed and the run goes on.
    Warn,
    /// The run ends after a checkpoint.
    Stop,
}

/// The rules by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
// Each rule is described at its settings, which have the same name.
pub enum Rule {
    RewardUpHeldoutDown,
    WatchedRewardDown,
    DiversityCollapse,
    SaturationDrift,
    BrightnessDrift,
    EdgeCollapse,
    DarkImages,
    WeightsRunAway,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::RewardUpHeldoutDown,
        Self::WatchedRewardDown,
        Self::DiversityCollapse,
        Self::SaturationDrift,
        Self::BrightnessDrift,
        Self::EdgeCollapse,
        Self::DarkImages,
        Self::WeightsRunAway,
    ];

    /// The name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::RewardUpHeldoutDown => "reward_up_heldout_down",
            Self::WatchedRewardDown => "watched_reward_down",
            Self::DiversityCollapse => "diversity_collapse",
            Self::SaturationDrift => "saturation_drift",
            Self::BrightnessDrift => "brightness_drift",
            Self::EdgeCollapse => "edge_collapse",
            Self::DarkImages => "dark_images",
            Self::WeightsRunAway => "weights_run_away",
        }
    }
}

/// A struct of settings with the default of each beside it. Every rule warns unless told otherwise.
macro_rules! settings {
    ($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_about])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

settings! {
    /// The trained reward is above its start and a watched one below its own, each by `z` standard errors or more: what is learned is the
    /// reward's taste and not the people's it stands for.
    RewardUpHeldoutDown {
        /// What then happens.
        action: Action = Action::Warn,
    }
}
settings! {
    /// A watched reward is below its start by `z` standard errors or more, whatever the trained one does.
    WatchedRewardDown {
        /// What then happens.
        action: Action = Action::Warn,
    }
}
settings! {
    /// Diversity is below a share of its start.
    DiversityCollapse {
        /// What then happens.
        action: Action = Action::Warn,
        /// Of the diversity at the start, in (0, 1).
        share: f64 = 0.7,
    }
}
settings! {
    /// A mean of the pixels has moved either way, by `z` standard errors and by `shift`.
    Drift {
        /// What then happens.
        action: Action = Action::Warn,
        /// The smallest shift that counts, of a range of 1, in (0, 1). With many images the smallest shift is beyond doubt, and still nothing
        /// anyone sees.
        shift: f64 = 0.1,
    }
}
settings! {
    /// The edge density has fallen below a share of its start, by `z` standard errors too: detail is lost.
    EdgeCollapse {
        /// What then happens.
        action: Action = Action::Warn,
        /// Of the mean edge density at the start, in (0, 1).
        share: f64 = 0.5,
    }
}
settings! {
    /// The share of dark pixels has risen by `rise`, and by `z` standard errors.
    DarkImages {
        /// What then happens.
        action: Action = Action::Warn,
        /// The smallest rise of the share that counts, in (0, 1).
        rise: f64 = 0.2,
    }
}
settings! {
    /// The weights are farther from where they started than a limit, at a single look, because a distance has no noise.
    WeightsRunAway {
        /// What then happens.
        action: Action = Action::Warn,
        /// In the unit of the look's `weight_distance`, above 0; absent, the rule does not fire.
        limit: Option<f64> = None,
    }
}
settings! {
    /// The sentinel's settings: one table per rule.
    SentinelConfig {
        /// How many standard errors of the paired difference a mean has to move to count, above 0. With 32 images, two watched rewards that
        /// change by noise alone and a trained one that rises, 5 runs of 12 looks in 100 raise an alarm; at 3, fewer than 1.
        z: f64 = 2.0,
        /// At how many looks in a row a condition has to hold, 1 or more. At 1, noise as above raises an alarm in 29 runs of 100.
        looks: usize = 2,
        /// See [`RewardUpHeldoutDown`].
        reward_up_heldout_down: RewardUpHeldoutDown = RewardUpHeldoutDown::default(),
        /// See [`WatchedRewardDown`].
        watched_reward_down: WatchedRewardDown = WatchedRewardDown::default(),
        /// See [`DiversityCollapse`].
        diversity_collapse: DiversityCollapse = DiversityCollapse::default(),
        /// [`Drift`] of the mean saturation.
        saturation_drift: Drift = Drift::default(),
        /// [`Drift`] of the mean brightness.
        brightness_drift: Drift = Drift::default(),
        /// See [`EdgeCollapse`].
        edge_collapse: EdgeCollapse = EdgeCollapse::default(),
        /// See [`DarkImages`].
        dark_images: DarkImages = DarkImages::default(),
        /// See [`WeightsRunAway`].
        weights_run_away: WeightsRunAway = WeightsRunAway::default(),
    }
}

impl SentinelConfig {
    /// What a finding of a rule does.
    pub fn action(&self, rule: Rule) -> Action {
        match rule {
            Rule::RewardUpHeldoutDown => self.reward_up_heldout_down.action,
            Rule::WatchedRewardDown => self.watched_reward_down.action,
            Rule::DiversityCollapse => self.diversity_collapse.action,
            Rule::SaturationDrift => self.saturation_drift.action,
            Rule::BrightnessDrift => self.brightness_drift.action,
            Rule::EdgeCollapse => self.edge_collapse.action,
            Rule::DarkImages => self.dark_images.action,
            Rule::WeightsRunAway => self.weights_run_away.action,
        }
    }

    /// At how many looks in a row a rule's condition has to hold.
    pub(super) fn looks(&self, rule: Rule) -> usize {
        if rule == Rule::WeightsRunAway { 1 } else { self.looks }
    }

    /// Whether every number is in its range.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn validate(&self) -> Result<()> {
        let inside = |value: f64| value > 0.0 && value < 1.0;
        let above = |value: f64| value > 0.0 && value.is_finite();
        let limit = self.weights_run_away.limit;
        let checks = [
            ("sentinel.z", above(self.z), "a number above 0", self.z),
            ("sentinel.looks", self.looks > 0, "1 or more", self.looks as f64),
            ("sentinel.diversity_collapse.share", inside(self.diversity_collapse.share), SHARE, self.diversity_collapse.share),
            ("sentinel.saturation_drift.shift", inside(self.saturation_drift.shift), SHARE, self.saturation_drift.shift),
            ("sentinel.brightness_drift.shift", inside(self.brightness_drift.shift), SHARE, self.brightness_drift.shift),
            ("sentinel.edge_collapse.share", inside(self.edge_collapse.share), SHARE, self.edge_collapse.share),
            ("sentinel.dark_images.rise", inside(self.dark_images.rise), SHARE, self.dark_images.rise),
            ("sentinel.weights_run_away.limit", limit.is_none_or(above), "a number above 0, or none", limit.unwrap_or_default()),
        ];
        let wrong = checks.into_iter().find(|(_, is_right, ..)| !is_right);
        wrong.map_or(Ok(()), |(key, _, expected, found)| Err(Error::Setting { key, expected, found }))
    }
}

const SHARE: &str = "a number above 0 and below 1; to switch a rule off, set its action to \"off\"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_config() {
        let config = serde_json::to_value(SentinelConfig::default()).unwrap();
        for rule in Rule::ALL {
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.name());
            assert_eq!(config[rule.name()]["action"], "warn", "{rule:?}");
        }
        assert_eq!(config.as_object().unwrap().len(), Rule::ALL.len() + 2);
    }

    #[test]
    fn a_table_may_set_one_thing_and_nothing_unknown() {
        let config: SentinelConfig = serde_json::from_str(r#"{"edge_collapse": {"action": "stop"}, "looks": 3}"#).unwrap();
        assert_eq!((config.edge_collapse.share, config.looks, config.z), (0.5, 3, 2.0));
        for rule in Rule::ALL {
            let expected = if rule == Rule::EdgeCollapse { Action::Stop } else { Action::Warn };
            assert_eq!(config.action(rule), expected, "{rule:?}");
        }
        for unknown in [r#"{"zz": 1}"#, r#"{"dark_images": {"share": 0.1}}"#, r#"{"dark_images": {"action": "halt"}}"#] {
            assert!(serde_json::from_str::<SentinelConfig>(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let default = SentinelConfig::default();
        assert_eq!(default.validate(), Ok(()));
        let key = |config: SentinelConfig| match config.validate() {
            Err(Error::Setting { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(key(SentinelConfig { z: f64::NAN, ..default }), "sentinel.z");
        assert_eq!(key(SentinelConfig { looks: 0, ..default }), "sentinel.looks");
        let share = DiversityCollapse { share: 1.0, ..DiversityCollapse::default() };
        assert_eq!(key(SentinelConfig { diversity_collapse: share, ..default }), "sentinel.diversity_collapse.share");
        let limit = WeightsRunAway { limit: Some(0.0), ..WeightsRunAway::default() };
        let error = SentinelConfig { weights_run_away: limit, ..default }.validate().unwrap_err();
        assert_eq!(error.to_string(), "sentinel.weights_run_away.limit is 0; expected a number above 0, or none");
    }
}
