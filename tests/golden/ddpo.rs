//! DDPO on the 1.x pipeline with a LoRA: rollout, densities, ratios, clipped losses, gradients; and the laws of its estimator.

use crate::device::device;
use burn::module::Module;
use burn::tensor::Tensor;
use regex::Regex;
use vp_core::noise::Noise;
use vp_models::lora::{FACTORS, LoraWeights};
use vp_models::parameters::{map_parameters, named_gradients, select_trainable};
use vp_models::pipeline::{Guidance, Pipeline, Request, Trainable};
use vp_models::unet::UNet2DConditionModel;
use vp_schedulers::{Scheduler, build_scheduler, by_name};
use vp_trainers::losses::{Drift, ppo_clip_loss, transition_kl};
use vp_trainers::optim::{GradientAccumulator, NamedTensors};
use vp_trainers::policy::ddpo::{KlMask, Objective};
use vp_trainers::policy::rollout::{Trajectory, draw_trajectory};
use vp_trainers::policy::{Minibatch, require_density, transition};

use crate::lora::{CASE, attached, pipeline};
use crate::support::{Tensors, assert_close_values, case_dir, case_json, load_tensors, strings};

const FORWARD: f64 = 1e-4;
const LONG: f64 = 1e-3;
const GRADIENT: f64 = 1e-3;

type Model = Trainable<UNet2DConditionModel>;

/// The case, its scheduler and prompts, the policy that drew, and the one that trains.
struct Case {
    tensors: Tensors,
    scheduler: Box<dyn Scheduler>,
    guidance: Guidance,
    old: Model,
    new: Model,
    clip_range: f64,
}

fn case() -> Case {
    let (settings, tensors) = (case_json(CASE), load_tensors(CASE));
    let number = |name: &str| settings["ddpo"][name].as_f64().unwrap_or_else(|| panic!("ddpo.{name} is no number"));
    let (pipeline, unet, names) = pipeline();
    let lora = LoraWeights::read(&case_dir(CASE).join("pytorch_lora_weights.safetensors"), &names).unwrap();
    let config = &pipeline.folder.scheduler_config;
    let scheduler = build_scheduler(config, Some(by_name("ddim").unwrap()), number("num_inference_steps") as usize, number("eta")).unwrap();
    let prompts = strings(&settings["prompts"]);
    let guidance = guidance(&pipeline, &tensors, &prompts, number("guidance_scale"));
    let old = attached(&pipeline, unet.clone(), &lora, 1.0);
    let (new, _) = select_trainable(attached(&pipeline, unet, &lora, 1.1).train(), &Regex::new(FACTORS).unwrap());
    Case { tensors, scheduler, guidance, old, new, clip_range: number("clip_range") }
}

fn guidance(pipeline: &Pipeline, tensors: &Tensors, prompts: &[String], guidance_scale: f64) -> Guidance {
    let latents = tensors.shape("ddpo.latents");
    let factor = pipeline.vae.config().downscale();
    let size = [latents[2] * factor, latents[3] * factor];
    let guidance = pipeline.encode(&pipeline.text, &Request { prompts, negative_prompt: None, guidance_scale, size });
    tensors.assert_close("prompt_embeds", guidance.conditional.encoder_hidden_states.clone(), FORWARD);
    let negative = guidance.unconditional.as_ref().expect("guided");
    tensors.assert_close("negative_prompt_embeds", negative.encoder_hidden_states.clone(), FORWARD);
    guidance
}

impl Case {
    fn draw(&mut self) -> Trajectory {
        let noise = self.tensors.get::<5>("ddpo.noise");
        let mut step_noise = |step| noise.clone().narrow(0, step, 1).squeeze_dim::<4>(0);
        let latents = self.tensors.get("ddpo.latents");
        require_density(&*self.scheduler).unwrap();
        draw_trajectory(&self.old.denoiser, &mut *self.scheduler, &self.guidance, latents, &mut step_noise)
    }

    /// All rows at one step.
    fn minibatch(trajectory: &Trajectory, step: usize) -> Minibatch {
        let (sample, prev_sample) = (trajectory.latents[step].clone(), trajectory.latents[step + 1].clone());
        let steps = vec![step; sample.dims()[0]];
        Minibatch { prompts: Vec::new(), sample, prev_sample, log_probs: trajectory.log_probs[step].clone(), steps }
    }

