//! A reward model must order images that it has not seen better than by chance, and is left alone at learning rate 0.

use std::path::Path;

use vp_core::noise::{Noise, Purpose};
use vp_data::{Aspect, Completion, Rating, Record, write_png, write_records};
use vp_models::blip::BlipReward;
use vp_shapes::{Description, Split, variant};
use vp_trainers::assembly::Assembly;

use crate::{Scratch, Trained, assembled, assert_above_chance, mean, shipped};

/// Images of the world of shapes, four per caption, rated by its judge.
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

fn train(name: &str, seed: u64, learning_rate: f64, objective: &str) -> Trained<BlipReward> {
    let data = Scratch::new(&format!("{name}-data"));
    records(&data.0, 200);
    let overrides = [
        format!("rankings.files=['{}']", data.0.display()),
        "rankings.validation_fraction=0.3".into(),
        "rankings.validation_every=0".into(),
        "model.path='checkpoints/shapes/vp-score'".into(),
        "model.initialize=true".into(),
        "algo.reward_model.aspects=true".into(),
        "run.num_train_steps=80".into(),
        "lr_scheduler.cosine.num_warmup_steps=10".into(),
        "checkpoint.every=0".into(),
        format!("run.seed={seed}"),
        format!("algo.reward_model.objective='{objective}'"),
        format!("optimizer.learning_rate={learning_rate}"),
    ];
    let Assembly::Blip(assembled) = assembled(&shipped("configs/reward_model/shapes.toml", &overrides)) else { unreachable!("a BLIP") };
    crate::train(name, *assembled)
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
    assert_above_chance(&format!("reward_model, {objective}: accuracy above 0.5"), |seed| {
        let trained = train(&format!("reward-model-{objective}-{seed}"), seed, 1e-3, objective);
        let (_, right) = trained.after.iter().find(|(name, _)| name == "validation_accuracy").expect("prompts are held out");
        mean(right) - 0.5
    });
}

#[test]
fn a_reward_model_with_learning_rate_0_changes_nothing() {
    train("reward-model-still", 0, 0.0, "pairs").assert_untouched();
}
