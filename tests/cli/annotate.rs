//! `annotate`, `dataset` on records, `train-reward`, `score --records`: from images to a reward model.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vp_data::{Aggregation, Record, read_records};

use crate::report::assert_report;
use crate::util::{Finished, files, run};

/// Candidates of the world of shapes, rated by its judge; the records.
fn rated(folder: &Path, n: &str) -> PathBuf {
    let candidates = folder.join("candidates");
    let out = candidates.to_str().unwrap();
    run(&["dataset", "shapes", "--out", out, "--n", n, "--per-caption", "4", "--seed", "3"]).ok();
    let annotations = folder.join("annotations");
    judge(&candidates.join("records.jsonl"), &annotations, &[]).ok();
    annotations.join("records.jsonl")
}

fn judge(records: &Path, output: &Path, more: &[&str]) -> Finished {
    let [records, output] = [records, output].map(|path| path.to_str().unwrap());
    run(&[&["annotate", "--annotator", "judge", "--records", records, "-o", output], more].concat())
}

fn json_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_judge_rates_candidates_and_a_second_run_asks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = rated(dir.path(), "12");
    let records = read_records(&path).unwrap();
    assert_eq!(records.len(), 12);
    assert!(records.iter().all(|record| record.completions.len() == 4));
    // The first of each is as its caption wants it, and nothing is better at following it.
    let following = |record: &Record, index: usize| record.completions[index].annotations[&vp_data::Aspect::PromptFollowing].rating;
    assert!(records.iter().all(|record| following(record, 0) == 5.0 && !record.completions[0].annotations.is_empty()));
    assert!(records.iter().any(|record| (1..4).any(|index| following(record, index) < 5.0)));
    assert!(records.iter().map(|record| record.pairs(&Aggregation::default()).len()).sum::<usize>() > 24);

    let before = fs::read(&path).unwrap();
    let again = judge(&dir.path().join("candidates/records.jsonl"), &dir.path().join("annotations"), &[]).ok();
    assert!(again.stdout().contains("12 questions: 0 asked"), "{}", again.stdout());
    assert!(fs::read(&path).unwrap() == before);

    let dry = judge(&dir.path().join("candidates/records.jsonl"), &dir.path().join("dry"), &["--dry-run"]).ok();
    assert!(dry.stdout().contains("12 questions, 0 of them settled already"), "{}", dry.stdout());
    let records = dir.path().join("candidates/records.jsonl");
    let dry = dir.path().join("dry");
    let [records, output] = [&records, &dry].map(|path| path.to_str().unwrap());
    let openai = ["annotate", "--config", "configs/annotate/openai.toml", "--records", records, "-o", output, "--dry-run"];
    let said = run(&openai).ok().stdout();
    assert!(said.contains("would send about 12 requests") && said.contains("nothing was sent"), "{said}");
    assert!(!dry.exists());
}

#[test]
fn prompts_are_drawn_first_and_what_is_there_is_not_drawn_again() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, output) = (dir.path().join("prompts.txt"), dir.path().join("out"));
    fs::write(&prompts, "a red circle\na small blue square on a white background\n").unwrap();
    let [p, o] = [&prompts, &output].map(|path| path.to_str().unwrap());
    let sets = ["--set", "sampling.images_per_prompt=2", "--set", "sampling.num_inference_steps=2"];
    let annotate = || run(&[&["annotate", "--config", "configs/annotate/shapes.toml", "--prompts", p, "-o", o], &sets[..]].concat());
    let first = annotate().ok();
    assert!(first.stdout().contains("drawing 4 images with embedded:shapes"), "{}", first.stdout());
    let records = read_records(output.join("records.jsonl")).unwrap();
    let drawn = &records[1].completions[1];
    assert_eq!((drawn.image_path.as_str(), drawn.seed, drawn.steps), ("images/000001_1.png", Some(3), Some(2)));
    assert!([1.0, 2.0, 3.0, 5.0].contains(&drawn.guidance_scale.unwrap()) && drawn.model.as_deref() == Some("embedded:shapes"));
    let bytes = fs::read(output.join(&drawn.image_path)).unwrap();
    fs::remove_file(output.join("images/000001_1.png")).unwrap();
    let second = annotate().ok();
    assert!(second.stdout().contains("drawing 1 images"), "{}", second.stdout());
    assert!(fs::read(output.join(&drawn.image_path)).unwrap() == bytes);
}

