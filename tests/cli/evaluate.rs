//! `evaluate`: the same prompts and noise on both sides, results that go on where they stopped, a report.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::util::{Finished, copy_dir, files, root, run};

fn prompts(folder: &Path) -> PathBuf {
    let path = folder.join("prompts.jsonl");
    let rows = [
        ("a large red circle on a white background", "one"),
        ("two small blue squares on a gray background", "several"),
        ("a small green cross, black background", "one"),
        ("<script>alert(1)</script>", "hostile"),
    ];
    let lines = rows.map(|(prompt, category)| serde_json::json!({ "prompt": prompt, "category": category }).to_string() + "\n");
    fs::write(&path, lines.concat()).unwrap();
    path
}

/// The shipped model against itself with a LoRA of another run's making: the golden one does not fit it, so a short run makes one.
fn lora(folder: &Path) -> PathBuf {
    let out = folder.join("tuned");
    let sets = ["run.num_train_steps=1", "optimizer.learning_rate=0.02", "preview.prompts=['a red circle']", "preview.seeds=[1]"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["train", "--algo", "refl", "-q", "-o", out.to_str().unwrap()].into_iter().chain(sets).collect();
    run(&args).ok();
    out.join("lora.safetensors")
}

fn evaluate(lora: &Path, prompts: &Path, output: &Path, more: &[&str]) -> Finished {
    let [lora, prompts, output] = [lora, prompts, output].map(|path| path.to_str().unwrap());
    let args =
        ["evaluate", "--lora", lora, "--prompts", prompts, "-o", output, "-r", "judge", "-r", "saturation", "--seeds", "2", "--steps", "3"];
    run(&[&args[..], more].concat())
}

/// Results by file, and the numbers of the report.
fn results(output: &Path) -> (BTreeMap<String, Vec<u8>>, Value) {
    let of = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
    let report: Value = serde_json::from_slice(&fs::read(output.join("report.json")).unwrap()).unwrap();
    (files(&output.join("images")).into_iter().map(of).collect(), report["comparison"].clone())
}

#[test]
fn an_evaluation_does_not_go_on_with_another_reward_of_the_same_name() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, lora) = (prompts(dir.path()), lora(dir.path()));
    let [reward, output] = ["reward", "evaluation"].map(|name| dir.path().join(name));
    copy_dir(&root().join("tests/golden/blip_reward_tiny/model"), &reward);
    evaluate(&lora, &prompts, &output, &["-r", reward.to_str().unwrap()]).ok();
    let weights = files(&reward).into_iter().find(|path| path.extension().is_some_and(|ending| ending == "safetensors")).unwrap();
    let mut bytes = fs::read(&weights).unwrap();
    // The lowest byte of the last value.
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let refused = evaluate(&lora, &prompts, &output, &["-r", reward.to_str().unwrap()]).refused();
    assert!(refused.contains("holds another evaluation"), "{refused}");
}

#[test]
fn an_evaluation_is_the_same_whole_in_parts_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, lora) = (prompts(dir.path()), lora(dir.path()));
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    let finished = evaluate(&lora, &prompts, &whole, &[]).ok();
    let told = finished.stdout();
    assert!(told.contains("\n  judge") && told.lines().count() <= 24, "{told}");
    let expected = results(&whole);
    assert_eq!(expected.0.len(), 2 * 4 * 2);

    let first = evaluate(&lora, &prompts, &parts, &["--shard", "2/2"]).ok();
    assert!(first.stdout().contains("the report is written when all parts are there"), "{}", first.stdout());
    assert!(!parts.join("report.html").exists());
    evaluate(&lora, &prompts, &parts, &["--shard", "1/2"]).ok();
    assert!(results(&parts) == expected);

    // As after a kill: the last line is torn.
    let path = whole.join("results/1-1-of-1.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let kept = text.lines().next().unwrap().len() + 1;
    fs::write(&path, &text[..kept + 40]).unwrap();
    let again = evaluate(&lora, &prompts, &whole, &[]).ok();
    assert!(again.stdout().contains("lora: 3 prompts"), "{}", again.stdout());
    assert!(results(&whole) == expected);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    let html = fs::read_to_string(whole.join("report.html")).unwrap();
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && !html.contains("<script>alert(1)"));
    let other = evaluate(&lora, &prompts, &whole, &["--seed", "9"]).refused();
    assert!(other.contains("holds another evaluation"), "{other}");
}

#[test]
fn several_models_are_ranked() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, lora, out) = (prompts(dir.path()), lora(dir.path()), dir.path().join("out"));
    evaluate(&lora, &prompts, &out, &["--tuned", "embedded:shapes", "--trained-reward", "saturation"]).ok();
    let comparison = results(&out).1;
    let standings = comparison["standings"].as_array().unwrap();
    let terms = ["aesthetic", "fidelity", "harmlessness", "pass", "prompt_following"].map(|term| format!("judge/{term}"));
    let rewards = [&["judge".to_string()][..], &terms, &["saturation".to_string()]].concat();
    assert_eq!(standings.iter().map(|of| of["reward"].as_str().unwrap()).collect::<Vec<_>>(), rewards);
    for of in standings {
        let models = of["models"].as_array().unwrap();
        let elo: Vec<f64> = models.iter().map(|model| model["elo"].as_f64().unwrap()).collect();
        assert!(elo.len() == 3 && elo.is_sorted_by(|one, next| one >= next), "{of}");
        assert!((elo.iter().sum::<f64>() - 4500.0).abs() < 1e-6, "{of}");
        // The base and the same model again tie everywhere.
        let wins = |name: &str| models.iter().find(|model| model["model"] == name).unwrap()["wins"].clone();
        assert_eq!(wins("embedded:shapes"), wins("embedded:shapes (2)"), "{of}");
    }
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let shown = |name: &str| report["pairs"].as_array().unwrap().iter().filter(|pair| pair["candidate"]["model"] == name).count();
    assert_eq!((shown("embedded:shapes (2)"), shown("tuned/lora")), (6, 6), "images of both");
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let (html, markdown) = (read("report.html"), read("report.md"));
    for caption in ["By judge: Elo with 95 % intervals", "By saturation (trained): Elo with 95 % intervals"] {
        assert!(html.contains(caption) && markdown.contains(caption), "{caption}: {markdown}");
    }
    assert!(markdown.contains("| tuned/lora |") && html.contains("Standings"), "{markdown}");
}

