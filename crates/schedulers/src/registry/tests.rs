use burn::tensor::{Device, Tensor};

use super::*;
use crate::{
    config::{BetaSchedule, PredictionType, TimestepSpacing},
    ddim, ddpm, pndm, unipc,
};

fn stable_diffusion(class: &SchedulerClass) -> SchedulerConfig {
    SchedulerConfig {
        beta_start: Some(0.00085),
        beta_end: Some(0.012),
        beta_schedule: Some(BetaSchedule::ScaledLinear),
        steps_offset: Some(1),
        set_alpha_to_one: Some(false),
        skip_prk_steps: Some(true),
        clip_sample: Some(false),
        ..SchedulerConfig::new(class)
    }
}

fn wave(shape: [usize; 4], phase: f64, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i as f64 * 0.7 + phase).sin() as f32).collect();
    Tensor::<1>::from_data(values.as_slice(), device).reshape(shape)
}

fn close(a: Tensor<4>, b: Tensor<4>, tolerance: f32) {
    let (a, b): (Vec<f32>, Vec<f32>) = (a.into_data().try_to_vec().unwrap(), b.into_data().try_to_vec().unwrap());
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let worst = a.iter().zip(&b).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(worst <= tolerance * scale, "{worst} > {tolerance} * {scale}");
}

#[test]
fn every_name_finds_its_entry_whatever_the_case() {
    for entry in SCHEDULERS {
        for name in std::iter::once(entry.name).chain(entry.a1111.iter().copied()) {
            assert_eq!(by_name(&name.to_uppercase()).unwrap().name, entry.name);
        }
        assert_eq!(by_name(entry.class.class_name).unwrap().class, entry.class);
    }
    assert_eq!(by_name("dpm++ 2m karras").unwrap().name, "dpmpp_2m_karras");
    assert_eq!(by_name("Euler-a").unwrap().name, "euler_a");
    let error = by_name("dimm").unwrap_err().to_string();
    assert!(error.contains("did you mean `ddim`") && error.contains("unipc"), "{error}");
    assert!(!by_name("something else entirely").unwrap_err().to_string().contains("did you mean"));
}

#[test]
fn an_entry_names_the_config_it_makes() {
    let folder = stable_diffusion(&pndm::CLASS);
    for entry in SCHEDULERS {
        assert_eq!(entry_of(&entry.configure(&folder)).unwrap().name, entry.name);
    }
    assert_eq!(entry_of(&SchedulerConfig::new(&unipc::CLASS)).unwrap().name, "unipc");
}

#[test]
fn another_class_keeps_stated_fields_and_takes_its_own_defaults() {
    let folder = stable_diffusion(&pndm::CLASS);
    let ddim = build_sampler(&folder, Some(by_name("ddim").unwrap()), 50, 0.0).unwrap();
    assert_eq!((ddim.timesteps()[0], ddim.timesteps()[49]), (981.0, 1.0));
    let euler = build_sampler(&folder, Some(by_name("euler").unwrap()), 50, 0.0).unwrap();
    assert_eq!((euler.timesteps()[0], euler.timesteps()[49]), (999.0, 0.0));
}

#[test]
fn every_entry_samples_finite_numbers_from_one_step_to_many() {
    let device = Device::flex();
    for entry in SCHEDULERS {
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction] {
            for steps in [1, 2, 3, 7, 20] {
                let config = SchedulerConfig { prediction_type: Some(prediction_type), ..stable_diffusion(&pndm::CLASS) };
                let mut sampler = build_sampler(&config, Some(entry), steps, 1.0).unwrap();
                let mut x = wave([1, 1, 2, 2], 0.3, &device) * sampler.init_noise_sigma();
                for step in 0..sampler.timesteps().len() {
                    let input = sampler.scale_model_input(x.clone(), &[step]);
                    let noise = sampler.needs_noise().then(|| wave([1, 1, 2, 2], step as f64, &device));
                    x = sampler.step(input * 0.3, step, x, noise);
                }
                let values: Vec<f32> = x.into_data().try_to_vec().unwrap();
                assert!(values.iter().all(|v| v.is_finite()), "{} {prediction_type:?} {steps}: {values:?}", entry.name);
            }
        }
    }
}