    fn advantages(&self) -> Tensor<1> {
        self.tensors.get("ddpo.advantages")
    }

    fn gradient(&self, model: &Model, trajectory: &Trajectory, step: usize, objective: Objective) -> NamedTensors {
        let batch = Self::minibatch(trajectory, step);
        let of = |model: &Model| transition(&model.denoiser, &*self.scheduler, &self.guidance, &batch);
        let policy = of(model);
        let log_probs = policy.log_prob(batch.prev_sample.clone());
        let drift = || Drift::between(&policy, &of(&self.old), batch.output_slope(&*self.scheduler));
        let policy_loss = objective.loss(log_probs, batch.log_probs.clone(), self.advantages(), self.clip_range, drift);
        named_gradients(model, &mut policy_loss.loss.mean().backward()).into_iter().collect()
    }
}

fn host<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// `[steps, ..]` from one tensor a step.
fn stacked<const D: usize, const E: usize>(parts: &[Tensor<D>]) -> Tensor<E> {
    Tensor::stack(parts.iter().map(|part| part.clone().without_autodiff()).collect(), 0)
}

#[test]
fn golden_ddpo() {
    let mut case = case();
    assert_close_values("ddpo.timesteps", case.scheduler.timesteps(), case.tensors.values("ddpo.timesteps"), 0.0);
    let trajectory = case.draw();
    let Case { tensors, scheduler, guidance, old, new, clip_range } = &case;
    tensors.assert_close("ddpo.trajectory", stacked::<4, 5>(&trajectory.latents), LONG);
    tensors.assert_close("ddpo.log_probs", stacked::<1, 2>(&trajectory.log_probs), FORWARD);

    let steps = trajectory.log_probs.len();
    assert_eq!(steps, scheduler.timesteps().len());
    let (mut means, mut stds, mut ratios, mut losses) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut gradients = GradientAccumulator::default();
    for step in 0..steps {
        let batch = Case::minibatch(&trajectory, step);
        let drew = transition(&old.denoiser, &**scheduler, guidance, &batch);
        means.push(drew.prev_sample_mean.clone());
        stds.push(host(&drew.std_dev_t)[0]);
        let log_probs = transition(&new.denoiser, &**scheduler, guidance, &batch).log_prob(batch.prev_sample.clone());
        let policy_loss = ppo_clip_loss(log_probs, batch.log_probs, case.advantages(), *clip_range);
        ratios.extend(host(&policy_loss.ratio));
        let loss = policy_loss.loss.mean();
        losses.push(loss.clone());
        gradients.add(named_gradients(new, &mut loss.backward()), 1.0 / steps as f64);
    }
    tensors.assert_close("ddpo.prev_sample_mean", stacked::<4, 5>(&means), LONG);
    assert_close_values("ddpo.std_dev_t", &stds, tensors.values("ddpo.std_dev_t"), FORWARD);
    for (got, expected) in ratios.iter().zip(tensors.values("ddpo.ratio")) {
        assert!((got - expected).abs() < 1e-5, "ddpo.ratio: got {got}, expected {expected}");
    }
    tensors.assert_close("ddpo.loss_per_step", stacked::<1, 2>(&losses).flatten::<1>(0, 1), FORWARD);
    assert_close_values("ddpo.grad_norm", &[gradients.norm().unwrap()], tensors.values("ddpo.grad_norm"), GRADIENT);
    let listed = tensors.names_under("ddpo.grad.");
    assert!(!listed.is_empty(), "the case lists no gradients");
    for name in listed {
        let ours = name.replace("lora_A", "lora.down").replace("lora_B", "lora.up");
        let got = gradients.gradients().get(&format!("unet.{ours}")).unwrap_or_else(|| panic!("no gradient for {ours}"));
        assert_close_values(name, &host(got), tensors.values(&format!("ddpo.grad.{name}")), GRADIENT);
    }
}

