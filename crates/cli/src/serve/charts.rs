//! The curves of one run or several, thinned out for the page that draws them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

use serde_json::{Value, json};

use super::places::{FolderKind, ShownFolder};
use super::reply::{Asked, Reply};
use super::series::{Band, Point};
use super::{Site, previews};
use crate::report;

/// Points of a curve, if the page does not say.
const POINTS: usize = 300;
/// Of so many previews the images' scores are read for intervals; of more, they are what a part of the curve spans.
const PREVIEWS: usize = 200;
/// Runs over one another.
pub const RUNS: usize = 8;

/// A chart with lines of every run that has it.
struct Chart {
    title: String,
    note: &'static str,
    series: Vec<Value>,
}

/// The runs that an address names, each once.
pub fn asked_runs(site: &Site, asked: &Asked) -> Vec<ShownFolder> {
    let mut places: Vec<ShownFolder> = Vec::new();
    for id in asked.values("id").take(RUNS) {
        let place = site.places.find(id).filter(|place| place.kind == FolderKind::Run && places.iter().all(|known| known.id != place.id));
        places.extend(place);
    }
    places
}

/// All charts of the runs that were asked for.
pub fn reply(site: &Site, asked: &Asked) -> Reply {
    let places = asked_runs(site, asked);
    if places.is_empty() {
        return Reply::missing();
    }
    let points = asked.number("points").unwrap_or(POINTS).clamp(10, 2000);
    let (mut charts, mut marks, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for place in &places {
        positions.push(json!(add(site, place, points, &mut charts)));
        if places.len() == 1 {
            let findings = site.watched(&place.id, &place.folder).lock().unwrap_or_else(PoisonError::into_inner).findings(&place.folder);
            marks.extend(findings.as_array().into_iter().flatten().map(|finding| finding["step"].clone()));
        }
    }
    let chart = |chart: Chart| json!({ "title": chart.title, "note": chart.note, "series": chart.series });
    Reply::json(&json!({ "charts": charts.into_iter().map(chart).collect::<Vec<_>>(), "marks": marks, "positions": positions }))
}

/// Adds the lines of a run; the position in its metrics up to which they go.
fn add(site: &Site, place: &ShownFolder, points: usize, charts: &mut Vec<Chart>) -> (u64, u64) {
    let watched = site.watched(&place.id, &place.folder);
    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    watched.metrics.read_on();
    let names: Vec<String> = watched.metrics.names().into_iter().map(String::from).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut plans = report::plan_of_charts(&names, watched.config(&place.folder));
    plans.push(report::ChartPlan {
        title: "Images per second".into(),
        note: "",
        series: vec![("images_per_second".into(), "images per second".into())],
        leads: false,
    });
    let steps = previews::steps(site, &place.id, &place.folder);
    let intervals = intervals(&place.folder, previews::upto(&steps, watched.metrics.last_step()));
    for plan in plans {
        let lines = plan.series.iter().filter_map(|(metric, shown)| {
            let (band, mut curve) = watched.metrics.series(metric)?.curve(points);
            let band = if band == Band::Nothing { add_intervals(&mut curve, metric, &intervals) } else { band };
            let curve: Vec<Value> = curve.iter().map(numbers).collect();
            Some(json!({ "run": place.id, "name": shown, "metric": metric, "band": name(band), "points": curve }))
        });
        let lines: Vec<Value> = lines.collect();
        match charts.iter_mut().find(|chart| chart.title == plan.title) {
            Some(chart) => chart.series.extend(lines),
            None if lines.is_empty() => {}
            None => charts.push(Chart { title: plan.title, note: plan.note, series: lines }),
        }
    }
    watched.metrics.position()
}

/// By step and name, the intervals of the previews' scores.
fn intervals(folder: &Path, steps: &[u64]) -> BTreeMap<u64, BTreeMap<String, (f64, f64)>> {
    if steps.len() > PREVIEWS {
        return BTreeMap::new();
    }
    steps.iter().map(|step| (*step, previews::intervals(&previews::results(folder, *step)))).collect()
}

/// Puts the intervals of a preview's scores around the curve of one of them.
fn add_intervals(curve: &mut [Point], metric: &str, intervals: &BTreeMap<u64, BTreeMap<String, (f64, f64)>>) -> Band {
    let Some(name) = metric.strip_prefix("preview/") else { return Band::Nothing };
    let mut band = Band::Nothing;
    for point in curve {
        if let Some((low, high)) = intervals.get(&(point.step as u64)).and_then(|of_step| of_step.get(name)) {
            (point.low, point.high, band) = (*low, *high, Band::Interval);
        }
    }
    band
}

fn name(band: Band) -> &'static str {
    match band {
        Band::Interval => "interval",
        Band::Range => "range",
        Band::Nothing => "nothing",
    }
}

/// Step, mean, low and high, with the digits that can be seen; `null` for what is not finite.
fn numbers(point: &Point) -> Value {
    let brief = |value: f64| format!("{value:.5e}").parse::<f64>().ok().filter(|value| value.is_finite());
    json!([point.step, brief(point.mean), brief(point.low), brief(point.high)])
}
