use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

const IMAGES: usize = 32;

const PIXELS: PixelStats = PixelStats { brightness: 0.5, saturation: 0.4, edge_density: 0.2, entropy: 7.0, dark_fraction: 0.1 };

/// Values around a mean, with a spread of 0.1 that is the same every time.
fn around(mean: f64) -> Vec<f64> {
    (0..IMAGES).map(|i| mean + 0.1 * (i as f64 * 2.4).sin()).collect()
}

/// As [`around`], with a small spread that depends on the look, so that differences have one.
fn jittered(mean: f64, step: u64) -> Vec<f64> {
    around(mean).iter().enumerate().map(|(i, value)| value + 0.01 * (i as f64 * 1.7 + step as f64).sin()).collect()
}

fn look(step: u64) -> Look {
    Look {
        step,
        trained_reward: jittered(1.0, step),
        watched: BTreeMap::from([("aesthetic".to_string(), jittered(5.0, step)), ("hps".to_string(), jittered(0.3, step))]),
        weight_distance: step as f64 / 100.0,
        diversity: Some(0.5),
        pixels: jittered(0.0, step).iter().map(|noise| PixelStats { saturation: 0.4 + noise / 10.0, ..PIXELS }).collect(),
    }
}

/// A first look and so many after it, changed.
fn history(changed: usize, change: impl Fn(&mut Look)) -> Vec<Look> {
    let mut looks: Vec<Look> = (0..=changed as u64).map(|i| look(10 * i)).collect();
    looks[1..].iter_mut().for_each(change);
    looks
}

fn fired(history: &[Look], config: &SentinelConfig) -> Vec<(Rule, u64)> {
    findings(history, config).unwrap().iter().map(|finding| (finding.rule, finding.step)).collect()
}

fn each_pixel(look: &mut Look, change: impl Fn(&mut PixelStats)) {
    look.pixels.iter_mut().for_each(change);
}

#[test]
fn a_trained_reward_that_rises_alone_is_found() {
    let changed = |trained: f64, watched: f64| {
        history(2, |look| {
            look.trained_reward = jittered(1.0 + trained, look.step);
            look.watched.insert("hps".into(), jittered(0.3 + watched, look.step));
        })
    };
    let default = SentinelConfig::default();
    let found = findings(&changed(0.5, -0.1), &default).unwrap();
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!((finding.rule, finding.step, finding.subject.as_deref()), (Rule::RewardUpHeldoutDown, 20, Some("hps")));
    assert!((finding.start - 0.3).abs() < 0.02 && (finding.now - 0.2).abs() < 0.02 && finding.images == Some(IMAGES));
    assert!(finding.standard_errors.unwrap() < -2.0);
    let reason = &finding.reason;
    assert!(reason.contains("hps") && reason.contains("trained reward went up") && !reason.contains("aesthetic"), "{reason}");
    // Both up, only the trained one moved, or moved by less than z.
    for (trained, watched) in [(0.5, 0.1), (0.5, 0.0)] {
        assert_eq!(fired(&changed(trained, watched), &default), [], "{trained} {watched}");
    }
    // A fall without a rise of the trained reward has a rule of its own, which also speaks where the other is off.
    for (trained, watched) in [(-0.5, -0.1), (0.0, -0.1)] {
        assert_eq!(fired(&changed(trained, watched), &default), [(Rule::WatchedRewardDown, 20)], "{trained} {watched}");
    }
    let off = RewardUpHeldoutDown { action: Action::Off };
    let without = SentinelConfig { reward_up_heldout_down: off, ..default };
    let found = findings(&changed(0.5, -0.1), &without).unwrap();
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!((finding.rule, finding.step, finding.subject.as_deref()), (Rule::WatchedRewardDown, 20, Some("hps")));
    assert_eq!(fired(&changed(0.5, -0.1), &SentinelConfig { z: 1000.0, ..default }), []);
}

#[test]
fn standard_errors_are_those_of_paired_differences() {
    // Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1 / √3.
    let mut looks = history(1, |look| look.trained_reward = vec![11.0, 22.0, 33.0]);
    looks[0].trained_reward = vec![10.0, 20.0, 30.0];
    looks.iter_mut().for_each(|look| look.watched = BTreeMap::from([("w".to_string(), vec![1.0, 2.0, 3.0])]));
    looks[1].watched.insert("w".into(), vec![0.0, 0.0, 0.0]);
    let at = |z: f64| findings(&looks, &SentinelConfig { z, looks: 1, ..SentinelConfig::default() }).unwrap();
    let expected = 2.0 * 3f64.sqrt();
    assert_eq!(at(expected + 1e-9), []);
    let found = at(expected - 1e-9);
    assert!((found[0].standard_errors.unwrap() + expected).abs() < 1e-12, "{found:?}");
}

