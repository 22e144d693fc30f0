//! The samplers, without a network: model outputs and noise are given, every call of `step()` is listed.

use crate::device::device;
use burn::tensor::Tensor;
use serde_json::Value;
use vp_schedulers::{PredictionType, Sampler, Scheduler, SchedulerConfig, SchedulerError, build_sampler, build_scheduler};

use crate::support::{Tensors, case_json, compare, load_tensors};

const CASE: &str = "schedulers";
const FORWARD: f64 = 1e-4;
/// After ten steps or more.
const LONG: f64 = 1e-3;

/// One scheduler of the case.
struct Entry {
    name: String,
    config: SchedulerConfig,
    num_inference_steps: usize,
    eta: f64,
    init_noise_sigma: f64,
}

impl Entry {
    fn of(name: &str, value: &Value) -> Self {
        let mut config = value["config"].clone();
        config["_class_name"] = value["class"].clone();
        let step = value["step"].as_object().unwrap_or_else(|| panic!("{name}: `step` is no object"));
        assert!(step.keys().all(|key| key == "eta"), "{name}: this test passes nothing but eta to step(), not {step:?}");
        Self {
            name: name.into(),
            config: serde_json::from_value(config).unwrap_or_else(|error| panic!("{name}: {error}")),
            num_inference_steps: value["num_inference_steps"].as_u64().unwrap_or_else(|| panic!("{name}: no num_inference_steps")) as usize,
            eta: step.get("eta").map_or(0.0, |eta| eta.as_f64().unwrap_or_else(|| panic!("{name}: eta is {eta}"))),
            init_noise_sigma: value["init_noise_sigma"].as_f64().unwrap_or_else(|| panic!("{name}: no init_noise_sigma")),
        }
    }

    fn sampler(&self) -> Result<Box<dyn Sampler>, String> {
        build_sampler(&self.config, None, self.num_inference_steps, self.eta).map_err(|error| error.to_string())
    }

    /// `None` for a class that keeps history.
    fn scheduler(&self) -> Result<Option<Box<dyn Scheduler>>, String> {
        match build_scheduler(&self.config, None, self.num_inference_steps, self.eta) {
            Err(SchedulerError::NotSingleStep { .. }) => Ok(None),
            built => built.map(Some).map_err(|error| error.to_string()),
        }
    }

    /// `NAME.key`, one `[b, c, h, w]` tensor a call.
    fn calls(&self, tensors: &Tensors, key: &str) -> Vec<Tensor<4>> {
        let all: Tensor<5> = tensors.tensor(&format!("{}.{key}", self.name), &device());
        let [calls, ..] = all.dims();
        (0..calls).map(|call| all.clone().narrow(0, call, 1).squeeze_dim::<4>(0)).collect()
    }
}

fn entries() -> Vec<Entry> {
    let case = case_json(CASE);
    let entries: Vec<Entry> =
        case["schedulers"].as_object().expect("`schedulers` is an object").iter().map(|(k, v)| Entry::of(k, v)).collect();
    assert!(!entries.is_empty(), "the case lists no schedulers");
    entries
}

/// Runs a check on every scheduler of the case and reports all that fail.
fn check_every(check: impl Fn(&Entry, &Tensors) -> Result<(), String>) {
    let (tensors, entries) = (load_tensors(CASE), entries());
    let findings: Vec<String> =
        entries.iter().filter_map(|entry| check(entry, &tensors).err().map(|error| format!("{}: {error}", entry.name))).collect();
    assert!(findings.is_empty(), "{} of {} schedulers differ:\n{}", findings.len(), entries.len(), findings.join("\n"));
}

fn host(tensor: Tensor<4>) -> Vec<f64> {
    tensor.into_data().iter().collect()
}

#[test]
fn golden_scheduler_tables() {
    check_every(|entry, tensors| {
        let sampler = entry.sampler()?;
        let check = |key: &str, got: &[f64]| {
            compare(got, tensors.values(&format!("{}.{key}", entry.name)), FORWARD).map_err(|e| format!("{key} {e}"))
        };
        check("timesteps", sampler.timesteps())?;
        let alphas_cumprod: Vec<f64> = sampler.training_levels().iter().map(|level| level.signal.powi(2)).collect();
        check("alphas_cumprod", &alphas_cumprod)?;
        if tensors.contains(&format!("{}.sigmas", entry.name)) {
            check("sigmas", sampler.sigmas().unwrap_or_default())?;
        }
        compare(&[sampler.init_noise_sigma()], &[entry.init_noise_sigma], FORWARD)
            .map(drop)
            .map_err(|error| format!("init_noise_sigma {error}"))
    });
}

