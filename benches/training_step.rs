//! What a training step costs: LoRA factors against the dense sum, DDPO's memory over timesteps, and ReFL's with and without
//! recomputation.
//!
//!     cargo bench --bench training_step
//!
//! Bytes are those asked of the allocator above what was held before; times are medians of interleaved rounds.

#[path = "../tests/counting_allocator/mod.rs"]
mod counting_allocator;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use regex::Regex;
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_models::GradientCheckpointing;
use vp_models::lora::{FACTORS, Lora};
use vp_models::parameters::{named_gradients, select_trainable};
use vp_models::pipeline::{Guidance, ModelFolder, Pipeline, Request, Trainable};
use vp_models::unet::UNet2DConditionModel;
use vp_rewards::{Reward, VpScore, VpScoreConfig};
use vp_schedulers::{Scheduler, build_scheduler, by_name};
use vp_trainers::direct::TapedChain;
use vp_trainers::direct::refl::predict_clean_latents;
use vp_trainers::losses::{ppo_clip_loss, reward_loss};
use vp_trainers::optim::GradientAccumulator;
use vp_trainers::policy::rollout::{Trajectory, draw_trajectory};
use vp_trainers::policy::{Minibatch, transition};

use crate::counting_allocator::{HELD, PEAK};

/// The most that was held at once while `work` ran, above what was held before.
fn peak(work: impl FnOnce()) -> usize {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    PEAK.load(Relaxed) - before
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `x Wᵀ` with rank-4 factors, forward and backward: through the factors, and through the dense sum `W + B A`.
fn factors_against_the_dense_sum(tokens: usize, width: usize) {
    let (plain, tape) = (Device::flex(), Device::flex().autodiff());
    let random = |shape: [usize; 2], device: &Device| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), device);
    let (x, weight) = (random([tokens, width], &tape).require_grad(), random([width, width], &plain));
    let (down, up) = (random([4, width], &tape).require_grad(), random([width, 4], &tape).require_grad());
    let factored = || {
        let y = x.clone().matmul(weight.clone().transpose()) + x.clone().matmul(down.clone().transpose()).matmul(up.clone().transpose());
        drop(y.sum().backward());
    };
    let dense = || {
        let sum = weight.clone() + up.clone().matmul(down.clone());
        drop(x.clone().matmul(sum.transpose()).sum().backward());
    };
    let (mut times, bytes) = ([Vec::new(), Vec::new()], [peak(factored), peak(dense)]);
    for _ in 0..15 {
        for (form, work) in [&factored as &dyn Fn(), &dense].into_iter().enumerate() {
            let began = Instant::now();
            work();
            times[form].push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [[factored, dense], [a, b]] = [times.map(median), bytes.map(|bytes| bytes as f64 / 1e6)];
    println!("{tokens} tokens of width {width}: factors {factored:.2} ms, {a:.1} MB; dense sum {dense:.2} ms, {b:.1} MB");
}

struct Policy {
    model: Trainable<UNet2DConditionModel>,
    scheduler: Box<dyn Scheduler>,
    guidance: Guidance,
    trajectory: Trajectory,
}

/// The tiny pipeline with a LoRA, and the trajectories of `rows` images over `steps`.
fn policy(rows: usize, steps: usize) -> Policy {
    let (device, noise) = (Device::flex(), Noise::new(0));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sd15_tiny/pipeline");
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&folder).unwrap(), &device).unwrap();
    let lora = Lora { rank: 4, alpha: 4.0, targets: Regex::new(r"\.attn[12]\.").unwrap() };
    let (base, model) = pipeline.adapted(unet, &lora, &noise).unwrap();
    let (model, _) = select_trainable(model.train(), &Regex::new(FACTORS).unwrap());
    let mut scheduler = build_scheduler(&pipeline.folder.scheduler_config, Some(by_name("ddim").unwrap()), steps, 1.0).unwrap();
    let prompts = vec!["a lighthouse at dusk".to_string(); rows];
    let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale: 5.0, size: pipeline.folder.default_size() };
    let guidance = pipeline.encode(&pipeline.text, &request);
    let (samples, shape): (Vec<u64>, _) = ((0..rows as u64).collect(), pipeline.latent_shape(request.size));
    let unit = noise.normal(Purpose::INITIAL_LATENTS, 1, &samples, shape, &device);
    let mut step_noise = |step| noise.normal(Purpose::SAMPLER_STEP, chain_step(1, step), &samples, shape, &device);
    let trajectory = draw_trajectory(&base.denoiser, &mut *scheduler, &guidance, unit, &mut step_noise);
    Policy { model, scheduler, guidance, trajectory }
}

