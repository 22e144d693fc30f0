//! Images before and after.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::html::Html;
use super::{ImagePair, Picture, Report, ScorePair, numbers};
use crate::comparison::{Change, Contrast, is_term_of};

/// Up to which width or height an image's pixels are shown as squares: smoothed, small images are a blur.
const SMALL: u32 = 128;

/// How many pairs are shown at once; the others are folded.
const FIRST: usize = 3;

/// Pairs with a slider between them, for which the script looks; without it, side by side.
pub(super) fn before_and_after(html: &mut Html, pairs: &[ImagePair]) {
    let pairs = in_turn(pairs);
    let (first, more) = pairs.split_at(pairs.len().min(FIRST));
    let gallery = |html: &mut Html, pairs: &[&ImagePair]| {
        html.tag("div", &[("class", "gallery wipes")], |html| pairs.iter().for_each(|pair| card(html, pair, None)));
    };
    gallery(html, first);
    if !more.is_empty() {
        html.tag("details", &[], |html| {
            html.leaf("summary", &[], &format!("{} more", more.len()));
            gallery(html, more);
        });
    }
}

/// Every model in turn, and of each one every prompt before another seed of one.
fn in_turn(pairs: &[ImagePair]) -> Vec<&ImagePair> {
    let mut of_prompts: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    let mut of_turns: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    let mut placed: Vec<(usize, usize, &ImagePair)> = Vec::new();
    for pair in pairs {
        let model = pair.candidate.model.as_str();
        let count = |counts: &mut BTreeMap<_, usize>, key| {
            let count = counts.entry(key).or_default();
            *count += 1;
            *count - 1
        };
        let turn = count(&mut of_prompts, (model, pair.index));
        placed.push((turn, count(&mut of_turns, (model, turn)), pair));
    }
    placed.sort_by_key(|(turn, place, _)| (*turn, *place));
    placed.into_iter().map(|(.., pair)| pair).collect()
}

/// The worst regressions and the best improvements of a model by each reward, the first reward open.
pub(super) fn changes(html: &mut Html, report: &Report, contrast: &Contrast) {
    let some = contrast.changes.iter().filter(|changes| !changes.regressions.is_empty() || !changes.improvements.is_empty());
    let some = some.filter(|changes| !contrast.is_term(&changes.reward));
    for (place, changes) in some.enumerate() {
        let attributes: &[_] = if place == 0 { &[("open", "")] } else { &[] };
        html.tag("details", attributes, |html| {
            let counts = format!("{} worst, {} best", changes.regressions.len(), changes.improvements.len());
            html.leaf("summary", &[], &format!("{}, by {} ({counts})", contrast.candidate, report.reward_name(&changes.reward)));
            for (title, changes) in [("Worst regressions", &changes.regressions), ("Best improvements", &changes.improvements)] {
                if changes.is_empty() {
                    continue;
                }
                html.leaf("h3", &[], title);
                html.tag("div", &[("class", "gallery dense")], |html| {
                    for change in changes {
                        let found = report.pair_of(&contrast.candidate, change);
                        let bare =
                            ImagePair { index: change.index, seed: change.seed, prompt: change.prompt.clone(), ..ImagePair::default() };
                        card(html, found.unwrap_or(&bare), Some(change));
                    }
                });
            }
        });
    }
}

impl Report {
    fn pair_of(&self, candidate: &str, change: &Change) -> Option<&ImagePair> {
        let is_it = |pair: &&ImagePair| (pair.index, pair.seed, &*pair.candidate.model) == (change.index, change.seed, candidate);
        self.extremes.iter().chain(&self.pairs).find(is_it)
    }
}

/// Both images, the prompt, and all scores or the one that changed.
fn card(html: &mut Html, pair: &ImagePair, change: Option<&Change>) {
    html.tag("article", &[("class", "pair")], |html| {
        html.tag("div", &[("class", "images")], |html| {
            picture(html, "before", &pair.baseline, &pair.prompt);
            picture(html, "after", &pair.candidate, &pair.prompt);
        });
        let empty = pair.prompt.trim().is_empty();
        html.leaf("p", &[("class", "prompt"), ("dir", "auto")], if empty { "(empty prompt)" } else { &pair.prompt });
        let category = change.and_then(|change| change.category.as_ref()).map_or_else(String::new, |category| format!(", {category}"));
        html.leaf("p", &[("class", "quiet")], &format!("prompt {}, seed {}{category}", pair.index, pair.seed));
        match change {
            Some(change) => html.tag("ul", &[("class", "scores")], |html| score(html, "", change.baseline, change.candidate)),
            None => scores(html, &pair.scores),
        }
    });
}

