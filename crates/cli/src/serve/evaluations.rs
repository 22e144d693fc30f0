//! The images of an evaluation: those of each model beside the baseline's of the same prompt and seed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use vp_core::input_file;
use vp_evaluation::comparison::ImageResult;

use super::gallery::{Item, quoted};
use crate::commands::image_of_evaluation;

/// What `evaluation.json` says of how its images were drawn.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Description {
    /// Names and sources.
    sides: Vec<(String, String)>,
    steps: Option<u64>,
    guidance_scale: Option<f64>,
}

#[derive(Deserialize)]
struct PromptResult {
    rows: Vec<ImageResult>,
}

/// Every image of a model that is not the baseline, with the baseline's before it; the baseline's own if it is alone.
pub fn items(folder: &Path) -> Vec<Item> {
    let text = input_file::read_regular_to_string(folder.join("evaluation.json")).unwrap_or_default();
    let description: Description = serde_json::from_str(&text).unwrap_or_default();
    let sides = sides(folder);
    let baseline: BTreeMap<(usize, u64), &ImageResult> =
        sides.get(&0).into_iter().flatten().map(|row| ((row.index, row.seed), row)).collect();
    let shown = if sides.len() > 1 { 1..usize::MAX } else { 0..usize::MAX };
    let mut items = Vec::new();
    for (side, rows) in sides.range(shown) {
        for row in rows {
            let before = if *side > 0 { baseline.get(&(row.index, row.seed)) } else { None };
            let picture = |side: usize, row: &ImageResult| {
                let path = image_of_evaluation(Path::new(""), side, row.index, row.seed);
                folder.join(&path).is_file().then(|| (row.model.clone(), path.display().to_string().replace('\\', "/")))
            };
            items.push(Item {
                pictures: before.and_then(|row| picture(0, row)).into_iter().chain(picture(*side, row)).collect(),
                prompt: row.prompt.clone(),
                seed: Some(row.seed),
                category: row.category.clone(),
                model: row.model.clone(),
                scores: row.scores.clone(),
                before: before.map(|row| row.scores.clone()).unwrap_or_default(),
                parameters: String::new(),
                command: command(&description, *side, row).unwrap_or_default(),
            });
        }
    }
    items
}

/// The results of each side, in the order of prompts.
pub fn sides(folder: &Path) -> BTreeMap<usize, Vec<ImageResult>> {
    let mut sides: BTreeMap<usize, Vec<ImageResult>> = BTreeMap::new();
    for entry in fs::read_dir(folder.join("results")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(side) = name.to_string_lossy().split('-').next().and_then(|side| side.parse().ok()) else { continue };
        let text = input_file::read_regular_to_string(entry.path()).unwrap_or_default();
        let results = text.lines().filter_map(|line| serde_json::from_str::<PromptResult>(line).ok());
        sides.entry(side).or_default().extend(results.flat_map(|result| result.rows));
    }
    sides.values_mut().for_each(|rows| {
        rows.sort_by_key(|row| (row.index, row.seed));
        rows.dedup_by_key(|row| (row.index, row.seed));
    });
    sides
}

/// The command that draws an image again; none if the images were there before.
fn command(description: &Description, side: usize, row: &ImageResult) -> Option<String> {
    let (steps, guidance_scale) = (description.steps?, description.guidance_scale?);
    let (_, source) = description.sides.get(side)?;
    let mut parts = source.split(" + ");
    let model = quoted(parts.next()?);
    let loras: String = parts
        .filter_map(|lora| lora.rsplit_once(" x "))
        .map(|(path, weight)| format!(" --lora {}", quoted(&format!("{path}:{weight}"))))
        .collect();
    let prompt = quoted(&row.prompt);
    Some(format!("visionprefer sample --model {model}{loras} -p {prompt} --steps {steps} -g {guidance_scale} -s {}", row.seed))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_comes_with_the_one_before_and_the_command_that_draws_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("results")).unwrap();
        let sides = json!([["base", "embedded:shapes"], ["tuned", "embedded:shapes + runs/a b/lora.safetensors x 0.5"]]);
        let description = json!({ "sides": sides, "prompts": [], "seeds": [3], "steps": 20, "guidance_scale": 3.0 });
        fs::write(dir.path().join("evaluation.json"), description.to_string()).unwrap();
        let pixels = vp_evaluation::pixels::PixelStats::of(&[0, 0, 0], 1, 1).unwrap();
        for (side, model, score) in [(0, "base", 1.0), (1, "tuned", 2.5)] {
            let row = json!({ "index": 4, "prompt": "it's", "category": "c", "seed": 3, "model": model, "scores": { "judge": score }, "pixels": pixels });
            let line = json!({ "rows": [row], "distances": [] });
            fs::write(dir.path().join(format!("results/{side}-1-of-1.jsonl")), format!("{line}\n{{\"ro")).unwrap();
            fs::create_dir_all(dir.path().join("images")).unwrap();
            fs::write(dir.path().join(format!("images/{side}-000004-3.png")), "").unwrap();
        }
        let items = items(dir.path());
        assert_eq!(items.len(), 1);
        assert_eq!((items[0].before["judge"], items[0].scores["judge"]), (1.0, 2.5));
        assert_eq!(items[0].pictures[1], ("tuned".to_string(), "images/1-000004-3.png".to_string()));
        let lora = "--lora 'runs/a b/lora.safetensors:0.5'";
        assert_eq!(items[0].command, format!("visionprefer sample --model embedded:shapes {lora} -p 'it'\\''s' --steps 20 -g 3 -s 3"));
    }
}
