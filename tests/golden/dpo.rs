//! One Diffusion-DPO pair on the 1.x pipeline: a policy that is the base with an adapter, against the base without.

use crate::device::device;
use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use vp_models::denoiser::Conditioning;
use vp_models::parameters::{map_parameters, named_gradients};
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_models::unet::UNet2DConditionModel;
use vp_schedulers::{build_scheduler, by_name};
use vp_trainers::denoising::Noised;
use vp_trainers::losses::{dpo_inside, dpo_loss, squared_error_changes};

use crate::support::{Tensors, assert_close_values, case_dir, case_json, load_tensors, strings};

const CASE: &str = "rl_sd15_tiny";
const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;
/// The policy's up factors are the file's times this: `policy` in case.json.
const STEP: f64 = 1.1;

/// The factors of one layer: its weight gains `scale · up · down`.
struct Factors {
    /// `[rank, in]`.
    down: Tensor<2>,
    /// `[out, rank]`.
    up: Tensor<2>,
}

/// The UNet's factors by the name of the weight they change.
fn factors(file: &Tensors) -> BTreeMap<String, Factors> {
    let downs = file.names_under("unet.").into_iter().filter_map(|name| name.strip_suffix(".lora.down.weight"));
    let read = |layer: &str| {
        let factor = |which: &str| file.get::<2>(&format!("unet.{layer}.lora.{which}.weight"));
        (format!("{layer}.weight"), Factors { down: factor("down"), up: factor("up") * STEP })
    };
    downs.map(read).collect()
}

/// The UNet with the factors merged into its weights.
fn merged(unet: UNet2DConditionModel, factors: &BTreeMap<String, Factors>, scale: f64) -> UNet2DConditionModel {
    let mut changed = 0;
    let unet = map_parameters(unet, |name, _, values| match factors.get(name) {
        Some(Factors { down, up }) => {
            changed += 1;
            let count = values.dims()[0];
            values + up.clone().matmul(down.clone()).reshape([count]) * scale
        }
        None => values,
    });
    assert_eq!(changed, factors.len(), "every factor has its layer");
    unet
}

#[test]
fn golden_dpo() {
    let (settings, tensors) = (case_json(CASE), load_tensors(CASE));
    let number = |section: &str, name: &str| settings[section][name].as_f64().unwrap_or_else(|| panic!("{section}.{name} is no number"));
    let (beta, scale) = (number("dpo", "beta"), number("lora", "alpha") / number("lora", "rank"));
    let device = device();
    let folder = case_dir(&strings(&settings["uses"])[0]).join("pipeline");
    let (pipeline, base) = Pipeline::load(ModelFolder::open(&folder).unwrap(), &device).unwrap();
    let factors = factors(&Tensors::read(&case_dir(CASE).join("pytorch_lora_weights.safetensors")));
    let policy = merged(base.clone(), &factors, scale).train();

    // Row 0 is chosen, row 1 rejected; one prompt, one timestep and one noise for both.
    let timesteps = tensors.values("dpo.timesteps").to_vec();
    let (latents, noise) = (tensors.get::<4>("dpo.latents"), tensors.get::<4>("dpo.noise"));
    let schedule = build_scheduler(&pipeline.folder.scheduler_config, Some(by_name("ddpm").unwrap()), 1, 0.0).unwrap();
    let sample = schedule.add_noise(latents.clone(), noise.clone(), &timesteps);
    let noised = Noised { sample, target: schedule.training_target(latents, noise, &timesteps), timesteps };
    let prompt = strings(&settings["prompts"])[0].clone();
    let size = [noised.sample.dims()[2], noised.sample.dims()[3]].map(|side| side * pipeline.vae.config().downscale());
    let conditioning: Conditioning = pipeline.text.encode(&[prompt.clone(), prompt], size, &device);

    let references = noised.predictions(&base, conditioning.clone());
    tensors.assert_close("dpo.ref_losses", noised.errors_of(references.clone()), FORWARD);
    let predictions = noised.predictions(&policy, conditioning);
    tensors.assert_close("dpo.model_losses", noised.errors_of(predictions.clone().without_autodiff()), FORWARD);
    let changes = squared_error_changes(predictions, references, noised.target.clone());
    let loss = dpo_loss(dpo_inside(changes.clone().narrow(0, 0, 1), changes.narrow(0, 1, 1), beta));
    tensors.assert_close("dpo.loss", loss.clone().without_autodiff(), FORWARD);

    // W + s·up·down: ∂up = s·∂W·downᵀ and ∂down = s·upᵀ·∂W.
    let mut squares = 0.0;
    let mut layers = 0;
    for (name, gradient) in named_gradients(&policy, &mut loss.backward()) {
        let Some(Factors { down, up }) = factors.get(&name) else { continue };
        let gradient = gradient.reshape([up.dims()[0], down.dims()[1]]) * scale;
        let of_up = gradient.clone().matmul(down.clone().transpose());
        let of_down = up.clone().transpose().matmul(gradient);
        squares += [of_up, of_down].map(|factor| f64::from(factor.square().sum().into_scalar::<f32>())).iter().sum::<f64>();
        layers += 1;
    }
    assert_eq!(layers, factors.len(), "every factor has a gradient");
    assert_close_values("dpo.grad_norm", &[squares.sqrt()], tensors.values("dpo.grad_norm"), GRADIENT);
}
