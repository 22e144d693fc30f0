//! The course of a run: charts of what `metrics.jsonl` holds.

use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};
use vp_core::input_file;
use vp_evaluation::comparison::ImageResult;
use vp_evaluation::report::{Chart, Series};
use vp_trainers::config::TrainConfig;
use vp_trainers::run::sentinel::Watch;

use super::previews::Previews;

/// Metrics that share a chart: its title, how to read it, the names of the metrics.
const GROUPS: [(&str, &str, &[&str]); 9] = [
    ("Loss", "", &["loss", "reconstruction", "edge", "preview/validation_loss"]),
    ("Denoising loss", "", &["denoising_loss", "model_loss", "reference_loss"]),
    (
        "Accuracy",
        "",
        &[
            "accuracy",
            "implicit_accuracy",
            "preview/validation_accuracy",
            "preview/validation_implicit_accuracy",
            "preview/validation_accuracy_prompt_following",
            "preview/validation_accuracy_aesthetic",
            "preview/validation_accuracy_fidelity",
            "preview/validation_accuracy_harmlessness",
        ],
    ),
    (
        "Change of the loss against the reference",
        "Training lowers it for chosen and for liked images.",
        &["chosen_change", "rejected_change", "liked_change", "disliked_change"],
    ),
    ("KL divergence", "", &["kl", "approx_kl"]),
    ("Clipped ratios", "The share that is clipped, and the largest distance of a ratio from 1.", &["clipfrac", "ratio_max_deviation"]),
    ("Regularizer", "", &["regularizer"]),
    ("Norm of the gradients", "Before clipping.", &["grad_norm"]),
    ("Learning rate", "", &["lr"]),
];
/// What to look at first where nothing is scored.
const WITHOUT_REWARDS: [&str; 2] = ["Loss", "Accuracy"];
/// Metrics without a chart: they tell how fast a run was or how its rewards were spread, not how it went.
const LEFT_OUT: [&str; 4] = ["step", "images_per_second", "seconds", "reward_std"];

/// The lines of `metrics.jsonl`.
pub struct Metrics {
    lines: Vec<(u64, Map<String, Value>)>,
}

impl Metrics {
    /// Reads them. A line that a killed process left unfinished is passed over.
    pub fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join("metrics.jsonl");
        let text = input_file::read_regular_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let line = |line: &str| {
            let line: Map<String, Value> = serde_json::from_str(line).ok()?;
            Some((line.get("step")?.as_u64()?, line))
        };
        Ok(Self { lines: text.lines().filter_map(line).collect() })
    }

    /// How many updates there were.
    pub fn last_step(&self) -> u64 {
        self.lines.last().map_or(0, |(step, _)| *step)
    }

    /// All names, in the order in which they occur.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.lines.iter().flat_map(|(_, line)| line.keys()) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// Step and value of a metric. The file holds values that are not finite as text.
    pub fn points(&self, name: &str) -> Vec<(f64, f64)> {
        let value = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
        self.lines.iter().filter_map(|(step, line)| Some((*step as f64, value(line.get(name)?)?))).collect()
    }
}

/// Which metrics a chart shows, before they are looked up.
pub struct ChartPlan {
    pub title: String,
    /// How to read it; may be empty.
    pub note: &'static str,
    /// Each metric, and what the chart calls it.
    pub series: Vec<(String, String)>,
    /// Whether it is one of the few to look at first.
    pub leads: bool,
}

/// The charts of metrics by these names: each reward, what is known, and then everything else. The config says which rewards there are; without one,
/// as of a run of another version, they are shown with everything else.
pub fn plan(names: &[&str], config: Option<&TrainConfig>) -> Vec<ChartPlan> {
    let (mut plans, mut drawn) = (Vec::new(), LEFT_OUT.map(String::from).to_vec());
    let mut add = |title: &str, note: &'static str, named: &[(&str, &str)], leads: bool| {
        let is_new = |name: &str| names.contains(&name) && !drawn.iter().any(|known| known == name);
        let named: Vec<_> = named.iter().filter(|(name, _)| is_new(name)).collect();
        let series: Vec<(String, String)> = named.iter().map(|(name, shown)| (name.to_string(), shown.to_string())).collect();
        drawn.extend(named.iter().map(|(name, _)| name.to_string()));
        if !series.is_empty() {
            plans.push(ChartPlan { title: title.into(), note, series, leads });
        }
    };
    let trained = config.and_then(|config| config.reward.as_ref()).map(|reward| (reward.name(), true));
    let watched = || config.iter().flat_map(|config| &config.watch).map(|reward| reward.name());
    let has_rewards = trained.is_some() || watched().next().is_some();
    for (name, is_trained) in trained.into_iter().chain(watched().map(|name| (name, false))) {
        let (title, in_training) =
            if is_trained { (format!("{name} (trained)"), "reward_mean".to_string()) } else { (name.to_string(), format!("watch/{name}")) };
        let note = "Training draws other prompts and seeds than the previews.";
        add(&title, note, &[(&in_training, "in training"), (&format!("preview/{name}"), "previews")], true);
    }
    let terms: Vec<(&str, &str)> = names.iter().filter_map(|name| Some((*name, name.strip_prefix("reward/")?))).collect();
    add("Terms of the reward in training", "", &terms, false);
    for name in trained.map(|(name, _)| name).into_iter().chain(watched()) {
        let (title, prefix) = (format!("Terms of {name} in previews"), format!("preview/{name}/"));
        let terms: Vec<(&str, &str)> = names.iter().filter_map(|term| Some((*term, term.strip_prefix(&prefix)?))).collect();
        add(&title, "", &terms, false);
    }
    for (title, note, of_group) in GROUPS {
        let named: Vec<(&str, &str)> = of_group.iter().map(|name| (*name, shown(name))).collect();
        add(title, note, &named, !has_rewards && WITHOUT_REWARDS.contains(&title));
    }
    // What a table of names does not know is shown all the same.
    for name in names {
        add(shown(name), "", &[(name, shown(name))], false);
    }
    plans
}

