//! The settings beside a file's tensors: PEFT's config of an adapter, in a file of its own or in the metadata.
//!
//! Source: PEFT `tuners/lora/config.py` and `utils/other.py` (`get_pattern_key`); diffusers `loaders/lora_base.py` (`pack_metadata`).

use std::collections::BTreeMap;
use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};
use vp_core::input_file;

use crate::error::{Error, Result};
use crate::weights::Weights;

/// The most patterns in all: a model has fewer layers.
const MOST_PATTERNS: usize = 4096;
/// What a compiled pattern takes at most, in bytes; repetitions of classes of Unicode may take megabytes each.
const LARGEST_PATTERN: usize = 128 << 10;

/// The file beside an adapter's weights that holds its settings.
const CONFIG: &str = "adapter_config.json";

/// How tensors are named in a file that PEFT wrote itself.
pub(super) const PEFT_PREFIX: &str = "base_model.model.";

/// What comes beside a file's tensors. In the metadata of a diffusers file every key begins with its component: `unet.lora_alpha`.
#[derive(Debug, Default)]
pub(super) struct Settings {
    values: Map<String, Value>,
    /// `alpha_pattern` and `rank_pattern`, by their keys, in the order of the file.
    patterns: BTreeMap<String, Vec<(Regex, f64)>>,
}

impl Settings {
    /// The settings of the file at `path`: those in its metadata, or those in an `adapter_config.json` beside it. The latter belong to a
    /// file that is named as PEFT names it or whose tensors are.
    ///
    /// # Errors
    /// When they cannot be read, or a pattern is not a regular expression.
    pub(super) fn of(path: &Path, weights: &Weights) -> Result<Self> {
        if let Some(text) = weights.metadata().get("lora_adapter_metadata") {
            return Self::parse(text).map_err(|message| config_error(path, &format!("lora_adapter_metadata: {message}")));
        }
        let beside = path.with_file_name(CONFIG);
        let is_pefts =
            path.file_stem().is_some_and(|stem| stem == "adapter_model") || weights.names().any(|name| name.starts_with(PEFT_PREFIX));
        if !is_pefts || !beside.exists() {
            return Ok(Self::default());
        }
        let text =
            input_file::read_regular_to_string(&beside).map_err(|source| Error::Io { path: beside.display().to_string(), source })?;
        Self::parse(&text).map_err(|message| config_error(&beside, &message))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let values: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let (mut patterns, mut count) = (BTreeMap::new(), 0);
        for (key, value) in &values {
            if !key.ends_with("alpha_pattern") && !key.ends_with("rank_pattern") {
                continue;
            }
            count += value.as_object().map_or(0, Map::len);
            if count > MOST_PATTERNS {
                return Err(format!("with {key} there are {count} patterns, expected at most {MOST_PATTERNS}"));
            }
            let compiled = value.as_object().into_iter().flatten().map(|(pattern, value)| {
                // `re.match`, from the beginning of the name on.
                let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).size_limit(LARGEST_PATTERN).build();
                let value = value.as_f64().ok_or_else(|| format!("{key}: {pattern:?} is given {value}; expected a number"))?;
                Ok((regex.map_err(|_| format!("{key}: {pattern:?} is not a regular expression that can be read here"))?, value))
            });
            patterns.insert(key.clone(), compiled.collect::<Result<Vec<_>, String>>()?);
        }
        Ok(Self { values, patterns })
    }

    fn get(&self, component: &str, key: &str) -> Option<&Value> {
        self.values.get(&format!("{component}.{key}")).or_else(|| self.values.get(key))
    }

    /// What the first of the patterns that fits gives a layer.
    fn matched(&self, component: &str, key: &str, path: &str) -> Option<f64> {
        let patterns = self.patterns.get(&format!("{component}.{key}")).or_else(|| self.patterns.get(key))?;
        // A text encoder's layers stand below `text_model` for those who wrote the patterns, and here do not.
        let longer = format!("text_model.{path}");
        let fits = |regex: &Regex| regex.is_match(path) || (component.starts_with("text_encoder") && regex.is_match(&longer));
        patterns.iter().find(|(regex, _)| fits(regex)).map(|(_, value)| *value)
    }

    /// The numerator of a layer's scale, alpha / rank; the rank where nothing is told.
    pub(super) fn alpha(&self, layer: &str, rank: usize) -> f64 {
        let (component, path) = layer.split_once('.').unwrap_or(("", layer));
        let of_all = || self.get(component, "lora_alpha").or_else(|| self.get(component, "alpha"))?.as_f64();
        let Some(alpha) = self.matched(component, "alpha_pattern", path).or_else(of_all) else { return rank as f64 };
        // Rank-stabilised: alpha / √rank.
        let stabilised = self.get(component, "use_rslora").and_then(Value::as_bool).unwrap_or(false);
        if stabilised { alpha * (rank as f64).sqrt() } else { alpha }
    }

    /// The scale of a LoKr whose factors are both whole: PEFT multiplies by alpha / rank even then, and LyCORIS by 1.
    pub(super) fn scale_of_whole_lokr(&self, layer: &str) -> f64 {
        let (component, path) = layer.split_once('.').unwrap_or(("", layer));
        if self.get(component, "peft_type").and_then(Value::as_str) != Some("LOKR") {
            return 1.0;
        }
        let of_all = || self.get(component, "r")?.as_f64();
        match self.matched(component, "rank_pattern", path).or_else(of_all) {
            Some(rank) if rank > 0.0 => self.alpha(layer, rank as usize) / rank,
            _ => 1.0,
        }
    }
}

