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
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// What was to be drawn.
    pub prompt: String,
    /// The image that was preferred.
    pub chosen: ImageEntry,
    /// The other one.
    pub rejected: ImageEntry,
    /// How probably `chosen` is the better one, 0 to 1; `None` unless the list was [read for it](Preferences::read_with_probabilities).
    pub probability: Option<f64>,
}

/// What a line says of how much better its chosen image is.
#[derive(Clone, Copy, Debug)]
enum Evidence {
    /// The probability itself.
    Probability(f64),
    /// The scores of the chosen and of the rejected image.
    Scores([f64; 2]),
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
        Self::read_lines(path.as_ref(), on_problem, min_size, |_| Ok(None)).map(|(preferences, _)| preferences)
    }

    /// As [`read`](Self::read), but every line must also say how probably its chosen image is the better one: by a `probability` from 0
    /// to 1, or by numbers `chosen_score` and `rejected_score`. Scores become the probability
    ///
    /// ```text
    /// p = exp(r'(chosen)) / (exp(r'(chosen)) + exp(r'(rejected))),   r' = (score - least) / (greatest - least)
    /// ```
    ///
    /// with the least and the greatest score of all usable pairs of the list that have no probability of their own; if these are equal, p is
    /// one half.
    ///
    /// Source: SmPO-Diffusion (arXiv 2506.02698), whose `train.py` has PickScore's least and greatest score on Pick-a-Pic.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with_probabilities(path: impl AsRef<Path>, on_problem: OnProblem, min_size: u32) -> Result<Self> {
        let (mut preferences, evidence) = Self::read_lines(path.as_ref(), on_problem, min_size, |row| evidence_of(row).map(Some))?;
        let evidence: Vec<Evidence> = evidence.into_iter().flatten().collect();
        for (pair, probability) in preferences.pairs.iter_mut().zip(probabilities(&evidence)) {
            pair.probability = Some(probability);
        }
        Ok(preferences)
    }

    /// The pairs, and for each of them the evidence that `evidence` finds in its line.
    fn read_lines(
        path: &Path,
        on_problem: OnProblem,
        min_size: u32,
        evidence: impl Fn(&Value) -> Result<Option<Evidence>, String>,
    ) -> Result<(Self, Vec<Option<Evidence>>)> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for (index, line) in read_utf8(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match row_of(line).and_then(|row| Ok((pair_of(&row, folder)?, evidence(&row)?))) {
                Ok((pair, found)) => rows.push((index + 1, pair, found)),
                Err(reason) => problems.push((index + 1, Problem { name: place(index + 1), kind: ProblemKind::BadRow(reason) })),
            }
        }
        if rows.is_empty() && problems.is_empty() {
            return Err(Error::NoPreferences { path: path.into() });
        }
        let findings = inspect_images(rows.iter().flat_map(|(_, pair, _)| [&pair.chosen, &pair.rejected]), min_size);
        let (mut pairs, mut usable) = (Vec::new(), Vec::new());
        for (line, pair, beside) in rows {
            let found = problems_of(line, &pair, &findings);
            if found.is_empty() {
                pairs.push(pair);
                usable.push(beside);
            }
            problems.extend(found.into_iter().map(|problem| (line, problem)));
        }
        problems.sort_by_key(|(line, _)| *line);
        let problems: Vec<Problem> = problems.into_iter().map(|(_, problem)| problem).collect();
        if pairs.is_empty() || (on_problem == OnProblem::Refuse && !problems.is_empty()) {
            return Err(Error::ProblemsInPreferences { path: path.into(), problems, usable: pairs.len() });
        }
        Ok((Self { pairs, skipped: problems }, usable))
    }
}

/// How messages name a line.
pub(crate) fn place(line: usize) -> String {
    format!("line {line}")
}

/// A line as JSON.
pub(crate) fn row_of(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|error| format!("malformed JSON: {error}"))
}

/// The text of a row under `key`, without white space at its ends; `expected` says what the row should be.
pub(crate) fn text_of(row: &Value, key: &str, expected: &str) -> Result<String, String> {
    match row.get(key) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Some(Value::String(_)) => Err(format!("{key} is empty")),
        Some(_) => Err(format!("expected {key} to be a string")),
        None => Err(format!("expected {expected}; it has no {key}")),
    }
}

/// The number of a row under `key`, if there is one.
pub(crate) fn number_of(row: &Value, key: &str) -> Result<Option<f64>, String> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(_) => Err(format!("expected {key} to be a number")),
    }
}

/// The pair of a row, without a probability.
pub(crate) fn pair_of(row: &Value, folder: &Path) -> Result<PreferencePair, String> {
    let text = |key: &str| text_of(row, key, "an object with prompt, chosen and rejected");
    let (prompt, chosen, rejected) = (text("prompt")?, text("chosen")?, text("rejected")?);
    let entry = |file_name: String| ImageEntry { path: folder.join(&file_name), file_name, caption: prompt.clone() };
    let (chosen, rejected) = (entry(chosen), entry(rejected));
    // Components, so that `a.png` and `./a.png` are one.
    if chosen.path.components().eq(rejected.path.components()) {
        return Err(format!("chosen and rejected are both {}: a tie says nothing", chosen.file_name));
    }
    Ok(PreferencePair { prompt, chosen, rejected, probability: None })
}

fn evidence_of(row: &Value) -> Result<Evidence, String> {
    if let Some(probability) = number_of(row, "probability")? {
        let is_one = (0.0..=1.0).contains(&probability);
        return if is_one { Ok(Evidence::Probability(probability)) } else { Err(format!("probability is {probability}; expected 0 to 1")) };
    }
    match (number_of(row, "chosen_score")?, number_of(row, "rejected_score")?) {
        (Some(chosen), Some(rejected)) => Ok(Evidence::Scores([chosen, rejected])),
        _ => Err("nothing says how probably chosen is the better one; add a probability, or chosen_score and rejected_score, or train \
                  without algo.dpo.smoothed"
            .into()),
    }
}

