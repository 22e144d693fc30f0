//! Every statistic against what SciPy, scikit-learn and the krippendorff package say of the same data, ties, missing values and constant
//! ratings among them. `scripts/write_statistics_fixture` writes the numbers.

use std::path::PathBuf;

use serde_json::Value;
use vp_evaluation::accuracy::{
    Accuracy, PICKSCORE_THRESHOLDS, Ranked, filter_at, hpsv2_inversion, imagereward_accuracy, imagereward_accuracy_per_prompt,
    pickscore_accuracy, pickscore_threshold, recall_at,
};
use vp_evaluation::agreement::{Scale, Weights, cohen_kappa, krippendorff_alpha};
use vp_evaluation::bootstrap::{Bootstrap, Method, bootstrap, interval_from};
use vp_evaluation::consistency::Choice;
use vp_evaluation::correlation::{kendall_tau_b, spearman_rho};
use vp_evaluation::interval::wilson;
use vp_evaluation::ranking::{BradleyTerry, Games};
use vp_evaluation::significance::{permutation_test, sign_test};

/// A group of cases by name (or number), at least so many.
fn cases(group: &str, at_least: usize) -> Vec<(String, Value)> {
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"));
    let elsewhere = std::env::var_os("VP_REFERENCE_DIR").map(PathBuf::from).filter(|root| root.join("statistics").is_dir());
    let path = elsewhere.unwrap_or(default).join("statistics/case.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file: Value = serde_json::from_str(&text).unwrap();
    let found: Vec<_> = match &file[group] {
        Value::Object(entries) => entries.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect(),
        Value::Array(entries) => entries.iter().enumerate().map(|(i, entry)| (i.to_string(), entry.clone())).collect(),
        other => panic!("{group}: {other}"),
    };
    assert!(found.len() >= at_least, "{group}: {} cases", found.len());
    found
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

/// Within 1e-9, relative; around 0, where relative error means nothing, within 1e-12.
#[track_caller]
fn assert_close(found: f64, expected: &Value, what: &str) {
    let expected = number(expected);
    assert!((found - expected).abs() <= (1e-9 * expected.abs()).max(1e-12), "{what}: found {found}, expected {expected}");
}

/// As [`assert_close`]; null stands for what is undefined.
#[track_caller]
fn assert_same(found: Option<f64>, expected: &Value, what: &str) {
    match found {
        Some(found) if !expected.is_null() => assert_close(found, expected, what),
        found => assert!(found.is_none() && expected.is_null(), "{what}: found {found:?}, expected {expected}"),
    }
}

#[test]
fn golden_kappa_tau_rho() {
    let mut kappas = 0;
    for (name, case) in cases("agreement", 12) {
        let pairs: Vec<_> = case["pairs"].as_array().unwrap().iter().map(|pair| (number(&pair[0]), number(&pair[1]))).collect();
        assert_same(kendall_tau_b(&pairs), &case["kendall_tau_b"], &format!("{name}, tau"));
        assert_same(spearman_rho(&pairs), &case["spearman_rho"], &format!("{name}, rho"));
        let weights = [("unweighted", Weights::Unweighted), ("linear", Weights::Linear), ("quadratic", Weights::Quadratic)];
        for (key, weights) in weights {
            if let Some(expected) = case.get(format!("kappa_{key}")) {
                assert_same(cohen_kappa(&pairs, weights), expected, &format!("{name}, {key} kappa"));
                kappas += 1;
            }
        }
    }
    assert!(kappas >= 30);
}

#[test]
fn golden_krippendorff_alpha() {
    for (name, case) in cases("alpha", 7) {
        let units: Vec<_> = case["units"].as_array().unwrap().iter().map(numbers).collect();
        for (key, scale) in [("nominal", Scale::Nominal), ("ordinal", Scale::Ordinal), ("interval", Scale::Interval)] {
            assert_same(krippendorff_alpha(&units, scale), &case[key], &format!("{name}, {key}"));
        }
    }
}

#[test]
fn golden_wilson() {
    for (name, case) in cases("wilson", 24) {
        let trials = case["trials"].as_u64().unwrap() as usize;
        let found = wilson(number(&case["successes"]), trials, number(&case["level"])).unwrap();
        assert_close(found.low, &case["low"], &format!("{name}, low"));
        assert_close(found.high, &case["high"], &format!("{name}, high"));
    }
}

/// `of`'s value on every sample of `values` with replacement, all nⁿ.
fn exhaustive(values: &[f64], of: fn(&[f64]) -> f64) -> Vec<f64> {
    let n = values.len();
    let sample = |number: usize| (0..n).map(|i| values[number / n.pow(i as u32) % n]).collect::<Vec<_>>();
    (0..n.pow(n as u32)).map(|number| of(&sample(number))).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn variance(values: &[f64]) -> f64 {
    let centre = mean(values);
    values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / values.len() as f64
}

#[test]
fn golden_bootstrap() {
    for (name, case) in cases("bootstrap", 3) {
        let values = numbers(&case["values"]);
        let statistic = if case["statistic"] == "mean" { mean } else { variance };
        for (key, method, level) in [
            ("percentile_0.95", Method::Percentile, 0.95),
            ("percentile_0.8", Method::Percentile, 0.8),
            ("bca_0.95", Method::Bca, 0.95),
            ("bca_0.8", Method::Bca, 0.8),
        ] {
            let ends = &case["ends"][key];
            let found = interval_from(&values, statistic, exhaustive(&values, statistic), level, method).unwrap();
            assert_close(found.low, &ends[0], &format!("{name}, {key}, low"));
            assert_close(found.high, &ends[1], &format!("{name}, {key}, high"));
            // Drawn samples come close to all there are: within 5 % of the interval's width at 40 000.
            let drawn = bootstrap(&values, statistic, &Bootstrap { resamples: 40_000, level, method, seed: 5 }).unwrap();
            let error = (drawn.low - found.low).abs().max((drawn.high - found.high).abs());
            assert!(error <= 0.05 * (found.high - found.low), "{name}, {key}: drawn {drawn:?}, exact {found:?}");
        }
    }
}

#[test]
fn golden_paired_tests() {
    let mut permutations = 0;
    for (name, case) in cases("significance", 10) {
        let pairs: Vec<_> = numbers(&case["differences"]).into_iter().map(|difference| (difference, 0.0)).collect();
        // Relative alone, for the smallest is 1e-63.
        let (found, expected) = (sign_test(&pairs).unwrap().p_value, number(&case["sign"]));
        assert!((found / expected - 1.0).abs() < 1e-9, "{name}, sign: {found} and {expected}");
        if !case["permutation"].is_null() {
            let found = permutation_test(&pairs, 0, 0).unwrap();
            assert_close(found.p_value, &case["permutation"], &format!("{name}, permutation"));
            permutations += 1;
        }
    }
    assert!(permutations >= 7);
}

#[test]
fn golden_bradley_terry() {
    for (name, case) in cases("bradley_terry", 5) {
        let half_wins: Vec<_> = case["half_wins"].as_array().unwrap().iter().map(numbers).collect();
        let models = half_wins.len();
        let mut games = Games::new(models);
        for (first, second) in (0..models).flat_map(|first| (0..first).map(move |second| (first, second))) {
            let (won, lost) = (half_wins[first][second] as u64, half_wins[second][first] as u64);
            assert_eq!(won % 2, lost % 2, "{name}: a tie is half a win of each");
            for (choice, times) in [(Choice::First, won / 2), (Choice::Second, lost / 2), (Choice::Tie, won % 2)] {
                (0..times).for_each(|_| games.add(first, second, choice).unwrap());
            }
        }
        let fit = BradleyTerry::fit(&games, 0.0).unwrap();
        for i in 0..models {
            assert_close(fit.log_strengths[i], &case["log_strengths"][i], &format!("{name}, strength {i}"));
            assert_close(fit.standard_errors[i], &case["standard_errors"][i], &format!("{name}, error {i}"));
        }
    }
}

#[test]
fn golden_accuracy() {
    let mut recalls = 0;
    for (name, case) in cases("accuracy", 3) {
        let prompt = |entry: &Value| {
            let scores = entry[0].as_array().unwrap().iter().map(|score| score.as_f64().unwrap_or(f64::NAN)).collect();
            Ranked::new(scores, numbers(&entry[1]).into_iter().map(|rank| rank as u32).collect()).unwrap()
        };
        let prompts: Vec<_> = case["prompts"].as_array().unwrap().iter().map(prompt).collect();
        let check = |found: Option<Accuracy>, expected: &Value| {
            let found = found.unwrap();
            assert_close(found.value, expected, &format!("{name}, {}", found.protocol));
        };
        check(imagereward_accuracy(&prompts), &case["pooled"]);
        check(imagereward_accuracy_per_prompt(&prompts), &case["per_prompt"]);
        for threshold in PICKSCORE_THRESHOLDS {
            check(pickscore_accuracy(&prompts, threshold), &case["pickscore"][format!("{threshold:.1}")]);
        }
        assert_same(pickscore_threshold(&prompts), &case["pickscore_threshold"], &name);
        if let Some(expected) = case.get("inversion") {
            check(hpsv2_inversion(&prompts), expected);
        }
        for k in [1, 2] {
            if let (Some(recall), Some(filter)) = (case.get(format!("recall_{k}")), case.get(format!("filter_{k}"))) {
                check(recall_at(&prompts, k), recall);
                check(filter_at(&prompts, k), filter);
                recalls += 1;
            }
        }
    }
    assert_eq!(recalls, 2);
}