/// At ratio 1 every objective pulls as the score function does: ∇ρ = ∇ log π. That of the corrected ratio has it times σ / C.
#[test]
fn on_policy_all_estimators_agree() {
    let mut case = case();
    let trajectory = case.draw();
    let (old, _) = select_trainable(case.old.clone().train(), &Regex::new(FACTORS).unwrap());
    for step in [0, 5] {
        let score = case.gradient(&old, &trajectory, step, Objective::ScoreFunction);
        assert!(score.len() > 100);
        let slope = host(&Case::minibatch(&trajectory, step).output_slope(&*case.scheduler))[0];
        // What is nothing but rounding, such as the gradient of a key that stands alone, is held against the gradients that count.
        let largest = score.values().flat_map(host).fold(0.0, |most: f64, slope| most.max(slope.abs()));
        let by_c = case.scheduler.std_dev_t(step) / slope;
        assert!((by_c - 1.0).abs() > 0.01, "step {step}: a factor of {by_c} would prove nothing");
        for (objective, factor) in [
            (Objective::ImportanceSampling, 1.0),
            (Objective::KlMask(KlMask::default()), 1.0),
            (Objective::CorrectedRatio, by_c),
            (Objective::Hinge, 1.0),
        ] {
            let gradients = case.gradient(&old, &trajectory, step, objective);
            assert_eq!(gradients.len(), score.len());
            for (name, gradient) in &gradients {
                let expected: Vec<f64> = host(&score[name]).into_iter().map(|slope| slope * factor).collect();
                if expected.iter().all(|slope| slope.abs() < 1e-6 * largest) {
                    assert!(host(gradient).iter().all(|slope| slope.abs() < 1e-6 * largest * factor.max(1.0)), "{objective:?}, {name}");
                    continue;
                }
                assert_close_values(&format!("{objective:?}, {name}"), &host(gradient), &expected, GRADIENT);
            }
        }
    }
}

/// A step that has come far from the policy that drew it goes no farther, and the others come back, whatever their ratio.
#[test]
fn the_mask_leaves_out_what_would_go_farther() {
    let mut case = case();
    let trajectory = case.draw();
    let step = 3;
    let batch = Case::minibatch(&trajectory, step);
    let of = |model: &Model| transition(&model.denoiser, &*case.scheduler, &case.guidance, &batch);
    let (old, new) = (of(&case.old), of(&case.new.valid()));
    let far = host(&transition_kl(&new, &old)).into_iter().fold(f64::INFINITY, f64::min);
    let log_ratios: Vec<f64> = host(&(new.log_prob(batch.prev_sample.clone()) - batch.log_probs.clone()));
    assert!(far > 0.0 && log_ratios.iter().all(|log_ratio| *log_ratio != 0.0), "{far} {log_ratios:?}");
    let with = |sign: f64, threshold: f64| {
        // Advantages along the ratios go farther with every image, and against them they come back.
        let advantages: Vec<f32> = log_ratios.iter().map(|log_ratio| (log_ratio.signum() * sign) as f32).collect();
        let policy = of(&case.new);
        let objective = Objective::KlMask(KlMask { threshold });
        let drift = || Drift::between(&policy, &old, batch.output_slope(&*case.scheduler));
        let log_probs = policy.log_prob(batch.prev_sample.clone());
        let advantages = Tensor::from_data(advantages.as_slice(), &device());
        let loss = objective.loss(log_probs, batch.log_probs.clone(), advantages, case.clip_range, drift);
        let gradients = named_gradients(&case.new, &mut loss.loss.mean().backward());
        (host(&loss.clipped), gradients.iter().flat_map(|(_, gradient)| host(gradient)).fold(0.0, |most: f64, slope| most.max(slope.abs())))
    };
    let (left_out, steepest) = with(1.0, 0.5 * far);
    assert!(left_out.iter().all(|left_out| *left_out == 1.0) && steepest == 0.0, "{left_out:?} {steepest}");
    for (sign, threshold) in [(-1.0, 0.5 * far), (1.0, f64::from(f32::MAX))] {
        let (left_out, steepest) = with(sign, threshold);
        assert!(left_out.iter().all(|left_out| *left_out == 0.0) && steepest > 0.0, "{sign} {threshold}: {left_out:?} {steepest}");
    }
}

