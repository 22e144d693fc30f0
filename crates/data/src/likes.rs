//! Which images were liked and which disliked: what Diffusion-KTO learns from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::like_lines::{Mention, mentions_in};
use crate::preferences::{inspect_images, place};
use crate::utf8::read_utf8;
use crate::{Error, ImageEntry, OnProblem, Problem, ProblemKind, RatingThresholds, Result};

/// The images of a list that somebody liked or disliked, checked before the first of them is used. Each has its prompt as its caption.
#[derive(Clone, Debug)]
pub struct Likes {
    /// The images that were liked at least once, in the list's order.
    pub liked: Vec<ImageEntry>,
    /// The images that were disliked and never liked, in the list's order.
    pub disliked: Vec<ImageEntry>,
    /// How many images lie between the thresholds whenever they were rated, and count as neither.
    pub undecided: usize,
    /// What was left out, in the list's order; always empty under [`OnProblem::Refuse`].
    pub skipped: Vec<Problem>,
}

/// What was found, with the number of the line that it stands in.
type Numbered<T> = Vec<(usize, T)>;

impl Likes {
    /// Reads a list with one JSON object per line, each in one of these forms:
    ///
    /// - `prompt`, `image` and `label`, which is `true`, `false`, `"liked"` or `"disliked"`, or `rating`, a number;
    /// - `prompt`, `chosen` and `rejected`, a pair as [`Preferences`](crate::Preferences) has it: one image liked, the other disliked;
    /// - a [`Record`](crate::Record), whose completions each have a `label` or ratings on every aspect that counts.
    ///
    /// Images are paths of files, absolute or relative to the list's folder (those of a record are relative and stay within it); other keys
    /// are passed over. A label counts more than a rating, and ratings count only with `thresholds`. An image of a prompt counts once
    /// however often it is named, as liked if it was liked at least once. Every image that counts is decoded once, on all processors.
    ///
    /// A line is a problem if it has none of these forms or is a pair of one picture. An image is a problem if nothing says whether it is
    /// liked, or if its file is missing, broken or smaller than `min_size` pixels per side.
    ///
    /// Source: Diffusion-KTO (arXiv 2404.04465), section 5: an image of Pick-a-Pic is liked if it was preferred at least once.
    ///
    /// # Errors
    /// The list cannot be read, is empty, or nothing in it is usable; under [`OnProblem::Refuse`] any problem.
    pub fn read(path: impl AsRef<Path>, on_problem: OnProblem, min_size: u32, thresholds: Option<&RatingThresholds>) -> Result<Self> {
        let path = path.as_ref();
        let (mentions, mut problems) = all_mentions(&read_utf8(path)?, path.parent().unwrap_or(Path::new("")), thresholds);
        let decided = mentions.iter().filter(|(_, mention)| mention.liked.is_some()).map(|(_, mention)| &mention.image);
        let findings = inspect_images(decided, min_size);
        let mut images: Vec<(ImageEntry, Option<bool>)> = Vec::new();
        let mut places: HashMap<(String, PathBuf), usize> = HashMap::new();
        for (line, Mention { role, image, liked }) in mentions {
            if let Some(kind) = findings.get(&image.path) {
                let name = format!("{}, {role}{}", place(line), image.file_name);
                problems.push((line, Problem { name, kind: kind.clone() }));
                continue;
            }
            // Components, so that `a.png` and `./a.png` are one.
            let key = (image.caption.clone(), image.path.components().collect());
            let known = *places.entry(key).or_insert_with(|| {
                images.push((image, None));
                images.len() - 1
            });
            // Undecided is below disliked, and disliked below liked.
            images[known].1 = images[known].1.max(liked);
        }
        problems.sort_by_key(|(line, _)| *line);
        let problems: Vec<Problem> = problems.into_iter().map(|(_, problem)| problem).collect();
        let usable = images.iter().filter(|(_, liked)| liked.is_some()).count();
        if usable == 0 && problems.is_empty() {
            return Err(Error::NoLikes { path: path.into(), undecided: images.len() });
        }
        if usable == 0 || (on_problem == OnProblem::Refuse && !problems.is_empty()) {
            return Err(Error::ProblemsInLikes { path: path.into(), problems, usable });
        }
        let of = |wanted: bool| images.iter().filter(move |(_, liked)| *liked == Some(wanted)).map(|(image, _)| image.clone()).collect();
        Ok(Self { liked: of(true), disliked: of(false), undecided: images.len() - usable, skipped: problems })
    }
}

