//! `plan`: memory told from configs alone, held against what runs take.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::util::run;

/// `plan --json` of these arguments.
fn plan(args: &[&str]) -> Value {
    let words = [&["plan", "--json"], args].concat();
    serde_json::from_str(&run(&words).ok().stdout()).unwrap()
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// A run to hold against its plan: small networks on large images or batches, so that what comes and goes decides and not the process.
struct Case {
    name: &'static str,
    args: &'static [&'static str],
}

/// How far a plan may be from what a run takes, as a share.
const MOST_OFF: f64 = 0.15;

/// One image of a preview, two updates, for the second has moments beside its gradients, no checkpoint in between.
const SHORT: [&str; 5] =
    ["run.num_train_steps=2", "preview.seeds=[1]", "preview.prompts=[\"a red circle\"]", "preview.num_inference_steps=1", "run.workers=1"];

const CASES: [Case; 5] = [
    Case {
        name: "refl, batch 4, recomputed",
        args: &[
            "--config",
            "configs/refl/shapes.toml",
            "--set",
            "algo.refl.batch_size=4",
            "--set",
            "model.size=[192,192]",
            "--set",
            "model.gradient_checkpointing=blocks",
        ],
    },
    Case { name: "refl, batch 64", args: &["--config", "configs/refl/shapes.toml", "--set", "algo.refl.batch_size=64"] },
    Case {
        name: "ddpo, batch 1",
        args: &[
            "--config",
            "configs/ddpo/tiny.toml",
            "--set",
            "algo.ddpo.train_batch_size=1",
            "--set",
            "algo.ddpo.sample_batch_size=2",
            "--set",
            "algo.ddpo.num_batches_per_epoch=1",
            "--set",
            "optimizer.gradient_accumulation_steps=1",
            "--set",
            "model.size=[384,384]",
        ],
    },
    Case {
        name: "ddpo, batch 4",
        args: &[
            "--config",
            "configs/ddpo/tiny.toml",
            "--set",
            "algo.ddpo.train_batch_size=4",
            "--set",
            "algo.ddpo.sample_batch_size=4",
            "--set",
            "algo.ddpo.num_batches_per_epoch=1",
            "--set",
            "optimizer.gradient_accumulation_steps=1",
            "--set",
            "model.size=[384,384]",
        ],
    },
    Case {
        name: "refl, whole weights",
        args: &["--config", "configs/refl/shapes.toml", "--set", "model.trainable=^unet\\.", "--set", "algo.refl.batch_size=32"],
    },
];

