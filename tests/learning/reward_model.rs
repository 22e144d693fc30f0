//! A reward model must order images that it has not seen better than by chance, and is left alone at learning rate 0.

use std::path::Path;

use burn::tensor::Device;
use vp_core::config;
use vp_core::noise::{Noise, Purpose};
use vp_data::{Aspect, Completion, Rating, Record, write_png, write_records};
use vp_models::blip::BlipReward;
use vp_shapes::{Description, Split, variant};
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::data::rankings::Rankings;
use vp_trainers::reward_model::networks::BlipNetwork;

use crate::supervised::{assert_same, begin};
use crate::{Scratch, mean};

/// Images of the world of shapes, four a caption, rated by its judge.
fn records(folder: &Path, captions: u64) {
    std::fs::create_dir_all(folder).unwrap();
    let mut records = Vec::new();
    for index in 0..captions {
        let mut rng = Noise::new(5).stream(Purpose::SPOILING, 0, index);
        let description = Split::Train.draw(&mut rng);
        let completion = |number: usize| {
            let image = variant::variant(&description, 32, &mut rng).image;
            let image_path = format!("{index}_{number}.png");
            write_png::<&str, &str>(folder.join(&image_path), &image, &[]).unwrap();
            let verdict = vp_shapes::judge(&image, &Description::parse(&description.to_string()).unwrap());
            let scores = [verdict.prompt_following, verdict.aesthetic, verdict.fidelity, verdict.harmlessness].map(|said| said.score);
            let rating = |score: f32| Rating { rating: f64::from(score).round(), rationale: String::new() };
            let annotations = Aspect::ALL.into_iter().zip(scores.map(rating)).collect();
            Completion { image_path, annotations, ..Completion::default() }
        };
        let completions = (0..4).map(completion).collect();
        records.push(Record::new(index.to_string(), description.to_string(), completions));
    }
    write_records(folder.join("records.jsonl"), &records).unwrap();
}

/// The first model, the best one, and the shares of held-out pairs that they order rightly.
fn train(name: &str, seed: u64, learning_rate: f64, objective: &str) -> (BlipReward, BlipReward, [f64; 2]) {
    let data = Scratch(std::env::temp_dir().join(format!("vp-learning-{name}-data-{}", std::process::id())));
    records(&data.0, 200);
    let overrides = [
        format!("rankings.files=['{}']", data.0.display()),
        "rankings.validation_fraction=0.3".into(),
        "rankings.validation_every=0".into(),
        "run.num_train_steps=80".into(),
        "lr_scheduler.cosine.num_warmup_steps=10".into(),
        "checkpoint.every=0".into(),
        format!("run.seed={seed}"),
        format!("algo.reward_model.objective='{objective}'"),
        format!("optimizer.learning_rate={learning_rate}"),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config: TrainConfig = config::read(&root.join("configs/reward_model/shapes.toml"), &overrides).unwrap();
    let section = config.rankings.clone().unwrap();
    let (noise, device) = (Noise::new(seed), Device::flex());
    let mut data = Rankings::open(&section, noise).unwrap();
    let from = (true, Some(section.weights.as_array()));
    let (network, base) = BlipNetwork::open(&root.join("checkpoints/shapes/vp-score"), from, &noise, &device).unwrap();
    let (mut run, _scratch) = begin(name, base.clone(), &config);
    let AlgorithmConfig::RewardModel(reward_model) = &config.algo else { panic!("{config:?}") };
    reward_model.train(&mut run, &network, &mut data).unwrap();
    let best = reward_model.best(&run);
    let accuracy = |model: &BlipReward| mean(&reward_model.validate(&network, model, &data).unwrap().right[0]);
    let accuracies = [accuracy(&base), accuracy(&best)];
    (base, best, accuracies)
}

#[test]
fn a_reward_model_orders_held_out_images_better_than_chance() {
    better_than_chance("pairs");
}

#[test]
fn a_reward_model_that_learns_ratings_orders_held_out_images_better_than_chance() {
    better_than_chance("ratings");
}

fn better_than_chance(objective: &str) {
    let accuracies = [0, 1, 2].map(|seed| train(&format!("reward-model-{objective}-{seed}"), seed, 1e-3, objective).2[1]);
    let mean = mean(&accuracies);
    let standard_error = (accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum::<f64>() / 6.0).sqrt();
    assert!(mean - 3.0 * standard_error > 0.5, "{accuracies:?}");
}

#[test]
fn a_reward_model_with_learning_rate_0_changes_nothing() {
    let (base, best, [before, after]) = train("reward-model-still", 0, 0.0, "pairs");
    assert_eq!(before, after);
    assert_same(&base, &best);
}