#[test]
fn leaks_are_named_and_strict_refuses_them() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(dir.path());
    let training = dir.path().join("training.txt");
    fs::write(&training, "A large red circle, on a WHITE background!\na yellow triangle\n").unwrap();
    let [p, t, o] = [&prompts, &training, &dir.path().join("out")].map(|path| path.to_str().unwrap().to_owned());
    let args = ["evaluate", "--tuned", "embedded:shapes", "--prompts", &p, "-o", &o, "-r", "judge", "--train-prompts", &t, "--strict"];
    let stderr = run(&args).refused();
    assert!(stderr.contains("is nearly a training prompt") && stderr.contains("--strict: 1 of 4 prompts"), "{stderr}");
    assert!(!Path::new(&o).exists());
}

#[test]
fn image_folders_are_compared_by_name_and_a_broken_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, out] = ["a", "b", "out"].map(|name| dir.path().join(name));
    for (folder, seed) in [(&a, "1"), (&b, "1")] {
        run(&["dataset", "shapes", "--out", folder.to_str().unwrap(), "--n", "3", "--seed", seed]).ok();
    }
    let compare = |output: &Path| {
        let [a, b, out] = [&a, &b, output].map(|path| path.to_str().unwrap());
        run(&["evaluate", "--base-images", a, "--tuned-images", b, "-r", "judge", "-o", out])
    };
    compare(&out).ok();
    let judge = results(&out).1["contrasts"][0]["rewards"][0].clone();
    assert_eq!((judge["images"].as_u64(), judge["paired"]["difference"].as_f64()), (Some(3), Some(0.0)), "{judge}");
    fs::write(b.join("000001.png"), "no picture").unwrap();
    let stderr = compare(&dir.path().join("other")).stderr();
    assert!(stderr.contains("000001.png"), "{stderr}");
}

/// The most memory that a run of the binary held, in MiB.
#[cfg(target_os = "linux")]
fn peak_memory(args: &[&str]) -> f64 {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_visionprefer"));
    let quiet = std::process::Stdio::null;
    let mut child = command.current_dir(crate::util::root()).args(args).stdout(quiet()).stderr(quiet()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        peak = kib.unwrap_or(0.0).max(peak);
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{args:?}");
            return peak / 1024.0;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_does_not_grow_with_the_number_of_prompts() {
    let dir = tempfile::tempdir().unwrap();
    // 0.75 MiB an image, once decoded.
    let images = |name: &str, count: u32| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        for i in 0..count {
            let image = vp_data::RgbImage::from_fn(512, 512, |x, y| [(x / 2) as u8, (y / 2) as u8, i as u8].into());
            vp_data::write_png::<&str, &str>(folder.join(format!("{i:03}.png")), &image, &[]).unwrap();
            fs::write(folder.join(format!("{i:03}.txt")), format!("gradient number {i}")).unwrap();
        }
        folder
    };
    let peak = |name: &str, count: u32| {
        let (folder, out) = (images(name, count), dir.path().join(format!("{name}-out")));
        let [folder, out] = [&folder, &out].map(|path| path.to_str().unwrap());
        peak_memory(&["evaluate", "--base-images", folder, "--tuned-images", folder, "-r", "saturation", "-o", out])
    };
    // Enough of them that the report has all the images it will ever have.
    let (few, many) = (peak("few", 30), peak("many", 150));
    assert!(few > 1.0 && many < few + 20.0, "{few:.1} MiB with 30 prompts, {many:.1} with 150, whose images take 90 MiB a side");
}

#[test]
fn one_prompt_has_means_and_what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (one, out) = (dir.path().join("one.txt"), dir.path().join("out"));
    fs::write(&one, "a red circle\n").unwrap();
    let [p, o] = [&one, &out].map(|path| path.to_str().unwrap());
    let of = |more: &[&str]| run(&[&["evaluate", "--prompts", p, "-o", o, "-r", "judge", "--steps", "2", "--seeds", "1"], more].concat());
    of(&["--tuned", "embedded:shapes"]).ok();
    let judge = results(&out).1["contrasts"][0]["rewards"][0].clone();
    assert_eq!(judge["paired"]["difference"].as_f64(), Some(0.0));
    assert!(judge["paired"]["interval"].is_null(), "{judge}");
    let refused = |more: &[&str], expected: &str| {
        let stderr = of(more).refused();
        assert!(stderr.contains(expected), "{more:?}: {stderr}");
    };
    refused(&[], "--tuned DIR or --lora FILE");
    refused(&["--tuned", "no/such/model"], "no/such/model");
    refused(&["--tuned", "embedded:shapes", "-r", "jugde"], "did you mean `judge`?");
}
