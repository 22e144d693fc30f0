//! A run on several ranks is the run of one: the same images, losses and final weights up to rounding, for every algorithm. Ranks are threads here;
//! `scripts/check-mpi` does the same with processes.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::Ordering;

use burn::tensor::Device;
use vp_core::config;
use vp_core::noise::{Noise, Purpose};
use vp_core::run_dir::RunDir;
use vp_data::{Aspect, Completion, Rating, Record, load_image, write_png, write_records};
use vp_models::parameters::named_parameters;
use vp_shapes::{Description, Split, variant};
use vp_trainers::Error;
use vp_trainers::assembly::{Assembled, Assembly, assemble};
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::ranks::Ranks;
use vp_trainers::ranks::threads::side_by_side;
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Interrupt, Run, Start, newest_checkpoint};

/// The largest difference between a run on one rank and one on several, relative to the largest value.
const ROUNDING: f64 = 1e-5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What every short run is set to: a few updates, and previews that are cheap.
///
/// Adam divides a gradient by its own size. Where a gradient is as small as the rounding in it, the update would be noise as large as the learning
/// rate. A larger eps leaves such values alone.
const SHORT: [&str; 3] = ["run.num_train_steps=3", "checkpoint.every=2", "optimizer.adamw.eps=1e-4"];
/// The small configs of these train on the size of a JPEG, which jumps where rounding changes a pixel's level.
const STEADY: [&str; 2] = ["reward={ brightness = {} }", "watch=[{ saturation = {} }]"];
const REWARD_DRIVEN: [&str; 4] =
    ["scheduler.num_inference_steps=4", "preview.num_inference_steps=2", "preview.seeds=[1]", "preview.every=2"];

/// The overrides of the small config of `algo`, so that an update divides among two and three ranks.
fn overrides(algo: &str) -> Vec<&'static str> {
    let own: &[&str] = match algo {
        "refl" => &["algo.refl.min_mid_step=2", "algo.refl.max_mid_step=3", "algo.refl.batch_size=6"],
        // Micro-batches are dealt out to two ranks, and split for three.
        "draft" => &["algo.draft.batch_size=3", "optimizer.gradient_accumulation_steps=2"],
        "align_prop" => &["algo.align_prop.batch_size=6", "algo.align_prop.truncation.gaussian.mean=2.5"],
        "drtune" => &["algo.drtune.batch_size=6", "algo.drtune.k=1"],
        "srpo" => &["algo.srpo.batch_size=6"],
        // Its gradients, and what they are rounded by, are larger.
        "leap_align" => &["algo.leap_align.batch_size=6", "optimizer.adamw.eps=1e-2"],
        "ddpo" => &["algo.ddpo.sample_batch_size=6", "algo.ddpo.num_batches_per_epoch=2", "algo.ddpo.train_batch_size=3"],
        "d3po" => &["algo.d3po.sample_batch_size=6", "algo.d3po.num_batches_per_epoch=2", "algo.d3po.train_batch_size=3"],
        "awm" => &["algo.awm.sample.batch_size=12", "algo.awm.sample.images_per_prompt=4", "algo.awm.train.batch_size=12"],
        "nft" => &["algo.nft.sample.batch_size=12", "algo.nft.sample.images_per_prompt=4", "algo.nft.train.batch_size=12"],
        "dgpo" => &["algo.dgpo.sample.batch_size=12", "algo.dgpo.sample.images_per_prompt=2", "algo.dgpo.train.batch_size=12"],
        "dpo" => &["algo.dpo.batch_size=6", "preferences.validation_every=2", "preview.num_inference_steps=2"],
        "kto" => &["algo.kto.batch_size=6", "preferences.validation_every=2", "preview.num_inference_steps=2"],
        "sft" => &["algo.sft.batch_size=6", "data.validation_every=2", "preview.num_inference_steps=2", r"model.trainable=^unet\.conv_out"],
        "vae" => &["algo.vae.batch_size=6", "data.validation_every=2"],
        "reward_model" => &[
            "algo.reward_model.batch_size=6",
            "algo.reward_model.objective='pairs'",
            "rankings.validation_every=2",
            "model.path='checkpoints/shapes/vp-score'",
            "lr_scheduler.cosine.num_warmup_steps=1",
        ],
        other => panic!("{other} has no row here: how does an update of its small config divide among two and three ranks?"),
    };
    let mut all: Vec<&str> = SHORT.into();
    if !matches!(algo, "dpo" | "kto" | "sft" | "vae" | "reward_model") {
        all.extend(REWARD_DRIVEN);
    }
    if matches!(algo, "ddpo" | "d3po" | "awm" | "nft" | "dgpo") {
        all.extend(STEADY);
    }
    all.extend(own);
    all
}

fn config(algo: &str, more: &[String]) -> TrainConfig {
    let preset = if algo == "reward_model" { "shapes" } else { "tiny" };
    let overrides: Vec<String> = overrides(algo).into_iter().map(String::from).chain(more.iter().cloned()).collect();
    config::read(&root().join(format!("configs/{algo}/{preset}.toml")), &overrides).unwrap()
}

