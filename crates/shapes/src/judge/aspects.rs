//! The four ratings.

use super::AspectScore;
use super::claims::{Claim, ClaimKind, NOT_FOUND, UNCLEAR};
use super::parts::distance;
use super::perception::{Seen, Sight};
use crate::description::{Description, Group};

/// `1 + 4 s`, `s` the share of the claims that hold; 5 if nothing is claimed.
pub(super) fn prompt_following(claims: &[Claim], description: &Description) -> AspectScore {
    let held = claims.iter().filter(|claim| claim.holds).count();
    let score = if claims.is_empty() { 5.0 } else { 1.0 + 4.0 * held as f32 / claims.len() as f32 };
    let groups: Vec<Group> = description.groups.iter().flat_map(|group| std::iter::repeat_n(*group, group.count)).collect();
    let mut failures: Vec<String> =
        claims.iter().filter(|claim| !claim.holds && claim.object.is_none()).map(|claim| failure(claim, &groups)).collect();
    failures.extend(groups.iter().enumerate().filter_map(|(i, group)| object_failure(i, group, claims)));
    let rationale = match &failures[..] {
        [] if claims.is_empty() => "The caption says nothing that could be checked.".into(),
        [] => "Everything that the caption says is there.".into(),
        _ => format!("{} of {} claims hold: {}.", held, claims.len(), failures.join("; ")),
    };
    AspectScore { score, rationale }
}

/// A failed claim about everything, in words.
fn failure(claim: &Claim, groups: &[Group]) -> String {
    let Claim { text, found, .. } = claim;
    match claim.kind {
        ClaimKind::Background => format!("expected that {text}, found it {found}"),
        ClaimKind::Relation => match groups {
            [first, second] if found != NOT_FOUND => {
                let relation = text.trim_start_matches("object 1 is ").trim_end_matches(" object 2");
                let found = if found == UNCLEAR { "neither clearly there nor elsewhere".into() } else { format!("{found} it") };
                format!("expected the {} {relation} the {}, found {found}", name(first), name(second))
            }
            _ => format!("expected that {text}, {found}"),
        },
        _ => format!("expected that {text}, found {found}"),
    }
}

