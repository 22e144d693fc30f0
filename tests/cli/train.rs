//! `train`.

use vp_models::lora::LoraWeights;
use vp_models::parameters::named_parameters;
use vp_models::pipeline::{ModelFolder, Pipeline};

use crate::util::{MODEL, files, root, run};

#[test]
fn train_with_no_config_leaves_a_run_and_a_lora_that_sample_uses() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let few = ["--set", "run.num_train_steps=2", "--set", "scheduler.num_inference_steps=6"];
    let window = ["--set", "algo.refl.min_mid_step=4", "--set", "algo.refl.max_mid_step=5", "--set", "preview.num_inference_steps=2"];
    let finished =
        run(&[&["train", "--config", "configs/refl/tiny.toml", "-o", output.to_str().unwrap()], &few[..], &window[..]].concat()).ok();

    let names: Vec<_> = files(&output).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let loras = ["lora.safetensors", "pytorch_lora_weights.safetensors"];
    let reports = ["report.html", "report.json", "report.md"];
    let expected = ["checkpoints", "config.toml", loras[0], "metrics.jsonl", "provenance.json", loras[1]].into_iter().chain(reports);
    assert_eq!(names, expected.chain(["samples", "tensorboard"]).collect::<Vec<_>>());
    let grids: Vec<_> =
        files(&output.join("samples")).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(grids, ["step-000000", "step-000000.png", "step-000002", "step-000002.png"]);
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<_> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 1, 2, 2]);
    for name in ["loss", "reward_mean", "reward_std", "watch/brightness", "watch/saturation", "regularizer", "grad_norm", "lr"] {
        assert!(lines[1][name].is_number(), "{name}: {}", lines[1]);
    }

    // Both files hold the same factors, on every attention of the UNet, and none is still zero.
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&root().join(MODEL)).unwrap(), &burn::tensor::Device::flex()).unwrap();
    let names = pipeline.lora_names(&unet);
    let [kohya, diffusers] = loras.map(|file| LoraWeights::read(&output.join(file), &names).unwrap());
    assert_eq!(kohya, diffusers);
    assert_eq!(kohya.layers.len(), 128);
    assert!(kohya.layers.values().all(|factors| factors.rank == 4));
    // Of the lowest level's queries and keys over a single pixel there is nothing to learn.
    let moved = kohya.layers.values().filter(|factors| factors.up.iter().any(|value| *value != 0.0)).count();
    assert!(moved > 100, "{moved} of 128 layers moved");

    // The last line is the report, the one before it a command that works.
    let stdout = finished.stdout();
    let [command, report] = stdout.lines().collect::<Vec<_>>().split_off(stdout.lines().count() - 2)[..] else { panic!("{stdout}") };
    assert_eq!(report, output.join("report.html").to_str().unwrap());
    let words = shell_words(command);
    let images = dir.path().join("images");
    let args: Vec<&str> = words.iter().skip(1).map(String::as_str).chain(["-o", images.to_str().unwrap()]).collect();
    run(&args).ok();
    assert_eq!(files(&images).len(), 1);

    // The resolved config is one that train reads.
    let again = dir.path().join("again");
    let config = output.join("config.toml");
    run(&["train", "--config", config.to_str().unwrap(), "--set", "run.num_train_steps=1", "-o", again.to_str().unwrap()]).ok();
}

/// Splits a command as a shell does, for the quotes that `train` prints.
fn shell_words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn a_run_is_repeatable_and_its_seed_matters() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = |name: &str, seed: &str| {
        let output = dir.path().join(name);
        let seed = format!("run.seed={seed}");
        let sets =
            ["run.num_train_steps=1", "scheduler.num_inference_steps=4", "algo.refl.min_mid_step=2", "algo.refl.max_mid_step=3", &seed];
        let sets: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
        run(&[
            &["train", "--config", "configs/refl/tiny.toml", "-o", output.to_str().unwrap(), "--set", "preview.num_inference_steps=1"],
            &sets[..],
        ]
        .concat())
        .ok();
        let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
        text.lines().map(|line| line.split(",\"images_per_second\"").next().unwrap().to_string()).collect::<Vec<_>>()
    };
    let (first, again, other) = (metrics("a", "1"), metrics("b", "1"), metrics("c", "2"));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

