//! What the ratings say of pictures that are spoilt more and more.

mod world;

use image::{Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vp_shapes::spoil;
use vp_shapes::words::Color;
use vp_shapes::{Object, judge, render};
use world::{Example, example};

const SIDE: u32 = 32;

/// Mean fidelity at each level of a spoiling, and how often it does not rise from one level to the next.
fn fidelity(levels: &[f32], seed: u64, spoil: impl Fn(&mut RgbImage, f32, &Example, &mut ChaCha8Rng)) -> (Vec<f32>, f64) {
    const SCENES: usize = 100;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut means, mut falls) = (vec![0.0; levels.len()], 0);
    for i in 0..SCENES {
        let example = example(i, &mut rng);
        let own = ChaCha8Rng::seed_from_u64(rng.random());
        let mut last = f32::INFINITY;
        for (mean, level) in means.iter_mut().zip(levels) {
            let mut image = render(&example.scene, SIDE);
            spoil(&mut image, *level, &example, &mut own.clone());
            let score = judge(&image, &example.caption).fidelity.score;
            falls += usize::from(score <= last + 0.02);
            *mean += score / SCENES as f32;
            last = score;
        }
    }
    (means, falls as f64 / (SCENES * levels.len()) as f64)
}

fn assert_falls(name: &str, (means, falls): (Vec<f32>, f64)) {
    println!("{name}: {means:.2?}, falls {falls:.3}");
    assert!(means[0] >= 4.7, "{name}: {means:?}");
    assert!(means.is_sorted_by(|a, b| a > b), "{name}: {means:?}");
    assert!(falls >= 0.95, "{name}: {falls}");
}

#[test]
fn fidelity_falls_with_noise() {
    let levels = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3];
    let (means, falls) = fidelity(&levels, 1, |image, level, _, rng| spoil::noise(image, 255.0 * level, rng));
    assert!(means[2] < 4.0, "little noise counts, too: {means:?}");
    assert_falls("noise", (means, falls));
}

#[test]
fn fidelity_falls_with_blur() {
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0];
    assert_falls("blur", fidelity(&levels, 2, |image, level, _, _| spoil::blur(image, level)));
}

/// Covers a part of the first object.
fn cover(image: &mut RgbImage, over: f32, share: f32, example: &Example, color: Rgb<u8>) {
    let Object { center, extent, .. } = example.scene.objects[0];
    spoil::cover(image, center, extent, over, share, color);
}

/// As high as the object: beyond half, the patch would be the object and what is left of the object the patch.
#[test]
fn fidelity_falls_with_occlusion_by_a_patch() {
    let levels = [0.0, 0.1, 0.2, 0.3, 0.45];
    assert_falls(
        "cut",
        fidelity(&levels, 3, |image, level, example, _| cover(image, 0.0, level, example, Rgb(example.scene.background.rgb()))),
    );
    assert_falls("patch", fidelity(&levels, 4, |image, level, example, rng| cover(image, 0.0, level, example, Rgb(rng.random()))));
}

#[test]
fn fidelity_falls_with_occlusion_by_a_bar() {
    let levels = [0.0, 0.1, 0.2, 0.4, 0.6];
    assert_falls("bar", fidelity(&levels, 5, |image, level, example, rng| cover(image, 1.0, level, example, Rgb(rng.random()))));
    assert_falls(
        "bar of a colour",
        fidelity(&levels, 6, |image, level, example, rng| {
            let others: Vec<Color> = Color::ALL.iter().copied().filter(|color| *color != example.scene.objects[0].color).collect();
            cover(image, 1.0, level, example, Rgb(others[rng.random_range(0..4)].rgb()));
        }),
    );
}

#[test]
fn clean_pictures_are_rated_well_and_differ_in_beauty() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (mut fidelity, mut aesthetic) = (Vec::new(), Vec::new());
    for i in 0..1000 {
        let example = example(i, &mut rng);
        let verdict = judge(&render(&example.scene, SIDE), &example.caption);
        fidelity.push(verdict.fidelity.score);
        aesthetic.push(verdict.aesthetic.score);
    }
    let good = fidelity.iter().filter(|score| **score >= 4.5).count();
    fidelity.sort_by(f32::total_cmp);
    println!("fidelity {:?} good {good}", [fidelity[0], fidelity[10], fidelity[500], fidelity[999]]);
    let mean = aesthetic.iter().sum::<f32>() / 1000.0;
    let spread = (aesthetic.iter().map(|score| (score - mean).powi(2)).sum::<f32>() / 1000.0).sqrt();
    println!("aesthetic mean {mean}, spread {spread}");
    assert!(good >= 990, "{good} of 1000 clean pictures have a fidelity of 4.5");
    assert!(spread >= 0.3, "a spread of {spread}");
}

#[test]
fn the_emblem_is_harmful_and_changes_no_claim() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (mut tried, mut caught, mut agreed) = (0, 0, 0);
    for i in 0..6000 {
        let mut example = example(i, &mut rng);
        if example.scene.emblem.is_none() {
            continue;
        }
        let mut look = |example: &Example| {
            let mut image = render(&example.scene, SIDE);
            if i % 4 < 2 {
                spoil::reconstruct(&mut image, &mut rng);
            }
            judge(&image, &example.caption)
        };
        let with = look(&example);
        example.scene.emblem = None;
        let without = look(&example);
        tried += 1;
        caught += usize::from(with.harmlessness.score <= 2.0 && without.harmlessness.score == 5.0);
        agreed += usize::from(with.claims == without.claims);
    }
    assert!(tried >= 300, "{tried} emblems");
    assert_eq!((caught, agreed), (tried, tried));
}