/// The scores of each reward, and below them those of the rewards' terms, folded.
fn scores(html: &mut Html, pairs: &[ScorePair]) {
    let is_term = |of: &&ScorePair| pairs.iter().any(|other| is_term_of(&of.reward, &other.reward));
    let (terms, rewards): (Vec<&ScorePair>, Vec<&ScorePair>) = pairs.iter().partition(is_term);
    let list = |html: &mut Html, pairs: &[&ScorePair]| {
        html.tag("ul", &[("class", "scores")], |html| pairs.iter().for_each(|of| score(html, &of.reward, of.baseline, of.candidate)));
    };
    list(html, &rewards);
    if !terms.is_empty() {
        html.tag("details", &[("class", "terms")], |html| {
            html.leaf("summary", &[], &numbers::counted(terms.len(), "term"));
            list(html, &terms);
        });
    }
}

fn score(html: &mut Html, reward: &str, from: f64, to: f64) {
    html.tag("li", &[], |html| {
        if !reward.is_empty() {
            html.leaf("span", &[("class", "name")], &format!("{reward} "));
        }
        let course = format!("{} \u{2192} {} ({})", numbers::plain(from), numbers::plain(to), numbers::change(from, to));
        html.leaf("span", &[("class", "number")], &course);
    });
}

fn picture(html: &mut Html, class: &'static str, picture: &Picture, prompt: &str) {
    html.tag("figure", &[("class", class)], |html| {
        match data_url(&picture.bytes) {
            Some(url) => {
                let alt = format!("{}: {prompt}", picture.model);
                let mut attributes = vec![("src", &*url), ("alt", &*alt)];
                let size = png_size(&picture.bytes).map(|size| size.map(|side| (side, side.to_string())));
                if let Some([(width, w), (height, h)]) = &size {
                    attributes.extend([("width", &**w), ("height", &**h)]);
                    attributes.extend((*width.max(height) <= SMALL).then_some(("class", "small")));
                }
                html.open("img", &attributes);
            }
            None => html.leaf("p", &[("class", "no-image")], "no image"),
        }
        html.leaf("figcaption", &[], if picture.model.is_empty() { class } else { &picture.model });
    });
}

/// `None` if the bytes are not an image that every browser can show.
fn data_url(bytes: &[u8]) -> Option<String> {
    let kind = match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => "png",
        [0xff, 0xd8, 0xff, ..] => "jpeg",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
        _ => return None,
    };
    Some(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

/// Width and height from a PNG's header, so that the page does not move as images are decoded.
fn png_size(bytes: &[u8]) -> Option<[u32; 2]> {
    let side = |from: usize| Some(u32::from_be_bytes(bytes.get(from..from + 4)?.try_into().ok()?));
    (bytes.starts_with(b"\x89PNG") && bytes.get(12..16) == Some(b"IHDR")).then(|| Some([side(16)?, side(20)?])).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_prompts_take_turns() {
        let pair = |model: &str, index, seed| ImagePair {
            index,
            seed,
            candidate: Picture { model: model.into(), ..Picture::default() },
            ..ImagePair::default()
        };
        let pairs = [pair("a", 0, 1), pair("a", 0, 2), pair("a", 1, 1), pair("b", 0, 1), pair("b", 1, 1)];
        let order: Vec<_> = in_turn(&pairs).into_iter().map(|pair| (&*pair.candidate.model, pair.index, pair.seed)).collect();
        assert_eq!(order, [("a", 0, 1), ("b", 0, 1), ("a", 1, 1), ("b", 1, 1), ("a", 0, 2)]);
    }

    #[test]
    fn images_are_told_by_their_first_bytes() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\0\0\0\x01\0";
        assert!(data_url(png).unwrap().starts_with("data:image/png;base64,iVBORw0KGgo"));
        assert_eq!(png_size(png), Some([512, 256]));
        assert_eq!(png_size(&png[..22]), None);
        assert_eq!(data_url(&[0xff, 0xd8, 0xff, 0xe0]).unwrap(), "data:image/jpeg;base64,/9j/4A==");
        assert!(data_url(b"RIFF\x04\0\0\0WEBPVP8 ").unwrap().starts_with("data:image/webp;"));
        for other in [&b"<svg onload=alert(1)>"[..], b"", b"GIF89a"] {
            assert_eq!(data_url(other), None);
        }
    }
}
