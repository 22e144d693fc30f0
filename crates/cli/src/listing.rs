//! Tables of what can be chosen by name, for `list` and for the reference pages.

use std::fmt::Write;

use serde_json::{Value, json};
use vp_annotation::AnnotatorConfig;
use vp_core::Entry;
use vp_rewards::RewardConfig;
use vp_schedulers::SCHEDULERS;
use vp_trainers::config::AlgorithmConfig;
use vp_trainers::optim::LrSchedulerConfig;
use vp_trainers::regularizer::RegularizerConfig;

use crate::seen_devices::{SEEN, SYSTEMS, Seen, support};
use crate::{device, presets};

/// Columns that are not set as code.
const PROSE: [&str; 7] = ["summary", "system", "driver", "formats", "state", "date", "what_ran"];

/// A table of things of one kind.
pub struct Table {
    /// What a row is, in one word.
    pub kind: &'static str,
    /// What the rows are.
    pub title: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

/// Rewards, by the names of their sections.
pub fn rewards() -> Table {
    entries("reward", "rewards", RewardConfig::ENTRIES)
}

/// Annotators, by the names of their sections.
pub fn annotators() -> Table {
    entries("annotator", "annotators", AnnotatorConfig::ENTRIES)
}

/// Noise schedulers.
pub fn schedulers() -> Table {
    let rows = SCHEDULERS.iter().map(|entry| {
        vec![
            json!(entry.name),
            json!(entry.class.class_name),
            json!(entry.a1111),
            json!(entry.is_single_step()),
            json!(entry.is_stochastic(1.0)),
            json!(entry.summary),
        ]
    });
    let columns = &["name", "diffusers_class", "a1111_names", "single_step", "stochastic", "summary"];
    Table { kind: "scheduler", title: "schedulers", columns, rows: rows.collect() }
}

/// Algorithms of `train`, and the configs that ship with them.
pub fn algos() -> Table {
    let rows = AlgorithmConfig::ENTRIES.iter().map(|entry| {
        let names: Vec<&str> = presets::of(entry.name).into_iter().map(|preset| preset.name).collect();
        vec![json!(entry.name), json!(names), json!(entry.summary)]
    });
    Table { kind: "algo", title: "algos", columns: &["name", "presets", "summary"], rows: rows.collect() }
}

/// Learning-rate schedulers.
pub fn lr_schedulers() -> Table {
    entries("lr_scheduler", "lr-schedulers", LrSchedulerConfig::ENTRIES)
}

/// Regularizers, which keep the tuned model close to real images or to the base model.
pub fn regularizers() -> Table {
    entries("regularizer", "regularizers", RegularizerConfig::ENTRIES)
}

/// What `--device` takes, and whether this build has it.
pub fn devices() -> Table {
    let rows = device::describe().map(|device| {
        let add_with = device.add_with.filter(|_| !device.compiled);
        vec![json!(device.name), json!(device.compiled), json!(add_with), json!(device.summary)]
    });
    Table { kind: "device", title: "devices", columns: &["name", "in_this_build", "add_with", "summary"], rows: rows.collect() }
}

/// What `--device` takes, in any build.
pub fn devices_of_any_build() -> Table {
    let rows = device::describe().map(|device| vec![json!(device.name), json!(device.add_with), json!(device.summary)]);
    Table { kind: "device", title: "devices", columns: &["name", "add_with", "summary"], rows: rows.collect() }
}

/// Where the program has been seen to compute, and how exactly.
pub fn seen_devices() -> Table {
    let row = |seen: &Seen| {
        let Seen { system, device, driver, formats, state, what_ran, largest_deviation, date } = *seen;
        let words = [device, system, driver, formats, state, what_ran].map(|cell| json!(cell));
        words.into_iter().chain([json!(largest_deviation), json!(date)]).collect()
    };
    let columns = &["device", "system", "driver", "formats", "state", "what_ran", "largest_deviation", "date"];
    Table { kind: "device", title: "devices seen", columns, rows: SEEN.iter().map(row).collect() }
}

/// What is known of each backend on each system, as a Markdown table.
pub fn support_matrix() -> String {
    let backends: Vec<&str> = device::names().collect();
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line([String::new()].into_iter().chain(backends.iter().map(|backend| code(backend))).collect());
    text += &line(vec!["---".to_owned(); backends.len() + 1]);
    for system in &SYSTEMS {
        let cells = backends.iter().map(|backend| support(system, backend));
        text += &line([system.name.to_owned()].into_iter().chain(cells).collect());
    }
    text
}

fn entries(kind: &'static str, title: &'static str, entries: &[Entry]) -> Table {
    let rows = entries.iter().map(|entry| vec![json!(entry.name), json!(entry.summary)]);
    Table { kind, title, columns: &["name", "summary"], rows: rows.collect() }
}

impl Table {
    /// Aligned columns under the table's title.
    pub fn to_text(&self) -> String {
        let mut lines = vec![self.headings()];
        lines.extend(self.rows.iter().map(|row| row.iter().map(words).collect()));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = format!("{}\n", self.title);
        for line in &lines {
            let cells: String = line.iter().zip(&widths).map(|(cell, width)| format!("  {cell:<width$}")).collect();
            let _ = writeln!(text, "{}", cells.trim_end());
        }
        text
    }

    /// One JSON object per line.
    pub fn to_json_lines(&self) -> String {
        let object = |row: &Vec<Value>| {
            let cells = self.columns.iter().map(|column| column.to_string()).zip(row.iter().cloned());
            let object: serde_json::Map<String, Value> = [("kind".to_owned(), json!(self.kind))].into_iter().chain(cells).collect();
            format!("{}\n", Value::Object(object))
        };
        self.rows.iter().map(object).collect()
    }

    /// A Markdown table. Names that users type are set as code.
    pub fn to_markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.headings()) + &line(vec!["---".to_owned(); self.columns.len()]);
        for row in &self.rows {
            let cell = |(column, cell): (&&str, &Value)| match cell {
                Value::String(text) if !PROSE.contains(column) => code(text),
                Value::Array(items) => items.iter().map(|item| code(&words(item))).collect::<Vec<_>>().join(", "),
                other => escaped(&words(other)),
            };
            text += &line(self.columns.iter().zip(row).map(cell).collect());
        }
        text
    }

    fn headings(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.replace('_', " ")).collect()
    }
}

/// Set as code in a Markdown table.
pub fn code(text: &str) -> String {
    format!("`{}`", escaped(text))
}

/// A bar would end the cell, in code too.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A cell as people read it.
fn words(cell: &Value) -> String {
    match cell {
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    }
}