#[test]
fn what_cannot_be_annotated_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let refused = |args: &[&str], expected: &[&str]| {
        let stderr = run(&[&["annotate", "-o", out.to_str().unwrap()], args].concat()).refused();
        assert!(expected.iter().all(|part| stderr.contains(part)), "{args:?}: {stderr}");
    };
    let records = ["--records", "tests/golden"];
    refused(&[&["-a", "jugde"], &records[..]].concat(), &["--annotator jugde", "did you mean `judge`?"]);
    refused(&records, &["expected --annotator NAME or --config FILE"]);
    refused(&["-a", "judge"], &["expected --records FILE", "or --prompts FILE"]);
    refused(&["-a", "judge", "--records", "no/such.jsonl"], &["no/such.jsonl"]);
    refused(&["-a", "openai", "--records", "x"], &["model"]);
    refused(&["-a", "judge", "--records", "x", "--set", "questions.rates=true"], &["rates"]);
    refused(&["-a", "judge", "--records", "x", "--set", "questions.concurrency=0"], &["questions: concurrency = 0"]);
    refused(&["-a", "reward", "--records", "x", "--set", "annotator.reward.label=\"b\""], &["[reward.<name>]"]);
    assert!(!out.exists());
}

#[test]
fn records_are_counted_split_converted_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = rated(dir.path(), "20");
    let file = path.to_str().unwrap();
    let stats = run(&["dataset", "stats", file]).ok().stdout();
    assert!(stats.contains("prompt_following") && stats.contains("judge"), "{stats}");
    let stats: Value = serde_json::from_str(&run(&["dataset", "stats", file, "--json"]).ok().stdout()).unwrap();
    assert_eq!((stats["records"].as_u64(), stats["images"].as_u64()), (Some(20), Some(80)));
    assert_eq!(stats["pairs"].as_u64().unwrap() + stats["ties"].as_u64().unwrap(), 20 * 6);

    run(&["dataset", "validate", file]).ok();
    run(&["dataset", "split", file, "--fraction", "0.3"]).ok();
    let parts = ["train", "heldout"].map(|part| read_records(path.with_file_name(format!("records.{part}.jsonl"))).unwrap());
    assert_eq!(parts[0].len() + parts[1].len(), 20);
    assert!(!parts[1].is_empty() && parts[1].iter().all(|held| parts[0].iter().all(|record| record.prompt != held.prompt)));

    let convert = |to: &str| {
        let out = dir.path().join(to);
        run(&["dataset", "convert", file, "--to", to, "-o", out.to_str().unwrap()]).ok();
        out
    };
    let pairs = vp_data::Preferences::read(convert("pairs").join("pairs.jsonl"), vp_data::OnProblem::Refuse, 16);
    // Two clean images of one caption may be equal byte by byte only by chance.
    assert_eq!(pairs.unwrap().pairs.len() as u64, stats["pairs"].as_u64().unwrap());
    let again = convert("records");
    assert_eq!(files(&again.join("images")).len(), 80);
    assert_eq!(
        read_records(again.join("records.jsonl")).unwrap()[7].pairs(&Aggregation::default()),
        read_records(&path).unwrap()[7].pairs(&Aggregation::default())
    );
    let imagereward: Value = serde_json::from_slice(&fs::read(convert("imagereward").join("imagereward.json")).unwrap()).unwrap();
    assert_eq!(imagereward.as_array().unwrap().len(), 20);
    let back = run(&["dataset", "stats", dir.path().join("imagereward/imagereward.json").to_str().unwrap(), "--json"]).ok().stdout();
    assert_eq!(serde_json::from_str::<Value>(&back).unwrap()["pairs"], stats["pairs"]);

    fs::write(path.with_file_name("broken.jsonl"), "{\"id\": \"1\", \"prompt\": \"x\"}\n").unwrap();
    let broken = run(&["dataset", "validate", path.with_file_name("broken.jsonl").to_str().unwrap()]);
    assert!(broken.code() == Some(2) && (broken.stdout() + &broken.stderr()).contains("completions"), "{}", broken.stderr());
}

