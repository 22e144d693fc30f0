//! What a line of a list says of images: liked, disliked, neither, or nothing that counts.

use std::path::Path;

use serde_json::Value;

use crate::image_source::INSIDE;
use crate::preferences::{number_of, pair_of, row_of, same_picture, text_of};
use crate::record_file::{checked, parsed, path_within};
use crate::{Completion, ImageEntry, RatingThresholds, Result};

/// An image as a line names it.
#[derive(Debug)]
pub(crate) struct Mention {
    /// What the line has it for, with a space behind, or nothing.
    pub role: &'static str,
    /// The image, with its prompt as its caption.
    pub image: ImageEntry,
    /// Whether it is liked; `None` for a rating between the thresholds.
    pub liked: Option<bool>,
}

/// An image of which a line says nothing that counts: its name, and why.
pub(crate) type Unjudged = (String, String);

/// The images that a line names; see [`Likes::read`](crate::Likes::read) for the forms that a line may have.
///
/// # Errors
/// A line that has none of these forms, or is a pair of one picture.
pub(crate) fn mentions_in(
    line: &str,
    folder: &Path,
    thresholds: Option<&RatingThresholds>,
) -> Result<Vec<Result<Mention, Unjudged>>, String> {
    let row = row_of(line)?;
    let has = |key: &str| row.get(key).is_some();
    if has("completions") {
        return of_record(line, folder, thresholds);
    }
    if has("chosen") || has("rejected") {
        let pair = pair_of(&row, folder)?;
        if let Some(reason) = same_picture(&pair) {
            return Err(reason);
        }
        let chosen = Mention { role: "chosen ", image: pair.chosen, liked: Some(true) };
        let rejected = Mention { role: "rejected ", image: pair.rejected, liked: Some(false) };
        return Ok(vec![Ok(chosen), Ok(rejected)]);
    }
    let text = |key: &str| {
        text_of(&row, key, "an object with prompt, image and label (or rating), with prompt, chosen and rejected, or with completions")
    };
    let (caption, file_name) = (text("prompt")?, text("image")?);
    let liked = verdict(row.get("label"), number_of(&row, "rating")?, thresholds)?;
    Ok(vec![Ok(Mention { role: "", image: ImageEntry { path: folder.join(&file_name), file_name, caption }, liked })])
}

/// The images of a record.
fn of_record(line: &str, folder: &Path, thresholds: Option<&RatingThresholds>) -> Result<Vec<Result<Mention, Unjudged>>, String> {
    let record = checked(parsed(line.trim())?)?;
    let one = |completion: &Completion| -> Result<Mention, String> {
        let file_name = path_within(&completion.image_path)?;
        if file_name.contains(INSIDE) {
            return Err("it lies inside an archive; `visionprefer dataset convert SET -o DIR` takes the images out".into());
        }
        let rating = thresholds.and_then(|thresholds| thresholds.rating(&completion.annotations));
        let liked = verdict(completion.extra.get("label"), rating, thresholds)?;
        let image = ImageEntry { path: folder.join(&file_name), file_name, caption: record.prompt.trim().to_owned() };
        Ok(Mention { role: "", image, liked })
    };
    let named = |completion: &Completion| one(completion).map_err(|reason| (completion.image_path.clone(), reason));
    Ok(record.completions.iter().map(named).collect())
}

/// Whether an image is liked: what its label says, else what its rating comes to; `None` for a rating between the thresholds.
fn verdict(label: Option<&Value>, rating: Option<f64>, thresholds: Option<&RatingThresholds>) -> Result<Option<bool>, String> {
    match (label, thresholds, rating) {
        (Some(Value::Bool(liked)), ..) => Ok(Some(*liked)),
        (Some(Value::String(word)), ..) if word == "liked" => Ok(Some(true)),
        (Some(Value::String(word)), ..) if word == "disliked" => Ok(Some(false)),
        (None | Some(Value::Null), Some(thresholds), Some(rating)) => Ok(thresholds.verdict(rating)),
        (None | Some(Value::Null), Some(_), None) => Err(format!("it has no label ({LABELS}) and no rating (on every aspect that counts)")),
        (None | Some(Value::Null), None, _) => Err(format!(
            "it has no label ({LABELS}); if it has ratings, say with preferences.ratings which of them are likes, as in ratings = {{ like_from = \
             4.0, dislike_to = 2.0 }}"
        )),
        (Some(other), ..) => Err(format!("expected label to be {LABELS}, found {other}")),
    }
}

