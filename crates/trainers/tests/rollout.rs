//! What the knobs of a rollout do, on the tiny pipeline: groups, shared latents, batches.

use std::path::Path;

use burn::tensor::{DType, Device, FloatDType, Tensor};
use tempfile::TempDir;
use vp_core::config;
use vp_core::noise::Noise;
use vp_core::run_dir::RunDir;
use vp_trainers::assembly::{Assembled, Assembly, RewardDrivenRun, assemble};
use vp_trainers::config::TrainConfig;
use vp_trainers::optim::{NamedTensors, Workers};
use vp_trainers::policy::rollout::{NoiseWindow, Rollout, RolloutPlan};
use vp_trainers::policy::walk::Position;
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Run, Start};

fn assembled() -> RewardDrivenRun {
    assembled_for(2)
}

/// A run that samples in `steps` steps.
fn assembled_for(steps: usize) -> RewardDrivenRun {
    assembled_with(steps, "f32")
}

/// A run that samples in `steps` steps, with frozen weights and activations in `format`.
fn assembled_with(steps: usize, format: &str) -> RewardDrivenRun {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let steps = format!("scheduler.num_inference_steps={steps}");
    let format = format!("model.dtype={format}");
    let overrides = ["model.size=[32, 32]", &steps, &format, "reward={ brightness = {} }", "watch=[{ saturation = {} }]"].map(String::from);
    let config: TrainConfig = config::read(&root.join("configs/ddpo/tiny.toml"), &overrides).unwrap();
    match assemble(&config, &|path| Ok(root.join(path)), &Device::flex()).unwrap() {
        Assembly::Reward(assembled) => *assembled,
        _ => unreachable!("DDPO is driven by a reward"),
    }
}

fn rollout(assembled: &mut RewardDrivenRun, plan: &RolloutPlan<'_>, epoch: u64) -> Rollout {
    let folder = TempDir::new().unwrap();
    let journal = |_| Ok(Journal::new(RunDir::create(&folder.path().join("run"), "")?, Silent));
    let mut run = Run::new(assembled.model(), assembled.outline.settings.clone(), Start::default(), journal).unwrap();
    let mut rollout = Rollout::sample(&mut run, &mut assembled.environment, plan, &Workers::new(2).unwrap(), epoch).unwrap();
    rollout.score(&mut run, &assembled.environment, plan).unwrap();
    rollout
}

fn plan(images_per_prompt: usize, share_initial_latents: bool) -> RolloutPlan<'static> {
    RolloutPlan {
        num_images: 6,
        batch_size: 4,
        images_per_prompt,
        share_initial_latents,
        noise_window: None,
        guidance_scale: 1.0,
        negative_prompt: None,
    }
}

/// The latents of each image, as numbers.
fn rows(latents: &Tensor<4>) -> Vec<Vec<f32>> {
    (0..latents.dims()[0]).map(|row| latents.clone().narrow(0, row, 1).into_data().iter::<f32>().collect()).collect()
}

#[test]
fn the_images_of_a_prompt_stand_together_and_share_their_first_latents_where_that_is_asked_for() {
    let mut assembled = assembled();
    for (share, epoch) in [(true, 0), (false, 1)] {
        let rollout = rollout(&mut assembled, &plan(3, share), epoch);
        let [a, b] = [rollout.prompts[0], rollout.prompts[3]];
        assert_eq!(rollout.prompts, [a, a, a, b, b, b]);
        assert_ne!(a, b);
        let (first, last) = (rows(&rollout.latents[0]), rows(rollout.latents.last().unwrap()));
        for i in 0..6 {
            for j in 0..i {
                assert_eq!(first[i] == first[j], share && i / 3 == j / 3, "images {i} and {j}, shared {share}");
                // The noise of the steps is each image's own.
                assert_ne!(last[i], last[j], "images {i} and {j}");
            }
        }
        assert_eq!((rollout.rewards.len(), rollout.log_probs.len(), rollout.latents.len()), (6, 2, 3));
    }
}

