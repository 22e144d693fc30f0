//! `train --algo dpo`.

use std::path::{Path, PathBuf};

use crate::util::{Finished, run};

fn train(output: &Path, sets: &[&str], more: &[&str]) -> Finished {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args = ["train", "--algo", "dpo", "-o", output.to_str().unwrap()].into_iter().chain(sets).chain(more.iter().copied());
    run(&args.collect::<Vec<_>>())
}

const SHORT: [&str; 5] = [
    "run.num_train_steps=3",
    "optimizer.gradient_accumulation_steps=2",
    "algo.dpo.batch_size=2",
    "checkpoint.every=2",
    "preferences.validation_every=2",
];

fn row(prompt: &str, chosen: &str, rejected: &str) -> String {
    format!("{{\"prompt\": \"{prompt}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}\n")
}

/// A folder of four pictures of 40x40 pixels, and a list of the pairs `rows`.
fn pairs(folder: &Path, rows: &[String]) -> PathBuf {
    for i in 0..4u8 {
        let image = vp_data::RgbImage::from_fn(40, 40, |x, y| [x as u8 * 6, y as u8 * 6, i * 60].into());
        vp_data::write_png::<&str, &str>(folder.join(format!("{i}.png")), &image, &[]).unwrap();
    }
    vp_data::write_png::<&str, &str>(folder.join("small.png"), &vp_data::RgbImage::new(3, 3), &[]).unwrap();
    std::fs::write(folder.join("broken.png"), "no picture").unwrap();
    let path = folder.join("pairs.jsonl");
    std::fs::write(&path, rows.concat()).unwrap();
    path
}

#[test]
fn dpo_resumes_to_the_bit_and_logs_what_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [&SHORT[..], &[r"lora.targets=^(unet|text_encoder)\.", "preview.num_inference_steps=1"]].concat();
    let finished = train(&dir.path().join("proof"), &sets, &["--prove-resume"]).ok();
    assert!(finished.stdout().contains("proved: stopped before batch 3 of 6"), "{}", finished.stdout());
    let metrics = std::fs::read_to_string(dir.path().join("proof/uninterrupted/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The model is its own reference at the beginning.
    assert!((lines[0]["preview/validation_loss"].as_f64().unwrap() - std::f64::consts::LN_2).abs() < 1e-6, "{}", lines[0]);
    assert_eq!(lines[0]["preview/validation_implicit_accuracy"], 0.5);
    assert!((lines[1]["loss"].as_f64().unwrap() - std::f64::consts::LN_2).abs() < 1e-3, "{}", lines[1]);
    for name in ["implicit_accuracy", "model_loss", "reference_loss", "chosen_change", "rejected_change", "grad_norm", "lr"] {
        assert!(lines[1][name].is_number(), "{name}: {}", lines[1]);
    }
}

#[test]
fn problems_are_named_by_their_line_and_skipped_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        row("one", "0.png", "1.png"),
        row("two", "2.png", "3.png"),
        row("", "0.png", "1.png"),
        row("a tie", "0.png", "0.png"),
        row("gone", "0.png", "none.png"),
        row("small", "small.png", "1.png"),
        row("broken", "0.png", "broken.png"),
        "not json\n".into(),
    ];
    let file = format!("preferences.file={}", pairs(dir.path(), &rows).display());
    let sets = ["run.num_train_steps=1", "algo.dpo.batch_size=1", "preview.num_inference_steps=1", &file];
    let output = dir.path().join("refused");
    let told = train(&output, &sets, &[]).refused();
    let names = [
        "line 3: prompt is empty",
        "line 4: chosen and rejected are both 0.png: a tie",
        "line 5, rejected none.png: ",
        "line 6, chosen small.png: 3x3 pixels",
        "line 7, rejected broken.png: ",
        "line 8: malformed JSON",
    ];
    for name in names {
        assert!(told.contains(name), "{name}: {told}");
    }
    assert!(!output.exists());
    let output = dir.path().join("skipped");
    let told = train(&output, &[&sets[..], &["preferences.on_problem=skip"]].concat(), &[]).ok().stderr();
    for name in names {
        assert!(told.contains(&format!("left out: {name}")), "{name}: {told}");
    }

    // A list that changed is another run's.
    std::fs::write(dir.path().join("pairs.jsonl"), rows[..2].concat()).unwrap();
    train(&dir.path().join("run"), &sets, &[]).ok();
    std::fs::write(dir.path().join("pairs.jsonl"), [row("one", "1.png", "0.png"), rows[1].clone()].concat()).unwrap();
    let told = run(&["train", "--resume", dir.path().join("run").to_str().unwrap()]).refused();
    assert!(told.contains("the list of preference pairs"), "{told}");
}