#[test]
fn agreement_knows_those_who_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = rated(dir.path(), "12");
    // Another annotator who says the same, but never more than 3 for fidelity.
    let mut records = read_records(&path).unwrap();
    for record in &mut records {
        record.annotator.as_mut().unwrap().name = "strict".into();
        for completion in &mut record.completions {
            let rating = completion.annotations.get_mut(&vp_data::Aspect::Fidelity).unwrap();
            rating.rating = rating.rating.min(3.0);
        }
    }
    let other = path.with_file_name("strict.jsonl");
    vp_data::write_records(&other, &records).unwrap();
    let [first, second] = [&path, &other].map(|path| path.to_str().unwrap());
    let report: Value = serde_json::from_str(&run(&["dataset", "agreement", first, second, "--json"]).ok().stdout()).unwrap();
    let of = |aspect: &str| report["pairs"].as_array().unwrap().iter().find(|pair| pair["aspect"] == aspect).unwrap().clone();
    assert_eq!((of("prompt_following")["items"].as_u64(), of("prompt_following")["kappa"].as_f64()), (Some(48), Some(1.0)));
    assert!(of("fidelity")["kappa"].as_f64().unwrap() < 0.9 && of("fidelity")["agreement"].as_f64().unwrap() < 1.0);
    let table = run(&["dataset", "agreement", first, second]).ok().stdout();
    assert!(table.contains("judge: 12 records") && table.contains("Kendall's tau") && table.contains("alpha"), "{table}");
}

const SMALL: [&str; 10] = [
    "--set",
    "run.num_train_steps=6",
    "--set",
    "algo.reward_model.batch_size=3",
    "--set",
    "rankings.validation_every=3",
    "--set",
    "rankings.validation_fraction=0.3",
    "--set",
    "lr_scheduler.cosine.num_warmup_steps=1",
];

fn train_reward(records: &Path, output: &Path, more: &[&str]) -> Finished {
    let [records, output] = [records, output].map(|path| path.to_str().unwrap());
    run(&[&["train-reward", "--records", records, "-o", output], &SMALL[..], more].concat())
}

#[test]
fn a_reward_model_is_trained_and_scores_as_the_run_said() {
    let dir = tempfile::tempdir().unwrap();
    let (records, output) = (rated(dir.path(), "16"), dir.path().join("run"));
    let finished = train_reward(&records, &output, &[]).ok();
    let said = finished.stdout();
    assert!(said.contains("imagereward-pooled") && said.contains("validation_loss") && said.contains("reward model: "), "{said}");
    let losses: Vec<f64> =
        json_lines(&output.join("metrics.jsonl")).iter().filter_map(|line| line["preview/validation_loss"].as_f64()).collect();
    assert_eq!(losses.len(), 3, "before, in the middle, after");

    let report = assert_report(&output, &["Loss", "Accuracy", "Learning rate"]);
    assert!(report["comparison"].is_null() && report["pairs"] == serde_json::json!([]), "it draws nothing");

    let model = output.join("model");
    let scale: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    assert!(scale["std"].as_f64().unwrap() > 0.0 && scale["mean"].as_f64().is_some() && scale["aspects"] == true);
    let image = records.with_file_name("../candidates/000000_0.png");
    let scored = run(&["score", "-r", model.to_str().unwrap(), "-p", "a red circle", image.to_str().unwrap(), "--json"]).ok().stdout();
    assert!(serde_json::from_str::<Value>(&scored).unwrap()["score"].as_f64().unwrap().is_finite());
    let agrees = run(&["score", "-r", model.to_str().unwrap(), "-r", "judge", "--records", records.to_str().unwrap()]).ok().stdout();
    // The judge orders its own ratings rightly.
    assert!(agrees.contains("judge: 16 prompts\n  100.00 % (imagereward-pooled"), "{agrees}");
}

