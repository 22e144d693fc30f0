//! What a description claims, and which of it holds.

use super::perception::{Seen, Sight};
use crate::description::{Description, Group};
use crate::words::Relation;

/// What a claim is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimKind {
    /// What is behind everything.
    Background,
    /// How many objects there are in all.
    Count,
    /// What an object is.
    Shape,
    /// An object's colour.
    Color,
    /// How large an object is.
    Size,
    /// Where the first object stands, as seen from the second.
    Relation,
}

/// One thing that a description says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it is about.
    pub kind: ClaimKind,
    /// Which object, from 0, in the description's order; `None` for what is about all of them.
    pub object: Option<usize>,
    /// In words: `object 1 is red`.
    pub text: String,
    /// Whether the image shows it.
    pub holds: bool,
    /// What is seen: `red`, `green`, `unclear`, `not found`.
    pub found: String,
}

/// Two centres nearer than this along a relation's axis, in image sides, stand in no relation.
const LEAST_MARGIN: f32 = 0.08;
/// Nor do two whose margin is less than this times their distance across the axis.
const LEAST_SLOPE: f32 = 0.5;
/// The most objects that are matched.
const MOST_MATCHED: usize = 6;

/// Every claim of a description, in its order: background, count, then each object's shape, colour and size, then the relation. One
/// without groups says nothing of objects, not that there are none.
///
/// Seen objects are matched to described ones in the way that fulfils most claims; of two such ways, the one in which the relation holds.
pub(super) fn claims(sight: &Sight, description: &Description) -> Vec<Claim> {
    let groups: Vec<Group> = description.groups.iter().flat_map(|group| std::iter::repeat_n(*group, group.count)).collect();
    let mut claims = Vec::new();
    if let Some(background) = description.background {
        claims.push(Claim {
            kind: ClaimKind::Background,
            object: None,
            text: format!("the background is {background}"),
            holds: sight.background == Some(background),
            found: word(sight.background.map(|found| found.word())),
        });
    }
    if !groups.is_empty() {
        claims.push(Claim {
            kind: ClaimKind::Count,
            object: None,
            text: match groups.len() {
                1 => "there is one object".into(),
                count => format!("there are {} objects", number(count)),
            },
            holds: sight.objects.len() == groups.len(),
            found: number(sight.objects.len()),
        });
    }
    let matches = best_match(sight, &groups, description.relation);
    for (i, (group, seen)) in groups.iter().zip(&matches).enumerate() {
        claims.extend(of_object(i, group, *seen));
    }
    if let (Some(relation), [first, second]) = (description.relation, &matches[..]) {
        let found = match (first, second) {
            (Some(first), Some(second)) => {
                word(Relation::ALL.iter().find(|other| stands(**other, first, second)).map(|found| found.word()))
            }
            _ => NOT_FOUND.into(),
        };
        let holds = found == relation.word();
        claims.push(Claim { kind: ClaimKind::Relation, object: None, text: format!("object 1 is {relation} object 2"), holds, found });
    }
    claims
}

pub(super) const NOT_FOUND: &str = "not found";
pub(super) const UNCLEAR: &str = "unclear";

fn word(found: Option<&str>) -> String {
    found.unwrap_or(UNCLEAR).into()
}

/// A number of objects in words.
pub(super) fn number(count: usize) -> String {
    ["none", "one", "two", "three", "four", "five", "six"].get(count).map_or("many".into(), |word| (*word).into())
}

/// Whether `first` stands in `relation` to `second`: at least [`LEAST_MARGIN`] along its axis, and [`LEAST_SLOPE`] times as far as across.
fn stands(relation: Relation, first: &Seen, second: &Seen) -> bool {
    let margin = relation.margin(first.center, second.center);
    let across = match relation {
        Relation::Above | Relation::Below => first.center[0] - second.center[0],
        Relation::LeftOf | Relation::RightOf => first.center[1] - second.center[1],
    };
    margin >= LEAST_MARGIN && margin >= LEAST_SLOPE * across.abs()
}

/// The claims about one object.
fn of_object(i: usize, group: &Group, seen: Option<&Seen>) -> Vec<Claim> {
    let said = [
        (ClaimKind::Shape, Some(group.shape.word()), seen.map(|seen| seen.shape.map(|shape| shape.word()))),
        (ClaimKind::Color, group.color.map(|color| color.word()), seen.map(|seen| seen.color.map(|color| color.word()))),
        (ClaimKind::Size, group.size.map(|size| size.word()), seen.map(|seen| seen.size.map(|size| size.word()))),
    ];
    let claim = |(kind, said, found): (ClaimKind, Option<&'static str>, Option<Option<&'static str>>)| {
        let said = said?;
        let article = if kind == ClaimKind::Shape { "a " } else { "" };
        Some(Claim {
            kind,
            object: Some(i),
            text: format!("object {} is {article}{said}", i + 1),
            holds: found == Some(Some(said)),
            found: found.map_or(NOT_FOUND.into(), word),
        })
    };
    said.into_iter().filter_map(claim).collect()
}

/// How many claims of `group` hold of `seen`.
fn fulfilled(group: &Group, seen: &Seen) -> usize {
    let color = group.color.is_some() && group.color == seen.color;
    let size = group.size.is_some() && group.size == seen.size;
    usize::from(seen.shape == Some(group.shape)) + usize::from(color) + usize::from(size)
}

/// A seen object for each group, as far as there are some.
fn best_match<'a>(sight: &'a Sight, groups: &[Group], relation: Option<Relation>) -> Vec<Option<&'a Seen>> {
    let seen = &sight.objects[..sight.objects.len().min(MOST_MATCHED)];
    let mut best = (0, vec![None; groups.len()]);
    let mut is_first = true;
    each_match(seen.len(), groups.len(), &mut Vec::new(), &mut |indices| {
        let matched: Vec<Option<&Seen>> = indices.iter().map(|index| index.map(|index| &seen[index])).collect();
        let claims: usize = groups.iter().zip(&matched).map(|(group, seen)| seen.map_or(0, |seen| fulfilled(group, seen))).sum();
        let is_related = match (relation, &matched[..]) {
            (Some(relation), [Some(first), Some(second)]) => stands(relation, first, second),
            _ => false,
        };
        // A relation is one claim more, and a little more than that.
        let worth = 4 * claims + 5 * usize::from(is_related);
        if is_first || worth > best.0 {
            best = (worth, matched);
            is_first = false;
        }
    });
    best.1
}

/// Calls `visit` with every way to give `wanted` places one of `seen` objects each; places stay empty only if there are too few.
fn each_match(seen: usize, wanted: usize, taken: &mut Vec<Option<usize>>, visit: &mut impl FnMut(&[Option<usize>])) {
    if taken.len() == wanted {
        return visit(taken);
    }
    for index in (0..seen).filter(|index| !taken.contains(&Some(*index))).collect::<Vec<_>>() {
        taken.push(Some(index));
        each_match(seen, wanted, taken, visit);
        taken.pop();
    }
    let empty = taken.iter().filter(|index| index.is_none()).count();
    if empty + seen < wanted {
        taken.push(None);
        each_match(seen, wanted, taken, visit);
        taken.pop();
    }
}
