//! How often the judge is right.

mod world;

use std::collections::BTreeMap;

use image::{Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vp_shapes::judge::{Claim, ClaimKind};
use vp_shapes::spoil;
use vp_shapes::words::{Background, Color, Shape, Size, emblem};
use vp_shapes::{Description, Object, Scene, Verdict, judge, render};
use world::{example, falsified};

const KINDS: [ClaimKind; 6] =
    [ClaimKind::Background, ClaimKind::Count, ClaimKind::Shape, ClaimKind::Color, ClaimKind::Size, ClaimKind::Relation];

/// How many were tried, and how many were as they should be.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    tried: usize,
    right: usize,
}

impl Tally {
    fn add(&mut self, is_right: bool) {
        self.tried += 1;
        self.right += usize::from(is_right);
    }

    fn share(&self) -> f64 {
        self.right as f64 / self.tried as f64
    }
}

/// Whether the failed claims are of `kind` and no other, and the rationale says what is found instead; too high a count leaves objects not
/// found, too.
fn blames(verdict: &Verdict, kind: ClaimKind) -> bool {
    let mut failed = verdict.claims.iter().filter(|claim| !claim.holds).peekable();
    let is_blamed = |claim: &Claim| claim.kind == kind || kind == ClaimKind::Count && claim.found == "not found";
    failed.peek().is_some() && failed.all(|claim| is_blamed(claim) && verdict.prompt_following.rationale.contains(&claim.found))
}

/// True captions confirmed, false ones rejected by kind, and false ones with the changed claim alone blamed.
fn calibrate(
    side: u32,
    count: usize,
    seed: u64,
    spoil: impl Fn(&mut RgbImage, &mut ChaCha8Rng),
) -> (Tally, BTreeMap<ClaimKind, Tally>, Tally) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut confirmed, mut rejected, mut blamed) = (Tally::default(), BTreeMap::<ClaimKind, Tally>::new(), Tally::default());
    for i in 0..count {
        let example = example(i, &mut rng);
        let mut image = render(&example.scene, side);
        spoil(&mut image, &mut rng);
        let verdict = judge(&image, &example.caption);
        confirmed.add(verdict.passes());
        let kinds = (0..KINDS.len()).map(|at| KINDS[(i + at) % KINDS.len()]);
        let (kind, caption) =
            kinds.filter_map(|kind| Some((kind, falsified(&example, kind, &mut rng)?))).next().expect("it says something");
        let verdict = judge(&image, &caption);
        rejected.entry(kind).or_default().add(!verdict.passes());
        blamed.add(blames(&verdict, kind));
    }
    (confirmed, rejected, blamed)
}

#[test]
fn true_captions_are_confirmed_and_false_ones_rejected() {
    for (side, count) in [(32, 2000), (24, 300), (48, 300), (64, 300)] {
        let (confirmed, rejected, blamed) = calibrate(side, count, u64::from(side), |_, _| {});
        println!("side {side}: confirmed {confirmed:?}, rejected {rejected:?}, blamed {blamed:?}");
        assert!(confirmed.share() >= 0.995, "side {side}: {confirmed:?}");
        for (kind, tally) in rejected {
            assert!(tally.share() >= 0.995, "side {side}, {kind:?}: {tally:?}");
        }
        assert!(blamed.share() >= 0.95, "side {side}: {blamed:?}");
    }
}

#[test]
fn a_reconstruction_changes_no_verdict() {
    for (side, count) in [(32, 1000), (48, 200), (64, 200)] {
        let (confirmed, rejected, blamed) = calibrate(side, count, 100 + u64::from(side), spoil::reconstruct);
        let rejected =
            rejected.values().fold(Tally::default(), |sum, tally| Tally { tried: sum.tried + tally.tried, right: sum.right + tally.right });
        println!("side {side}: confirmed {confirmed:?}, rejected {rejected:?}, blamed {blamed:?}");
        assert!(confirmed.share() >= 0.97, "side {side}: {confirmed:?}");
        assert!(rejected.share() >= 0.97, "side {side}: {rejected:?}");
    }
}

#[test]
fn who_says_nothing_is_not_contradicted() {
    let nothing = Description { groups: vec![], relation: None, background: None };
    let background = Description { background: Some(Background::White), ..nothing.clone() };
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for i in 0..20 {
        let example = example(i, &mut rng);
        let image = render(&example.scene, 32);
        let verdict = judge(&image, &nothing);
        assert!(verdict.passes() && verdict.claims.is_empty() && verdict.prompt_following.score == 5.0, "{verdict:?}");
        let verdict = judge(&image, &background);
        let score = if example.scene.background == Background::White { 5.0 } else { 1.0 };
        assert!(verdict.claims.len() == 1 && verdict.prompt_following.score == score, "{verdict:?}");
    }
}

#[test]
fn strange_images_are_judged_without_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let caption = Description::parse("a large red circle above a small blue square on a white background").expect("a caption");
    let flat = |width, height, color| RgbImage::from_pixel(width, height, Rgb(color));
    let mut images: Vec<RgbImage> = [(0, 0), (1, 1), (1, 40), (2, 2), (3, 3), (24, 40), (40, 24)].map(|(w, h)| flat(w, h, [245; 3])).into();
    images.extend([[245; 3], [128, 0, 0], emblem::RGB, Color::Red.rgb(), [0; 3]].map(|color| flat(32, 32, color)));
    for (width, height) in [(1, 1), (2, 3), (24, 40), (32, 32), (64, 64)] {
        images.push(RgbImage::from_fn(width, height, |_, _| Rgb(rng.random())));
        images.push(RgbImage::from_fn(width, height, |_, _| Rgb([if rng.random() { 255 } else { 0 }; 3])));
    }
    for shape in Shape::ALL {
        let object = Object { shape: *shape, color: Color::Green, size: Size::Large, center: [0.5; 2], extent: 1.2 };
        images.push(render(&Scene { background: Background::Gray, objects: vec![object], emblem: Some([0.5; 2]) }, 32));
    }
    for image in images {
        let verdict = judge(&image, &caption);
        assert!(!verdict.passes());
        for rating in [&verdict.prompt_following, &verdict.aesthetic, &verdict.fidelity, &verdict.harmlessness] {
            assert!((1.0..=5.0).contains(&rating.score) && !rating.rationale.is_empty(), "{:?}: {rating:?}", image.dimensions());
        }
    }
}