#[test]
fn training_a_reward_model_resumes_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let records = rated(dir.path(), "12");
    let more = ["--set", "algo.reward_model.dropout=true", "--set", "optimizer.gradient_accumulation_steps=2", "--prove-resume"];
    let finished = train_reward(&records, &dir.path().join("proof"), &more).ok();
    assert!(finished.stdout().contains("proved: stopped before batch 7 of 12"), "{}", finished.stdout());
}

#[test]
fn a_clip_and_an_image_reward_are_trained_under_their_own_keys() {
    let dir = tempfile::tempdir().unwrap();
    let records = rated(dir.path(), "10");
    for (name, model) in [("clip", "tests/golden/clip_tiny/model"), ("blip", "tests/golden/blip_reward_tiny/model")] {
        let output = dir.path().join(name);
        let path = format!("model.path=\"{model}\"");
        let more = [
            "--set",
            &path,
            "--set",
            "model.initialize=false",
            "--set",
            "algo.reward_model.aspects=false",
            "--set",
            "algo.reward_model.objective=pairs",
            "--set",
            "algo.reward_model.ties=true",
        ];
        let more = [&more[..], &["--set", "algo.reward_model.fix_rate=0.5", "--set", "run.num_train_steps=2"]].concat();
        train_reward(&records, &output, &more).ok();
        let header = |path: PathBuf| {
            let bytes = fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut names: Vec<String> = file.names().into_iter().map(String::from).collect();
            names.sort();
            names
        };
        let before = header(crate::util::root().join(model).join("model.safetensors"));
        let before: Vec<String> = before
            .into_iter()
            .filter(|name| !name.contains("position_ids") && !name.contains("vision_proj") && !name.contains("text_proj."))
            .collect();
        assert_eq!(header(output.join("model/model.safetensors")), before);
        run(&["score", "-r", output.join("model").to_str().unwrap(), "--records", records.to_str().unwrap()]).ok();
    }
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let records = rated(dir.path(), "4");
    let refused = |more: &[&str], expected: &[&str]| {
        let stderr = train_reward(&records, &dir.path().join("run"), more).refused();
        assert!(expected.iter().all(|part| stderr.contains(part)), "{more:?}: {stderr}");
    };
    refused(&["--set", "rankings.weights.fidelity=-1"], &["rankings.weights.fidelity = -1"]);
    refused(&["--set", "rankings.margin=40.0"], &["no prompt with two images in a strict order"]);
    refused(&["--set", "algo.reward_model.fix_rate=1.0"], &["fix_rate is 1"]);
    refused(&["--set", "model.path=\"tests/golden/clip_tiny/model\""], &["aspects needs a BLIP"]);
    refused(&["--set", "rankings.files=[\"no/records.jsonl\"]"], &["no/records.jsonl"]);
    refused(&["--set", "algo.reward_model.aspects=false"], &["needs a head per aspect: algo.reward_model.aspects = true"]);
    let mut ranked = read_records(&records).unwrap();
    for (rank, completion) in ranked.iter_mut().flat_map(|record| (1..).zip(&mut record.completions)) {
        (completion.annotations, completion.rank) = (Default::default(), Some(rank));
    }
    let path = records.with_file_name("ranked.jsonl");
    vp_data::write_records(&path, &ranked).unwrap();
    let files = format!("rankings.files=[{path:?}]");
    refused(&["--set", &files], &["4 of 4 prompts have none, the first of them \"a"]);
    let stderr =
        run(&["train", "--algo", "sft", "--set", "rankings.files=[\"x\"]", "-o", dir.path().join("sft").to_str().unwrap()]).refused();
    assert!(stderr.contains("[rankings] is not used by [algo.sft]"), "{stderr}");
    assert!(!dir.path().join("run").exists());
}
