//! TOML in, typed configuration out.
//!
//! A file is deserialised straight from its text, so that serde's errors carry the line and column of the mistake. `--set a.b=c`
//! overrides are merged before deserialising and are caught by the same types; their errors name the flag instead of a line.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::suggest::did_you_mean;

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("config {path}: {source}")]
    Read {
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML, or not this configuration. The message carries line, column and the offending line.
    #[error("config {origin}: {message}")]
    Parse {
        /// The file, or the name of the embedded config.
        origin: String,
        /// Line, column, what was found and what was expected.
        message: String,
    },
    /// An override is not of the form `a.b=value`.
    #[error("--set {flag}: expected KEY=VALUE with a dotted key, as in --set optimizer.learning_rate=1e-5")]
    Override {
        /// What was typed.
        flag: String,
    },
    /// An override was understood but does not fit the configuration.
    #[error("--set {flags}: {message}")]
    OverrideRefused {
        flags: String,
        /// What serde found.
        message: String,
    },
    /// The values are of the right type and cannot work together. Lists all findings at once.
    #[error("config {origin}: {}", findings.join("\n  and "))]
    Invalid {
        /// The file, or the name of the embedded config.
        origin: String,
        /// One sentence per finding.
        findings: Vec<String>,
    },
}

/// A configuration that can check itself before anything is loaded.
pub trait Validate {
    /// Appends one sentence for everything that cannot work.
    fn findings(&self, findings: &mut Vec<String>);
}

/// Reads a config file; see [`parse`].
///
/// # Errors
/// When the file cannot be read, and as [`parse`].
pub fn read<T: DeserializeOwned + Validate>(path: &Path, overrides: &[String]) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
    parse(&text, &path.display().to_string(), overrides)
}

/// The largest whole number that a config may have, seeds apart: products of two such numbers can be counted.
const LARGEST: i64 = 1_000_000_000;

/// One sentence for every whole number that is out of range, by its dotted key.
fn out_of_range(value: &Value, key: &str, findings: &mut Vec<String>) {
    match value {
        Value::Integer(number) if number.saturating_abs() > LARGEST && !key.ends_with("seed") => {
            findings.push(format!("{key} = {number} is out of range; expected at most {LARGEST}"));
        }
        Value::Array(items) => items.iter().for_each(|item| out_of_range(item, key, findings)),
        Value::Table(table) => table.iter().for_each(|(name, value)| {
            out_of_range(value, &if key.is_empty() { name.clone() } else { format!("{key}.{name}") }, findings);
        }),
        _ => {}
    }
}

/// Deserialises and validates `text` after merging `overrides` (`a.b=value`, later ones win).
///
/// # Errors
/// On anything that is not TOML, not a `T`, or fails [`Validate`]; `origin` names the text in every message.
pub fn parse<T: DeserializeOwned + Validate>(text: &str, origin: &str, overrides: &[String]) -> Result<T, ConfigError> {
    let from_text = || toml::from_str::<T>(text).map_err(|e| ConfigError::Parse { origin: origin.into(), message: explain(&e) });
    let bounded = |table: &Table| {
        let mut findings = Vec::new();
        table.iter().for_each(|(key, value)| out_of_range(value, key, &mut findings));
        if findings.is_empty() { Ok(()) } else { Err(ConfigError::Invalid { origin: origin.into(), findings }) }
    };
    let config = if overrides.is_empty() {
        text.parse::<Table>().map_or(Ok(()), |table| bounded(&table))?;
        from_text()?
    } else {
        let mut table: Table = text.parse().map_err(|e| ConfigError::Parse { origin: origin.into(), message: explain(&e) })?;
        for flag in overrides {
            set(&mut table, flag)?;
        }
        bounded(&table)?;
        match table.try_into() {
            Ok(config) => config,
            Err(error) => {
                // If the file alone is at fault, its own error has the better place.
                from_text()?;
                return Err(ConfigError::OverrideRefused { flags: overrides.join(" --set "), message: explain(&error) });
            }
        }
    };
    validated(config, origin)
}

