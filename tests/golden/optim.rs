//! AdamW, clipping, the learning rate and the moving average against PyTorch's and diffusers', from given gradients.

use crate::device::device;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde_json::json;
use vp_models::parameters::named_parameters;
use vp_trainers::optim::{AdamW, AdamWConfig, Ema, EmaConfig, GradientAccumulator, LrSchedule};

use crate::support::{assert_close_values, case_json, load_tensors};

const TOLERANCE: f64 = 1e-4;

/// The case's parameters, flattened, in the order of its names.
#[derive(Module, Debug)]
struct Parameters {
    list: Vec<Param<Tensor<1>>>,
}

#[test]
fn golden_optim_adamw_clip_schedule_and_ema() {
    let (settings, tensors) = (case_json("optim"), load_tensors("optim"));
    let device = device();
    let flat = |name: &str| tensors.values(name).iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let names: Vec<char> = ('a'..='z').filter(|name| tensors.contains(&format!("grad_{name}.0"))).collect();
    assert!(!names.is_empty());

    let adamw = &settings["adamw"];
    let mut config = adamw.clone();
    config.as_object_mut().unwrap().remove("lr");
    let mut optimizer = AdamW::new(serde_json::from_value::<AdamWConfig>(config).unwrap());
    let mut schedule = settings["lr_scheduler"].clone();
    let num_training_steps = schedule["num_training_steps"].as_u64().unwrap();
    let name = schedule["name"].as_str().unwrap().to_string();
    schedule.as_object_mut().unwrap().retain(|key, _| key == "num_warmup_steps" && name != "constant");
    let schedule = serde_json::from_value(json!({ name: schedule })).unwrap();
    let schedule = LrSchedule::new(schedule, adamw["lr"].as_f64().unwrap(), num_training_steps);

    let start = |name| Param::from_data(flat(&format!("{name}.0")).as_slice(), &device.clone().autodiff());
    let mut module = Parameters { list: names.iter().map(start).collect() };
    let mut ema = Ema::new(EmaConfig::default(), &module);
    let mut accumulator = GradientAccumulator::default();
    let steps = tensors.values("lr").len();
    let (mut rates, mut norms, mut decays) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..steps {
        let gradients = names.iter().enumerate().map(|(index, name)| {
            let gradient = flat(&format!("grad_{name}.{step}"));
            (format!("list.{index}"), Tensor::from_floats(gradient.as_slice(), &device))
        });
        accumulator.add(gradients, 1.0);
        norms.push(accumulator.clip_grad_norm(settings["max_grad_norm"].as_f64().unwrap()).unwrap());
        rates.push(schedule.rate(step as u64));
        module = optimizer.step(module, &accumulator.take(), schedule.rate(step as u64));
        decays.push(EmaConfig::default().decay_after(step as u64));
        ema.update(&module);

        let after = step + 1;
        for (now, prefix) in [(module.clone(), ""), (ema.apply(module.clone()), "ema_")] {
            for (parameter, name) in named_parameters(&now).into_iter().zip(&names) {
                let key = format!("{prefix}{name}.{after}");
                let got: Vec<f64> = parameter.values.into_data().iter::<f64>().collect();
                assert_close_values(&key, &got, tensors.values(&key), TOLERANCE);
            }
        }
    }
    for (key, got) in [("lr", rates), ("grad_norm", norms), ("ema_decay", decays)] {
        assert_close_values(key, &got, tensors.values(key), TOLERANCE);
    }
}
