//! ReFL's rollout, tracked step, loss and gradients on the 1.x pipeline and the BLIP reward.

use crate::device::device;
use burn::module::Module;
use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_models::parameters::named_gradients;
use vp_models::pipeline::{ModelFolder, Pipeline, Request};
use vp_rewards::{RewardConfig, VpScoreConfig};
use vp_schedulers::{SchedulerConfig, build_scheduler, by_name};
use vp_trainers::direct::draft::Draft;
use vp_trainers::direct::refl::predict_clean_latents;
use vp_trainers::direct::through_sampling::ThroughSampling;
use vp_trainers::direct::{End, TapedChain};
use vp_trainers::losses::{refl_loss, reward_loss};
use vp_trainers::optim::GradientAccumulator;
use vp_trainers::run::Draw;

use crate::support::{assert_close_values, case_dir, case_json, load_tensors, strings};

const CASE: &str = "rl_sd15_tiny";
const FORWARD: f64 = 1e-4;
const LONG: f64 = 1e-3;
const GRADIENT: f64 = 1e-3;
/// Gradients this much smaller than the largest listed one may differ by more: `reference/README.md`.
const SMALL: (f64, f64) = (1e-4, 1e-2);

#[test]
fn golden_refl() {
    let (settings, tensors) = (case_json(CASE), load_tensors(CASE));
    let uses = strings(&settings["uses"]);
    let refl_settings = &settings["refl"];
    let number = |name: &str| refl_settings[name].as_f64().unwrap_or_else(|| panic!("refl.{name} is no number"));
    let (steps, mid_index) = (number("num_inference_steps") as usize, number("mid_index") as usize);

    let device = device();
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&case_dir(&uses[0]).join("pipeline")).unwrap(), &device).unwrap();
    let unet = unet.train();
    let reward = RewardConfig::VpScore(VpScoreConfig::new(case_dir(&uses[1]).join("model"))).build(&device).unwrap();
    let mut config = refl_settings["scheduler_config"].clone();
    assert_eq!(refl_settings["scheduler"], "ddpm");
    config["_class_name"] = "DDPMScheduler".into();
    let config: SchedulerConfig = serde_json::from_value(config).unwrap();
    let mut scheduler = build_scheduler(&config, None, steps, 0.0).unwrap();
    assert_close_values("refl.timesteps", scheduler.timesteps(), tensors.values("refl.timesteps"), 0.0);

    let prompts = strings(&settings["prompts"]);
    let latents = tensors.get::<4>("refl.latents");
    let factor = pipeline.vae.config().downscale();
    let size = [latents.dims()[2] * factor, latents.dims()[3] * factor];
    let guidance = pipeline.encode(&pipeline.text, &Request { prompts: &prompts, negative_prompt: None, guidance_scale: 1.0, size });
    tensors.assert_close("prompt_embeds", guidance.conditional.encoder_hidden_states.clone(), FORWARD);

    let noise = tensors.get::<5>("refl.noise");
    let step_noise = |step| noise.clone().narrow(0, step, 1).squeeze_dim::<4>(0);
    let mut chain = TapedChain::new(&unet, &mut *scheduler, &guidance, &step_noise);
    let pred_original_sample = predict_clean_latents(&mut chain, latents, mid_index);
    tensors.assert_close("refl.latents_mid", chain.visited[mid_index].latents.clone(), LONG);

    let images = pipeline.vae.decode_to_images(pred_original_sample.clone());
    let rewards = reward.score(images.clone(), &prompts).unwrap();
    let loss = refl_loss(rewards.clone(), number("margin"), number("grad_scale"));
    let plain = |tensor: &Tensor<4>| tensor.clone().without_autodiff();
    tensors.assert_close("refl.pred_original_sample", plain(&pred_original_sample), LONG);
    tensors.assert_close("refl.images", plain(&images), LONG);
    tensors.assert_close("refl.rewards", rewards.without_autodiff().unsqueeze_dim::<2>(1), LONG);
    tensors.assert_close("refl.loss", loss.clone().without_autodiff(), LONG);

    let mut gradients = GradientAccumulator::default();
    gradients.add(named_gradients(&unet, &mut loss.backward()), 1.0);
    let norm = gradients.norm().unwrap();
    assert_close_values("refl.grad_norm", &[norm], tensors.values("refl.grad_norm"), GRADIENT);
    let listed = tensors.names_under("refl.grad.");
    assert!(!listed.is_empty(), "the case lists no gradients");
    let largest = |name: &str| tensors.values(&format!("refl.grad.{name}")).iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    let overall = listed.iter().map(|name| largest(name)).fold(0.0, f64::max);
    for name in listed {
        let got = gradients.gradients().get(name).unwrap_or_else(|| panic!("no gradient for {name}"));
        let got: Vec<f64> = got.to_data().iter::<f64>().collect();
        let tolerance = if largest(name) < SMALL.0 * overall { SMALL.1 } else { GRADIENT };
        assert_close_values(&format!("refl.grad.{name}"), &got, tensors.values(&format!("refl.grad.{name}")), tolerance);
    }
}

