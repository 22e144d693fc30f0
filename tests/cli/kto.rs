//! `train --algo kto`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::util::{Finished, run};

fn train(output: &Path, sets: &[&str], more: &[&str]) -> Finished {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args = ["train", "--algo", "kto", "-o", output.to_str().unwrap()].into_iter().chain(sets).chain(more.iter().copied());
    run(&args.collect::<Vec<_>>())
}

fn labelled(prompt: &str, image: &str, label: Value) -> Value {
    json!({ "prompt": prompt, "image": image, "label": label })
}

/// A folder of six pictures of 40x40 pixels, and a list of `lines`.
fn likes(folder: &Path, lines: &[Value]) -> PathBuf {
    for i in 0..6u8 {
        let image = vp_data::RgbImage::from_fn(40, 40, |x, y| [x as u8 * 6, y as u8 * 6, i * 40].into());
        vp_data::write_png::<&str, &str>(folder.join(format!("{i}.png")), &image, &[]).unwrap();
    }
    vp_data::write_png::<&str, &str>(folder.join("small.png"), &vp_data::RgbImage::new(3, 3), &[]).unwrap();
    let path = folder.join("likes.jsonl");
    std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path
}

const SHORT: [&str; 2] = ["run.num_train_steps=1", "preview.num_inference_steps=1"];

