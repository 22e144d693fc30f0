//! TOML in, typed configuration out.
//!
//! A file is deserialised straight from its text, so that serde's errors carry the line and column of the mistake. `--set a.b=c`
//! overrides are merged before deserialising and are caught by the same types; their errors name the flag instead of a line.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::suggest::did_you_mean;
use crate::{input_file, shown};

/// Longer lines of a file, and longer messages, are shown in part.
const LINE: usize = 300;
/// How much is shown of a message that quotes a longer value.
const QUOTED: usize = 160;
/// How much of a value is shown.
const VALUE: usize = 100;
/// How wide a list of known names is.
const WRAPPED: usize = 100;

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
    let text = input_file::read_to_string(path).map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
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

fn bounded(table: &Table, origin: &str) -> Result<(), ConfigError> {
    let mut findings = Vec::new();
    table.iter().for_each(|(key, value)| out_of_range(value, key, &mut findings));
    if findings.is_empty() { Ok(()) } else { Err(ConfigError::Invalid { origin: origin.into(), findings }) }
}

/// Deserialises and validates `text` after merging `overrides` (`a.b=value`, later ones win).
///
/// # Errors
/// On anything that is not TOML, not a `T`, or fails [`Validate`]; `origin` names the text in every message.
pub fn parse<T: DeserializeOwned + Validate>(text: &str, origin: &str, overrides: &[String]) -> Result<T, ConfigError> {
    let refused = |error: &toml::de::Error| ConfigError::Parse { origin: origin.into(), message: explain(error, text) };
    if overrides.is_empty() {
        text.parse::<Table>().map_or(Ok(()), |table| bounded(&table, origin))?;
        return validated(toml::from_str(text).map_err(|error| refused(&error))?, origin);
    }
    let table: Table = text.parse().map_err(|error| refused(&error))?;
    let mut whole = table.clone();
    overrides.iter().try_for_each(|flag| set(&mut whole, flag))?;
    bounded(&whole, origin)?;
    let error = match merged::<T>(&table, overrides)? {
        Ok(config) => return validated(config, origin),
        Err(error) => error,
    };
    // If the file alone is at fault in the same way, its own error has the better place.
    if table.try_into::<T>().is_err_and(|of_file| of_file.message() == error.message())
        && let Err(of_file) = toml::from_str::<T>(text)
    {
        return Err(refused(&of_file));
    }
    let flags = at_fault::<T>(text, overrides, error.message()).map_or_else(|| overrides.join(" --set "), str::to_owned);
    let message = explain_override(&error, &flags);
    Err(ConfigError::OverrideRefused { flags: shown::value(&flags).into(), message })
}

/// The configuration with all overrides in it. A section that takes one choice holds, of the file's and that of an override, the latter.
fn merged<T: DeserializeOwned>(table: &Table, overrides: &[String]) -> Result<Result<T, toml::de::Error>, ConfigError> {
    let mut merged = table.clone();
    for flag in overrides {
        set(&mut merged, flag)?;
    }
    loop {
        match merged.clone().try_into() {
            Err(error) if keep_choice(&mut merged, table, &error, overrides).is_some() => {}
            result => return Ok(result),
        }
    }
}

/// If `error` says that a section has two choices, leaves it the one that an override names last.
fn keep_choice(merged: &mut Table, of_file: &Table, error: &toml::de::Error, overrides: &[String]) -> Option<()> {
    if !error.message().starts_with("wanted exactly 1 element, more than 1") {
        return None;
    }
    let section = place(error)?;
    let choice = overrides.iter().rev().find_map(|flag| flag.split_once('=')?.0.trim().strip_prefix(&section)?.strip_prefix('.'));
    let choice = choice?.split('.').next()?.trim();
    let mut parts = section.split('.');
    let first = parts.next()?;
    let own = parts.clone().try_fold(of_file.get(first)?.as_table()?, |table, part| table.get(part)?.as_table())?;
    let section = parts.try_fold(merged.get_mut(first)?.as_table_mut()?, |table, part| table.get_mut(part)?.as_table_mut())?;
    // A file with two choices is at fault itself.
    if own.len() > 1 || section.len() < 2 || !section.contains_key(choice) {
        return None;
    }
    section.retain(|name, _| name == choice);
    Some(())
}