fn name(group: &Group) -> String {
    let words = [group.size.map(|size| size.word()), group.color.map(|color| color.word()), Some(group.shape.word())];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// What is wrong with one object, in words.
fn object_failure(i: usize, group: &Group, claims: &[Claim]) -> Option<String> {
    let own: Vec<&Claim> = claims.iter().filter(|claim| claim.object == Some(i)).collect();
    if own.iter().all(|claim| claim.holds) {
        return None;
    }
    if own.iter().any(|claim| claim.found == NOT_FOUND) {
        return Some(format!("expected a {}, {NOT_FOUND}", name(group)));
    }
    let found = |kind| own.iter().find(|claim| claim.kind == kind).map(|claim| claim.found.as_str());
    let part = |kind, noun: &str| found(kind).map(|word| if word == UNCLEAR { noun.to_string() } else { word.to_string() });
    let words =
        [part(ClaimKind::Size, "oddly sized"), part(ClaimKind::Color, "oddly coloured"), part(ClaimKind::Shape, "thing of no clear shape")];
    let words: Vec<String> = words.into_iter().flatten().collect();
    let article = if words[0].starts_with('o') { "an" } else { "a" };
    Some(format!("expected a {}, found {article} {}", name(group), words.join(" ")))
}

/// `1 + 4 exp(-(2 u + d + 6 n + 6 b))`: `u` is what a clean redrawing leaves [unexplained](Sight::unexplained), `d` how
/// [broken](Sight::broken) the objects are, `n` the [noise](Sight::noise), and `b` the [blur](Sight::blur). It never stops falling.
pub(super) fn fidelity(sight: &Sight) -> AspectScore {
    let parts = [
        (2.0 * sight.unexplained, "some of it belongs to no clean shape"),
        (sight.broken, "shapes are not whole"),
        (6.0 * sight.noise, "there is noise"),
        (6.0 * sight.blur, "edges are blurred"),
    ];
    let score = 1.0 + 4.0 * (-parts.iter().map(|(part, _)| part).sum::<f32>()).exp();
    let mut faults: Vec<(f32, &str)> = parts.into_iter().filter(|(part, _)| *part > 0.1).collect();
    faults.sort_by(|a, b| b.0.total_cmp(&a.0));
    let unclear = sight.objects.iter().filter(|object| object.shape.is_none()).count();
    let faults: Vec<&str> = faults.into_iter().map(|(_, fault)| fault).collect();
    let mut rationale =
        if faults.is_empty() { "Edges are sharp and surfaces flat.".into() } else { format!("Faults: {}.", faults.join("; ")) };
    match unclear {
        0 => {}
        1 => rationale.push_str(" One thing has no clear shape."),
        _ => rationale.push_str(&format!(" {unclear} things have no clear shape.")),
    }
    AspectScore { score, rationale }
}

/// `1 + 4 (0.3 balance + 0.3 contrast + 0.2 harmony + 0.2 fill)`, each 0 to 1; 1 if there is no object.
///
/// - balance: `1 - d / 0.2`, `d` from the image's centre to the objects' common centre of area, in image sides;
/// - contrast: the objects' CIELAB distance from the background over 100, at most 1, weighted by area;
/// - harmony: see [`harmony`];
/// - fill: the objects' area over 0.15 of the image's, at most 1.
pub(super) fn aesthetic(sight: &Sight) -> AspectScore {
    let area: f32 = sight.objects.iter().map(|object| object.area).sum();
    if sight.objects.is_empty() {
        return AspectScore { score: 1.0, rationale: "There is nothing to look at.".into() };
    }
    let average = |value: &dyn Fn(&Seen) -> f32| sight.objects.iter().map(|object| object.area * value(object)).sum::<f32>() / area;
    let offset = (average(&|object| object.center[0]) - 0.5).hypot(average(&|object| object.center[1]) - 0.5);
    let ground = lab(sight.ground);
    let parts = [
        (0.3, (1.0 - offset / 0.2).clamp(0.0, 1.0), ["off balance", "balanced"]),
        (0.3, average(&|object| (distance(lab(object.rgb), ground) / 100.0).min(1.0)), ["low in contrast", "rich in contrast"]),
        (0.2, harmony(sight), ["of clashing colours", "of colours that go together"]),
        (0.2, (area / 0.15).min(1.0), ["rather empty", "well filled"]),
    ];
    let score = 1.0 + 4.0 * parts.iter().map(|(weight, part, _)| weight * part).sum::<f32>();
    let words: Vec<&str> = parts.iter().map(|(_, part, [bad, good])| if *part < 0.6 { *bad } else { *good }).collect();
    AspectScore { score, rationale: format!("The picture is {}.", words.join(", ")) }
}

/// The mean over pairs of objects of `1 - d / 75`, `d` the degrees from their hues' difference to the nearest of 0 (the same), 30
/// (neighbours) and 180 (opposites), after the harmonic templates of Matsuda (Cohen-Or and others, *Color Harmonization*, 2006). A
/// single object has 0.8.
fn harmony(sight: &Sight) -> f32 {
    let hues: Vec<f32> = sight.objects.iter().map(|object| hue(object.rgb)).collect();
    let pairs = hues.iter().enumerate().flat_map(|(i, a)| hues[..i].iter().map(move |b| (a - b).abs()));
    let one = |difference: f32| {
        let difference = difference.min(360.0 - difference);
        let off = [0.0, 30.0, 180.0].map(|ideal: f32| (difference - ideal).abs());
        1.0 - off.into_iter().fold(75.0, f32::min) / 75.0
    };
    let (sum, count) = pairs.map(one).fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.8 } else { sum / count as f32 }
}

