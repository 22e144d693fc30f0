//! Whole pipelines, prompt to image, from given latents.

use crate::device::device;
use serde_json::Value;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Chain, ModelFolder, Pipeline, Request, Taken};
use vp_schedulers::{Sampler, SchedulerConfig, build_sampler, by_name};

use crate::support::{assert_close_values, case_dir, case_json, load_tensors, strings};

const FORWARD: f64 = 1e-4;
/// After ten steps or more.
const LONG: f64 = 1e-3;

/// The sampler that a pipeline's settings name, on the folder's own scheduler config.
fn sampler(settings: &Value, folder: &ModelFolder) -> Box<dyn Sampler> {
    let name = settings["scheduler"].as_str().expect("a scheduler's name");
    let entry = by_name(name).unwrap();
    let mut config = serde_json::to_value(entry.configure(&folder.scheduler_config)).unwrap();
    for field in ["use_karras_sigmas", "timestep_spacing"] {
        if !settings[field].is_null() {
            config[field] = settings[field].clone();
        }
    }
    let config: SchedulerConfig = serde_json::from_value(config).unwrap();
    let steps = settings["num_inference_steps"].as_u64().expect("steps") as usize;
    build_sampler(&config, None, steps, settings["eta"].as_f64().unwrap_or(0.0)).unwrap()
}

fn check(case: &str, name: &str) {
    let (settings, tensors) = (case_json(case), load_tensors(case));
    let folder = ModelFolder::open(&case_dir(case).join("pipeline")).unwrap();
    let mut sampler = sampler(&settings[name], &folder);
    let (pipeline, unet) = Pipeline::load(folder, &device()).unwrap();
    let prompts = strings(&settings["prompts"]);
    let latents = tensors.get::<4>("pipeline.latents");
    let factor = pipeline.vae.config().downscale();
    let request = Request {
        prompts: &prompts,
        negative_prompt: settings["negative_prompt"].as_str(),
        guidance_scale: settings[name]["guidance_scale"].as_f64().expect("a guidance scale"),
        size: [latents.dims()[2] * factor, latents.dims()[3] * factor],
    };
    let steps = sampler.timesteps().len();
    let tolerance = if steps < 10 { FORWARD } else { LONG };
    for (table, ours) in [("timesteps", Some(sampler.timesteps())), ("sigmas", sampler.sigmas())] {
        let theirs = format!("{name}.{table}");
        if tensors.contains(&theirs) {
            assert_close_values(&format!("{case}: {theirs}"), ours.expect("the reference has one"), tensors.values(&theirs), FORWARD);
        }
    }

    let per_step = format!("{name}.latents_per_step");
    let expected = tensors.contains(&per_step).then(|| tensors.get::<5>(&per_step));
    let guidance = pipeline.encode(&pipeline.text, &request);
    let mut observe = |&Taken { step, prev_sample, .. }: &Taken<'_>| {
        if let Some(expected) = &expected {
            let expected = expected.clone().narrow(0, step, 1).squeeze_dim::<4>(0);
            let tolerance = if step + 1 < 10 { FORWARD } else { LONG };
            crate::support::assert_close(&format!("{case}: {name}, latents after step {step}"), prev_sample.clone(), expected, tolerance);
        }
    };
    let start = latents.clone() * sampler.init_noise_sigma();
    let mut noise = |_| panic!("these pipelines draw no noise");
    let mut chain = Chain { denoiser: &unet, sampler: &mut *sampler, guidance: &guidance, noise: &mut noise, observe: &mut observe };
    let last = chain.run(start, 0..steps);
    let final_latents = format!("{name}.final_latents");
    if tensors.contains(&final_latents) {
        tensors.assert_close(&final_latents, last, tolerance);
    }
    let images = pipeline.generate(&Trainable::of(unet), &mut *sampler, &request, latents, &mut noise);
    tensors.assert_close(&format!("{name}.images"), images, tolerance);
}

macro_rules! cases {
    ($($case:ident)+) => { $(
        mod $case {
            #[test]
            fn golden_pipeline() { super::check(stringify!($case), "pipeline"); }
            #[test]
            fn golden_pipeline_euler_karras() { super::check(stringify!($case), "pipeline_euler_karras"); }
        }
    )+ };
}
cases! { sd15_tiny sd21_tiny sdxl_tiny }