/// The first override that brings `message` about.
fn at_fault<'a, T: DeserializeOwned>(text: &str, overrides: &'a [String], message: &str) -> Option<&'a str> {
    let table: Table = text.parse().ok()?;
    let is_refused = |upto: usize| {
        let tried = merged::<T>(&table, &overrides[..=upto]).ok()?;
        tried.is_err_and(|error| error.message() == message).then_some(overrides[upto].as_str())
    };
    (0..overrides.len()).find_map(is_refused)
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

/// The dotted key that an error without a text names.
fn place(error: &toml::de::Error) -> Option<String> {
    let text = error.to_string();
    Some(text.trim_end().strip_prefix(error.message())?.trim_start().strip_prefix("in `")?.strip_suffix('`')?.to_owned())
}

/// What is wrong with the override `flag`: the key, what was expected and what was found.
fn explain_override(error: &toml::de::Error, flag: &str) -> String {
    let message = error.message();
    let mismatch = || message.strip_prefix("invalid type: ")?.rsplit_once(", expected ");
    let message = mismatch().map_or_else(
        || shortened(message),
        |(found, expected)| {
            let found = match found {
                "sequence" => "a list",
                "map" => "a table",
                found => found,
            };
            let expected = if expected == "path string" { "a path" } else { expected };
            format!("expected {expected}, found {}", shown::cut(found, VALUE))
        },
    );
    let key = flag.split('=').next().unwrap_or_default().trim();
    let is_key = |place: &String| place.rsplit('.').next() == key.rsplit('.').next();
    // serde leaves the names of choices out of the place.
    let place = place(error).map(|place| if is_key(&place) { key.to_owned() } else { place });
    let place = place.map_or_else(String::new, |place| format!("{}: ", shown::cut(&place, VALUE)));
    format!("{place}{message}{}", nearest_known(error.message()))
}

/// serde's message; where it complains of an unknown name, with the nearest known one. A long line of `text` is cut around the fault.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let whole = error.to_string();
    let told = match error.span() {
        Some(span) if whole.lines().any(|line| line.len() > LINE) => {
            format!("{}\n{}", around(text, span), shortened(error.message()))
        }
        _ => whole.trim_end().to_owned(),
    };
    format!("{told}{}", nearest_known(error.message()))
}

/// What `toml` draws, of a line that is too long to be shown.
fn around(text: &str, span: std::ops::Range<usize>) -> String {
    const BEFORE: usize = 40;
    const WIDTH: usize = 100;
    let before = text.get(..span.start).unwrap_or(text);
    let (line, column) = (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default().chars().count());
    let source = text.split('\n').nth(line - 1).unwrap_or_default();
    let first = column.saturating_sub(BEFORE);
    let (left, right) = (if first > 0 { "…" } else { "" }, if source.chars().count() > first + WIDTH { "…" } else { "" });
    let part: String = source.chars().skip(first).take(WIDTH).collect();
    let faulty = text.get(span).unwrap_or_default().lines().next().unwrap_or_default().chars().count();
    let marks = "^".repeat(faulty.min(first + WIDTH - column).max(1));
    let (gutter, indent) = (" ".repeat(line.to_string().len()), " ".repeat(left.chars().count() + column - first));
    format!("TOML parse error at line {line}, column {}\n{gutter} |\n{line} | {left}{part}{right}\n{gutter} | {indent}{marks}", column + 1)
}

/// A message that quotes little: a long value is cut, a long list of known names is on lines of its own.
fn shortened(message: &str) -> String {
    if message.len() <= LINE {
        return message.to_owned();
    }
    let Some((found, known)) = message.rsplit_once(", expected one of ") else { return shown::cut(message, QUOTED).into() };
    let mut told = format!("{}, expected one of", shown::cut(found, VALUE));
    let mut room = 0;
    for name in known.split(", ") {
        if room < name.len() + 2 {
            told.push_str("\n ");
            room = WRAPPED;
        }
        room = room.saturating_sub(name.len() + 2);
        told.push_str(&format!(" {name},"));
    }
    told.trim_end_matches(',').to_owned()
}