fn config_error(path: &Path, message: &str) -> Error {
    Error::Config { path: path.display().to_string(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

    fn alpha(text: &str, layer: &str) -> f64 {
        Settings::parse(text).unwrap().alpha(layer, 4)
    }

    #[test]
    fn a_pattern_is_a_regular_expression_from_the_beginning_of_the_name() {
        let alpha = |pattern: &str| alpha(&format!(r#"{{ "lora_alpha": 6, "alpha_pattern": {{ {pattern:?}: 3 }} }}"#), LAYER);
        for fits in
            ["to_q", "attn1.to_q", r"^mid_block\.attentions\.0\..*to_q", "to_k|to_q", ".*q", "attn.\\.to_q", r"\w+\.\d+\.attn\d\.to_\w"]
        {
            assert_eq!(alpha(fits), 3.0, "{fits}");
        }
        for does_not in ["o_q", "attn1", "^attentions.*to_q", "to_k"] {
            assert_eq!(alpha(does_not), 6.0, "{does_not}");
        }
    }

    #[test]
    fn patterns_are_bounded_in_size_and_number() {
        let refused = |patterns: String| Settings::parse(&format!(r#"{{ "alpha_pattern": {{ {patterns} }} }}"#)).unwrap_err();
        assert!(refused(r#""(?:\\pL{50}){20}": 1"#.into()).contains("is not a regular expression that can be read here"));
        let many: Vec<String> = (0..5000).map(|number| format!(r#""to_{number}": 1"#)).collect();
        assert_eq!(refused(many.join(", ")), "with alpha_pattern there are 5000 patterns, expected at most 4096");
    }

    #[test]
    fn the_first_pattern_of_the_file_counts() {
        let of = |patterns: &str| alpha(&format!(r#"{{ "unet.alpha_pattern": {{ {patterns} }} }}"#), LAYER);
        assert_eq!(of(r#""to_q": 1, "attn1.to_q": 2"#), 1.0);
        assert_eq!(of(r#""attn1.to_q": 2, "to_q": 1"#), 2.0);
        assert_eq!(of(r#""to_v": 2"#), 4.0);
    }

    #[test]
    fn a_text_encoders_layers_are_known_under_both_names() {
        for pattern in ["^text_model.encoder.layers.0.mlp.fc1", "^encoder.layers.0.mlp.fc1"] {
            let text = format!(r#"{{ "lora_alpha": 6, "alpha_pattern": {{ {pattern:?}: 3 }} }}"#);
            assert_eq!(alpha(&text, "text_encoder.encoder.layers.0.mlp.fc1"), 3.0);
        }
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        let refused = |patterns: &str| Settings::parse(&format!(r#"{{ "rank_pattern": {{ {patterns} }} }}"#)).unwrap_err();
        assert_eq!(refused(r#""to_(q": 1"#), r#"rank_pattern: "to_(q" is not a regular expression that can be read here"#);
        assert_eq!(refused(r#""to_q": "one""#), r#"rank_pattern: "to_q" is given "one"; expected a number"#);
    }

    #[test]
    fn whole_factors_are_scaled_by_peft_alone() {
        let scale = |text: &str| Settings::parse(text).unwrap().scale_of_whole_lokr(LAYER);
        assert_eq!(scale("{}"), 1.0);
        assert_eq!(scale(r#"{ "peft_type": "LOKR", "r": 8, "alpha": 4 }"#), 0.5);
        assert_eq!(scale(r#"{ "peft_type": "LOKR", "r": 8, "alpha": 4, "rank_pattern": { "to_q": 2 } }"#), 2.0);
    }
}