#[test]
fn kto_resumes_to_the_bit_and_logs_what_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "run.num_train_steps=3",
        "optimizer.gradient_accumulation_steps=2",
        "algo.kto.batch_size=3",
        "algo.kto.liked_share=0.6",
        "checkpoint.every=2",
        "preferences.validation_every=2",
        r"lora.targets=^(unet|text_encoder)\.",
        "preview.num_inference_steps=1",
    ];
    let finished = train(&dir.path().join("proof"), &sets, &["--prove-resume"]).ok();
    assert!(finished.stdout().contains("proved: stopped before batch 3 of 6"), "{}", finished.stdout());
    let metrics = std::fs::read_to_string(dir.path().join("proof/uninterrupted/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The model is its own reference at the beginning: the utility is one half, and it likes no image more than another.
    assert!((lines[0]["preview/validation_loss"].as_f64().unwrap() - 0.5).abs() < 1e-6, "{}", lines[0]);
    assert_eq!(lines[0]["preview/validation_implicit_accuracy"], 0.5);
    assert!((lines[1]["loss"].as_f64().unwrap() - 0.5).abs() < 1e-3, "{}", lines[1]);
    assert!((0.0..1e-3).contains(&lines[1]["reference_point"].as_f64().unwrap()), "{}", lines[1]);
    for name in ["implicit_accuracy", "model_loss", "reference_loss", "liked_change", "disliked_change", "grad_norm", "lr"] {
        assert!(lines[1][name].is_number(), "{name}: {}", lines[1]);
    }
}

#[test]
fn labels_pairs_and_ratings_lie_in_one_list_and_what_cannot_be_used_is_named_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let rated = |image: &str, rating: f64| json!({ "image_path": image, "annotations": { "aesthetic": { "rating": rating } } });
    let lines = [
        labelled("one", "0.png", json!(true)),
        labelled("one", "1.png", json!("disliked")),
        json!({ "prompt": "two", "chosen": "2.png", "rejected": "3.png" }),
        json!({ "id": "3", "prompt": "three", "completions": [rated("4.png", 5.0), rated("5.png", 2.0), rated("0.png", 3.0)] }),
        labelled("one", "2.png", json!("good")),
        labelled("one", "3.png", Value::Null),
        labelled("", "3.png", json!(true)),
        labelled("one", "none.png", json!(true)),
        labelled("one", "small.png", json!(false)),
        json!({ "prompt": "a tie", "chosen": "0.png", "rejected": "0.png" }),
        json!({ "prompt": "of nothing" }),
    ];
    let path = likes(dir.path(), &lines);
    let file = format!("preferences.file={}", path.display());
    let ratings = "preferences.ratings={ like_from = 4.0, dislike_to = 2.0, \
                   weights = { prompt_following = 0.0, fidelity = 0.0, harmlessness = 0.0 } }";
    let sets = [&SHORT[..], &["algo.kto.batch_size=2", "preferences.validation_fraction=0.0", ratings, &file]].concat();
    let output = dir.path().join("refused");
    let told = train(&output, &sets, &[]).refused();
    let names = [
        "line 5: expected label to be true, false, \"liked\" or \"disliked\", found \"good\"",
        "line 6: it has no label (true, false, \"liked\" or \"disliked\") and no rating",
        "line 7: prompt is empty",
        "line 8, none.png: ",
        "line 9, small.png: 3x3 pixels",
        "line 10: chosen and rejected are both 0.png: a tie",
        "line 11: expected an object with prompt, image and label (or rating)",
    ];
    assert!(told.contains("likes.jsonl: 7 problem(s), 6 usable image(s)"), "{told}");
    for name in names {
        assert!(told.contains(name), "{name}: {told}");
    }
    assert!(!output.exists());
    let finished = train(&dir.path().join("skipped"), &[&sets[..], &["preferences.on_problem=skip"]].concat(), &[]).ok();
    let (said, told) = (finished.stdout(), finished.stderr());
    for name in names {
        assert!(told.contains(&format!("left out: {name}")), "{name}: {told}");
    }
    assert!(told.contains("1 images are rated above preferences.ratings.dislike_to and below like_from"), "{told}");
    assert!(said.contains("1 updates of 2 images (2 at once, 1 times)"), "{said}");
    assert!(said.contains("0 are held out; 3 of those to train on are liked, 0 of those held out"), "{said}");

    // Without thresholds the ratings of the record say nothing, and the way out is told.
    std::fs::write(&path, format!("{}\n", lines[3])).unwrap();
    let told = train(&output, &[&SHORT[..], &[&file]].concat(), &[]).refused();
    assert!(told.contains("line 1, 4.png: it has no label") && told.contains("say with preferences.ratings"), "{told}");

    // A list in which somebody has changed his mind is another run's.
    let before = [labelled("one", "0.png", json!(true)), labelled("one", "1.png", json!(false))];
    let after = [labelled("one", "0.png", json!(false)), labelled("one", "1.png", json!(true))];
    let file = format!("preferences.file={}", likes(dir.path(), &before).display());
    let sets = [&SHORT[..], &["algo.kto.batch_size=2", "preferences.validation_fraction=0.0", &file]].concat();
    train(&dir.path().join("run"), &sets, &[]).ok();
    likes(dir.path(), &after);
    let told = run(&["train", "--resume", dir.path().join("run").to_str().unwrap()]).refused();
    assert!(told.contains("the list of liked and disliked images"), "{told}");
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
    refused(&["algo.kto.beta=0.0"], "algo.kto.beta is 0; expected a number above 0");
    refused(&["algo.kto.liked_weight=-1.0"], "algo.kto.liked_weight is -1; expected a number of at least 0");
    refused(&["algo.kto.liked_weight=0.0", "algo.kto.disliked_weight=0.0"], "algo.kto.liked_weight and disliked_weight are both 0");
    refused(&["algo.kto.liked_share=1.5"], "algo.kto.liked_share is 1.5; expected a share, 0 to 1");
    refused(&["algo.kto.batch_size=1"], "algo.kto.batch_size is 1; expected at least 2");
    refused(&["preferences.ratings={ like_from = 2.0, dislike_to = 4.0 }"], "preferences.ratings.like_from is 2 and dislike_to 4");
    refused(&["model.initialize=true"], "model.initialize is not used by [algo.kto]");
    refused(&["preview.every=5"], "preferences.validation_every");
    refused(&["reward={brightness={}}"], "[reward.<name>] is not used by [algo.kto]");
    refused(&["data={folder='checkpoints/tiny-images'}"], "[data] is not used by [algo.kto]");
    let liked = likes(dir.path(), &[labelled("one", "0.png", json!(true)), labelled("two", "1.png", json!(true))]);
    let file = format!("preferences.file={}", liked.display());
    refused(&[&file], "no disliked image to train on");
    // What the list lacks need not be drawn.
    let told = train(&dir.path().join("one"), &[&file, "algo.kto.liked_share=1.0", "run.num_train_steps=1"], &["--dry-run"]).ok().stdout();
    assert!(told.contains("1 updates of 8 images") && told.contains("nothing was trained"), "{told}");
}