impl Policy {
    fn loss(&self, step: usize) -> Tensor<1> {
        let (sample, prev_sample) = (self.trajectory.latents[step].clone(), self.trajectory.latents[step + 1].clone());
        let steps = vec![step; sample.dims()[0]];
        let batch = Minibatch { prompts: Vec::new(), sample, prev_sample, log_probs: self.trajectory.log_probs[step].clone(), steps };
        let log_probs = transition(&self.model.denoiser, &*self.scheduler, &self.guidance, &batch).log_prob(batch.prev_sample.clone());
        let advantages = batch.log_probs.ones_like();
        ppo_clip_loss(log_probs, batch.log_probs, advantages, 1e-4).loss.mean()
    }
}

/// DDPO's gradient over all timesteps of a minibatch: one backward pass a timestep, against one tape for all.
fn memory_over_timesteps(rows: usize, steps: usize) {
    let policy = policy(rows, steps);
    let accumulate = |steps: usize| {
        let mut gradients = GradientAccumulator::default();
        for step in 0..steps {
            gradients.add(named_gradients(&policy.model, &mut policy.loss(step).backward()), 1.0 / steps as f64);
        }
        drop(gradients.take());
    };
    accumulate(1);
    let one = peak(|| accumulate(1)) as f64 / 1e6;
    let all = peak(|| accumulate(steps)) as f64 / 1e6;
    let tape = peak(|| {
        let total = (0..steps).map(|step| policy.loss(step)).reduce(|a, b| a + b).expect("a step");
        drop(named_gradients(&policy.model, &mut total.backward()));
    }) as f64
        / 1e6;
    println!(
        "DDPO, {rows} images with guidance: one timestep {one:.1} MB, {steps} timesteps one after the other {all:.1} MB, on one tape {tape:.1} MB"
    );
}

/// ReFL's tracked step, decoding, reward and backward pass, with everything kept and with blocks recomputed.
fn recomputation(side: usize) {
    let (device, noise) = (Device::flex(), Noise::new(0));
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let prompts = ["a lighthouse at dusk".to_string()];
    let step = |kept: GradientCheckpointing| {
        let (mut pipeline, mut unet) = Pipeline::load(ModelFolder::open(&golden.join("sd15_tiny/pipeline")).unwrap(), &device).unwrap();
        let mut reward = VpScore::load(&VpScoreConfig::new(golden.join("blip_reward_tiny/model")), &device).unwrap();
        reward.set_gradient_checkpointing(kept);
        (pipeline.vae.gradient_checkpointing, unet.gradient_checkpointing) = (kept, kept);
        let lora = Lora { rank: 4, alpha: 4.0, targets: Regex::new(r"\.attn[12]\.").unwrap() };
        let (_, model) = pipeline.adapted(unet, &lora, &noise).unwrap();
        let (model, _) = select_trainable(model.train(), &Regex::new(FACTORS).unwrap());
        let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale: 1.0, size: [side; 2] };
        let guidance = pipeline.encode(&pipeline.text, &request);
        let unit = noise.normal(Purpose::INITIAL_LATENTS, 1, &[0], pipeline.latent_shape(request.size), &device);
        let mut scheduler = build_scheduler(&pipeline.folder.scheduler_config, Some(by_name("ddim").unwrap()), 4, 0.0).unwrap();
        move || {
            let step_noise = |_: usize| -> Tensor<4> { unreachable!("DDIM without eta draws nothing") };
            let mut chain = TapedChain::new(&model.denoiser, &mut *scheduler, &guidance, &step_noise);
            let latents = predict_clean_latents(&mut chain, unit.clone(), 0);
            let images = pipeline.vae.decode_to_images(latents);
            let rewards = reward.score(images, &["a lighthouse at dusk".to_string()]).unwrap();
            drop(named_gradients(&model, &mut reward_loss(rewards, 1.0).backward()));
        }
    };
    let (mut everything, mut blocks) = (step(GradientCheckpointing::None), step(GradientCheckpointing::Blocks));
    everything();
    blocks();
    let bytes = [peak(&mut everything), peak(&mut blocks)].map(|bytes| bytes as f64 / 1e6);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..7 {
        for (form, work) in [&mut everything as &mut dyn FnMut(), &mut blocks].into_iter().enumerate() {
            let began = Instant::now();
            work();
            times[form].push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let ([a, b], [ta, tb]) = (bytes, times.map(median));
    println!("ReFL step of {side}x{side} pixels with none / blocks: {a:.1} / {b:.1} MB, {ta:.0} / {tb:.0} ms");
}

fn main() {
    factors_against_the_dense_sum(4096, 320);
    factors_against_the_dense_sum(256, 1280);
    factors_against_the_dense_sum(77, 768);
    memory_over_timesteps(4, 10);
    memory_over_timesteps(4, 50);
    recomputation(64);
    recomputation(256);
}