/// The charts of a run: each reward, all other metrics, the pixels of the previews, and the weights.
pub fn charts(metrics: &Metrics, config: &TrainConfig, previews: &Previews, watch: Option<&Watch>) -> Vec<Chart> {
    let drawn = plan(&metrics.names(), Some(config)).into_iter().map(|ChartPlan { title, note, series, leads }| {
        let series = series.into_iter().map(|(metric, name)| Series { points: metrics.points(&metric), name });
        Chart { leads, ..chart(&title, note, series.collect()) }
    });
    let mut charts: Vec<Chart> = of_rewards(config, previews).into_iter().chain(drawn).collect();
    charts.extend(of_images(previews));
    charts.extend(of_weights(watch));
    charts.retain(|chart| !chart.series.is_empty());
    charts
}

fn shown(name: &str) -> &str {
    name.strip_prefix("preview/").unwrap_or(name)
}

/// A chart of those series that have points.
fn chart(title: &str, note: &str, mut series: Vec<Series>) -> Chart {
    series.retain(|series| !series.points.is_empty());
    Chart { title: title.into(), note: note.into(), series, leads: false }
}

/// The trained reward beside the watched ones, on one scale; `None` without two rewards or two previews.
fn of_rewards(config: &TrainConfig, previews: &Previews) -> Option<Chart> {
    let trained = config.reward.iter().map(|reward| (reward.name(), format!("{} (trained)", reward.name())));
    let watched = config.watch.iter().map(|reward| (reward.name(), reward.name().to_string()));
    let series = trained.chain(watched).map(|(name, shown)| Series { points: previews.change(name), name: shown });
    let note = "How far each mean has moved since the first preview, in standard deviations of its images. The trained one goes up by construction.";
    let chart = chart("Trained and watched rewards", note, series.collect());
    let is_course = chart.series.len() > 1 && chart.series.iter().any(|series| series.points.len() > 1);
    is_course.then_some(Chart { leads: true, ..chart })
}

/// Pixel statistics of the previews; `None` for fewer than three previews, which are compared instead.
fn of_images(previews: &Previews) -> Option<Chart> {
    let line = |name: &str, value: fn(&ImageResult) -> f64| Series { name: name.into(), points: previews.course(value) };
    let series = vec![
        line("brightness", |row| row.pixels.brightness),
        line("saturation", |row| row.pixels.saturation),
        line("edge density", |row| row.pixels.edge_density),
        line("dark fraction", |row| row.pixels.dark_fraction),
    ];
    (series[0].points.len() > 2).then(|| chart("Pixels of the previews", "", series))
}

fn of_weights(watch: Option<&Watch>) -> Vec<Chart> {
    let Some(Watch { looks, .. }) = watch else { return Vec::new() };
    let distances = looks.iter().map(|look| (look.step as f64, look.weight_distance)).collect();
    let diversity = looks.iter().filter_map(|look| Some((look.step as f64, look.diversity?))).collect();
    let of = |name: &str, points| vec![Series { name: name.into(), points }];
    let note = "How far what trains is from where it began, in parts of its norm there.";
    let about_diversity = "The mean distance of two images of a prompt: root mean square of pixels.";
    vec![
        chart("Distance of the weights", note, of("distance", distances)),
        chart("Diversity of the previews", about_diversity, of("diversity", diversity)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_points_and_half_a_line_none() {
        let dir = tempfile::tempdir().unwrap();
        let text = "{\"step\":0,\"preview/r\":1.5}\n{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":\"NaN\"}\n{\"step\":3,\"lo";
        std::fs::write(dir.path().join("metrics.jsonl"), text).unwrap();
        let metrics = Metrics::read(dir.path()).unwrap();
        assert_eq!((metrics.last_step(), metrics.names()), (2, vec!["step", "preview/r", "loss"]));
        assert_eq!(metrics.points("preview/r"), [(0.0, 1.5)]);
        let loss = metrics.points("loss");
        assert!(loss[0] == (1.0, 0.5) && loss[1].1.is_nan(), "{loss:?}");
    }
}
