//! The previews of a run: of which steps there are some, and the images of one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use vp_core::input_file;
use vp_evaluation::comparison::ImageResult;
use vp_trainers::run::journal::{RESULTS, image_name};

use super::Site;
use super::places::ShownFolder;
use super::reply::{Asked, Reply};

/// The most steps that are listed at once.
const MOST: usize = 1000;
/// A folder that has just changed may change again within the resolution of its time.
const FRESH: Duration = Duration::from_secs(3);

/// The steps of which there are previews, in order, and when their folder was written.
pub type Steps = (SystemTime, Arc<Vec<u64>>);

/// The steps of which a run has previews. The folder is read only if it has changed.
pub fn steps(site: &Site, id: &str, folder: &Path) -> Arc<Vec<u64>> {
    let samples = folder.join("samples");
    let Ok(written) = fs::metadata(&samples).and_then(|found| found.modified()) else { return Arc::default() };
    let is_settled = SystemTime::now().duration_since(written).is_ok_and(|age| age > FRESH);
    let mut all = site.steps.lock().unwrap_or_else(PoisonError::into_inner);
    match all.get(id) {
        Some((known, steps)) if *known == written && is_settled => steps.clone(),
        _ => {
            let steps = Arc::new(steps_in(&samples));
            all.insert(id.to_string(), (written, steps.clone()));
            steps
        }
    }
}

/// `step-000100.png` and `step-000100/`.
fn steps_in(samples: &Path) -> Vec<u64> {
    let step = |name: &str| name.strip_prefix("step-")?.trim_end_matches(".png").parse::<u64>().ok();
    let names = fs::read_dir(samples).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| step(&name.to_string_lossy())).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Those that belong to the run as it is: later ones are left from an attempt that went further.
pub fn upto(steps: &[u64], last: u64) -> &[u64] {
    &steps[..steps.partition_point(|step| *step <= last)]
}

fn folder_of(step: u64) -> String {
    format!("samples/step-{step:06}")
}

/// The path of an image of the newest preview, within the run's folder.
pub fn first_image(folder: &Path, steps: &[u64], last: u64) -> Option<String> {
    let step = *upto(steps, last).last()?;
    let row = results(folder, step).into_iter().next();
    let image = row.map(|row| format!("{}/{}", folder_of(step), image_name(row.index, row.seed)));
    image.or_else(|| Some(format!("{}.png", folder_of(step)))).filter(|path| folder.join(path).is_file())
}

/// The results of a preview's images; none where there are none, as of losses.
pub fn results(folder: &Path, step: u64) -> Vec<ImageResult> {
    let path = folder.join(folder_of(step)).join(RESULTS);
    let text = input_file::read_regular_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A page of the list of steps: from which place on, how many.
pub fn page(site: &Site, place: &ShownFolder, asked: &Asked) -> Reply {
    let steps = steps(site, &place.id, &place.folder);
    let steps = upto(&steps, last_step(site, place));
    let from = asked.number("from").unwrap_or(0).min(steps.len());
    let count = asked.number("count").unwrap_or(100).min(MOST).min(steps.len() - from);
    Reply::json(&json!({ "total": steps.len(), "from": from, "steps": steps[from..from + count] }))
}

/// The images of the preview at a place in the list of steps, or of the last one.
pub fn one(site: &Site, place: &ShownFolder, asked: &Asked) -> Reply {
    let steps = steps(site, &place.id, &place.folder);
    let steps = upto(&steps, last_step(site, place));
    let Some(last) = steps.len().checked_sub(1) else { return Reply::json(&json!({ "total": 0, "images": [] })) };
    let at = asked.number("at").unwrap_or(last).min(last);
    let step = steps[at];
    let image = |row: ImageResult| {
        let path = format!("{}/{}", folder_of(step), image_name(row.index, row.seed));
        json!({ "path": path, "prompt": row.prompt, "seed": row.seed, "scores": row.scores })
    };
    let images: Vec<Value> = results(&place.folder, step).into_iter().map(image).collect();
    let grid = format!("{}.png", folder_of(step));
    let grid = (images.is_empty() && place.folder.join(&grid).is_file()).then_some(grid);
    Reply::json(&json!({ "total": steps.len(), "at": at, "step": step, "images": images, "grid": grid }))
}

fn last_step(site: &Site, place: &ShownFolder) -> u64 {
    let watched = site.watched(&place.id, &place.folder);
    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    watched.metrics.read_on();
    watched.metrics.last_step()
}

/// By the name of a score, the 95 % interval of its mean over the prompts of a preview, whose images are averaged first: those of one prompt are
/// not independent. There is none for fewer than two prompts.
pub fn intervals(results: &[ImageResult]) -> BTreeMap<String, (f64, f64)> {
    let mut of_prompts: BTreeMap<&str, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    for row in results {
        for (name, score) in row.scores.iter().filter(|(_, score)| score.is_finite()) {
            of_prompts.entry(name).or_default().entry(row.index).or_default().push(*score);
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let interval = |prompts: BTreeMap<usize, Vec<f64>>| {
        let means: Vec<f64> = prompts.values().map(|scores| mean(scores)).collect();
        let (centre, n) = (mean(&means), means.len() as f64);
        let variance = means.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (n - 1.0);
        let reach = 1.96 * (variance / n).sqrt();
        (means.len() > 1).then_some((centre - reach, centre + reach))
    };
    of_prompts.into_iter().filter_map(|(name, prompts)| Some((name.to_string(), interval(prompts)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_order_whatever_their_files_are() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["step-000100", "step-000002", "step-1000000"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["step-000002.png", "step-000050.png", "step-x.png", "other.png"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let steps = steps_in(dir.path());
        assert_eq!(steps, [2, 50, 100, 1_000_000]);
        assert_eq!((upto(&steps, 99), upto(&steps, 1)), (&steps[..2], &steps[..0]));
    }

    #[test]
    fn prompts_are_what_an_interval_counts() {
        let row = |index, seed, score: f64| ImageResult {
            index,
            prompt: "a".into(),
            category: None,
            seed,
            model: "step 0".into(),
            scores: [("judge".into(), score)].into(),
            pixels: vp_evaluation::pixels::PixelStats::of(&[0, 0, 0], 1, 1).unwrap(),
        };
        let found = intervals(&[row(0, 1, 1.0), row(0, 2, 3.0), row(1, 1, 4.0), row(1, 2, 4.0)]);
        // Means 2 and 4: 3 ± 1.96 · √2 / √2.
        let (low, high) = found["judge"];
        assert!((low - (3.0 - 1.96)).abs() < 1e-12 && (high - (3.0 + 1.96)).abs() < 1e-12, "{found:?}");
        assert!(intervals(&[row(0, 1, 1.0), row(0, 2, 3.0)]).is_empty());
    }
}