#[test]
fn pixels_have_to_move_far_and_surely() {
    let one = SentinelConfig { looks: 1, ..SentinelConfig::default() };
    type Case = (Rule, fn(&mut PixelStats), fn(&mut PixelStats));
    let cases: [Case; 6] = [
        (Rule::SaturationDrift, |pixels| pixels.saturation += 0.11, |pixels| pixels.saturation += 0.09),
        (Rule::SaturationDrift, |pixels| pixels.saturation -= 0.11, |pixels| pixels.saturation -= 0.09),
        (Rule::BrightnessDrift, |pixels| pixels.brightness += 0.11, |pixels| pixels.brightness += 0.09),
        (Rule::BrightnessDrift, |pixels| pixels.brightness -= 0.11, |pixels| pixels.brightness -= 0.09),
        (Rule::EdgeCollapse, |pixels| pixels.edge_density *= 0.49, |pixels| pixels.edge_density *= 0.51),
        (Rule::DarkImages, |pixels| pixels.dark_fraction += 0.21, |pixels| pixels.dark_fraction += 0.19),
    ];
    for (rule, too_far, not_far) in cases {
        assert_eq!(fired(&history(1, |look| each_pixel(look, too_far)), &one), [(rule, 10)]);
        assert_eq!(fired(&history(1, |look| each_pixel(look, not_far)), &one), [], "{rule:?}");
    }
    // The same mean shift on one image alone is one standard error.
    let on_one = history(1, |look| look.pixels[0].brightness += 0.11 * IMAGES as f64);
    assert_eq!(fired(&on_one, &one), []);
    // Brighter and more detailed is neither dark nor flat.
    let better = history(1, |look| each_pixel(look, |pixels| (pixels.edge_density, pixels.dark_fraction) = (0.6, 0.0)));
    assert_eq!(fired(&better, &one), []);
}

#[test]
fn diversity_and_weights_have_their_limits() {
    let default = SentinelConfig::default();
    assert_eq!(fired(&history(2, |look| look.diversity = Some(0.34)), &default), [(Rule::DiversityCollapse, 20)]);
    assert_eq!(fired(&history(2, |look| look.diversity = Some(0.36)), &default), []);
    assert_eq!(fired(&history(2, |look| look.diversity = None), &default), []);
    // Distances 0.1, 0.2, 0.3 at steps 10, 20, 30: beyond the limit once is enough, and said once.
    let limited = SentinelConfig { weights_run_away: WeightsRunAway { limit: Some(0.15), action: Action::Stop }, ..default };
    let found = findings(&history(3, |_| ()), &limited).unwrap();
    assert_eq!(found.iter().map(|finding| (finding.step, finding.action)).collect::<Vec<_>>(), [(20, Action::Stop)]);
    assert_eq!(fired(&history(3, |_| ()), &default), []);
}

#[test]
fn a_condition_has_to_last_and_may_come_again() {
    let low = |low: &'static [u64]| {
        history(6, move |look| {
            if low.contains(&look.step) {
                look.diversity = Some(0.1);
            }
        })
    };
    let looks = |looks| SentinelConfig { looks, ..SentinelConfig::default() };
    let steps = |low: &[Look], config| fired(low, &config).iter().map(|(_, step)| *step).collect::<Vec<_>>();
    assert!(steps(&low(&[10, 30, 50]), looks(2)).is_empty());
    assert_eq!(steps(&low(&[10, 20, 30, 50, 60]), looks(2)), [20, 60]);
    assert_eq!(steps(&low(&[10, 20, 30, 50, 60]), looks(3)), [30]);
    assert_eq!(steps(&low(&[10, 20, 40]), looks(1)), [10, 40]);
}

#[test]
fn a_longer_history_begins_with_the_findings_of_a_shorter_one() {
    let looks = history(5, |look| {
        look.diversity = Some(if look.step == 30 { 0.5 } else { 0.1 });
        each_pixel(look, |pixels| pixels.saturation += 0.3);
    });
    let config = SentinelConfig::default();
    let all = findings(&looks, &config).unwrap();
    assert_eq!(all.len(), 3);
    for n in 0..=looks.len() {
        let some = findings(&looks[..n], &config).unwrap();
        assert_eq!(some, all[..some.len()]);
        let until = n.checked_sub(1).map_or(0, |last| looks[last].step);
        assert_eq!(some.len(), all.iter().filter(|finding| finding.step <= until).count());
    }
}