/// A law rather than numbers: with a deterministic sampler whose last sample is the prediction of the clean one, below ReFL's
/// margin, DRaFT-1 and ReFL at the last step are the same algorithm, guidance and all.
#[test]
fn draft_1_is_refl_at_the_last_step() {
    const STEPS: usize = 3;
    let uses = strings(&case_json(CASE)["uses"]);
    let device = device();
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&case_dir(&uses[0]).join("pipeline")).unwrap(), &device).unwrap();
    let (unet, size) = (unet.train(), pipeline.folder.default_size());
    let reward = RewardConfig::VpScore(VpScoreConfig::new(case_dir(&uses[1]).join("model"))).build(&device).unwrap();
    let prompts = ["a red fox".to_string(), "a lighthouse at dusk".to_string()];
    let request = Request { prompts: &prompts, negative_prompt: Some("blurry"), guidance_scale: 7.5, size };
    let guidance = pipeline.encode(&pipeline.text, &request);
    let config = SchedulerConfig { set_alpha_to_one: Some(true), ..pipeline.folder.scheduler_config.clone() };
    let mut scheduler = build_scheduler(&config, Some(by_name("ddim").unwrap()), STEPS, 0.0).unwrap();
    let latents = Noise::new(1).normal(Purpose::INITIAL_LATENTS, 1, &[0, 1], pipeline.latent_shape(size), &device);

    let noise = |step: usize| -> Tensor<4> { panic!("step {step} of a deterministic sampler draws noise") };
    let gradients = |latents: Tensor<4>, loss: fn(Tensor<1>) -> Tensor<1>| {
        let rewards = reward.score(pipeline.vae.decode_to_images(latents), &prompts).unwrap();
        named_gradients(&unet, &mut loss(rewards).backward())
    };
    let predicted = predict_clean_latents(&mut TapedChain::new(&unet, &mut *scheduler, &guidance, &noise), latents.clone(), STEPS - 1);
    let refl = gradients(predicted, |rewards| refl_loss(rewards, 100.0, 0.5));
    let calls = Draft::default().calls(STEPS, Draw::new(Noise::new(1), 1));
    let sampled = TapedChain::new(&unet, &mut *scheduler, &guidance, &noise).run(latents, &calls, End::Sample);
    let draft = gradients(sampled, |rewards| reward_loss(rewards, 0.5));
    assert_eq!(refl.len(), draft.len());
    let largest = |gradient: &Tensor<1>| gradient.to_data().iter::<f64>().fold(0.0, |max: f64, value| max.max(value.abs()));
    let overall = refl.iter().map(|(_, gradient)| largest(gradient)).fold(0.0, f64::max);
    assert!(overall > 0.0);
    for ((name, refl), (other, draft)) in refl.into_iter().zip(draft) {
        assert_eq!(name, other);
        let difference = largest(&(draft - refl));
        assert!(difference <= 1e-6 * overall, "{name}: {difference:e} beside {overall:e}");
    }
}
