//! Which of two images was preferred for a prompt: what Diffusion-DPO learns from.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vp_core::input_file;

use crate::image_folder::inspect_all;
use crate::utf8::read_utf8;
use crate::{Error, ImageEntry, OnProblem, Problem, ProblemKind, Result};

/// Two images of one prompt, each with the prompt as its caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferencePair {
    /// What was to be drawn.
    pub prompt: String,
    /// The image that was preferred.
    pub chosen: ImageEntry,
    /// The other one.
    pub rejected: ImageEntry,
}

/// The pairs of a list, checked before the first of them is used.
#[derive(Clone, Debug)]
pub struct Preferences {
    /// The usable pairs, in the list's order.
    pub pairs: Vec<PreferencePair>,
    /// What was left out, in the list's order; always empty under [`OnProblem::Refuse`].
    pub skipped: Vec<Problem>,
}

impl Preferences {
    /// Reads a list of pairs: one object per line with `prompt`, `chosen` and `rejected`, the latter two paths of images, absolute or
    /// relative to the list's folder; other keys are passed over. Every image is decoded once, on all processors.
    ///
    /// A line is a problem if it is not such an object, has no prompt, prefers an image to itself or to a file with the same bytes
    /// (a tie says nothing), or names an image that is missing, broken or smaller than `min_size` pixels per side.
    ///
    /// # Errors
    /// The list cannot be read, is empty, or nothing in it is usable; under [`OnProblem::Refuse`] any problem.
    pub fn read(path: impl AsRef<Path>, on_problem: OnProblem, min_size: u32) -> Result<Self> {
        let path = path.as_ref();
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for (index, line) in read_utf8(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match pair_of(line, folder) {
                Ok(pair) => rows.push((index + 1, pair)),
                Err(reason) => problems.push((index + 1, Problem { name: place(index + 1), kind: ProblemKind::BadRow(reason) })),
            }
        }
        if rows.is_empty() && problems.is_empty() {
            return Err(Error::NoPreferences { path: path.into() });
        }
        let findings = inspect_images(rows.iter().map(|(_, pair)| pair), min_size);
        let mut pairs = Vec::new();
        for (line, pair) in rows {
            let found = problems_of(line, &pair, &findings);
            if found.is_empty() {
                pairs.push(pair);
            }
            problems.extend(found.into_iter().map(|problem| (line, problem)));
        }
        problems.sort_by_key(|(line, _)| *line);
        let problems: Vec<Problem> = problems.into_iter().map(|(_, problem)| problem).collect();
        if pairs.is_empty() || (on_problem == OnProblem::Refuse && !problems.is_empty()) {
            return Err(Error::ProblemsInPreferences { path: path.into(), problems, usable: pairs.len() });
        }
        Ok(Self { pairs, skipped: problems })
    }
}

fn place(line: usize) -> String {
    format!("line {line}")
}

fn pair_of(line: &str, folder: &Path) -> Result<PreferencePair, String> {
    let row: Value = serde_json::from_str(line).map_err(|error| format!("malformed JSON: {error}"))?;
    let text = |key: &str| match row.get(key) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Some(Value::String(_)) => Err(format!("{key} is empty")),
        Some(_) => Err(format!("expected {key} to be a string")),
        None => Err(format!("expected an object with prompt, chosen and rejected; it has no {key}")),
    };
    let (prompt, chosen, rejected) = (text("prompt")?, text("chosen")?, text("rejected")?);
    let entry = |file_name: String| ImageEntry { path: folder.join(&file_name), file_name, caption: prompt.clone() };
    let (chosen, rejected) = (entry(chosen), entry(rejected));
    // Components, so that `a.png` and `./a.png` are one.
    if chosen.path.components().eq(rejected.path.components()) {
        return Err(format!("chosen and rejected are both {}: a tie says nothing", chosen.file_name));
    }
    Ok(PreferencePair { prompt, chosen, rejected })
}

/// What is wrong with each image that something is wrong with; an image of many pairs is decoded once.
fn inspect_images<'a>(pairs: impl Iterator<Item = &'a PreferencePair>, min_size: u32) -> HashMap<PathBuf, ProblemKind> {
    let mut images: Vec<ImageEntry> = pairs.flat_map(|pair| [pair.chosen.clone(), pair.rejected.clone()]).collect();
    images.sort_by(|a, b| a.path.cmp(&b.path));
    images.dedup_by(|a, b| a.path == b.path);
    let findings = inspect_all(&images, min_size);
    images.into_iter().zip(findings).filter_map(|(image, kind)| Some((image.path, kind?))).collect()
}

/// What is wrong with the images of one pair.
fn problems_of(line: usize, pair: &PreferencePair, findings: &HashMap<PathBuf, ProblemKind>) -> Vec<Problem> {
    let sides = [("chosen", &pair.chosen), ("rejected", &pair.rejected)];
    let of_side = |(side, image): (&str, &ImageEntry)| {
        let kind = findings.get(&image.path)?.clone();
        Some(Problem { name: format!("{}, {side} {}", place(line), image.file_name), kind })
    };
    let found: Vec<Problem> = sides.into_iter().filter_map(of_side).collect();
    if !found.is_empty() || !same_bytes(&pair.chosen.path, &pair.rejected.path) {
        return found;
    }
    let (chosen, rejected) = (&pair.chosen.file_name, &pair.rejected.file_name);
    let reason = format!("chosen {chosen} and rejected {rejected} are the same picture: a tie says nothing");
    vec![Problem { name: place(line), kind: ProblemKind::BadRow(reason) }]
}

