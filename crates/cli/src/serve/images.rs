//! The images of any folder: with their captions and scores where a list beside them has some, and with what their files say of how they were made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use vp_core::input_file;
use vp_data::{Parameters, read_png_text};

use super::gallery::{Item, quoted};
use super::places::is_image;

/// Lists with a line of JSON for each image, by the names that they have: those of captions, and those of previews.
const LISTS: [&str; 2] = ["metadata.jsonl", "results.jsonl"];
/// Keys whose numbers are not scores.
const NO_SCORES: [&str; 6] = ["index", "seed", "width", "height", "steps", "guidance_scale"];

/// The images of a folder, in the order of their names.
pub fn items(folder: &Path) -> Vec<Item> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| is_image(path));
    let mut names: Vec<String> = entries.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    names.sort();
    let listed = listed(folder);
    let item = |name: String| Item { pictures: vec![(name.clone(), name.clone())], ..listed.get(&name).cloned().unwrap_or_default() };
    names.into_iter().map(item).collect()
}

/// The names of the images of a folder, and the prompt of each, which is empty where none is known.
pub fn captions(folder: &Path) -> BTreeMap<String, String> {
    let caption = |mut item: Item| {
        if item.prompt.is_empty() {
            add_parameters(folder, &mut item);
        }
        Some((item.pictures.pop()?.1, item.prompt))
    };
    items(folder).into_iter().filter_map(caption).collect()
}

/// What the lists say of each file.
fn listed(folder: &Path) -> BTreeMap<String, Item> {
    let mut items = BTreeMap::new();
    for list in LISTS {
        let text = input_file::read_regular_to_string(folder.join(list)).unwrap_or_default();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Map<String, Value>>(line).ok()) {
            items.extend(name_of(&line).map(|name| (name, item_of(&line))));
        }
    }
    items
}

/// The file that a line is about: a preview names its images by prompt and seed.
fn name_of(line: &Map<String, Value>) -> Option<String> {
    if let Some(name) = line.get("file_name").and_then(Value::as_str) {
        return Some(name.to_string());
    }
    Some(vp_trainers::run::journal::image_name(line.get("index")?.as_u64()? as usize, line.get("seed")?.as_u64()?))
}

fn item_of(line: &Map<String, Value>) -> Item {
    let text = |keys: &[&str]| keys.iter().find_map(|key| line.get(*key)?.as_str()).unwrap_or_default().to_string();
    let nested = line.get("scores").and_then(Value::as_object);
    let numbers = line.iter().filter(|(name, _)| !NO_SCORES.contains(&name.as_str())).chain(nested.into_iter().flatten());
    Item {
        prompt: text(&["prompt", "text", "caption"]),
        category: line.get("category").and_then(Value::as_str).map(String::from),
        model: text(&["model"]),
        seed: line.get("seed").and_then(Value::as_u64),
        scores: numbers.filter_map(|(name, value)| Some((name.clone(), value.as_f64().filter(|score| score.is_finite())?))).collect(),
        ..Item::default()
    }
}

/// Adds what the file itself says of how it was made.
pub fn add_parameters(folder: &Path, item: &mut Item) {
    let Some((_, path)) = item.pictures.last() else { return };
    let texts = read_png_text(folder.join(path)).unwrap_or_default();
    let Some((_, text)) = texts.into_iter().find(|(key, _)| key == "parameters") else { return };
    let parameters = Parameters::parse(&text);
    if item.prompt.is_empty() {
        item.prompt = parameters.prompt.clone();
    }
    item.seed = item.seed.or_else(|| parameters.get("Seed")?.parse().ok());
    item.command = command(&parameters);
    item.parameters = text;
}

/// The command that draws such an image. A model is known by its name alone, and so are LoRAs, which the command leaves out.
fn command(parameters: &Parameters) -> String {
    let mut command = format!("visionprefer sample -p {}", quoted(&parameters.prompt));
    if !parameters.negative_prompt.is_empty() {
        command += &format!(" -n {}", quoted(&parameters.negative_prompt));
    }
    let size = parameters.get("Size").and_then(|size| size.split_once('x'));
    let settings = [
        ("--model", parameters.get("Model")),
        ("--scheduler", parameters.get("Sampler")),
        ("--steps", parameters.get("Steps")),
        ("-g", parameters.get("CFG scale")),
        ("-s", parameters.get("Seed")),
        ("-W", size.map(|(width, _)| width)),
        ("-H", size.map(|(_, height)| height)),
    ];
    settings
        .into_iter()
        .filter_map(|(flag, value)| Some((flag, value.filter(|value| !value.is_empty())?)))
        .fold(command, |command, (flag, value)| format!("{command} {flag} {}", quoted(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_what_lists_and_files_say_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let image = vp_data::RgbImage::from_pixel(8, 8, [1, 2, 3].into());
        let text = Parameters::new("a <b>cat</b>", "blurry")
            .with("Steps", 20)
            .with("Sampler", "DDIM")
            .with("CFG scale", 7.5)
            .with("Seed", 9)
            .with("Size", "64x32");
        vp_data::write_png(dir.path().join("b.png"), &image, &[("parameters", text.to_text())]).unwrap();
        vp_data::write_png::<&str, &str>(dir.path().join("a.png"), &image, &[]).unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let list = "{\"file_name\": \"a.png\", \"text\": \"two dogs\", \"aesthetic\": 5.5, \"width\": 8}\nnonsense\n";
        fs::write(dir.path().join("metadata.jsonl"), list).unwrap();
        let mut found = items(dir.path());
        found.iter_mut().for_each(|item| add_parameters(dir.path(), item));
        assert_eq!(found.len(), 2);
        assert_eq!((&*found[0].prompt, &found[0].scores), ("two dogs", &[("aesthetic".to_string(), 5.5)].into()));
        assert_eq!((&*found[1].prompt, found[1].seed), ("a <b>cat</b>", Some(9)));
        let expected = "visionprefer sample -p 'a <b>cat</b>' -n blurry --scheduler DDIM --steps 20 -g 7.5 -s 9 -W 64 -H 32";
        assert_eq!(found[1].command, expected);
    }
}