/// Every step from the reference's own sample, so that no error is carried along.
#[test]
fn golden_scheduler_steps() {
    check_every(|entry, tensors| {
        let mut sampler = entry.sampler()?;
        let (outputs, noise, samples) =
            (entry.calls(tensors, "model_outputs"), entry.calls(tensors, "noise"), entry.calls(tensors, "samples"));
        if (outputs.len(), samples.len()) != (sampler.timesteps().len(), outputs.len() + 1) {
            return Err(format!(
                "{} model outputs and {} samples for {} timesteps",
                outputs.len(),
                samples.len(),
                sampler.timesteps().len()
            ));
        }
        for (step, output) in outputs.into_iter().enumerate() {
            let got = sampler.step(output, step, samples[step].clone(), Some(noise[step].clone()));
            compare(&host(got), &host(samples[step + 1].clone()), FORWARD).map_err(|error| format!("samples[{}] {error}", step + 1))?;
        }
        Ok(())
    });
}

/// The whole chain from `initial`.
#[test]
fn golden_scheduler_chains() {
    check_every(|entry, tensors| {
        let mut sampler = entry.sampler()?;
        let (outputs, noise, samples) =
            (entry.calls(tensors, "model_outputs"), entry.calls(tensors, "noise"), entry.calls(tensors, "samples"));
        let mut sample: Tensor<4> = tensors.tensor(&format!("{}.initial", entry.name), &device());
        for (step, output) in outputs.into_iter().enumerate() {
            let noise = sampler.needs_noise().then(|| noise[step].clone());
            sample = sampler.step(output, step, sample, noise);
            let tolerance = if step + 1 < 10 { FORWARD } else { LONG };
            compare(&host(sample.clone()), &host(samples[step + 1].clone()), tolerance)
                .map_err(|error| format!("chained samples[{}] {error}", step + 1))?;
        }
        Ok(())
    });
}

/// One batch with as many samples as there are steps, each at its own step.
#[test]
fn golden_scheduler_transitions_of_mixed_steps() {
    check_every(|entry, tensors| {
        let Some(scheduler) = entry.scheduler()? else { return Ok(()) };
        let steps: Vec<usize> = (0..scheduler.timesteps().len()).rev().collect();
        let pick = |key: &str, shift: usize| {
            let calls = entry.calls(tensors, key);
            Tensor::cat(steps.iter().map(|step| calls[step + shift].clone().narrow(0, 0, 1)).collect(), 0)
        };
        let transition = scheduler.transition(pick("model_outputs", 0), &steps, pick("samples", 0));
        let (got, expected) = (transition.sample(pick("noise", 0)), pick("samples", 1));
        for (row, step) in steps.iter().enumerate() {
            let of = |tensor: &Tensor<4>| host(tensor.clone().narrow(0, row, 1));
            compare(&of(&got), &of(&expected), FORWARD).map_err(|error| format!("step {step} {error}"))?;
        }
        Ok(())
    });
    assert!(entries().iter().any(|entry| matches!(entry.scheduler(), Ok(Some(_)))), "the case has no single-step scheduler");
}

/// The case does not say whose table `add_noise.*` was made with; one of its schedulers must explain both tensors.
#[test]
fn golden_scheduler_add_noise() {
    let tensors = load_tensors(CASE);
    let get = |name: &str| -> Tensor<4> { tensors.tensor(&format!("add_noise.{name}"), &device()) };
    let timesteps = tensors.values("add_noise.t");

    let explains = |entry: &Entry| {
        let config = SchedulerConfig { prediction_type: Some(PredictionType::VPrediction), ..entry.config.clone() };
        let schedule = build_sampler(&config, None, entry.num_inference_steps, entry.eta).map_err(|error| error.to_string())?;
        if timesteps.iter().any(|&t| t >= schedule.num_train_timesteps() as f64) {
            return Err("its table is too short".into());
        }
        let noisy = schedule.add_noise(get("x0"), get("noise"), timesteps);
        let velocity = schedule.training_target(get("x0"), get("noise"), timesteps);
        compare(&host(noisy), tensors.values("add_noise.out"), FORWARD)?;
        compare(&host(velocity), tensors.values("add_noise.velocity"), FORWARD)
    };
    let findings: Vec<Result<(), String>> =
        entries().iter().map(|entry| explains(entry).map(drop).map_err(|error| format!("{}: {error}", entry.name))).collect();
    assert!(findings.iter().any(Result::is_ok), "no scheduler's table explains add_noise: {findings:#?}");
}