/// Whether both files can be read and hold the same.
fn same_bytes(a: &Path, b: &Path) -> bool {
    let size = |path: &Path| fs::metadata(path).map(|data| data.len()).ok();
    size(a).is_some()
        && size(a) == size(b)
        && matches!((input_file::read_regular(a), input_file::read_regular(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use tempfile::TempDir;

    use super::*;

    /// A folder with `a.png` and `b.png`, a copy of `a.png`, a small and a broken picture, and the list.
    fn folder(list: &str) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let save = |name: &str, size, level| RgbImage::from_pixel(size, size, Rgb([level; 3])).save(dir.path().join(name)).unwrap();
        save("a.png", 20, 9);
        save("b.png", 20, 200);
        save("copy.png", 20, 9);
        save("small.png", 3, 9);
        fs::write(dir.path().join("broken.png"), "no picture").unwrap();
        let path = dir.path().join("lists/pairs.jsonl");
        fs::create_dir(dir.path().join("lists")).unwrap();
        fs::write(&path, list).unwrap();
        (dir, path)
    }

    fn row(prompt: &str, chosen: &str, rejected: &str) -> String {
        serde_json::json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected }).to_string()
    }

    #[test]
    fn paths_are_relative_to_the_list_or_absolute() {
        let (dir, path) = folder("");
        let absolute = dir.path().join("a.png").to_str().unwrap().to_owned();
        let with_more = r#"{"prompt": "a bee", "chosen": "../a.png", "rejected": "../b.png", "annotator": 7}"#;
        fs::write(&path, format!("\u{feff}{with_more}\r\n\n{}\n", row(" a cow ", "../b.png", &absolute))).unwrap();
        let Preferences { pairs, skipped } = Preferences::read(&path, OnProblem::Refuse, 16).unwrap();
        assert!(skipped.is_empty());
        let told: Vec<_> = pairs.iter().map(|pair| (pair.prompt.as_str(), pair.chosen.file_name.as_str())).collect();
        assert_eq!(told, [("a bee", "../a.png"), ("a cow", "../b.png")]);
        let level = |image: &ImageEntry| image.load((4, 4)).unwrap().get_pixel(0, 0).0[0];
        assert_eq!([level(&pairs[0].chosen), level(&pairs[0].rejected)], [9, 200]);
        assert_eq!([level(&pairs[1].chosen), level(&pairs[1].rejected)], [200, 9]);
        assert_eq!(pairs[1].rejected.caption, "a cow");
    }

    #[test]
    fn every_problem_is_named_by_its_line() {
        let rows = [
            row("fine", "../a.png", "../b.png"),
            row("", "../a.png", "../b.png"),
            row("a tie", "../a.png", "./../a.png"),
            row("a copy", "../copy.png", "../a.png"),
            row("gone", "../a.png", "../gone.png"),
            row("both", "../small.png", "../broken.png"),
            r#"{"prompt": "no images"}"#.into(),
            r#"{"prompt": "a number", "chosen": 3, "rejected": "../a.png"}"#.into(),
            "not json".into(),
        ];
        let (_dir, path) = folder(&rows.join("\n"));
        let expected = [
            "line 2: prompt is empty",
            "line 3: chosen and rejected are both ../a.png: a tie",
            "line 4: chosen ../copy.png and rejected ../a.png are the same picture: a tie",
            "line 5, rejected ../gone.png: ",
            "line 6, chosen ../small.png: 3x3 pixels, less than 16 a side",
            "line 6, rejected ../broken.png: ",
            "line 7: expected an object with prompt, chosen and rejected; it has no chosen",
            "line 8: expected chosen to be a string",
            "line 9: malformed JSON",
        ];
        let Preferences { pairs, skipped } = Preferences::read(&path, OnProblem::Skip, 16).unwrap();
        assert_eq!(pairs.len(), 1);
        let told: Vec<String> = skipped.iter().map(Problem::to_string).collect();
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told:?} does not begin with {expected:?}");
        }
        let message = Preferences::read(&path, OnProblem::Refuse, 16).unwrap_err().to_string();
        assert!(message.contains("pairs.jsonl: 9 problem(s), 1 usable pair(s)\n  line 2: "), "{message}");
    }

    #[test]
    fn lists_without_a_usable_pair_are_refused() {
        let (dir, path) = folder("\n");
        let message = Preferences::read(&path, OnProblem::Skip, 16).unwrap_err().to_string();
        assert!(message.contains("pairs.jsonl: no pairs in it"), "{message}");
        fs::write(&path, row("a tie", "../a.png", "../a.png")).unwrap();
        let message = Preferences::read(&path, OnProblem::Skip, 16).unwrap_err().to_string();
        assert!(message.contains("1 problem(s), 0 usable pair(s)"), "{message}");
        let message = Preferences::read(dir.path().join("none.jsonl"), OnProblem::Skip, 16).unwrap_err().to_string();
        assert!(message.contains("none.jsonl"), "{message}");
    }
}