fn validated<T: Validate>(config: T, origin: &str) -> Result<T, ConfigError> {
    let mut findings = Vec::new();
    config.findings(&mut findings);
    if findings.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { origin: origin.into(), findings }) }
}

/// Merges one `a.b=value` into the table. Values are TOML; what is not TOML is taken as a string, so that
/// `--set model.path=./sd15` needs no quotes. Setting `section.choice.key` where another choice stands replaces the choice.
fn set(table: &mut Table, flag: &str) -> Result<(), ConfigError> {
    let malformed = || ConfigError::Override { flag: flag.into() };
    let (key, text) = flag.split_once('=').ok_or_else(malformed)?;
    let value = format!("value = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(text.into()));
    let mut parts: Vec<&str> = key.split('.').map(str::trim).collect();
    let last = parts.pop().filter(|last| !last.is_empty()).ok_or_else(malformed)?;
    let mut table = table;
    for part in parts {
        if part.is_empty() {
            return Err(malformed());
        }
        let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(malformed)?;
    }
    table.insert(last.into(), value);
    Ok(())
}

/// serde's message; where it complains of an unknown name, with the nearest known one.
fn explain(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let message = error.message();
    let Some(rest) = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("unknown variant `")) else {
        return text.trim_end().into();
    };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    format!("{}{}", text.trim_end(), did_you_mean(unknown, known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Optimizer {
        learning_rate: f64,
    }
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Toy {
        steps: usize,
        optimizer: Optimizer,
    }
    impl Validate for Toy {
        fn findings(&self, findings: &mut Vec<String>) {
            if self.steps == 0 {
                findings.push("steps is 0".into());
            }
            if self.optimizer.learning_rate < 0.0 {
                findings.push("optimizer.learning_rate is negative".into());
            }
        }
    }
    const TEXT: &str = "steps = 3\n[optimizer]\nlearning_rate = 0.1\n";

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        parse::<Toy>(text, "toy.toml", &overrides).expect_err("should be refused").to_string()
    }

    #[test]
    fn overrides_win_over_the_file() {
        let toy: Toy = parse(TEXT, "toy.toml", &["steps=5".into(), "optimizer.learning_rate=2e-3".into()]).unwrap();
        assert_eq!((toy.steps, toy.optimizer.learning_rate), (5, 2e-3));
    }

    #[test]
    fn a_typo_is_named_with_line_column_and_the_nearest_key() {
        let message = error("steps = 3\n[optimizer]\nlearnig_rate = 0.1\n", &[]);
        assert!(message.contains("line 3, column 1"), "{message}");
        assert!(message.contains("did you mean `learning_rate`?"), "{message}");
    }

    #[test]
    fn a_bad_override_names_the_flag() {
        assert!(error(TEXT, &["stpes=5"]).starts_with("--set stpes=5: "), "{}", error(TEXT, &["stpes=5"]));
        assert!(error(TEXT, &["steps"]).contains("expected KEY=VALUE"));
        assert!(error(TEXT, &["a..b=1"]).contains("expected KEY=VALUE"));
        assert!(error(TEXT, &["=1"]).contains("expected KEY=VALUE"));
        assert!(error(TEXT, &["steps.deeper=1"]).contains("expected KEY=VALUE"));
    }

    #[test]
    fn all_findings_come_at_once() {
        let message = error("steps = 0\n[optimizer]\nlearning_rate = -0.1\n", &[]);
        assert!(message.contains("steps is 0") && message.contains("learning_rate is negative"), "{message}");
    }

    #[test]
    fn a_value_that_is_not_toml_is_a_string() {
        let mut table = Table::new();
        set(&mut table, "model.path=./some/dir").unwrap();
        assert_eq!(table["model"]["path"].as_str(), Some("./some/dir"));
    }
}