/// A network that knows x_0 exactly is solved exactly by every deterministic sampler that ends without noise.
#[test]
fn a_perfect_model_is_sampled_back() {
    let device = Device::flex();
    let x0 = wave([1, 2, 3, 3], 1.0, &device);
    for entry in SCHEDULERS {
        let config = SchedulerConfig { set_alpha_to_one: Some(true), ..stable_diffusion(&pndm::CLASS) };
        let mut sampler = build_sampler(&config, Some(entry), 12, 0.0).unwrap();
        let mut x = wave([1, 2, 3, 3], 0.2, &device) * sampler.init_noise_sigma();
        for step in 0..sampler.timesteps().len() {
            let alpha = match sampler.sigmas() {
                Some(sigmas) => 1.0 / (1.0 + sigmas[step].powi(2)),
                None => sampler.training_level(sampler.timesteps()[step]).signal.powi(2),
            };
            let input = sampler.scale_model_input(x.clone(), &[step]);
            let epsilon = (input - x0.clone() * alpha.sqrt()) / (1.0 - alpha).sqrt();
            let noise = sampler.needs_noise().then(|| wave([1, 2, 3, 3], step as f64, &device));
            x = sampler.step(epsilon, step, x, noise);
        }
        // PLMS extrapolates slopes and is only nearly exact.
        close(x, x0.clone(), if entry.name == "pndm" { 0.05 } else { 1e-3 });
    }
}

#[test]
fn a_batch_of_different_steps_equals_its_samples_one_by_one() {
    let device = Device::flex();
    for entry in SCHEDULERS.iter().filter(|entry| entry.is_single_step()) {
        let scheduler = build_scheduler(&stable_diffusion(&ddim::CLASS), Some(entry), 10, 0.7).unwrap();
        let (output, sample) = (wave([3, 2, 2, 2], 0.1, &device), wave([3, 2, 2, 2], 2.0, &device));
        let steps = [9, 0, 4];
        let batch = scheduler.transition(output.clone(), &steps, sample.clone());
        let scaled = scheduler.scale_model_input(sample.clone(), &steps);
        for (i, &step) in steps.iter().enumerate() {
            let row = |t: &Tensor<4>| t.clone().narrow(0, i, 1);
            let single = scheduler.transition(row(&output), &[step], row(&sample));
            close(row(&batch.pred_original_sample), single.pred_original_sample, 1e-6);
            close(row(&batch.prev_sample_mean), single.prev_sample_mean, 1e-6);
            close(row(&batch.std_dev_t), single.std_dev_t.clone(), 0.0);
            close(row(&scaled), scheduler.scale_model_input(row(&sample), &[step]), 1e-6);
            let std: f32 = single.std_dev_t.into_scalar();
            assert!((f64::from(std) - scheduler.std_dev_t(step)).abs() <= 1e-6 * scheduler.std_dev_t(step));
        }
    }
}

#[test]
fn gradient_flows_through_every_sampler_and_is_the_finite_difference() {
    let (plain, tracked) = (Device::flex(), Device::flex().autodiff());
    for entry in SCHEDULERS {
        let run = |output: Tensor<4>, device: &Device| {
            let mut sampler = build_sampler(&stable_diffusion(&pndm::CLASS), Some(entry), 5, 0.5).unwrap();
            let mut x = wave([2, 1, 2, 2], 0.4, &plain);
            for step in 0..4 {
                let noise = sampler.needs_noise().then(|| wave([2, 1, 2, 2], step as f64, &plain));
                x = sampler.step(output.clone() * (step + 1) as f64, step, x, noise);
            }
            x * wave([2, 1, 2, 2], 5.0, device).inner()
        };
        let output = wave([2, 1, 2, 2], 0.9, &tracked).require_grad();
        let grads = run(output.clone(), &tracked).sum().backward();
        let slope: f32 = output.grad(&grads).expect(entry.name).sum().into_scalar();

        // Every sampler is linear in the model output, so a large step is exact.
        let at = |shift: f64| run(wave([2, 1, 2, 2], 0.9, &plain) + shift, &plain).sum().into_scalar::<f32>();
        let expected = (at(1.0) - at(-1.0)) / 2.0;
        assert!(slope != 0.0 && (slope - expected).abs() < 1e-3 * expected.abs().max(1.0), "{}: {slope} != {expected}", entry.name);
    }
}

#[test]
fn gradient_flows_through_a_thresholded_transition() {
    let device = Device::flex().autodiff();
    let config = SchedulerConfig { thresholding: Some(true), sample_max_value: Some(50.0), ..stable_diffusion(&ddim::CLASS) };
    let scheduler = build_scheduler(&config, None, 10, 0.0).unwrap();
    let output = wave([2, 1, 2, 2], 0.9, &device).require_grad();
    let grads = scheduler.transition(output.clone(), &[3, 5], wave([2, 1, 2, 2], 0.1, &Device::flex())).prev_sample_mean.sum().backward();
    let grad: Vec<f32> = output.grad(&grads).unwrap().into_data().try_to_vec().unwrap();
    assert!(grad.iter().all(|g| g.is_finite()) && grad.iter().any(|g| *g != 0.0), "{grad:?}");
}