/// Where a message complains of an unknown name, the nearest known one.
fn nearest_known(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("unknown variant `")) else {
        return String::new();
    };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    // The distance to a longer text is of no interest, and takes long to find.
    let known: Vec<&str> = quoted.skip(1).step_by(2).filter(|_| unknown.len() <= VALUE).collect();
    did_you_mean(unknown, known)
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

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Schedule {
        Constant {},
        Cosine { warmup: usize },
    }
    #[derive(Debug, Deserialize)]
    struct Scheduled {
        schedule: Schedule,
        folder: std::path::PathBuf,
    }
    impl Validate for Scheduled {
        fn findings(&self, findings: &mut Vec<String>) {
            if self.folder.as_os_str().is_empty() {
                findings.push("folder is empty".into());
            }
        }
    }

    fn scheduled(text: &str, overrides: &[&str]) -> Result<Schedule, String> {
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        parse::<Scheduled>(text, "toy.toml", &overrides).map(|config| config.schedule).map_err(|error| error.to_string())
    }

    #[test]
    fn an_override_replaces_the_choice_of_a_section() {
        const TEXT: &str = "folder = \"a\"\n[schedule.constant]\n";
        assert_eq!(scheduled(TEXT, &[]), Ok(Schedule::Constant {}));
        assert_eq!(scheduled(TEXT, &["schedule.cosine.warmup=1", "folder=b"]), Ok(Schedule::Cosine { warmup: 1 }));
        assert_eq!(scheduled(TEXT, &["schedule.cosine.warmup=1", "schedule.constant={}"]), Ok(Schedule::Constant {}));
        let unknown = scheduled(TEXT, &["folder=b", "schedule.cosin.warmup=1"]).unwrap_err();
        assert!(unknown.starts_with("--set schedule.cosin.warmup=1: ") && unknown.contains("did you mean `cosine`?"), "{unknown}");
        // A file with two choices is refused whatever is set.
        let both = "folder = \"a\"\n[schedule.constant]\n[schedule.cosine]\nwarmup = 1\n";
        let refused = scheduled(both, &["schedule.cosine.warmup=2"]).unwrap_err();
        assert!(refused.contains("config toy.toml") && refused.contains("line 2") && refused.contains("more than 1 element"), "{refused}");
    }

    #[test]
    fn the_override_at_fault_is_named_alone() {
        let message = error(TEXT, &["steps=4", "optimizer.learning_rate=[1]", "steps=5"]);
        assert_eq!(message, "--set optimizer.learning_rate=[1]: optimizer.learning_rate: expected f64, found a list");
        // The file lacks what was given in another type.
        let message = scheduled("[schedule.constant]\n", &["folder=[\"a\"]"]).unwrap_err();
        assert_eq!(message, "--set folder=[\"a\"]: folder: expected a path, found a list");
        let message = scheduled("folder = \"a\"\n[schedule.cosine]\nwarmup = 1\n", &["schedule.cosine.warmup=a"]).unwrap_err();
        assert_eq!(message, "--set schedule.cosine.warmup=a: schedule.cosine.warmup: expected usize, found string \"a\"");
        // The file lacks it, and so do the overrides.
        assert!(scheduled("[schedule.constant]\n", &["other=1"]).unwrap_err().starts_with("config toy.toml: "));
    }

    #[test]
    fn a_long_line_is_cut_around_the_fault() {
        let long = "y".repeat(90_000);
        for (text, column) in
            [(format!("\nsteps = \"{long}\""), 9), (format!("\nsteps = {{ a = \"{long}\" }}"), 9), (format!("\n{long} == 3"), 90_003)]
        {
            let message = error(&text, &[]);
            assert!(message.contains(&format!("line 2, column {column}\n")) && message.contains('…'), "{message}");
            assert!(message.lines().all(|line| line.chars().count() <= 320), "{message}");
        }
        let message = error(&format!("\n{long} == 3"), &[]);
        let drawn: Vec<&str> = message.lines().collect();
        let mark = drawn[3].chars().position(|mark| mark == '^').unwrap();
        assert_eq!(drawn[2].chars().nth(mark), Some('='), "{message}");
        assert!(drawn[2].starts_with("2 | …yyy"), "{message}");
        assert!(error(TEXT, &[&format!("steps={long}")]).chars().count() < 500);
        assert!(error(TEXT, &[&format!("{long}=1")]).chars().count() < 500);
    }

    #[test]
    fn a_long_list_of_names_is_on_lines_of_its_own() {
        let names: Vec<String> = (0..60).map(|number| format!("`name_{number}`")).collect();
        let told = shortened(&format!("unknown field `{}`, expected one of {}", "x".repeat(900), names.join(", ")));
        assert!(told.contains(" … ") && told.ends_with("`name_59`") && told.lines().all(|line| line.len() < 140), "{told}");
        assert_eq!(told.matches("`name_").count(), 60);
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