#[test]
fn a_rule_that_is_off_says_nothing() {
    let looks = history(3, |look| {
        look.trained_reward = jittered(2.0, look.step);
        look.watched.insert("hps".into(), jittered(0.1, look.step));
        look.diversity = Some(0.1);
        each_pixel(look, |pixels| {
            *pixels = PixelStats { brightness: 0.1, saturation: 0.9, edge_density: 0.01, dark_fraction: 0.9, ..*pixels }
        });
    });
    let all = serde_json::json!({"weights_run_away": {"limit": 0.1}});
    let config: SentinelConfig = serde_json::from_value(all.clone()).unwrap();
    let mut rules: Vec<Rule> = fired(&looks, &config).iter().map(|(rule, _)| *rule).collect();
    rules.sort();
    // The fall is told once, by the rule that says more of it.
    let told: Vec<Rule> = Rule::ALL.into_iter().filter(|rule| *rule != Rule::WatchedRewardDown).collect();
    assert_eq!(rules, told);
    for rule in told {
        let mut off = all.clone();
        off[rule.name()]["action"] = "off".into();
        let config: SentinelConfig = serde_json::from_value(off).unwrap();
        let rules = fired(&looks, &config);
        let expected = if rule == Rule::RewardUpHeldoutDown { 7 } else { 6 };
        assert!(rules.len() == expected && rules.iter().all(|(other, _)| *other != rule), "{rules:?}");
    }
}

#[test]
fn looks_that_cannot_be_compared_are_refused() {
    let error = |change: fn(&mut Look)| match findings(&history(1, change), &SentinelConfig::default()) {
        Err(Error::Look { step, what, .. }) => (step, what),
        other => panic!("{other:?}"),
    };
    assert_eq!(error(|look| look.trained_reward.truncate(3)), (10, "numbers of images".into()));
    assert_eq!(error(|look| look.pixels.clear()), (10, "numbers of images".into()));
    assert_eq!(error(|look| drop(look.watched.remove("hps"))), (10, "watched rewards".into()));
    assert_eq!(error(|look| drop(look.watched.remove("aesthetic"))), (10, "numbers of images".into()));
    assert_eq!(error(|look| look.step = 0), (0, "the step of a look".into()));
    assert_eq!(error(|look| look.trained_reward[0] = f64::NAN), (10, "a number".into()));
    assert_eq!(error(|look| look.pixels[0].entropy = f64::INFINITY), (10, "a number".into()));
    assert_eq!(findings(&[], &SentinelConfig::default()), Ok(vec![]));
    assert!(findings(&[], &SentinelConfig { looks: 0, ..SentinelConfig::default() }).is_err());
}

/// Standard normal numbers, by Box and Muller.
struct Normal(ChaCha8Rng);

impl Normal {
    fn draw(&mut self) -> f64 {
        let mut uniform = || (self.0.next_u64() as f64 + 1.0) / 2f64.powi(64);
        let (radius, angle) = (uniform(), uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// How many of 500 runs of 12 looks have a finding, if two watched rewards, the pixels and diversity change by noise alone, afresh at every look,
/// but the trained reward rises by `rise` and one watched reward falls by `fall` standard deviations of that noise.
fn alarms(rise: f64, fall: f64, config: &SentinelConfig) -> usize {
    let mut normal = Normal(ChaCha8Rng::seed_from_u64(5));
    let mut run = || {
        let mut values = |mean: f64, spread: f64| (0..IMAGES).map(|_| mean + spread * normal.draw()).collect::<Vec<f64>>();
        let mut look = |step| {
            let trained = if step == 0 { 0.0 } else { 1.0 };
            let pixels = values(0.0, 0.1).into_iter().map(|noise| PixelStats {
                brightness: 0.5 + noise,
                saturation: 0.5 - noise,
                edge_density: 0.2 + 0.5 * noise,
                ..PIXELS
            });
            let pixels = pixels.collect();
            Look {
                step,
                trained_reward: values(rise * trained, 1.0),
                watched: BTreeMap::from([("a".into(), values(-fall * trained, 1.0)), ("b".into(), values(5.0, 0.2))]),
                weight_distance: step as f64,
                diversity: Some(values(0.5, 0.03)[0]),
                pixels,
            }
        };
        let looks: Vec<Look> = (0..=12).map(&mut look).collect();
        findings(&looks, config).unwrap().len()
    };
    (0..500).filter(|_| run() > 0).count()
}

#[test]
fn noise_seldom_raises_an_alarm_and_a_fall_does() {
    let default = SentinelConfig::default();
    // Nothing happens: fewer than 1 run in 10, all of them by a watched reward; without that rule, fewer than 1 in 100.
    assert!(alarms(0.0, 0.0, &default) < 50);
    let without = SentinelConfig { watched_reward_down: WatchedRewardDown { action: Action::Off }, ..default };
    assert!(alarms(0.0, 0.0, &without) < 5);
    // The trained reward truly rises, the watched ones are noise: fewer than 1 run in 10 (24 of 500), and 1 in 100 at z = 3 (1 of 500).
    assert!(alarms(2.0, 0.0, &default) < 50);
    assert!(alarms(2.0, 0.0, &SentinelConfig { z: 3.0, ..default }) < 5);
    // That is what `looks` is for: at a single one it would be more than 1 run in 5.
    assert!(alarms(2.0, 0.0, &SentinelConfig { looks: 1, ..default }) > 100);
    // A watched reward that truly falls, by a standard deviation, is found in 99 runs of 100.
    assert!(alarms(2.0, 1.0, &default) > 495);
}
