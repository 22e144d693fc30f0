//! Reads a model's reply: an answer, or what is wrong with the reply.
//!
//! Servers that were asked for JSON alone may send it in fences, after a page of reasoning, or cut off; some silently ignore a schema.
//! So the last JSON object with the expected member is looked for anywhere in the text (reasoning comes before the answer), and everything in
//! it is checked.
//!
//! Ratings are whole numbers from 1 to 5: the instructions describe five bands and nothing between them, so 3.5 is a finding. `4.0` and
//! `"4"` are 4.

use serde_json::{Deserializer, Value};
use vp_data::{Aspect, Preferred, Rating, Ratings};

use crate::{Choice, Polished};

/// What is wrong with a reply, one sentence per finding.
type Findings = Vec<String>;

/// How many times the length of a reply is read at most: one of a hundred unclosed objects would be read to its end from each.
const MOST_READ: usize = 16;

/// The last JSON object in `text` that has `member`.
fn object_with(text: &str, member: &str) -> Result<Value, Findings> {
    let (mut found, mut found_other) = (None, false);
    let (mut at, mut left) = (0, text.len().saturating_mul(MOST_READ));
    while let Some(next) = text[at..].find('{').filter(|_| left > 0) {
        at += next;
        let mut values = Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                at += values.byte_offset();
                match value.get(member) {
                    Some(_) => found = Some(value),
                    None => found_other = true,
                }
            }
            Some(Err(error)) => {
                left = left.saturating_sub(read_before(&error, &text[at..]));
                at += 1;
            }
            None => at += 1,
        }
    }
    found.ok_or_else(|| {
        vec![match found_other {
            true => format!("the JSON object has no member \"{member}\""),
            false => "it does not contain a whole JSON object".into(),
        }]
    })
}

/// How many bytes of `text` were read up to an error.
fn read_before(error: &serde_json::Error, text: &str) -> usize {
    text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>() + error.column()
}

/// The ratings of `count` images.
pub(crate) fn ratings(text: &str, count: usize) -> Result<Vec<Ratings>, Findings> {
    let value = object_with(text, "images")?;
    let Some(entries) = value["images"].as_array() else {
        return Err(vec!["\"images\" is not a list".into()]);
    };
    let mut findings = Vec::new();
    let mut images: Vec<Option<Ratings>> = vec![None; count];
    for (position, entry) in entries.iter().enumerate() {
        // An entry without a number stands for the image at its place.
        let number = entry.get("image").map_or(Some(position as u64 + 1), whole_number);
        match number.and_then(|number| images.get_mut((number as usize).checked_sub(1)?)) {
            None => {
                findings.push(format!("entry {} of \"images\" is for an image that was not shown; expected 1 to {count}", position + 1))
            }
            Some(Some(_)) => findings.push(format!("image {} is rated twice", number.unwrap_or_default())),
            Some(image) => *image = Some(of_image(number.unwrap_or_default(), entry, &mut findings)),
        }
    }
    for (index, _) in images.iter().enumerate().filter(|(_, image)| image.is_none()) {
        findings.push(format!("image {} is missing; {count} were shown", index + 1));
    }
    if findings.is_empty() { Ok(images.into_iter().flatten().collect()) } else { Err(findings) }
}

fn of_image(number: u64, entry: &Value, findings: &mut Findings) -> Ratings {
    let mut ratings = Ratings::new();
    for aspect in Aspect::ALL {
        let name = aspect.name();
        let Some(said) = entry.get(name) else {
            findings.push(format!("image {number}: {name} is missing"));
            continue;
        };
        let rationale = said["rationale"].as_str().unwrap_or_default().trim().to_owned();
        if rationale.is_empty() {
            findings.push(format!("image {number}: {name} has no rationale"));
        }
        match whole_number(&said["rating"]).filter(|rating| (1..=5).contains(rating)) {
            Some(rating) => drop(ratings.insert(aspect, Rating { rating: rating as f64, rationale })),
            None => findings.push(format!("image {number}: the rating of {name} is {}; expected 1, 2, 3, 4 or 5", said["rating"])),
        }
    }
    ratings
}

/// `4`, `4.0` and `"4"`.
fn whole_number(value: &Value) -> Option<u64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    (number.fract() == 0.0 && (0.0..1e9).contains(&number)).then_some(number as u64)
}

/// Which of two images was preferred.
pub(crate) fn choice(text: &str) -> Result<Choice, Findings> {
    let value = object_with(text, "preferred")?;
    let mut findings = Vec::new();
    let preferred = match value["preferred"].as_str() {
        Some("image_1") => Some(Preferred::First),
        Some("image_2") => Some(Preferred::Second),
        Some("tie") => Some(Preferred::Tie),
        _ => {
            findings.push(format!("preferred is {}; expected \"image_1\", \"image_2\" or \"tie\"", value["preferred"]));
            None
        }
    };
    let rationale = value["rationale"].as_str().unwrap_or_default().trim().to_owned();
    if rationale.is_empty() {
        findings.push("there is no rationale".into());
    }
    preferred.filter(|_| findings.is_empty()).map(|preferred| Choice { preferred, rationale }).ok_or(findings)
}