/// What a label may be.
const LABELS: &str = "true, false, \"liked\" or \"disliked\"";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::AspectWeights;

    const THRESHOLDS: RatingThresholds = RatingThresholds {
        like_from: 4.0,
        dislike_to: 2.0,
        weights: AspectWeights { prompt_following: 1.0, aesthetic: 1.0, fidelity: 0.0, harmlessness: 2.0 },
    };

    /// The names of the images of a line and what they are; a reason for those of which nothing counts.
    fn told(line: &Value, thresholds: Option<&RatingThresholds>) -> Vec<(String, Result<Option<bool>, String>)> {
        let found = mentions_in(&line.to_string(), Path::new("lists"), thresholds).unwrap();
        let one = |mention: Result<Mention, Unjudged>| match mention {
            Ok(Mention { role, image, liked }) => {
                assert!(image.caption == "a bee" && image.path == Path::new("lists").join(&image.file_name), "{image:?}");
                (format!("{role}{}", image.file_name), Ok(liked))
            }
            Err((image, reason)) => (image, Err(reason)),
        };
        found.into_iter().map(one).collect()
    }

    #[test]
    fn labels_count_more_than_ratings() {
        let labelled = |more: Value| {
            let mut line = json!({ "prompt": " a bee ", "image": "a.png" });
            line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            told(&line, Some(&THRESHOLDS)).remove(0).1
        };
        for (more, liked) in [
            (json!({ "label": true }), Some(true)),
            (json!({ "label": false }), Some(false)),
            (json!({ "label": "liked" }), Some(true)),
            (json!({ "label": "disliked" }), Some(false)),
            (json!({ "rating": 4 }), Some(true)),
            (json!({ "rating": 2.0 }), Some(false)),
            (json!({ "rating": 2.5 }), None),
            (json!({ "rating": 5, "label": false }), Some(false)),
            (json!({ "rating": 5, "label": null }), Some(true)),
        ] {
            assert_eq!(labelled(more.clone()), Ok(liked), "{more}");
        }
    }

    #[test]
    fn a_pair_is_a_like_and_a_dislike() {
        let pair = json!({ "prompt": "a bee", "chosen": "a.png", "rejected": "b.png", "annotator": 7 });
        let expected = [("chosen a.png", Some(true)), ("rejected b.png", Some(false))].map(|(name, liked)| (name.to_owned(), Ok(liked)));
        assert_eq!(told(&pair, None), expected);
    }

    #[test]
    fn records_give_labels_and_weighted_means_of_ratings() {
        let rated = |image: &str, ratings: [f64; 4]| {
            let names = ["prompt_following", "aesthetic", "fidelity", "harmlessness"];
            let ratings = names.iter().zip(ratings).map(|(name, rating)| (name.to_string(), json!({ "rating": rating })));
            json!({ "image_path": image, "annotations": Value::Object(ratings.collect()) })
        };
        let completions = [
            rated("a.png", [4.0, 2.0, 1.0, 5.0]),
            rated("./b.png", [1.0, 1.0, 5.0, 3.0]),
            rated("c.png", [4.0, 4.0, 5.0, 2.0]),
            json!({ "image_path": "in/d.png", "label": "liked", "annotations": { "fidelity": { "rating": 1 } } }),
            json!({ "image_path": "e.png", "annotations": { "fidelity": { "rating": 5 } } }),
            json!({ "image_path": "set.zip!/f.png", "label": true }),
        ];
        let record = json!({ "id": "1", "prompt": " a bee", "completions": completions });
        let found = told(&record, Some(&THRESHOLDS));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a.png", "b.png", "c.png", "in/d.png", "e.png", "set.zip!/f.png"]);
        let liked: Vec<Option<Option<bool>>> = found.iter().map(|(_, liked)| liked.clone().ok()).collect();
        assert_eq!(liked, [Some(Some(true)), Some(Some(false)), Some(None), Some(Some(true)), None, None]);
        assert!(found[4].1.as_ref().unwrap_err().contains("no rating (on every aspect that counts)"), "{found:?}");
        assert!(found[5].1.as_ref().unwrap_err().contains("dataset convert"), "{found:?}");
        // Without thresholds ratings say nothing, and the way out is told.
        let found = told(&record, None);
        assert_eq!(found.iter().filter(|(_, liked)| liked.is_ok()).count(), 1);
        assert!(found[0].1.as_ref().unwrap_err().contains("preferences.ratings"), "{found:?}");
    }
}
