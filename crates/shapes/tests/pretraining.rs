//! The mixture that a base model with a past is trained on.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use vp_shapes::pretraining::{CaptionIs, Captioned, Fault, PRETRAINING};
use vp_shapes::split::{Composition, compositions, heldout};
use vp_shapes::{Description, Verdict, judge};

fn drawn(count: usize, side: u32, seed: u64) -> Vec<Captioned> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| PRETRAINING.draw(side, &mut rng)).collect()
}

#[test]
fn the_shares_are_as_stated() {
    let all = drawn(20_000, 16, 1);
    let (mut captions, mut faults) = (BTreeMap::new(), BTreeMap::new());
    for one in &all {
        *captions.entry(one.caption_is).or_insert(0) += 1;
        *faults.entry(one.fault).or_insert(0) += 1;
    }
    let is_near = |found: usize, expected: f64| (found as f64 / all.len() as f64 - expected).abs() < 0.012;
    let mixture = PRETRAINING;
    for (kind, expected) in [
        (CaptionIs::True, 1.0 - mixture.partial - mixture.one_claim_changed - mixture.another_scene),
        (CaptionIs::Partial, mixture.partial),
        (CaptionIs::OneClaimChanged, mixture.one_claim_changed),
        (CaptionIs::OfAnotherScene, mixture.another_scene),
    ] {
        assert!(is_near(captions[&kind], expected), "{kind:?}: {} of {}, expected {expected}", captions[&kind], all.len());
    }
    let spoilt = [
        (Fault::Blurred, mixture.blurred),
        (Fault::Noisy, mixture.noisy),
        (Fault::Dull, mixture.dull),
        (Fault::Cluttered, mixture.cluttered),
        (Fault::Cut, mixture.cut),
        (Fault::Misplaced, mixture.misplaced),
    ];
    for (fault, expected) in spoilt {
        assert!(is_near(faults[&Some(fault)], expected), "{fault:?}: {} of {}, expected {expected}", faults[&Some(fault)], all.len());
    }
    let clean = 1.0 - spoilt.iter().map(|(_, share)| share).sum::<f64>();
    assert!(is_near(faults[&None], clean) && captions[&CaptionIs::True] * 2 > all.len(), "{} of {} are clean", faults[&None], all.len());
    // Nearly every image has a free corner.
    let emblems = all.iter().filter(|one| one.has_emblem).count();
    assert!(is_near(emblems, mixture.emblem), "{emblems} of {} have the emblem", all.len());
}

#[test]
fn every_composition_occurs_and_every_caption_is_understood() {
    let mut found: BTreeSet<String> = BTreeSet::new();
    for one in drawn(4000, 16, 2) {
        Description::parse(&one.caption).unwrap_or_else(|error| panic!("{error}"));
        found.extend(compositions(&one.shows).iter().map(Composition::to_string));
    }
    // 5 colours of 4 shapes, 2 relations of 4 shapes to 4 shapes, 2 counts of 4 shapes.
    assert_eq!(found.len(), 20 + 32 + 8, "{found:?}");
    assert!(heldout().iter().all(|composition| found.contains(&composition.to_string())));
}

#[test]
fn an_image_depends_on_its_generator_alone() {
    assert!(drawn(50, 32, 3) == drawn(50, 32, 3));
    let next = |count: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        (0..count).map(|_| PRETRAINING.draw(32, &mut rng)).last()
    };
    assert!(next(1) != next(2));
}

#[test]
fn captions_are_true_false_or_partial_as_they_are_said_to_be() {
    let (mut said, mut held) = (BTreeMap::new(), BTreeMap::new());
    for one in drawn(6000, 32, 5).iter().filter(|one| one.fault.is_none()) {
        let passes = judge(&one.image, &Description::parse(&one.caption).expect("a caption")).passes();
        *said.entry(one.caption_is).or_insert(0) += 1;
        *held.entry(one.caption_is).or_insert(0) += usize::from(passes);
    }
    for kind in [CaptionIs::True, CaptionIs::Partial] {
        assert!(held[&kind] * 1000 >= said[&kind] * 995, "{kind:?}: {} of {} hold", held[&kind], said[&kind]);
    }
    // Any other relation than the one that was meant is false, and so is every other change.
    for kind in [CaptionIs::OneClaimChanged, CaptionIs::OfAnotherScene] {
        assert!(held[&kind] * 100 <= said[&kind], "{kind:?}: {} of {} hold", held[&kind], said[&kind]);
    }
    let words = |kind: CaptionIs| {
        let of_kind: Vec<usize> =
            drawn(2000, 16, 6).iter().filter(|one| one.caption_is == kind).map(|one| one.caption.split(' ').count()).collect();
        of_kind.iter().sum::<usize>() as f64 / of_kind.len() as f64
    };
    assert!(words(CaptionIs::Partial) + 2.0 < words(CaptionIs::True), "{} words and {}", words(CaptionIs::Partial), words(CaptionIs::True));
}

#[test]
fn the_judge_rates_every_fault_lower() {
    let mut verdicts: BTreeMap<Option<Fault>, Vec<Verdict>> = BTreeMap::new();
    for one in drawn(3000, 32, 7) {
        verdicts.entry(one.fault).or_default().push(judge(&one.image, &one.shows));
    }
    let mean = |fault: Option<Fault>, score: &dyn Fn(&Verdict) -> f32| {
        verdicts[&fault].iter().map(score).sum::<f32>() / verdicts[&fault].len() as f32
    };
    let (fidelity, aesthetic) = (|verdict: &Verdict| verdict.fidelity.score, |verdict: &Verdict| verdict.aesthetic.score);
    let passes = |verdict: &Verdict| f32::from(u8::from(verdict.passes()));
    let lower = |fault: Fault, by: f32, score: &dyn Fn(&Verdict) -> f32| {
        let (spoilt, clean) = (mean(Some(fault), score), mean(None, score));
        assert!(spoilt < clean - by, "{fault:?}: {spoilt}, clean: {clean}");
    };
    for fault in [Fault::Blurred, Fault::Noisy, Fault::Cluttered] {
        lower(fault, 0.5, &fidelity);
    }
    for fault in [Fault::Dull, Fault::Misplaced] {
        lower(fault, 0.5, &aesthetic);
    }
    for fault in [Fault::Dull, Fault::Cluttered, Fault::Cut] {
        lower(fault, 0.4, &passes);
    }
    assert!(mean(None, &passes) > 0.99);
}
