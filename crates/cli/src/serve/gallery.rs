//! Images to look through: sorted by a score, by its difference, or as they lie; of one category or all; a page at a time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::places::{FolderKind, ShownFolder};
use super::reply::{Asked, Reply};
use super::{Site, evaluations, images};

/// Images on a page.
const PAGE: usize = 60;

/// An image, or the two that belong together.
#[derive(Debug, Default, Clone)]
pub struct Item {
    /// What each is called, and its path within the folder: before and after, if there are two.
    pub pictures: Vec<(String, String)>,
    pub prompt: String,
    pub seed: Option<u64>,
    pub category: Option<String>,
    /// The model that drew the last picture; empty if that is not known.
    pub model: String,
    /// Scores of the last picture.
    pub scores: BTreeMap<String, f64>,
    /// Scores of the first of two.
    pub before: BTreeMap<String, f64>,
    /// How it was made, as text.
    pub parameters: String,
    /// The command that draws it again; empty if that is not known.
    pub command: String,
}

impl Item {
    /// What it is sorted by: `score:NAME` or `difference:NAME`.
    fn key(&self, sort: &str) -> Option<f64> {
        let (by, name) = sort.split_once(':')?;
        let score = self.scores.get(name)?;
        let key = if by == "difference" { score - self.before.get(name)? } else { *score };
        key.is_finite().then_some(key)
    }
}

/// A page of the images of a place.
pub fn reply(site: &Site, asked: &Asked) -> Reply {
    let Some(place) = asked.value("id").and_then(|id| site.places.find(id)) else { return Reply::missing() };
    let mut items = match place.kind {
        FolderKind::Evaluation => evaluations::items(&place.folder),
        FolderKind::Images | FolderKind::Run => images::items(&place.folder),
    };
    let names = |values: &dyn Fn(&Item) -> Option<String>| items.iter().filter_map(values).collect::<BTreeSet<_>>();
    let (categories, models) =
        (names(&|item| item.category.clone()), names(&|item| Some(item.model.clone()).filter(|name| !name.is_empty())));
    let sorts = sorts(&items);
    let wanted = |name: &str| asked.value(name).filter(|wanted| !wanted.is_empty());
    if let Some(category) = wanted("category") {
        items.retain(|item| item.category.as_deref() == Some(category));
    }
    if let Some(model) = wanted("model") {
        items.retain(|item| item.model == model);
    }
    let sort = asked.value("sort").unwrap_or_default();
    order(&mut items, sort, asked.value("descending").is_some());
    let (total, from) = (items.len(), asked.number("from").unwrap_or(0));
    let page: Vec<Value> = items.into_iter().skip(from).take(PAGE).map(|item| shown(&place, item)).collect();
    Reply::json(&json!({
        "id": place.id, "name": place.name, "kind": place.kind.name(), "total": total, "from": from, "page": PAGE,
        "sorts": sorts, "categories": categories, "models": models, "items": page,
        "report": site.places.report(&place.id).is_some(),
    }))
}

/// Every order there is but that in which they lie.
fn sorts(items: &[Item]) -> Vec<String> {
    let of = |scores: fn(&Item) -> &BTreeMap<String, f64>| items.iter().flat_map(|item| scores(item).keys()).collect::<BTreeSet<_>>();
    let scores = of(|item| &item.scores).into_iter().map(|name| format!("score:{name}"));
    scores.chain(of(|item| &item.before).into_iter().map(|name| format!("difference:{name}"))).collect()
}

/// Images without that score come last, in either direction.
fn order(items: &mut [Item], sort: &str, descending: bool) {
    items.sort_by(|one, other| match (one.key(sort), other.key(sort)) {
        (Some(one), Some(other)) if descending => other.total_cmp(&one),
        (Some(one), Some(other)) => one.total_cmp(&other),
        (one, other) => match (one.is_some(), other.is_some()) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            _ => Ordering::Equal,
        },
    });
    if descending && sort.is_empty() {
        items.reverse();
    }
}

fn shown(place: &ShownFolder, mut item: Item) -> Value {
    // Only what is on the page is opened for it.
    if place.kind != FolderKind::Evaluation {
        images::add_parameters(&place.folder, &mut item);
    }
    let pictures: Vec<Value> = item.pictures.iter().map(|(label, path)| json!({ "label": label, "path": path })).collect();
    let scores: Vec<Value> =
        item.scores.iter().map(|(name, score)| json!({ "name": name, "before": item.before.get(name), "score": score })).collect();
    json!({
        "pictures": pictures, "prompt": item.prompt, "seed": item.seed, "category": item.category, "model": item.model,
        "scores": scores, "parameters": item.parameters, "command": item.command,
    })
}

/// A word of a command, for a shell.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_string() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_in_the_order_asked_for_and_those_without_a_score_last() {
        let item = |name: &str, before: Option<f64>, score: Option<f64>| Item {
            prompt: name.into(),
            scores: score.into_iter().map(|score| ("judge".to_string(), score)).collect(),
            before: before.into_iter().map(|score| ("judge".to_string(), score)).collect(),
            ..Item::default()
        };
        let mut items =
            [item("a", Some(1.0), Some(2.0)), item("b", None, None), item("c", Some(3.0), Some(3.5)), item("d", Some(0.0), Some(1.9))];
        assert_eq!(sorts(&items), ["score:judge", "difference:judge"]);
        let mut names = |sort, descending| {
            order(&mut items, sort, descending);
            items.iter().map(|item| item.prompt.clone()).collect::<String>()
        };
        assert_eq!(names("score:judge", true), "cadb");
        assert_eq!(names("score:judge", false), "dacb");
        assert_eq!(names("difference:judge", true), "dacb");
        assert_eq!(names("difference:judge", false), "cadb");
    }

    #[test]
    fn a_command_survives_its_shell() {
        assert_eq!(quoted("runs/a-b.png"), "runs/a-b.png");
        assert_eq!(quoted("it's $(rm)"), r"'it'\''s $(rm)'");
        assert_eq!(quoted(""), "''");
    }
}