/// The probability of each pair, from the evidence of all.
fn probabilities(evidence: &[Evidence]) -> Vec<f64> {
    let scores = evidence.iter().filter_map(|evidence| match evidence {
        Evidence::Scores(scores) => Some(scores),
        Evidence::Probability(_) => None,
    });
    let [least, greatest] =
        scores.flatten().fold([f64::INFINITY, f64::NEG_INFINITY], |[least, greatest], score| [least.min(*score), greatest.max(*score)]);
    // Halves, since the difference of two finite scores need not be finite.
    let range = greatest / 2.0 - least / 2.0;
    let probability = |evidence: &Evidence| match *evidence {
        Evidence::Probability(probability) => probability,
        Evidence::Scores(_) if range == 0.0 => 0.5,
        // The quotient of the exponentials, as a logistic function of the difference.
        Evidence::Scores([chosen, rejected]) => 1.0 / (1.0 + ((rejected / 2.0 - chosen / 2.0) / range).exp()),
    };
    evidence.iter().map(probability).collect()
}

/// What is wrong with each image that something is wrong with; an image that is named often is decoded once.
pub(crate) fn inspect_images<'a>(images: impl Iterator<Item = &'a ImageEntry>, min_size: u32) -> HashMap<PathBuf, ProblemKind> {
    let mut images: Vec<ImageEntry> = images.cloned().collect();
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
    if !found.is_empty() {
        return found;
    }
    let tie = same_picture(pair).map(|reason| Problem { name: place(line), kind: ProblemKind::BadRow(reason) });
    tie.into_iter().collect()
}

/// That both images of a pair are one, if they are.
pub(crate) fn same_picture(pair: &PreferencePair) -> Option<String> {
    let (chosen, rejected) = (&pair.chosen.file_name, &pair.rejected.file_name);
    let told = || format!("chosen {chosen} and rejected {rejected} are the same picture: a tie says nothing");
    same_bytes(&pair.chosen.path, &pair.rejected.path).then(told)
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
    fn probabilities_are_read_or_made_of_scores() {
        let with = |more: &str| row("a bee", "../a.png", "../b.png").replace('}', &format!(", {more}}}"));
        let lines = [
            with(r#""probability": 0.75"#),
            // The least and the greatest score are 10 and 30.
            with(r#""chosen_score": 25, "rejected_score": 15"#),
            with(r#""chosen_score": 10, "rejected_score": 30"#),
            // A probability of its own counts, and its scores count neither for the pair nor for the range.
            with(r#""probability": 0, "chosen_score": 1000, "rejected_score": -1000"#),
        ];
        let (_dir, path) = folder(&lines.join("\n"));
        let read = Preferences::read_with_probabilities(&path, OnProblem::Refuse, 16).unwrap();
        let found: Vec<f64> = read.pairs.iter().map(|pair| pair.probability.unwrap()).collect();
        // e^0.75 / (e^0.75 + e^0.25) and e^0 / (e^0 + e^1).
        let expected = [0.75, 0.75f64.exp() / (0.75f64.exp() + 0.25f64.exp()), 1.0 / (1.0 + 1f64.exp()), 0.0];
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
        assert!(Preferences::read(&path, OnProblem::Refuse, 16).unwrap().pairs.iter().all(|pair| pair.probability.is_none()));
        // Equal scores say nothing, and the largest numbers that there are leave no gap.
        for (scores, expected) in [(["3", "3"], 0.5), (["1.7e308", "-1.7e308"], 1.0 / (1.0 + (-1f64).exp()))] {
            fs::write(&path, with(&format!(r#""chosen_score": {}, "rejected_score": {}"#, scores[0], scores[1]))).unwrap();
            let read = Preferences::read_with_probabilities(&path, OnProblem::Refuse, 16).unwrap();
            assert!((read.pairs[0].probability.unwrap() - expected).abs() < 1e-12, "{:?}", read.pairs[0]);
        }
    }

    #[test]
    fn pairs_without_a_probability_are_problems_only_where_one_is_wanted() {
        let with = |more: &str| row("a bee", "../a.png", "../b.png").replace('}', &format!(", {more}}}"));
        let lines = [
            with(r#""probability": 1"#),
            with(r#""probability": 1.5"#),
            with(r#""probability": "high""#),
            with(r#""chosen_score": 3"#),
            with(r#""chosen_score": 3, "rejected_score": true"#),
            with(r#""annotator": 7"#),
        ];
        let (_dir, path) = folder(&lines.join("\n"));
        assert_eq!(Preferences::read(&path, OnProblem::Refuse, 16).unwrap().pairs.len(), 6);
        let Preferences { pairs, skipped } = Preferences::read_with_probabilities(&path, OnProblem::Skip, 16).unwrap();
        assert_eq!(pairs.iter().map(|pair| pair.probability).collect::<Vec<_>>(), [Some(1.0)]);
        let expected = [
            "line 2: probability is 1.5; expected 0 to 1",
            "line 3: expected probability to be a number",
            "line 4: nothing says how probably chosen is the better one; add a probability",
            "line 5: expected rejected_score to be a number",
            "line 6: nothing says how probably chosen is the better one; add a probability",
        ];
        let told: Vec<String> = skipped.iter().map(Problem::to_string).collect();
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        assert!(told.iter().zip(expected).all(|(told, expected)| told.starts_with(expected)), "{told:#?}");
        assert!(told[2].ends_with("or train without algo.dpo.smoothed"), "{told:#?}");
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