/// A short run of the shipped config with more settings; its lines of metrics.
fn short_run(folder: &std::path::Path, sets: &[&str]) -> Vec<serde_json::Value> {
    let short = ["run.num_train_steps=2", "scheduler.num_inference_steps=4", "algo.refl.min_mid_step=2", "algo.refl.max_mid_step=3"];
    let sets: Vec<&str> = short.iter().chain(&["preview.num_inference_steps=1"]).chain(sets).flat_map(|set| ["--set", set]).collect();
    run(&[&["train", "--config", "configs/refl/tiny.toml", "-o", folder.to_str().unwrap()], &sets[..]].concat()).ok();
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_image_folder_regularises() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let mut lines = String::new();
    for i in 0..3u8 {
        let image = vp_data::RgbImage::from_fn(70, 90, |x, y| [x as u8 * 3, y as u8 * 2, i * 80].into());
        vp_data::write_png::<&str, &str>(images.join(format!("{i}.png")), &image, &[]).unwrap();
        lines += &format!("{{\"file_name\": \"{i}.png\", \"text\": \"gradient number {i}\"}}\n");
    }
    std::fs::write(images.join("metadata.jsonl"), lines).unwrap();
    let regularizer = format!("regularizer={{ images = {{ folder = \"{}\" }} }}", images.display());
    let lines = short_run(&dir.path().join("run"), &[&regularizer]);
    // The denoising loss of a random network is of order 1 from the start, and weighs a hundredth.
    let first = lines[1]["regularizer"].as_f64().unwrap();
    assert!(first > 1e-3 && first < 1.0, "{first}");

    // A caption that is missing is named, and nothing is trained.
    std::fs::write(images.join("stray.png"), std::fs::read(images.join("0.png")).unwrap()).unwrap();
    let output = dir.path().join("refused");
    let line = run(&["train", "--config", "configs/refl/tiny.toml", "-o", output.to_str().unwrap(), "--set", &regularizer]).refused();
    assert!(line.contains("stray.png") && !output.exists(), "{line}");
}

#[test]
fn other_schedulers_guidance_and_parts_of_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let guided = ["algo.refl.guidance_scale=3.0", "algo.refl.negative_prompt=blurry", "regularizer={ none = {} }"];
    for (name, extra) in
        [("ddim", "scheduler.eta=0.5"), ("euler_a", "scheduler.steps_offset=0"), ("euler", "scheduler.timestep_spacing=trailing")]
    {
        let scheduler = format!("scheduler.name={name}");
        let sets = [&guided[..], &[&scheduler, extra, "model.trainable=attn2"]].concat();
        let lines = short_run(&dir.path().join(name), &sets);
        assert!(lines[2]["loss"].is_number() && lines[2]["grad_norm"].as_f64().unwrap() > 0.0, "{name}: {}", lines[2]);
        assert_eq!(lines[2]["regularizer"].as_f64().unwrap(), 0.0);
    }
    let device = burn::tensor::Device::flex();
    let denoiser = |folder: &std::path::Path| Pipeline::load(ModelFolder::open(folder).unwrap(), &device).unwrap().1;
    let (base, tuned) = (named_parameters(&denoiser(&root().join(MODEL))), named_parameters(&denoiser(&dir.path().join("ddim/model"))));
    for (base, tuned) in base.iter().zip(&tuned) {
        assert_eq!(base.values.to_data() != tuned.values.to_data(), base.name.contains("attn2"), "{}", base.name);
    }
}

#[test]
fn the_terms_of_a_sum_are_logged() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let sum = "reward={weighted_sum={terms=[{weight=2.0,reward={brightness={}}},{weight=-1.0,mean=0.5,std=0.1,reward={saturation={}}}]}}";
    let few = ["run.num_train_steps=1", "scheduler.num_inference_steps=2", "algo.refl.min_mid_step=1", "algo.refl.max_mid_step=1"];
    let sets = few.into_iter().chain([sum, "preview.num_inference_steps=1"]).flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["train", "--config", "configs/refl/tiny.toml", "-o", output.to_str().unwrap()].into_iter().chain(sets).collect();
    run(&args).ok();
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(metrics.lines().nth(1).unwrap()).unwrap();
    let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name}: {line}"));
    let sum = 2.0 * number("reward/brightness") - (number("reward/saturation") - 0.5) / 0.1;
    assert!((number("reward_mean") - sum).abs() < 1e-4 * sum.abs(), "{sum}: {line}");
}

