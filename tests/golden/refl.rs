//! ReFL's rollout, tracked step, loss and gradients on the 1.x pipeline and the BLIP reward.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use vp_models::parameters::named_gradients;
use vp_models::pipeline::{ModelFolder, Pipeline, Request};
use vp_rewards::{RewardConfig, VpScoreConfig};
use vp_schedulers::{SchedulerConfig, build_scheduler};
use vp_trainers::optim::GradientAccumulator;
use vp_trainers::refl::{Refl, roll_out};

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
    let refl = Refl { margin: number("margin"), grad_scale: number("grad_scale"), ..Refl::default() };

    let device = Device::flex();
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
    let mut step_noise = |step| noise.clone().narrow(0, step, 1).squeeze_dim::<4>(0);
    let visited = roll_out(&unet.valid(), &mut *scheduler, &guidance, latents, mid_index, &mut step_noise);
    let latents_mid = visited[mid_index].latents.clone();
    tensors.assert_close("refl.latents_mid", latents_mid.clone(), LONG);

    let tracked = refl.tracked_step(&unet, &*scheduler, &guidance, (mid_index, latents_mid), &pipeline.vae, &*reward, &prompts).unwrap();
    let plain = |tensor: &Tensor<4>| tensor.clone().without_autodiff();
    tensors.assert_close("refl.pred_original_sample", plain(&tracked.pred_original_sample), LONG);
    tensors.assert_close("refl.images", plain(&tracked.images), LONG);
    let rewards = tracked.rewards.clone().without_autodiff().unsqueeze_dim::<2>(1);
    tensors.assert_close("refl.rewards", rewards, LONG);
    tensors.assert_close("refl.loss", tracked.loss.clone().without_autodiff(), LONG);

    let mut gradients = GradientAccumulator::default();
    gradients.add(named_gradients(&unet, &mut tracked.loss.backward()), 1.0);
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
