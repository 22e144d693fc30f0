//! The report of a run's folder: `report.html`, `report.md` and `report.json`.

mod curves;
mod leaks;
mod pairs;
mod previews;
pub mod provenance;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vp_core::{atomic, config, input_file};
use vp_data::near_duplicates;
use vp_evaluation::report::{LeakPanel, Report, SentinelPanel};
use vp_evaluation::sentinel::findings;
use vp_trainers::config::TrainConfig;
use vp_trainers::run::sentinel::{WATCH, Watch};

pub use self::curves::{ChartPlan, plan as plan_of_charts};
pub use self::leaks::panel as leak_panel;
pub use self::pairs::ResultsByImage;
use self::previews::Previews;
use crate::embedded;
use crate::terminal::{say, warn};

/// How many pairs of images a report shows, besides those that changed most.
pub const PAIRS: usize = 12;

/// Writes the report of a run that has just ended, completed or not, and prints its path. The tuned model is on disk by then, so that a
/// report that cannot be written does not make the run fail.
pub fn conclude(run: &Path) {
    match of_run(run).and_then(|report| write(run, &report)) {
        Ok(path) => say(format_args!("{}", path.display())),
        Err(error) => warn(format_args!("no report: {error:#}; `visionprefer report {}` writes it", run.display())),
    }
}

/// Writes a report into a folder in all three formats, and returns the path of the HTML page.
pub fn write(folder: &Path, report: &Report) -> anyhow::Result<PathBuf> {
    for (name, text) in [("report.md", report.to_markdown()), ("report.json", report.to_json()), ("report.html", report.to_html())] {
        let path = folder.join(name);
        atomic::write(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(folder.join("report.html"))
}

/// The report of a run, completed or not, from its folder.
pub fn of_run(folder: &Path) -> anyhow::Result<Report> {
    let path = folder.join("config.toml");
    if !path.is_file() {
        bail!("{} does not hold a run (it has no config.toml); expected the folder of an earlier run", folder.display());
    }
    let resolved = input_file::read_regular_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let config: TrainConfig = config::read(&path, &[])?;
    let metrics = curves::Metrics::read(folder)?;
    let previews = Previews::read(folder, metrics.last_step())?;
    let watch = watch(folder)?;
    let sentinel = watch.as_ref().map(panel).transpose()?;
    let comparison = previews.compare()?;
    let (pairs, extremes) = previews.pairs(folder, comparison.as_ref())?;
    let algorithm = config.algo.name();
    Ok(Report {
        title: match previews.ends() {
            Some((first, last)) => format!("{algorithm}: {last} against {first}"),
            None => format!("{algorithm}: {} updates", metrics.last_step()),
        },
        about: about(&config, metrics.last_step(), &previews),
        trained_rewards: config.reward.iter().map(|reward| reward.name().to_string()).collect(),
        comparison,
        votes: None,
        pairs,
        extremes,
        curves: curves::charts(&metrics, &config, &previews, watch.as_ref()),
        sentinel,
        leaks: leaks(&config, &previews.prompts()),
        config: resolved,
        provenance: provenance::of_run(folder, &metrics),
    })
}

fn about(config: &TrainConfig, updates: u64, previews: &Previews) -> String {
    let of = config.run.num_train_steps;
    let reward = config.reward.as_ref().map_or_else(String::new, |reward| format!(" on {}", reward.name()));
    let watched: Vec<&str> = config.watch.iter().map(|reward| reward.name()).collect();
    let watched = if watched.is_empty() { String::new() } else { format!(", watched by {}", watched.join(" and ")) };
    let trained =
        format!("{} trained with {}{reward}{watched}: {updates} of {of} updates.", config.model.path.display(), config.algo.name());
    match previews.ends() {
        Some((first, last)) => format!(
            "{trained} The previews, {} images of {} prompts, are drawn from the same noise throughout; {last} is compared with {first}.",
            previews.images(),
            previews.prompts().len()
        ),
        None => trained,
    }
}

/// What the sentinel looked at; `None` where there was no sentinel.
fn watch(folder: &Path) -> anyhow::Result<Option<Watch>> {
    let path = folder.join(WATCH);
    let Ok(text) = input_file::read_regular_to_string(&path) else { return Ok(None) };
    let watch = serde_json::from_str(&text).with_context(|| {
        format!("{}: this is not a record of the sentinel; remove the file to write the report without it", path.display())
    })?;
    Ok(Some(watch))
}

fn panel(Watch { config, looks }: &Watch) -> anyhow::Result<SentinelPanel> {
    let findings = findings(looks, config).with_context(|| WATCH.to_string())?;
    Ok(SentinelPanel { steps: looks.iter().map(|look| look.step).collect(), config: *config, findings })
}

/// Whether the preview prompts nearly equal training prompts; `None` if the run has no training prompts or they cannot be read any more.
fn leaks(config: &TrainConfig, held_out: &[String]) -> Option<LeakPanel> {
    let prompts = config.prompts.as_ref()?;
    let training: Vec<String> = match &prompts.file {
        Some(path) => embedded::prompts(path).ok()?.into_iter().map(|prompt| prompt.text).collect(),
        None => prompts.list.clone(),
    };
    Some(leak_panel(held_out, &training, &near_duplicates(held_out, &training)))
}