const BLOCKS: &str = "model.gradient_checkpointing=blocks";

#[test]
fn recomputation_changes_no_metric() {
    let dir = tempfile::tempdir().unwrap();
    let reward = "reward={vp_score={weights=\"tests/golden/blip_reward_tiny/model\"}}";
    let everything = short_run(&dir.path().join("none"), &[reward]);
    let blocks = short_run(&dir.path().join("blocks"), &[reward, BLOCKS]);
    assert_eq!(everything.len(), blocks.len());
    for (expected, got) in everything.iter().zip(&blocks) {
        let timeless = |name: &&String| !name.contains("second");
        let names: Vec<_> = expected.as_object().unwrap().keys().filter(timeless).collect();
        assert_eq!(names, got.as_object().unwrap().keys().filter(timeless).collect::<Vec<_>>());
        for name in names {
            let [expected, got] = [expected, got].map(|line| line[name].as_f64());
            let scale = expected.map_or(0.0, f64::abs);
            let close = expected.zip(got).is_none_or(|(expected, got)| (expected - got).abs() <= 1e-5 * scale);
            assert!(close, "{name}: {got:?}, expected {expected:?}");
        }
    }
    let norm = everything[1]["grad_norm"].as_f64().unwrap();
    assert!(norm > 0.0, "{norm}");
}

#[test]
fn a_recomputed_run_goes_on_to_the_bit_and_may_stop_recomputing() {
    let dir = tempfile::tempdir().unwrap();
    let short = ["run.num_train_steps=2", "scheduler.num_inference_steps=3", "algo.refl.min_mid_step=2", "algo.refl.max_mid_step=2"];
    let sets: Vec<&str> = short.into_iter().chain([BLOCKS, "preview.num_inference_steps=1"]).flat_map(|set| ["--set", set]).collect();
    let proof = dir.path().join("proof");
    let finished =
        run(&[&["train", "--config", "configs/refl/tiny.toml", "--prove-resume", "-o", proof.to_str().unwrap()], &sets[..]].concat()).ok();
    assert!(finished.stdout().contains("proved"), "{}", finished.stdout());
    // What is kept of a step is not the run's identity.
    let again = proof.join("interrupted");
    run(&["train", "--resume", again.to_str().unwrap(), "--set", "model.gradient_checkpointing=none"]).ok();
}

#[test]
fn a_gradient_checkpointing_that_is_none_is_answered_with_those_that_are() {
    let line = run(&["train", "--config", "configs/refl/tiny.toml", "--set", "model.gradient_checkpointing=block"]).refused();
    assert!(line.contains("model.gradient_checkpointing=block") && line.contains("`none` or `blocks`"), "{line}");
    assert!(line.contains("did you mean `blocks`?"), "{line}");
}

/// Three micro-batches of an update two at a time, with a regulariser that draws from images in turn.
#[test]
fn workers_change_no_weight() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "run.num_train_steps=2",
        "scheduler.num_inference_steps=3",
        "algo.refl.min_mid_step=1",
        "algo.refl.max_mid_step=2",
        "optimizer.gradient_accumulation_steps=3",
        "regularizer={ images = { folder = 'checkpoints/tiny-images', weight = 1.0 } }",
        "preview.num_inference_steps=1",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let lora = |workers: &str| {
        let output = dir.path().join(workers);
        let workers = format!("run.workers={workers}");
        let args = ["train", "--config", "configs/refl/tiny.toml", "-o", output.to_str().unwrap(), "--set", &workers];
        run(&[&args, &sets[..]].concat()).ok();
        ["lora.safetensors", "samples/step-000000.png", "samples/step-000002.png"].map(|file| std::fs::read(output.join(file)).unwrap())
    };
    // Each of two workers draws one of the preview's two prompts.
    assert!(lora("1") == lora("2"));
    // A run may go on with another number of them.
    run(&["train", "--resume", dir.path().join("1").to_str().unwrap(), "--set", "run.workers=2"]).ok();
    for (algo, workers, told) in [("refl", "0", "expected 1 to 1024"), ("sft", "2", "algo.sft.workers")] {
        let workers = format!("run.workers={workers}");
        let line = run(&["train", "--config", &format!("configs/{algo}/tiny.toml"), "--set", &workers]).refused();
        assert!(line.contains(told), "{line}");
    }
}
