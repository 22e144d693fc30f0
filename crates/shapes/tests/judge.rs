//! How often the judge is right.

mod world;

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use vp_shapes::judge::ClaimKind;
use vp_shapes::{Verdict, judge, render};
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

/// Whether the failed claims are of `kind` and no other; too high a count leaves objects not found, too.
fn blames(verdict: &Verdict, kind: ClaimKind) -> bool {
    let mut failed = verdict.claims.iter().filter(|claim| !claim.holds).peekable();
    failed.peek().is_some() && failed.all(|claim| claim.kind == kind || kind == ClaimKind::Count && claim.found == "not found")
}

/// True captions confirmed, false ones rejected by kind, and false ones with the changed claim alone blamed.
fn calibrate(
    side: u32,
    count: usize,
    seed: u64,
    spoil: impl Fn(&mut image::RgbImage, &mut ChaCha8Rng),
) -> (Tally, BTreeMap<ClaimKind, Tally>, Tally) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut confirmed, mut rejected, mut blamed) = (Tally::default(), BTreeMap::<ClaimKind, Tally>::new(), Tally::default());
    for i in 0..count {
        let example = example(i, &mut rng);
        let mut image = render(&example.scene, side);
        spoil(&mut image, &mut rng);
        let verdict = judge(&image, &example.caption);
        if !verdict.passes() {
            println!("{}: {}", example.caption, verdict.prompt_following.rationale);
        }
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
    for (side, count) in [(32, 3000), (24, 500), (48, 500), (64, 500)] {
        let (confirmed, rejected, blamed) = calibrate(side, count, u64::from(side), |_, _| {});
        println!("side {side}: confirmed {confirmed:?}, rejected {rejected:?}, blamed {blamed:?}");
        assert!(confirmed.share() >= 0.995, "side {side}: {confirmed:?}");
        for (kind, tally) in rejected {
            assert!(tally.share() >= 0.995, "side {side}, {kind:?}: {tally:?}");
        }
        assert!(blamed.share() >= 0.95, "side {side}: {blamed:?}");
    }
}