/// What a run came to.
#[derive(Debug)]
struct Outcome {
    /// The lines of the journal, less the times.
    lines: Vec<Vec<(String, f64)>>,
    /// The pixels of the previews.
    images: Vec<f64>,
    /// The tuned parameters of every rank.
    weights: Vec<Vec<f64>>,
}

/// Trains on so many ranks into `folder`, from its newest checkpoint if there is one.
fn train(config: &TrainConfig, size: usize, folder: &Path) -> Outcome {
    let weights = side_by_side(size, |ranks| one_rank(config, ranks, folder, &Interrupt::default()).unwrap());
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        line.into_iter().filter(|(name, _)| !name.contains("second")).map(|(name, value)| (name, value.as_f64().unwrap())).collect()
    });
    let mut previews: Vec<PathBuf> = std::fs::read_dir(folder.join("samples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    previews.retain(|path| path.is_file());
    previews.sort();
    let images = previews.iter().flat_map(|path| load_image(path).unwrap().into_raw()).map(|level| f64::from(level) / 255.0).collect();
    Outcome { lines: lines.collect(), images, weights }
}

/// Trains as one rank. Returns all values of the tuned model.
fn one_rank(config: &TrainConfig, ranks: Ranks, folder: &Path, interrupt: &Interrupt) -> Result<Vec<f64>, Error> {
    // All ranks of this process share the threads of its operations. Were there several, each rank would wait for the others' operations too.
    static ONE_THREAD: Once = Once::new();
    ONE_THREAD.call_once(|| rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap());
    let resolve =
        |path: &Path| Ok(if path == Path::new("embedded:shapes") { root().join("checkpoints/shapes") } else { root().join(path) });
    match assemble(config, &resolve, &Device::flex()).unwrap() {
        Assembly::Reward(assembled) => carry_out(*assembled, ranks, folder, interrupt),
        Assembly::Captions(assembled) => carry_out(*assembled, ranks, folder, interrupt),
        Assembly::Pairs(assembled) => carry_out(*assembled, ranks, folder, interrupt),
        Assembly::Likes(assembled) => carry_out(*assembled, ranks, folder, interrupt),
        Assembly::Autoencoder(assembled) => carry_out(*assembled, ranks, folder, interrupt),
        Assembly::Blip(assembled) => carry_out(*assembled, ranks, folder, interrupt),
        Assembly::Clip(assembled) => carry_out(*assembled, ranks, folder, interrupt),
    }
}

fn carry_out<A: Assembled>(mut assembled: A, ranks: Ranks, folder: &Path, interrupt: &Interrupt) -> Result<Vec<f64>, Error> {
    let resume = newest_checkpoint(folder, &Device::flex()).0;
    let resumed_at = resume.as_ref().map(|checkpoint| checkpoint.state.cursor.step);
    // All have read the folder before the first rank writes into it.
    ranks.gather(&[]).unwrap();
    let first = ranks.is_first();
    let journal = |_| match resumed_at {
        _ if !first => Ok(Journal::of_another_rank(folder, Silent)),
        Some(step) => Journal::resume(folder, step, Silent),
        None => Ok(Journal::new(RunDir::create(folder, "")?, Silent)),
    };
    let start = Start { resume, interrupt: interrupt.clone(), ranks: ranks.clone(), ..Start::default() };
    let mut run = Run::new(assembled.model(), assembled.outline().settings.clone(), start, journal)?;
    let ended = assembled.train(&mut run).map_err(|error| run.secured(error));
    if let Err(error) = &ended {
        ranks.fail(&error.to_string());
    }
    ranks.part();
    ended?;
    Ok(named_parameters(&assembled.tuned(&run))
        .into_iter()
        .flat_map(|parameter| parameter.values.into_data().iter::<f64>().collect::<Vec<_>>())
        .collect())
}

/// How far apart two lists of values are, relative to the largest.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
    a.iter().zip(b).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs())) / largest
}

fn assert_same(what: &str, one: &Outcome, several: &Outcome) {
    assert!(several.weights.iter().all(|weights| *weights == several.weights[0]), "{what}: the ranks end with different weights");
    let weights = apart(&one.weights[0], &several.weights[0]);
    let names = |result: &Outcome| result.lines.iter().flatten().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(one), names(several), "{what}");
    // Each value by itself: some are a thousand times larger than others.
    let pairs = one.lines.iter().flatten().zip(several.lines.iter().flatten());
    let (line, name) = pairs
        .map(|((name, a), (_, b))| ((a - b).abs() / a.abs().max(1.0), name))
        .fold((0.0, ""), |most, (apart, name)| if apart > most.0 { (apart, name.as_str()) } else { most });
    let images = apart(&one.images, &several.images);
    println!("{what}: weights {weights:.1e}, journal {line:.1e} ({name}), images {images:.1e} apart");
    assert!(weights <= ROUNDING && line <= ROUNDING && images <= 1.001 / 255.0, "{what}");
}

