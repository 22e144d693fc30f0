//! `[sentinel]`: a run that exploits its reward is seen and stopped.

use std::path::Path;

use serde_json::Value;

use crate::util::{Finished, root, run};

/// ReFL for brightness on the shipped model, hard, with the judge watching.
fn hack(output: &Path, more: &[&str]) -> Finished {
    let config = output.with_extension("toml");
    let text = std::fs::read_to_string(root().join("configs/refl/shapes.toml")).unwrap();
    let (before, section) = text.split_once("[reward.vp_score]\n").expect("the shipped recipe trains on vp_score");
    let (_, after) = section.split_once("\n\n").unwrap();
    std::fs::write(&config, format!("{before}[reward.brightness]\n\n{after}")).unwrap();
    let sets = [
        "run.num_train_steps=12",
        "optimizer.learning_rate=0.01",
        "regularizer.base_predictions.weight=1e-4",
        "algo.refl.grad_scale=1.0",
        "lr_scheduler={ constant = {} }",
        "preview.every=1",
        "preview.num_inference_steps=5",
        "checkpoint.every=2",
        "sentinel.looks=1",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let [config, output] = [config.as_path(), output].map(|path| path.to_str().unwrap());
    run(&[&["train", "--config", config, "-o", output], &sets[..], more].concat())
}

/// The means that the journal has of a name, by step.
fn means(output: &Path, name: &str) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line[name].as_f64()?))).collect()
}

/// The mean difference over its standard error.
fn standard_errors(start: &[f64], now: &[f64]) -> f64 {
    let n = start.len() as f64;
    let differences: Vec<f64> = now.iter().zip(start).map(|(now, start)| now - start).collect();
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|difference| (difference - mean).powi(2)).sum::<f64>() / (n - 1.0);
    mean / (variance / n).sqrt()
}

fn report(output: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(output.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_run_that_exploits_its_reward_is_stopped_with_a_reason_and_can_be_told_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let stopped = hack(&output, &["--set", "sentinel.reward_up_heldout_down.action=stop"]);
    let stderr = stopped.stderr();
    assert_eq!(stopped.code(), Some(3), "{stderr}");
    assert!(stderr.contains("the sentinel stops the run after update") && stderr.contains("reward_up_heldout_down"), "{stderr}");
    let (brightness, judge) = (means(&output, "preview/brightness"), means(&output, "preview/judge"));
    let (first, last) = (judge[0], *judge.last().unwrap());
    assert!(last.1 < first.1 && brightness.last().unwrap().1 > brightness[0].1, "{judge:?}");
    assert!(last.0 < 12, "it was stopped before the end: {judge:?}");

    // It was the first look at which the judge lay below its start by two standard errors.
    let watch: Value = serde_json::from_slice(&std::fs::read(output.join("sentinel.json")).unwrap()).unwrap();
    let looks = watch["looks"].as_array().unwrap();
    let judged =
        |look: &Value| look["watched"]["judge"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect::<Vec<_>>();
    let below: Vec<bool> = looks[1..].iter().map(|look| standard_errors(&judged(&looks[0]), &judged(look)) <= -2.0).collect();
    assert_eq!(below.iter().position(|below| *below), Some(looks.len() - 2), "{below:?}");
    assert_eq!(looks.last().unwrap()["step"], last.0);

    // The report says why, of a run that was stopped as of one that was not.
    assert_eq!(stopped.stdout().lines().last(), output.join("report.html").to_str());
    let of_stopped = report(&output);
    let finding = &of_stopped["sentinel"]["findings"][0];
    assert_eq!((&finding["rule"], &finding["step"]), (&"reward_up_heldout_down".into(), &last.0.into()), "{finding}");
    let charts = of_stopped["curves"].as_array().unwrap().iter().map(|chart| chart["title"].as_str().unwrap());
    let charts: Vec<&str> = charts.collect();
    for title in ["brightness (trained)", "judge", "Loss", "Pixels of the previews", "Distance of the weights", "Diversity of the previews"]
    {
        assert!(charts.contains(&title), "{title} is not in {charts:?}");
    }
    assert!(charts.len() <= 12, "{charts:?}");
    let contrast = &of_stopped["comparison"]["contrasts"][0];
    let paired = |name: &str| {
        let rewards = contrast["rewards"].as_array().unwrap();
        rewards.iter().find(|reward| reward["reward"] == name).unwrap()["paired"].clone()
    };
    assert!(paired("brightness")["difference"].as_f64() > Some(0.0) && paired("judge")["difference"].as_f64() < Some(0.0), "{contrast}");
    assert!((paired("judge")["baseline"].as_f64().unwrap() - first.1).abs() < 1e-6, "the numbers of the journal: {contrast}");
    assert_eq!(of_stopped["trained_rewards"], serde_json::json!(["brightness"]));

    // What is tolerated may change: the same run goes on when it is only warned.
    let resume = ["train", "--resume", output.to_str().unwrap(), "--set", "sentinel.reward_up_heldout_down.action=warn"];
    let went_on = run(&resume);
    assert_eq!(went_on.code(), Some(0), "{}", went_on.stderr());
    assert_eq!(means(&output, "preview/judge").last().unwrap().0, 12);
    let rewritten = report(&output);
    assert_eq!(rewritten["comparison"]["contrasts"][0]["candidate"], "step 12");
    let commands = rewritten["provenance"]["command"].as_str().unwrap().lines().count();
    assert_eq!(commands, 2, "{}", rewritten["provenance"]);
}

#[test]
fn a_sentinel_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |algo: &str, set: &str, expected: &str| {
        let output = dir.path().join("run");
        let stderr = run(&["train", "--algo", algo, "--set", set, "-o", output.to_str().unwrap()]).refused();
        assert!(stderr.contains(expected), "{set}: {stderr}");
    };
    refused("refl", "sentinel.looks=0", "sentinel: ");
    refused("refl", "sentinel.diversity_collapse.share=1.5", "sentinel: ");
    refused("refl", "sentinel.reward_up.action=stop", "reward_up");
    refused("sft", "sentinel.looks=1", "[sentinel] is not used by [algo.sft]");
}