/// Images of a prompt are alike up to the window's first step, differ by what is drawn in the window, and train on its steps alone.
#[test]
fn a_window_has_the_only_noise_that_images_of_a_prompt_do_not_share() {
    let mut assembled = assembled_for(6);
    let window = NoiseWindow { size: 2, min_step: 1, max_step: 4 };
    let plan = RolloutPlan { noise_window: Some(window), ..plan(3, true) };
    // The window of each prompt in three epochs.
    let mut starts = Vec::new();
    for epoch in 0..3 {
        let rollout = rollout(&mut assembled, &plan, epoch);
        let visited: Vec<_> = rollout.latents.iter().map(rows).collect();
        let at = Position {
            epoch,
            within: 0,
            begins_minibatch: true,
            ends_epoch: false,
            items: (0..6).collect(),
            steps: vec![0, 1, 0, 1, 0, 1],
        };
        let steps = plan.in_windows(at, Noise::new(0)).steps;
        for prompt in 0..2 {
            let (one, other) = (3 * prompt, 3 * prompt + 1);
            let start = (0..6).find(|step| visited[step + 1][one] != visited[step + 1][other]).unwrap();
            assert!((1..=3).contains(&start));
            assert_eq!(steps[one..one + 3], if prompt == 0 { [start, start + 1, start] } else { [start + 1, start, start + 1] });
            starts.push(start);
            // Outside of the window, the density of a step is that of the same noise for all three, whatever the latents.
            for step in (0..6).filter(|step| !(start..start + 2).contains(step)) {
                let log_probs: Vec<f32> = rollout.log_probs[step].to_data().iter::<f32>().collect();
                assert!((log_probs[one] - log_probs[other]).abs() < 1e-4, "step {step}: {log_probs:?}");
            }
            let log_probs: Vec<f32> = rollout.log_probs[start].to_data().iter::<f32>().collect();
            assert!((log_probs[one] - log_probs[other]).abs() > 1e-4, "{log_probs:?}");
        }
    }
    assert!(starts.iter().any(|start| *start != starts[0]), "{starts:?}");
}

/// What is compared to five digits and more is kept in f32, and with all its digits, whatever the network computes in: half of them would make
/// ratios and divergences of rounding alone.
#[test]
fn latents_and_log_probabilities_are_f32_whatever_the_network_computes_in() {
    for (format, half) in [("bf16", FloatDType::BF16), ("f16", FloatDType::F16)] {
        let mut assembled = assembled_with(2, format);
        let rollout = rollout(&mut assembled, &plan(1, false), 0);
        let scheduler = assembled.environment.scheduler().unwrap();
        let at = Position { epoch: 0, within: 0, begins_minibatch: true, ends_epoch: false, items: vec![0, 4], steps: vec![0, 1] };
        let minibatch = rollout.minibatch(&assembled.environment, &at);
        let policy = minibatch.transition(&assembled.model, &assembled.environment, &plan(1, false), &*scheduler);
        let (means, log_probs) = (policy.prev_sample_mean.clone(), policy.log_prob(minibatch.prev_sample.clone()));
        for latents in rollout.latents.iter().chain([&minibatch.sample, &minibatch.prev_sample, &means]) {
            assert_eq!(latents.dtype(), DType::F32, "{format}");
            let off = (latents.clone() - latents.clone().cast(half).cast(FloatDType::F32)).abs().max().into_scalar::<f32>();
            assert!(off > 0.0, "latents in {format} hold no more digits than {format} has");
        }
        for log_probs in rollout.log_probs.iter().chain([&minibatch.log_probs, &log_probs]) {
            assert_eq!(log_probs.dtype(), DType::F32, "{format}");
            let off = (log_probs.clone() - log_probs.clone().cast(half).cast(FloatDType::F32)).abs().max().into_scalar::<f32>();
            assert!(off > 0.0, "log-probabilities in {format} hold no more digits than {format} has");
        }
        let mut memory = NamedTensors::new();
        rollout.save(&mut memory, &Device::flex());
        assert!(memory.values().all(|tensor| tensor.dtype() == DType::F32), "{format}");
    }
}

#[test]
fn one_image_per_prompt_takes_a_prompt_for_each() {
    let mut assembled = assembled();
    let rollout = rollout(&mut assembled, &plan(1, false), 0);
    let mut distinct = rollout.prompts.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 2, "{:?}", rollout.prompts);
}

#[test]
fn what_an_image_becomes_does_not_depend_on_its_batch() {
    let mut assembled = assembled();
    let together = rollout(&mut assembled, &RolloutPlan { batch_size: 6, ..plan(2, true) }, 0);
    let apart = rollout(&mut assembled, &RolloutPlan { batch_size: 2, ..plan(2, true) }, 0);
    assert_eq!(together.prompts, apart.prompts);
    for (together, apart) in together.latents.iter().zip(&apart.latents) {
        let largest = (together.clone() - apart.clone()).abs().max().into_scalar::<f32>();
        assert!(largest < 1e-5, "{largest}");
    }
}