/// Ranked images of the world of shapes, for the reward model.
fn records(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mut records = Vec::new();
    for index in 0..30 {
        let mut rng = Noise::new(5).stream(Purpose::SPOILING, 0, index);
        let description: Description = Split::Train.draw(&mut rng);
        let completion = |number: usize| {
            let image_path = format!("{index}_{number}.png");
            write_png::<&str, &str>(folder.join(&image_path), &variant::variant(&description, 32, &mut rng).image, &[]).unwrap();
            let rating = |aspect| (aspect, Rating { rating: 1.0 + number as f64, rationale: String::new() });
            Completion { image_path, annotations: Aspect::ALL.into_iter().map(rating).collect(), ..Completion::default() }
        };
        // Prompts with more and with fewer images.
        let completions = (0..2 + index as usize % 3).map(completion).collect();
        records.push(Record::new(index.to_string(), description.to_string(), completions));
    }
    write_records(folder.join("records.jsonl"), &records).unwrap();
}

fn check(algo: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let mut more = Vec::new();
    if algo == "reward_model" {
        records(&scratch.path().join("data"));
        more.push(format!("rankings.files=['{}']", scratch.path().join("data").display()));
    }
    let config = config(algo, &more);
    let on = |size: usize| train(&config, size, &scratch.path().join(size.to_string()));
    let one = on(1);
    for size in [2, 3] {
        assert_same(&format!("{algo} on {size} ranks"), &one, &on(size));
    }
}

/// One test each, so that they run side by side and fail by name.
macro_rules! check {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn no_algorithm_is_left_out() {
            let checked = [$(stringify!($name)),*];
            assert!(AlgorithmConfig::ENTRIES.iter().all(|entry| checked.contains(&entry.name)), "{checked:?}");
        }
    };
}

check!(refl draft align_prop drtune srpo leap_align ddpo d3po awm nft dgpo dpo kto sft vae reward_model);

/// Two updates on two ranks, then one, then two again: the run that was never stopped.
#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    for algo in ["refl", "ddpo"] {
        let scratch = tempfile::tempdir().unwrap();
        let upto = |updates: u64| config(algo, &[format!("run.num_train_steps={updates}"), "checkpoint.every=1".into()]);
        let whole = train(&upto(4), 1, &scratch.path().join("whole"));
        let folder = scratch.path().join("parts");
        train(&upto(2), 2, &folder);
        train(&upto(3), 1, &folder);
        let parts = train(&upto(4), 2, &folder);
        // The last update of a run has a preview, which the whole run has not everywhere.
        let weights = apart(&whole.weights[0], &parts.weights[0]);
        println!("{algo}: weights {weights:.1e} apart");
        assert!(weights <= ROUNDING, "{algo}: {weights}");
    }
}

/// A signal to the last rank ends all, with one checkpoint of the beginning of an update.
#[test]
fn a_signal_to_one_rank_ends_all_and_the_run_goes_on_with_one() {
    let scratch = tempfile::tempdir().unwrap();
    let (config, folder) = (config("draft", &[]), scratch.path().join("run"));
    let told = side_by_side(2, |ranks| {
        let interrupt = Interrupt::default();
        if ranks.rank() == 1 {
            interrupt.flag().store(15, Ordering::Relaxed);
        }
        one_rank(&config, ranks, &folder, &interrupt).unwrap_err().to_string()
    });
    assert!(told.iter().all(|told| told.starts_with("stopped by signal 15; saved to ")), "{told:?}");
    let [whole, resumed] = [scratch.path().join("whole"), folder].map(|folder| train(&config, 1, &folder));
    let weights = apart(&whole.weights[0], &resumed.weights[0]);
    assert!(weights <= ROUNDING, "{weights}");
}

/// What a rank finds that is not finite ends all, with its name, and nothing is trained on it.
#[test]
fn a_rank_with_a_value_that_is_not_finite_is_named_by_all() {
    let scratch = tempfile::tempdir().unwrap();
    // So large a factor that the loss overflows on both; the first is named.
    let config = config("refl", &["algo.refl.grad_scale=1e39".into()]);
    let told =
        side_by_side(2, |ranks| one_rank(&config, ranks, &scratch.path().join("run"), &Interrupt::default()).unwrap_err().to_string());
    assert!(told.iter().all(|told| told.contains("on thread 0 is not finite")), "{told:?}");
    assert_eq!(told[0], told[1]);
}

#[test]
fn ranks_that_do_not_divide_an_update_are_refused_with_numbers_that_do() {
    let scratch = tempfile::tempdir().unwrap();
    let config = config("refl", &["algo.refl.batch_size=4".into()]);
    let told =
        side_by_side(3, |ranks| one_rank(&config, ranks, &scratch.path().join("run"), &Interrupt::default()).unwrap_err().to_string());
    assert!(told.iter().all(|told| told.contains("expected 1, 2, 4 ranks, or algo.refl.batch_size = 3 or 6")), "{told:?}");
    assert!(!scratch.path().join("run").exists());
}