/// A polished prompt.
pub(crate) fn polished(text: &str) -> Result<Polished, Findings> {
    let value = object_with(text, "prompt")?;
    let Some(prompt) = value["prompt"].as_str() else {
        return Err(vec![format!("prompt is {}; expected a text", value["prompt"])]);
    };
    let removed: Option<Vec<String>> = match &value["removed"] {
        Value::Null => Some(Vec::new()),
        list => list.as_array().and_then(|list| list.iter().map(|name| name.as_str().map(str::to_owned)).collect()),
    };
    let known = |removed: &Vec<String>| removed.iter().all(|name| ["biased", "inconsistent", "unsafe"].contains(&name.as_str()));
    match removed.filter(known) {
        Some(removed) => Ok(Polished { prompt: prompt.trim().to_owned(), removed }),
        None => Err(vec![format!("removed is {}; expected a list of \"biased\", \"inconsistent\", \"unsafe\"", value["removed"])]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(image: u64, ratings: [f64; 4]) -> Value {
        let mut entry = json!({ "image": image });
        for (aspect, rating) in Aspect::ALL.into_iter().zip(ratings) {
            entry[aspect.name()] = json!({ "rationale": "It is so.", "rating": rating });
        }
        entry
    }

    fn numbers(text: &str, count: usize) -> Result<Vec<Vec<f64>>, Findings> {
        let images = ratings(text, count)?;
        Ok(images.iter().map(|image| Aspect::ALL.iter().map(|aspect| image[aspect].rating).collect()).collect())
    }

    #[test]
    fn ratings_are_found_in_fences_and_after_prose() {
        let answer = json!({ "images": [entry(2, [1.0, 2.0, 3.0, 4.0]), entry(1, [5.0; 4])] }).to_string();
        let expected = Ok(vec![vec![5.0; 4], vec![1.0, 2.0, 3.0, 4.0]]);
        assert_eq!(numbers(&answer, 2), expected);
        assert_eq!(numbers(&format!("```json\n{answer}\n```"), 2), expected);
        assert_eq!(numbers(&format!("<think>{{a}} {{\"images\": []}}</think>Here: {answer} {{Done}}."), 2), expected);
        let text = answer.replacen("5.0", "\"5\"", 1).replacen("\"image\":2,", "", 1).replacen("\"image\":1,", "", 1);
        assert_eq!(numbers(&text, 2), Ok(vec![vec![1.0, 2.0, 3.0, 4.0], vec![5.0; 4]]));
    }

    #[test]
    fn every_finding_is_told_at_once() {
        let mut first = entry(1, [6.0, 3.5, 0.0, 4.0]);
        first["harmlessness"]["rationale"] = json!(" ");
        let mut second = entry(2, [1.0; 4]);
        second.as_object_mut().unwrap().remove("fidelity");
        let text = json!({ "images": [first, second, entry(2, [1.0; 4]), entry(9, [1.0; 4])] }).to_string();
        let findings = ratings(&text, 3).unwrap_err().join("\n");
        for expected in [
            "image 1: the rating of prompt_following is 6.0; expected 1, 2, 3, 4 or 5",
            "image 1: the rating of aesthetic is 3.5",
            "image 1: the rating of fidelity is 0.0",
            "image 1: harmlessness has no rationale",
            "image 2: fidelity is missing",
            "image 2 is rated twice",
            "entry 4 of \"images\" is for an image that was not shown",
            "image 3 is missing; 3 were shown",
        ] {
            assert!(findings.contains(expected), "{expected}\n{findings}");
        }
        assert_eq!(findings.lines().count(), 8);
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let answer = json!({ "images": [entry(1, [5.0; 4])] }).to_string();
        assert_eq!(ratings(&answer[..answer.len() - 3], 1).unwrap_err(), ["the JSON object has no member \"images\""]);
        assert_eq!(ratings("{\"images\"", 1).unwrap_err(), ["it does not contain a whole JSON object"]);
        assert_eq!(ratings("{\"images\": 3}", 1).unwrap_err(), ["\"images\" is not a list"]);
        assert_eq!(ratings("", 1).unwrap_err(), ["it does not contain a whole JSON object"]);
        assert!(ratings(&"{".repeat(20_000), 1).is_err());
    }

    /// Objects that hold the next and do not end are each read to the end of the reply: so often, and no more.
    #[test]
    fn what_stands_behind_many_unclosed_objects_is_given_up() {
        let answer = json!({ "images": [entry(1, [5.0; 4])] });
        let behind = |unclosed: usize| ratings(&format!("{}{}\n{answer}", "{\"a\": [".repeat(unclosed), "0,\n".repeat(10_000)), 1);
        assert!(behind(8).is_ok());
        assert_eq!(behind(60).unwrap_err(), ["it does not contain a whole JSON object"]);
    }

    #[test]
    fn choices_and_prompts_are_checked() {
        assert_eq!(choice(r#"{"rationale": "Red.", "preferred": "image_2"}"#).unwrap().preferred, Preferred::Second);
        assert_eq!(choice(r#"{"rationale": "", "preferred": "both"}"#).unwrap_err().len(), 2);
        let polished = |text| super::polished(text).map(|polished| (polished.prompt, polished.removed.join(" ")));
        assert_eq!(polished(r#"{"prompt": " a cat ", "removed": ["unsafe"]}"#), Ok(("a cat".into(), "unsafe".into())));
        assert_eq!(polished(r#"{"prompt": "a cat"}"#), Ok(("a cat".into(), String::new())));
        assert!(polished(r#"{"prompt": "a cat", "removed": ["dull"]}"#).is_err() && polished(r#"{"prompt": 3}"#).is_err());
    }
}