#[test]
fn steps_and_eta_out_of_range_are_errors() {
    let config = stable_diffusion(&ddim::CLASS);
    for (steps, eta, word) in
        [(0, 0.0, "num_inference_steps = 0"), (1001, 0.0, "1000"), (10, 1.1, "eta"), (10, -0.1, "eta"), (10, f64::NAN, "NaN")]
    {
        let error = build_sampler(&config, None, steps, eta).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    // 999 + 1 lies past the table.
    let error = build_sampler(&config, None, 1000, 0.0).err().unwrap().to_string();
    assert!(error.contains("steps_offset"), "{error}");
    let error = build_scheduler(&config, Some(by_name("unipc").unwrap()), 10, 0.0).err().unwrap().to_string();
    assert!(error.contains("UniPCMultistepScheduler") && error.contains("ddim"), "{error}");
    let zero_snr = SchedulerConfig { rescale_betas_zero_snr: Some(true), timestep_spacing: Some(TimestepSpacing::Trailing), ..config };
    let error = build_sampler(&zero_snr, None, 10, 0.0).err().unwrap().to_string();
    assert!(error.contains("v_prediction"), "{error}");
}

#[test]
fn only_noisy_schedules_have_a_density_and_the_deterministic_step_is_named() {
    let stochastic = |name: &str, eta: f64, set_alpha_to_one: bool| {
        let config = SchedulerConfig { set_alpha_to_one: Some(set_alpha_to_one), ..stable_diffusion(&ddim::CLASS) };
        require_stochastic(&*build_scheduler(&config, Some(by_name(name).unwrap()), 10, eta).unwrap())
    };
    assert_eq!(stochastic("ddim", 1.0, false).unwrap(), 10);
    assert_eq!(stochastic("ddim", 1.0, true).unwrap(), 9);
    assert_eq!(stochastic("ddpm", 0.0, false).unwrap(), 9);
    assert_eq!(stochastic("euler_a", 0.0, false).unwrap(), 9);
    for name in ["ddim", "euler"] {
        let error = stochastic(name, 0.0, false).unwrap_err().to_string();
        assert!(error.contains("step 0") && error.ends_with("use a stochastic scheduler: ddim with eta > 0, ddpm or euler_a"), "{error}");
    }
}

/// What an entry says before anything is built is what its schedule turns out to be.
#[test]
fn an_entry_knows_whether_its_steps_have_a_density() {
    let config = SchedulerConfig { set_alpha_to_one: Some(false), ..stable_diffusion(&ddim::CLASS) };
    for entry in SCHEDULERS {
        for eta in [0.0, 0.3, 1.0] {
            let built = build_scheduler(&config, Some(entry), 10, eta);
            assert_eq!(entry.is_single_step(), built.is_ok(), "{}", entry.name);
            let has_density = built.is_ok_and(|scheduler| require_stochastic(&*scheduler).is_ok());
            assert_eq!(entry.is_stochastic(eta), has_density, "{} at eta {eta}", entry.name);
        }
    }
    let single_step = known_names(SchedulerEntry::is_single_step);
    assert!(single_step.contains("ddim") && single_step.contains("euler_a") && !single_step.contains("heun"), "{single_step}");
}

#[test]
fn training_sample_and_target_agree_with_the_transition() {
    let device = Device::flex();
    let (x0, noise) = (wave([2, 1, 2, 2], 0.0, &device), wave([2, 1, 2, 2], 1.0, &device));
    for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
        let config = SchedulerConfig { prediction_type: Some(prediction_type), ..stable_diffusion(&ddpm::CLASS) };
        let scheduler = build_scheduler(&config, None, 10, 0.0).unwrap();
        let timesteps = [901.0, 101.0];
        let sample = scheduler.add_noise(x0.clone(), noise.clone(), &timesteps);
        let target = scheduler.training_target(x0.clone(), noise.clone(), &timesteps);
        close(scheduler.transition(target, &[0, 8], sample).pred_original_sample, x0.clone(), 1e-5);
    }
    let scheduler = build_scheduler(&stable_diffusion(&ddim::CLASS), None, 10, 0.0).unwrap();
    assert!((scheduler.signal_to_noise(500.0) - 0.27633268 / (1.0 - 0.27633268)).abs() < 1e-6);
}

#[test]
fn a_chain_can_be_sampled_twice_and_begun_in_the_middle() {
    let device = Device::flex();
    for entry in SCHEDULERS {
        let mut sampler = build_sampler(&stable_diffusion(&pndm::CLASS), Some(entry), 6, 0.0).unwrap();
        let mut run = |from: usize| {
            let mut x = wave([1, 1, 2, 2], 0.3, &device);
            sampler.reset();
            for step in from..sampler.timesteps().len() {
                let noise = sampler.needs_noise().then(|| wave([1, 1, 2, 2], step as f64, &device));
                x = sampler.step(x.clone() * 0.1, step, x, noise);
            }
            x
        };
        let first = run(0);
        let middle = run(3);
        assert!(middle.into_data().iter::<f32>().all(f32::is_finite), "{}", entry.name);
        close(run(0), first, 0.0);
    }
}
