//! Learning tests: an algorithm must make better what it is for, by more than chance explains, and must leave the model alone when its
//! learning rate is 0. What is trained is what the program makes of a shipped config.

#[path = "../device/mod.rs"]
mod device;
mod likes;
mod pairs;
mod reward_driven;
mod reward_model;
mod supervised;

use device::device;
use std::path::{Path, PathBuf};

use burn::module::Module;
use vp_core::config;
use vp_core::run_dir::RunDir;
use vp_models::parameters::named_parameters;
use vp_trainers::assembly::{Assembled, Assembly, assemble};
use vp_trainers::config::TrainConfig;
use vp_trainers::optim::Workers;
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Run, Start};

/// Student's t of 4 degrees of freedom that chance exceeds once in a hundred times: five seeds.
const SEEDS: u64 = 5;
const ONE_IN_A_HUNDRED: f64 = 3.747;

/// Removes its folder when it goes out of scope.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("vp-learning-{name}-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a run came to.
struct Trained<M> {
    first: M,
    tuned: M,
    /// What the run is looked at by, of the first model and of the tuned one.
    before: Vec<(String, Vec<f64>)>,
    after: Vec<(String, Vec<f64>)>,
}

/// A shipped config with overrides, its paths from the repository's root.
fn shipped(path: &str, overrides: &[String]) -> TrainConfig {
    config::read(&root().join(path), overrides).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn assembled(config: &TrainConfig) -> Assembly {
    let embedded = |path: &Path| match path.to_str() {
        Some("embedded:shapes") => root().join("checkpoints/shapes"),
        _ => root().join(path),
    };
    assemble(config, &|path| Ok(embedded(path)), &device()).unwrap()
}

/// Trains what was assembled to the end.
fn train<A: Assembled>(name: &str, mut assembled: A) -> Trained<A::Model> {
    let scratch = Scratch::new(name);
    let journal = |_| Ok(Journal::new(RunDir::create(&scratch.0, "")?, Silent));
    let settings = assembled.outline().settings.clone();
    let mut run = Run::new(assembled.model(), settings, Start::default(), journal).unwrap();
    assembled.train(&mut run).unwrap();
    let (first, tuned) = (assembled.model(), assembled.tuned(&run));
    Trained { before: assembled.measure(&first).unwrap(), after: assembled.measure(&tuned).unwrap(), first, tuned }
}

impl<M: Module> Trained<M> {
    /// The mean of the first thing it is looked at by, before and after.
    fn first_measure(&self) -> [f64; 2] {
        [&self.before, &self.after].map(|measures| mean(&measures[0].1))
    }

    /// That the model was left alone: every parameter is the same, and so is all that is said of it.
    fn assert_untouched(&self) {
        assert_eq!(self.before, self.after);
        assert_same(&self.first, &self.tuned);
    }
}

fn assert_same<M: Module>(first: &M, tuned: &M) {
    let (first, tuned) = (named_parameters(first), named_parameters(tuned));
    assert_eq!(first.len(), tuned.len());
    for (first, tuned) in first.into_iter().zip(tuned) {
        assert_eq!(first.name, tuned.name);
        first.values.into_data().assert_eq(&tuned.values.into_data(), true);
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// That a quantity is above nothing, by one value per seed: chance alone would pass this once in a hundred times. Seeds are trained side by side,
/// each on a core, because the operations of small networks are over before a second core has started on them.
fn assert_above_chance(what: &str, of_seed: impl Fn(u64) -> f64 + Sync) {
    let workers = Workers::one_per_core(&device(), SEEDS as usize).unwrap();
    let share = |first: u64| (first..SEEDS).step_by(workers.count()).map(|seed| (seed, of_seed(seed))).collect::<Vec<_>>();
    let mut values: Vec<(u64, f64)> = workers.map((0..workers.count() as u64).collect(), share).into_iter().flatten().collect();
    values.sort_by_key(|(seed, _)| *seed);
    let values: Vec<f64> = values.into_iter().map(|(_, value)| value).collect();
    let (n, mean) = (values.len() as f64, mean(&values));
    let error = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
    let line = format!("{what}: {mean:.4} ± {error:.4} ({SEEDS} seeds: {values:.4?})");
    println!("{line}");
    assert!(mean > 0.0 && mean >= ONE_IN_A_HUNDRED * error, "{line}");
}
