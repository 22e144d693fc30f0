//! Images of a caption that differ in quality, so that the judge can rank them.

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt};

use crate::description::Description;
use crate::judge::ClaimKind;
use crate::pick::pick;
use crate::render::render;
use crate::scene::Scene;
use crate::spoil;
use crate::words::{Background, Color, Relation, Shape, Size};

/// An image, and how it came to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// `side` pixels high and wide.
    pub image: RgbImage,
    /// What was done: `clean`, or `one claim changed, blur 0.8`.
    pub made: String,
}

/// An image for `description`: of a scene that it is true of, of one with one thing changed, or of another one altogether. Half of the images
/// are noised, blurred, blotted or partly covered. The image depends on the generator alone.
pub fn variant(description: &Description, side: u32, rng: &mut impl Rng) -> Variant {
    let (scene, scene_is) = match rng.random_range(0..20) {
        0..9 => (description.clone(), None),
        9..16 => (with_one_claim_changed(description, rng), Some("one claim changed")),
        _ => (Description::draw(rng), Some("another scene")),
    };
    let scene = Scene::of(&scene, rng);
    let mut image = render(&scene, side);
    let spoilt = spoilt(&mut image, &scene, rng);
    let made: Vec<String> = scene_is.map(String::from).into_iter().chain(spoilt).collect();
    Variant { image, made: if made.is_empty() { "clean".into() } else { made.join(", ") } }
}

/// A clean image of a scene that `description` is true of.
pub fn clean(description: &Description, side: u32, rng: &mut impl Rng) -> Variant {
    Variant { image: render(&Scene::of(description, rng), side), made: "clean".into() }
}

fn spoilt(image: &mut RgbImage, scene: &Scene, rng: &mut impl Rng) -> Option<String> {
    match rng.random_range(0..20) {
        0..4 => {
            let sigma = rng.random_range(5.0..60.0);
            spoil::noise(image, sigma, rng);
            Some(format!("noise {sigma:.0}"))
        }
        4..7 => {
            // Of a pixel at 32 pixels per side.
            let sigma = rng.random_range(0.4..1.6);
            spoil::blur(image, sigma * image.width() as f32 / 32.0);
            Some(format!("blur {sigma:.1}"))
        }
        7..9 => {
            spoil::reconstruct(image, rng);
            Some("blotted".into())
        }
        9..11 => {
            let object = pick(rng, &scene.objects);
            let color = if rng.random_bool(0.5) { scene.background.rgb() } else { pick(rng, Color::ALL).rgb() };
            let share = rng.random_range(0.25..0.7);
            spoil::cover(image, object.center, object.extent, 0.02, share, Rgb(color));
            Some(format!("{:.0} % of an object covered", 100.0 * share))
        }
        _ => None,
    }
}

/// `description` with one thing changed.
pub(crate) fn with_one_claim_changed(description: &Description, rng: &mut impl Rng) -> Description {
    let description = description.completed(rng);
    let at = rng.random_range(0..description.groups.len());
    use ClaimKind::{Background, Color, Count, Relation, Shape, Size};
    let kind = [Background, Size, Shape, Relation, Count, Color][rng.random_range(0..6)];
    // One object has no relation.
    let changed = changed(&description, at, kind, rng).or_else(|| changed(&description, at, Color, rng));
    changed.expect("a completed description says every colour")
}

/// `description` with the claim of `kind` changed, in its group `at` for claims about groups; `None` if it claims nothing of that kind.
pub fn changed(description: &Description, at: usize, kind: ClaimKind, rng: &mut impl Rng) -> Option<Description> {
    let mut changed = description.clone();
    let several = changed.groups.len() > 1;
    let group = &mut changed.groups[at];
    match kind {
        ClaimKind::Background => changed.background = Some(other(changed.background?, Background::ALL, rng)),
        ClaimKind::Size => group.size = Some(other(group.size?, Size::ALL, rng)),
        ClaimKind::Shape => group.shape = other(group.shape, Shape::ALL, rng),
        ClaimKind::Color => group.color = Some(other(group.color?, Color::ALL, rng)),
        ClaimKind::Relation => changed.relation = Some(other(changed.relation?, Relation::ALL, rng)),
        ClaimKind::Count if several => {
            changed.groups.remove(at);
            changed.relation = None;
        }
        ClaimKind::Count => group.count = other(group.count, &[1, 2, 3], rng),
    }
    Some(changed)
}

/// One of `all` that is not `value`.
fn other<T: Copy + PartialEq>(value: T, all: &[T], rng: &mut impl Rng) -> T {
    let others: Vec<T> = all.iter().copied().filter(|other| *other != value).collect();
    pick(rng, &others)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::judge::judge;
    use crate::split::Split;

    #[test]
    fn clean_images_pass_and_the_others_fail_where_they_should() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (mut of_claims, mut of_fidelity) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            let description = Split::Train.draw(&mut rng);
            assert!(judge(&clean(&description, 32, &mut rng).image, &description).passes());
            let variant = variant(&description, 32, &mut rng);
            let verdict = judge(&variant.image, &description);
            match variant.made.as_str() {
                "clean" => assert!(verdict.passes()),
                "one claim changed" => of_claims.push(!verdict.passes()),
                made if made.starts_with("noise") || made.starts_with("blur") => of_fidelity.push(verdict.fidelity.score),
                _ => {}
            }
        }
        // A changed relation may still be true of the new scene.
        let rejected = of_claims.iter().filter(|rejected| **rejected).count();
        assert!(of_claims.len() > 20 && rejected * 10 >= of_claims.len() * 9, "{rejected} of {}", of_claims.len());
        assert!(of_fidelity.len() > 20 && of_fidelity.iter().filter(|score| **score < 5.0).count() * 2 > of_fidelity.len());
    }
}