/// The gradient of log π against finite differences, on one value of each kind of factor.
#[test]
fn the_gradient_is_the_slope_of_the_log_probability() {
    let mut case = case();
    let trajectory = case.draw();
    let (old, _) = select_trainable(case.old.clone().train(), &Regex::new(FACTORS).unwrap());
    let step = 3;
    let gradient = case.gradient(&old, &trajectory, step, Objective::ScoreFunction);
    let loss = |model: &Model| {
        let batch = Case::minibatch(&trajectory, step);
        let log_probs = host(&transition(&model.denoiser, &*case.scheduler, &case.guidance, &batch).log_prob(batch.prev_sample.clone()));
        let pairs = log_probs.iter().zip(host(&case.advantages()));
        -pairs.map(|(log_prob, advantage)| log_prob * advantage).sum::<f64>() / log_probs.len() as f64
    };
    for factor in ["lora.up.weight", "lora.down.weight"] {
        // The steepest of all: others change the loss by less than float32 shows.
        let of_kind = gradient.iter().filter(|(name, _)| name.ends_with(factor)).map(|(name, slopes)| (name, host(slopes)));
        let largest = |slopes: &[f64]| slopes.iter().fold(0.0, |max: f64, slope| max.max(slope.abs()));
        let (name, slopes) = of_kind.max_by(|(_, a), (_, b)| largest(a).total_cmp(&largest(b))).unwrap();
        let steepest = (0..slopes.len()).max_by(|a, b| slopes[*a].abs().total_cmp(&slopes[*b].abs())).unwrap();
        let moved = |by: f32| {
            let one: Vec<f32> = (0..slopes.len()).map(|i| if i == steepest { by } else { 0.0 }).collect();
            let one = Tensor::<1>::from_data(one.as_slice(), &device());
            map_parameters(case.old.clone(), |parameter, _, values| if parameter == *name { values + one.clone() } else { values })
        };
        let h = 2e-2;
        let slope = (loss(&moved(h)) - loss(&moved(-h))) / (2.0 * f64::from(h));
        assert!((slope - slopes[steepest]).abs() < 0.01 * slopes[steepest].abs(), "{name}: slope {slope}, gradient {}", slopes[steepest]);
    }
}

/// KL of equal policies is nothing, and of others the closed form of two Gaussians over their number of values.
#[test]
fn kl_is_that_of_gaussians() {
    let mut case = case();
    let trajectory = case.draw();
    let batch = Case::minibatch(&trajectory, 4);
    let of = |model: &Model| transition(&model.denoiser, &*case.scheduler, &case.guidance, &batch);
    let (old, new) = (of(&case.old), of(&case.new.valid()));
    assert_eq!(host(&transition_kl(&old, &old)), [0.0, 0.0]);
    let sigma = host(&old.std_dev_t)[0];
    let (a, b) = (host(&old.prev_sample_mean), host(&new.prev_sample_mean));
    let n = a.len() / 2;
    let by_hand = |row: usize| (row * n..(row + 1) * n).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>() / (2.0 * sigma * sigma) / n as f64;
    assert_close_values("kl", &host(&transition_kl(&old, &new)), &[by_hand(0), by_hand(1)], 1e-4);
}

/// Before training, a LoRA on every layer of the UNet leaves its output as it was, to the bit.
#[test]
fn a_fresh_lora_changes_nothing() {
    let (pipeline, unet, names) = pipeline();
    let weights = LoraWeights::read(&case_dir(CASE).join("kohya_lora.safetensors"), &names).unwrap();
    let base = Trainable::of(unet.clone());
    let lora = vp_models::lora::Lora { rank: 4, alpha: 8.0, targets: Regex::new(r"^unet\.").unwrap() };
    let (_, fresh) = pipeline.adapted(unet, &lora, &Noise::new(1)).unwrap();
    let output = |model: &Model| -> Vec<f64> { vp_trainers::run::export::probe(&pipeline, model).into_data().iter::<f64>().collect() };
    // A GPU may fuse the sum with the factors' output into another kernel, which rounds in another order.
    let tolerance = if device() == burn::tensor::Device::flex() { 0.0 } else { 1e-5 };
    crate::support::assert_close_values("a fresh LoRA", &output(&fresh), &output(&base), tolerance);
    let merged = output(&weights.merge(base.clone(), 1.0));
    assert!(crate::support::compare(&merged, &output(&base), 1e-3).is_err(), "a trained LoRA changes something");
}