/// The images that the lines of a list name, and the lines and images that cannot be used for what the list says.
fn all_mentions(list: &str, folder: &Path, thresholds: Option<&RatingThresholds>) -> (Numbered<Mention>, Numbered<Problem>) {
    let (mut mentions, mut problems) = (Vec::new(), Vec::new());
    let mut refuse = |line, name, reason| problems.push((line, Problem { name, kind: ProblemKind::BadRow(reason) }));
    for (index, text) in list.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = index + 1;
        match mentions_in(text, folder, thresholds) {
            Ok(found) => found.into_iter().for_each(|mention| match mention {
                Ok(mention) => mentions.push((line, mention)),
                Err((image, reason)) => refuse(line, format!("{}, {image}", place(line)), reason),
            }),
            Err(reason) => refuse(line, place(line), reason),
        }
    }
    (mentions, problems)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::{Rgb, RgbImage};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::AspectWeights;

    /// A folder with `a.png` to `d.png`, a copy of `a.png`, a small and a broken picture, and the list.
    fn folder(lines: &[String]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let save = |name: &str, size, level| RgbImage::from_pixel(size, size, Rgb([level; 3])).save(dir.path().join(name)).unwrap();
        for (name, level) in [("a.png", 9), ("b.png", 90), ("c.png", 150), ("d.png", 200), ("copy.png", 9)] {
            save(name, 20, level);
        }
        save("small.png", 3, 9);
        fs::write(dir.path().join("broken.png"), "no picture").unwrap();
        let path = dir.path().join("likes.jsonl");
        fs::write(&path, lines.join("\n")).unwrap();
        (dir, path)
    }

    fn labelled(prompt: &str, image: &str, label: Value) -> String {
        json!({ "prompt": prompt, "image": image, "label": label }).to_string()
    }

    fn told(images: &[ImageEntry]) -> Vec<(&str, &str)> {
        images.iter().map(|image| (image.caption.as_str(), image.file_name.as_str())).collect()
    }

    fn thresholds() -> RatingThresholds {
        RatingThresholds { like_from: 4.0, dislike_to: 2.0, weights: AspectWeights::default() }
    }

    #[test]
    fn images_are_read_in_the_lists_order() {
        let (dir, path) = folder(&[]);
        let absolute = dir.path().join("d.png").to_str().unwrap().to_owned();
        let lines = [
            format!("\u{feff}{}\r\n", labelled(" a bee ", "a.png", json!(true))),
            labelled("a bee", "b.png", json!("disliked")),
            labelled("a bee", &absolute, json!(false)),
            json!({ "prompt": "a cow", "chosen": "b.png", "rejected": "a.png" }).to_string(),
            json!({ "prompt": "an elk", "image": "a.png", "rating": 4 }).to_string(),
            json!({ "prompt": "an elk", "image": "b.png", "rating": 3 }).to_string(),
        ];
        fs::write(&path, lines.join("\n")).unwrap();
        let Likes { liked, disliked, undecided, skipped } = Likes::read(&path, OnProblem::Refuse, 16, Some(&thresholds())).unwrap();
        assert_eq!(told(&liked), [("a bee", "a.png"), ("a cow", "b.png"), ("an elk", "a.png")]);
        assert_eq!(told(&disliked), [("a bee", "b.png"), ("a bee", absolute.as_str()), ("a cow", "a.png")]);
        assert!(undecided == 1 && skipped.is_empty());
        assert_eq!(disliked[1].load((4, 4)).unwrap().get_pixel(0, 0).0[0], 200);
    }

    #[test]
    fn an_image_of_a_prompt_counts_once_and_one_like_is_enough() {
        let pair = |chosen: &str, rejected: &str| json!({ "prompt": "a bee", "chosen": chosen, "rejected": rejected }).to_string();
        let (_dir, path) = folder(&[
            // b is above a and below c, d below all.
            pair("b.png", "a.png"),
            pair("c.png", "./b.png"),
            pair("c.png", "d.png"),
            labelled("a bee", "d.png", json!(false)),
            // Another prompt is another matter.
            labelled("a cow", "c.png", json!(false)),
        ]);
        let Likes { liked, disliked, .. } = Likes::read(&path, OnProblem::Refuse, 16, None).unwrap();
        assert_eq!(told(&liked), [("a bee", "b.png"), ("a bee", "c.png")]);
        assert_eq!(told(&disliked), [("a bee", "a.png"), ("a bee", "d.png"), ("a cow", "c.png")]);
    }

    #[test]
    fn every_problem_is_named_by_its_line_and_image() {
        let lines = [
            labelled("fine", "a.png", json!(true)),
            labelled("", "a.png", json!(true)),
            labelled("a word", "a.png", json!("yes")),
            labelled("a number", "a.png", json!(1)),
            json!({ "prompt": "silent", "image": "a.png" }).to_string(),
            json!({ "prompt": "rated in words", "image": "a.png", "rating": "good" }).to_string(),
            labelled("gone", "gone.png", json!(true)),
            labelled("small", "small.png", json!(false)),
            json!({ "prompt": "a copy", "chosen": "copy.png", "rejected": "a.png" }).to_string(),
            json!({ "prompt": "broken", "chosen": "a.png", "rejected": "broken.png" }).to_string(),
            json!({ "prompt": "half a pair", "chosen": "a.png" }).to_string(),
            json!({ "id": "1", "prompt": "mixed", "completions": [
                { "image_path": "a.png", "label": true }, { "image_path": "set.zip!/b.png", "label": true },
                { "image_path": "c.png", "annotations": { "aesthetic": { "rating": 3 } } } ] })
            .to_string(),
            json!({ "id": "1", "prompt": "outside", "completions": [{ "image_path": "../a.png", "label": true }] }).to_string(),
            json!({ "prompt": "nothing" }).to_string(),
            "not json".into(),
        ];
        let (_dir, path) = folder(&lines);
        let expected = [
            "line 2: prompt is empty",
            "line 3: expected label to be true, false, \"liked\" or \"disliked\", found \"yes\"",
            "line 4: expected label to be true, false, \"liked\" or \"disliked\", found 1",
            "line 5: it has no label (true, false, \"liked\" or \"disliked\") and no rating",
            "line 6: expected rating to be a number",
            "line 7, gone.png: ",
            "line 8, small.png: 3x3 pixels, less than 16 a side",
            "line 9: chosen copy.png and rejected a.png are the same picture: a tie",
            "line 10, rejected broken.png: ",
            "line 11: expected an object with prompt, chosen and rejected; it has no rejected",
            "line 12, set.zip!/b.png: it lies inside an archive; ",
            "line 12, c.png: it has no label (true, false, \"liked\" or \"disliked\") and no rating (on every aspect that counts)",
            "line 13: completions[0].image_path: ../a.png leads out",
            "line 14: expected an object with prompt, image and label (or rating), with prompt, chosen and rejected, or with completions; it \
             has no image",
            "line 15: malformed JSON",
        ];
        let Likes { liked, disliked, skipped, .. } = Likes::read(&path, OnProblem::Skip, 16, Some(&thresholds())).unwrap();
        assert_eq!(told(&liked), [("fine", "a.png"), ("broken", "a.png"), ("mixed", "a.png")]);
        assert!(disliked.is_empty());
        let told: Vec<String> = skipped.iter().map(Problem::to_string).collect();
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told:?} does not begin with {expected:?}");
        }
        let message = Likes::read(&path, OnProblem::Refuse, 16, Some(&thresholds())).unwrap_err().to_string();
        assert!(message.contains("likes.jsonl: 15 problem(s), 3 usable image(s)\n  line 2: "), "{message}");
    }

    #[test]
    fn lists_in_which_nothing_is_liked_or_disliked_are_refused() {
        let (dir, path) = folder(&[String::new()]);
        let refused = |path: &Path| Likes::read(path, OnProblem::Skip, 16, Some(&thresholds())).unwrap_err().to_string();
        let message = refused(&path);
        assert!(message.contains("likes.jsonl: no liked and no disliked image in it; expected one object per line"), "{message}");
        fs::write(&path, json!({ "prompt": "a bee", "image": "a.png", "rating": 3 }).to_string()).unwrap();
        let message = refused(&path);
        assert!(message.contains("no liked and no disliked image in it") && message.contains("1 rated between"), "{message}");
        assert!(refused(&dir.path().join("none.jsonl")).contains("none.jsonl"));
    }
}