#[test]
fn smoothed_preferences_need_a_probability_in_every_line() {
    let dir = tempfile::tempdir().unwrap();
    let with = |row: String, more: &str| row.replace('}', &format!(", {more}}}"));
    let mut rows = vec![
        with(row("one", "0.png", "1.png"), "\"probability\": 0.9"),
        with(row("two", "2.png", "3.png"), "\"chosen_score\": 5, \"rejected_score\": 2.5"),
        row("three", "0.png", "2.png"),
        with(row("four", "1.png", "3.png"), "\"probability\": 2"),
    ];
    let path = pairs(dir.path(), &rows);
    let file = format!("preferences.file={}", path.display());
    let sets =
        ["run.num_train_steps=2", "algo.dpo.batch_size=2", "preview.num_inference_steps=1", "preferences.validation_fraction=0.0", &file];
    let smoothed = [&sets[..], &["algo.dpo.smoothed={}"]].concat();
    let told = train(&dir.path().join("refused"), &smoothed, &[]).refused();
    assert!(told.contains("line 3: nothing says how probably chosen is the better one; add a probability"), "{told}");
    assert!(told.contains("or train without algo.dpo.smoothed") && told.contains("line 4: probability is 2; expected 0 to 1"), "{told}");
    // Diffusion-DPO itself does not ask.
    train(&dir.path().join("plain"), &sets, &[]).ok();

    rows.truncate(2);
    std::fs::write(&path, rows.concat()).unwrap();
    train(&dir.path().join("run"), &smoothed, &[]).ok();
    // Another probability is another run.
    std::fs::write(&path, rows.concat().replace("0.9", "0.8")).unwrap();
    let told = run(&["train", "--resume", dir.path().join("run").to_str().unwrap()]).refused();
    assert!(told.contains("the list of preference pairs"), "{told}");
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |sets: &[&str], expected: &str| {
        let output = dir.path().join("run");
        let told = train(&output, sets, &[]).refused();
        assert!(told.contains(expected), "{sets:?}: expected {expected:?} in: {told}");
        assert_eq!(told.trim_end().lines().count(), 1, "{told}");
        assert!(!output.exists());
    };
    refused(&["preferences.file=no/such.jsonl"], "no/such.jsonl");
    refused(&["algo.dpo.beta=0.0"], "algo.dpo.beta is 0; expected a number above 0");
    refused(&["algo.dpo.batch_size=0"], "algo.dpo.batch_size is 0");
    refused(&["algo.dpo.smoothed={ scale = 0.0 }"], "algo.dpo.smoothed.scale is 0; expected a number above 0");
    refused(&["preferences.ratings={ like_from = 4.0, dislike_to = 2.0 }"], "preferences.ratings is not used by [algo.dpo]");
    refused(&["preferences.caption_dropout=2.0"], "preferences.caption_dropout is 2; expected a probability");
    refused(&["preferences.validation_fraction=1.0"], "preferences.validation_fraction is 1");
    refused(&["preferences.min_size=0"], "preferences.min_size is 0");
    refused(&["model.initialize=true"], "model.initialize is not used by [algo.dpo]");
    refused(&["preview.every=5"], "preferences.validation_every");
    refused(&["reward={brightness={}}"], "[reward.<name>] is not used by [algo.dpo]");
    refused(&["data={folder='checkpoints/tiny-images'}"], "[data] is not used by [algo.dpo]");
    let told = run(&["train", "--algo", "sft", "--set", "preferences={file='x.jsonl'}"]).refused();
    assert!(told.contains("[preferences] is not used by [algo.sft]"), "{told}");
    let told = run(&["train", "--config", "configs/refl/tiny.toml", "--set", "preferences={file='x.jsonl'}"]).refused();
    assert!(told.contains("[preferences] is not used by [algo.refl]"), "{told}");

    let alone = pairs(dir.path(), &[row("one", "0.png", "1.png")]);
    let told = train(&dir.path().join("one"), &[&format!("preferences.file={}", alone.display()), "run.num_train_steps=1"], &["--dry-run"])
        .ok()
        .stdout();
    assert!(told.contains("1 updates of 8 pairs (8 at once, 1 times)") && told.contains("nothing was trained"), "{told}");
    refused(&[&format!("preferences.file={}", alone.display()), "preferences.validation_fraction=0.999999"], "all 1 pairs are held out");
}