/// The most memory that the run noted, and what it noted of its plan, in MiB.
fn noted(folder: &Path) -> [f64; 2] {
    let provenance: Value = serde_json::from_str(&fs::read_to_string(folder.join("provenance.json")).unwrap()).unwrap();
    let fact = |name: &str| {
        let facts = provenance["hardware"].as_array().unwrap();
        let value = facts.iter().find(|fact| fact["name"] == name).unwrap_or_else(|| panic!("no fact {name}: {facts:?}"))["value"]
            .as_str()
            .unwrap();
        value.strip_suffix(" MiB").unwrap().parse().unwrap()
    };
    [fact("peak memory"), fact("planned memory")]
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_planned_is_what_runs_take() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (i, case) in CASES.iter().enumerate() {
        let sets: Vec<&str> = SHORT.iter().flat_map(|set| ["--set", set]).collect();
        let args = [case.args, &sets].concat();
        let planned = plan(&args);
        let expected = mib(planned["peak"].as_f64().unwrap());
        let folder = dir.path().join(i.to_string());
        run(&[&["train", "--quiet", "-o", folder.to_str().unwrap()], &args[..]].concat()).ok();
        let [peak, told] = noted(&folder);
        assert!((expected - told).abs() < 0.1, "{}: plan says {expected} MiB, the run {told}", case.name);
        let off = expected / peak - 1.0;
        println!(
            "{:<28} planned {expected:7.1} MiB in {}, took {peak:7.1} ({:+.1} %); stays {:.1}, phases {}",
            case.name,
            planned["peak_phase"],
            100.0 * off,
            mib(planned["fixed"].as_f64().unwrap()),
            planned["phases"]
        );
        if off.abs() > MOST_OFF {
            wrong.push(format!("{}: planned {expected:.1} MiB, took {peak:.1}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn published_models_are_planned_by_name() {
    for (model, algo, key) in [
        ("sd15", "refl", "algo.refl.batch_size"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "refl", "algo.refl.batch_size"),
        ("sd15", "ddpo", "algo.ddpo.train_batch_size"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "ddpo", "algo.ddpo.train_batch_size"),
    ] {
        let path = format!("model.path={model}-not-here");
        let set = if model == "sd15" { "model.path=sd15" } else { &path };
        let told = plan(&["--algo", algo, "--preset", "sd15", "--set", set, "--memory", "64GiB"]);
        assert!(told["assumed"][0].as_str().unwrap().starts_with("Stable Diffusion"), "{told}");
        assert!(told["peak"].as_f64().unwrap() > told["fixed"].as_f64().unwrap());
        assert!(told["largest"].get(key).is_some(), "{told}");
        let peaks: Vec<u64> = ["1", "2", "4", "8"].map(|batch| told["peak_by_batch"][batch].as_u64().unwrap()).into();
        // DDPO's peak may lie in decoding what is sampled at once, whatever is trained on at once.
        assert!(peaks.is_sorted() && (algo == "ddpo" || peaks[0] < peaks[3]), "{peaks:?}");
        for advice in told["advice"].as_array().unwrap() {
            assert!(advice["saves"].as_u64().unwrap() > 0, "{advice}");
        }
    }
}

/// With a setting of the advice, the peak falls by what it said; and the largest batch fits, while one more does not.
#[test]
fn advice_and_largest_batch_are_what_they_say() {
    let args = ["--algo", "refl", "--preset", "sd15", "--memory", "24GiB", "--set", "model.gradient_checkpointing=none"];
    let told = plan(&args);
    let [first, second] = [0, 1].map(|i| &told["advice"][i]);
    assert!(first["saves"].as_u64() >= second["saves"].as_u64());
    let setting = first["setting"].as_str().unwrap();
    let after = plan(&[&args[..], &["--set", setting]].concat());
    assert_eq!(told["peak"].as_u64().unwrap() - after["peak"].as_u64().unwrap(), first["saves"].as_u64().unwrap(), "{setting}");
    let largest = told["largest"]["algo.refl.batch_size"].as_u64().unwrap();
    let fits = |batch: u64| plan(&[&args[..], &["--set", &format!("algo.refl.batch_size={batch}")]].concat())["fits"].as_bool().unwrap();
    assert!(fits(largest) && !fits(largest + 1), "{largest}");
}

#[test]
fn it_fits_on_a_screen() {
    for preset in ["refl", "ddpo", "nft", "dpo", "srpo"] {
        for more in [&[][..], &["--set", "model.trainable=^unet\\.", "--device", "vulkan"]] {
            let words = [&["plan", "--algo", preset, "--preset", "sd15", "--memory", "200GiB"], more].concat();
            let text = run(&words).ok().stdout();
            assert!(text.lines().count() <= 24, "{} lines:\n{text}", text.lines().count());
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
            for part in ["UNet", "stays", "peak ", "largest batch that fits", "published sizes of Stable Diffusion 1.5"] {
                assert!(text.contains(part), "{part}:\n{text}");
            }
        }
    }
}

/// What crosses between ranks is the gradient of what trains; more ranks are less efficient; it fits on a screen.
#[test]
fn several_devices_are_predicted() {
    for (algo, more) in [("refl", None), ("ddpo", None), ("dgpo", None), ("dpo", None), ("refl", Some("model.path=stable-diffusion-xl"))] {
        let args = ["--algo", algo, "--preset", "sd15", "--set", more.unwrap_or("model.path=sd15")];
        let memory = plan(&args);
        let ranks = [&args[..], &["--ranks", "1,8,64,512"]].concat();
        let told = plan(&ranks);
        assert_eq!(told["bytes"].as_u64().unwrap(), 4 * memory["trained_values"].as_u64().unwrap(), "{algo}");
        let efficiency =
            |key: &str| -> Vec<f64> { told["predicted"].as_array().unwrap().iter().map(|on| on[key].as_f64().unwrap()).collect() };
        for key in ["efficiency", "efficiency_with_larger_batches"] {
            let shares = efficiency(key);
            assert!((shares[0] - 1.0).abs() < 1e-12 && shares.iter().rev().is_sorted(), "{algo} {key}: {shares:?}");
        }
        let text = run(&[&["plan"], &ranks[..]].concat()).ok().stdout();
        println!("{text}");
        assert!(text.lines().count() < 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
    let bytes = |set: &str| plan(&["--algo", "refl", "--ranks", "2", "--set", set])["bytes"].as_u64().unwrap();
    assert_eq!(bytes("run.reduction=f32"), 2 * bytes("run.reduction=bf16"));
    let told = run(&["plan", "--algo", "refl", "--ranks", "0"]).refused();
    assert!(told.contains("--ranks"), "{told}");
    let told = run(&["plan", "--algo", "refl", "--ranks", "2", "--bandwidth", "0"]).refused();
    assert!(told.contains("expected a number above 0"), "{told}");
}

#[test]
fn what_cannot_be_planned_says_why() {
    let refused = |args: &[&str]| run(&[&["plan"], args].concat()).refused();
    let told = refused(&["--algo", "refl", "--memory", "much"]);
    assert!(told.contains("--memory \"much\" is not a size; expected a number and a unit, such as 8GiB"), "{told}");
    let told = refused(&["--algo", "refl", "--preset", "sd15", "--memory", "1GiB"]);
    assert!(
        told.contains("below what stays for the whole run") && told.contains("UNet 3.2 GiB") && told.contains("model.dtype=bf16"),
        "{told}"
    );
    let told = refused(&["--algo", "refl", "--set", "model.path=no-such-model"]);
    assert!(told.contains("its name tells no published model"), "{told}");
    let told = refused(&["--algo", "refl", "--set", "algo.refl.batch_sise=2"]);
    assert!(told.contains("batch_size"), "{told}");
    let told = refused(&["--algo", "vae", "--preset", "sd15"]);
    assert!(told.contains("[algo.vae] trains no denoiser"), "{told}");
    let told = refused(&["--algo", "refl", "--preset", "sd16"]);
    assert!(told.contains("did you mean") && told.contains("sd15"), "{told}");

    // If a network's config is there but cannot be read, a published one must not take its place.
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("sd15");
    crate::util::copy_dir(&crate::util::root().join(crate::util::MODEL), &model);
    fs::write(model.join("unet/config.json"), "{ \"block_out_channels\": []").unwrap();
    let told = refused(&["--algo", "refl", "--preset", "tiny", "--set", &format!("model.path={}", model.display())]);
    assert!(told.contains("unet/config.json"), "{told}");
}

#[test]
fn a_dry_run_says_it_in_a_line() {
    let text = run(&["train", "--config", "configs/refl/tiny.toml", "--dry-run"]).ok().stdout();
    let line = text.lines().find(|line| line.starts_with("memory: about ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains(" stay, the most comes in ") && line.contains("`plan` tells"), "{line}");
}
