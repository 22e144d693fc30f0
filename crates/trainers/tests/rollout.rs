//! What the knobs of a rollout do, on the tiny pipeline: groups, shared latents, batches.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use tempfile::TempDir;
use vp_core::config;
use vp_core::run_dir::RunDir;
use vp_trainers::assembly::{Assembled, Assembly, RewardDrivenRun, assemble};
use vp_trainers::config::TrainConfig;
use vp_trainers::policy::rollout::{Rollout, RolloutPlan};
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Run, Start};

fn assembled() -> RewardDrivenRun {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let overrides = ["model.size=[32, 32]", "scheduler.num_inference_steps=2", "reward={ brightness = {} }", "watch=[{ saturation = {} }]"]
        .map(String::from);
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
    let mut rollout = Rollout::sample(&mut run, &mut assembled.environment, plan, epoch).unwrap();
    rollout.score(&mut run, &assembled.environment, plan).unwrap();
    rollout
}

fn plan(images_per_prompt: usize, share_initial_latents: bool) -> RolloutPlan<'static> {
    RolloutPlan { num_images: 6, batch_size: 4, images_per_prompt, share_initial_latents, guidance_scale: 1.0, negative_prompt: None }
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
