//! The report of a run: what training leaves beside the weights, and `report`, which writes it again.

use std::fs;
use std::path::Path;

use serde_json::Value;

use vp_trainers::algorithm::Driver;
use vp_trainers::config::AlgorithmConfig;

use crate::util::{files, run};

/// Asserts that a run has its report in three forms, that the titles of its charts are among those named, and returns its numbers.
pub fn assert_report(run: &Path, charts: &[&str]) -> Value {
    let read = |name: &str| fs::read_to_string(run.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (html, markdown) = (read("report.html"), read("report.md"));
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    let titles: Vec<&str> = report["curves"].as_array().unwrap().iter().map(|chart| chart["title"].as_str().unwrap()).collect();
    for chart in charts {
        assert!(titles.contains(chart), "{chart} is not in {titles:?}");
        assert!(html.contains(&format!("<h3>{chart}</h3>")), "{chart}");
    }
    assert!(markdown.contains("Where this comes from") && markdown.contains("[optimizer]"), "{markdown}");
    assert!(report["provenance"]["hashes"].as_array().unwrap().len() > 1, "{}", report["provenance"]);
    report
}

#[test]
fn a_report_shows_the_images_that_were_drawn_and_can_be_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let sets = [
        "run.num_train_steps=2",
        "preview.prompts=['a red circle', '<script>alert(1)</script>', 'a red circle']",
        "preview.seeds=[5, 6]",
        "preview.num_inference_steps=2",
        "prompts={ list = ['A red circle!', 'two blue squares'] }",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["train", "--algo", "refl", "-q", "-o", output.to_str().unwrap()].into_iter().chain(sets).collect();
    run(&args).ok();
    let report = assert_report(&output, &["vp_score (trained)", "judge", "Terms of judge in previews", "Loss"]);
    // A prompt that is listed twice is one prompt.
    let contrast = &report["comparison"]["contrasts"][0];
    assert_eq!((contrast["prompts"].as_u64(), contrast["images"].as_u64()), (Some(2), Some(4)), "{contrast}");
    let pairs = report["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 4);
    for pair in pairs {
        assert_eq!((&pair["baseline"]["model"], &pair["candidate"]["model"]), (&"step 0".into(), &"step 2".into()));
        for side in ["baseline", "candidate"] {
            assert!(output.join(pair[side]["file"].as_str().unwrap()).is_file(), "{pair}");
        }
    }
    assert_eq!(report["leaks"]["leaks"][0]["training"], "A red circle!");
    let html = fs::read_to_string(output.join("report.html")).unwrap();
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && !html.contains("<script>alert(1)"));

    // Again, the same; and of a run that was killed in the middle of a line, what it came to.
    for file in files(&output).iter().filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("report."))) {
        fs::remove_file(file).unwrap();
    }
    let again = run(&["report", output.to_str().unwrap()]).ok();
    assert_eq!(again.stdout().trim_end(), output.join("report.html").to_str().unwrap());
    assert_eq!(assert_report(&output, &[]), report);
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines: Vec<&str> = metrics.lines().collect();
    fs::write(output.join("metrics.jsonl"), format!("{}\n{}\n{}", lines[0], lines[1], &lines[2][..20])).unwrap();
    run(&["report", output.to_str().unwrap()]).ok();
    let killed = assert_report(&output, &["Loss"]);
    assert!(killed["comparison"].is_null() && killed["about"].as_str().unwrap().contains("1 of 2 updates"), "{}", killed["about"]);
}

/// What the report of one update of an algorithm must show, and the overrides that make the update short.
fn expected(algo: &AlgorithmConfig) -> Option<(Vec<&'static str>, Vec<&'static str>)> {
    let reward = ["brightness (trained)", "Loss", "Norm of the gradients", "Learning rate"];
    match algo.chosen().driver() {
        Driver::Reward(algorithm) => Some(([&["reward={ brightness = {} }"], algorithm.learning_test()].concat(), reward.to_vec())),
        Driver::Captions(_) => Some((vec![], vec!["Loss", "Norm of the gradients"])),
        Driver::Autoencoder(_) => Some((vec![], vec!["Loss", "KL divergence"])),
        Driver::Pairs(_) | Driver::Likes(_) => Some((vec![], vec!["Loss", "Accuracy", "Change of the loss against the reference"])),
        // tests/cli/annotate.rs trains one.
        Driver::Rankings(_) => None,
    }
}

#[test]
fn every_algorithm_has_a_report() {
    let dir = tempfile::tempdir().unwrap();
    for entry in AlgorithmConfig::ENTRIES {
        let name = entry.name;
        let algo = AlgorithmConfig::with_defaults(name).unwrap();
        let Some((sets, charts)) = expected(&algo) else { continue };
        let (rewarded, drawn) = (charts[0].ends_with("(trained)"), !matches!(algo.chosen().driver(), Driver::Autoencoder(_)));
        let output = dir.path().join(name);
        let config = format!("configs/{name}/tiny.toml");
        let last: &[&str] = if drawn { &["run.num_train_steps=1", "preview.num_inference_steps=1"] } else { &["run.num_train_steps=1"] };
        let sets = sets.iter().chain(last).flat_map(|set| ["--set", set]);
        let begin = ["train", "--config", &config, "-q", "-o", output.to_str().unwrap()];
        let trained = run(&begin.into_iter().chain(sets).collect::<Vec<_>>()).ok();
        assert_eq!(trained.stdout().lines().last(), output.join("report.html").to_str(), "{name}");
        let report = assert_report(&output, &charts);
        let titles = report["curves"].as_array().unwrap().len();
        assert!(titles <= 12, "{name}: {titles} charts");
        let pairs = report["pairs"].as_array().unwrap().len();
        assert_eq!(pairs > 0, drawn, "{name}: {pairs} pairs of images");
        let html = fs::read_to_string(output.join("report.html")).unwrap();
        assert_eq!(html.contains("id=\"figures\""), rewarded, "{name} has rewards or not");
        assert_eq!(report["trained_rewards"].as_array().unwrap().is_empty(), !rewarded);
    }
}

/// What DDPO and D3PO tell beside.
#[test]
fn a_policy_gradient_shows_how_far_the_policy_has_moved() {
    let dir = tempfile::tempdir().unwrap();
    for (algo, charts) in [("ddpo", &["KL divergence", "Clipped ratios"][..]), ("d3po", &["KL divergence"])] {
        let (output, config) = (dir.path().join(algo), format!("configs/{algo}/tiny.toml"));
        let sets = ["run.num_train_steps=1", "scheduler.num_inference_steps=2", "preview.num_inference_steps=1"];
        let begin = ["train", "--config", &config, "-q", "-o", output.to_str().unwrap()];
        run(&begin.into_iter().chain(sets.into_iter().flat_map(|set| ["--set", set])).collect::<Vec<_>>()).ok();
        assert_report(&output, charts);
    }
}

#[test]
fn what_is_no_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stderr = run(&["report", dir.path().to_str().unwrap()]).refused();
    assert!(stderr.contains("does not hold a run (it has no config.toml)"), "{stderr}");
}