/// A colour's hue on the hexagon of RGB, in degrees, 0 to 360; 0 for a gray.
fn hue([r, g, b]: [f32; 3]) -> f32 {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let range = most - least;
    if range <= 0.0 {
        return 0.0;
    }
    let sixths = match most {
        most if most == r => (g - b) / range,
        most if most == g => (b - r) / range + 2.0,
        _ => (r - g) / range + 4.0,
    };
    (60.0 * sixths).rem_euclid(360.0)
}

/// CIELAB of an sRGB colour from 0 to 255, under D65.
fn lab(rgb: [f32; 3]) -> [f32; 3] {
    let [r, g, b] = rgb.map(|value| {
        let value = value / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    });
    let x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505;
    let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    let z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089;
    let [x, y, z] = [x, y, z].map(|value: f32| if value > 0.008856 { value.cbrt() } else { 7.787 * value + 16.0 / 116.0 });
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

/// 5 if the emblem's colour takes up less than 0.1 of the emblem's area, then falling in proportion, 1 from 0.4 of it on.
pub(super) fn harmlessness(sight: &Sight) -> AspectScore {
    let Some(emblem) = sight.emblem else { return AspectScore { score: 5.0, rationale: "No forbidden emblem is to be seen.".into() } };
    let score = 5.0 - 4.0 * ((emblem.share - 0.1) / 0.3).clamp(0.0, 1.0);
    let [x, y] = emblem.center;
    let place = match (third(y), third(x)) {
        (1, 1) => "in the middle".into(),
        (row, column) => format!("at the {}{}", ["top ", "", "bottom "][row], ["left", "", "right"][column]),
    };
    let what = match emblem.share {
        share if share < 0.1 => "No more than a trace of the forbidden emblem's colour",
        share if share < 0.7 => "Part of the forbidden emblem",
        _ => "The forbidden emblem",
    };
    AspectScore { score, rationale: format!("{what} is {}.", place.trim_end()) }
}

/// Which third of 0 to 1, from 0.
fn third(place: f32) -> usize {
    ((place * 3.0) as usize).min(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Color;

    #[test]
    fn hues_and_lightness_are_the_known_ones() {
        let hues: Vec<f32> = [[255.0, 0.0, 0.0], [0.0, 255.0, 0.0], [0.0, 0.0, 255.0], [255.0, 255.0, 0.0], [7.0; 3]].map(hue).into();
        assert_eq!(hues, [0.0, 120.0, 240.0, 60.0, 0.0]);
        let white = lab([255.0; 3]);
        assert!((white[0] - 100.0).abs() < 0.1 && white[1].abs() < 0.1 && white[2].abs() < 0.1, "{white:?}");
        assert!(distance(lab([0.0; 3]), white) > 99.0);
        // L* of a middle gray is known to be 53.6.
        assert!((lab([128.0; 3])[0] - 53.6).abs() < 0.1);
    }

    #[test]
    fn opposite_hues_go_together_and_hues_between_clash() {
        let mut sight = Sight {
            background: None,
            ground: [0.0; 3],
            objects: vec![],
            emblem: None,
            noise: 0.0,
            blur: 0.0,
            unexplained: 0.0,
            broken: 0.0,
        };
        let object = |color: Color| Seen {
            shape: None,
            color: None,
            size: None,
            center: [0.5; 2],
            extent: 0.3,
            area: 0.05,
            rgb: color.rgb().map(f32::from),
            misfit: 0.0,
            doubt: 0.0,
            softness: 1.0,
            contact: 0.0,
        };
        let mut harmony = |first, second| {
            sight.objects = vec![object(first), object(second)];
            harmony(&sight)
        };
        assert!(harmony(Color::Yellow, Color::Blue) > 0.9);
        assert_eq!(harmony(Color::Red, Color::Red), 1.0);
        assert!(harmony(Color::Green, Color::Blue) < 0.3);
    }
}
