//! What a config asks for that this crate does not do.

use serde_json::Value;

use crate::{
    class::SchedulerClass,
    config::SchedulerConfig,
    error::{Result, SchedulerError},
};

/// Keys that published configs carry and that change nothing for the classes implemented here.
const UNUSED: &[&str] = &[
    "tensor_format",
    "timestep_values",
    "noise_sampler_seed",
    "original_inference_steps",
    "timestep_scaling",
    // Parameters of choices that are refused when switched on.
    "flow_shift",
    "time_shift_type",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
];

impl SchedulerConfig {
    /// Checks everything that does not depend on the number of steps.
    ///
    /// Keys that begin with an underscore, fields of other classes and keys that are known to have no effect pass; so do unknown keys that are switched
    /// off (`null`, `false`, `0`, empty).
    ///
    /// # Errors
    /// The first finding: a class, field or value that is not supported, or betas out of range.
    pub fn validate(&self) -> Result<()> {
        let class = self.class()?;
        self.refuse_unknown_keys(class)?;
        self.refuse_unsupported_spacings(class)?;
        (class.check)(self)?;
        self.sigma_spacing(class)?;
        self.clipping(class)?;
        self.betas().map(|_| ())
    }

    fn refuse_unknown_keys(&self, class: &SchedulerClass) -> Result<()> {
        for (key, value) in &self.other {
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Bool(true) => key == "predict_epsilon",
                Value::Number(number) => number.as_f64() == Some(0.0),
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
            };
            let asks_for_x0 = key == "predict_epsilon" && *value == Value::Bool(false);
            if key.starts_with('_') || UNUSED.contains(&key.as_str()) || (off && !asks_for_x0) {
                continue;
            }
            let way_out = match key.as_str() {
                "predict_epsilon" => "write `\"prediction_type\": \"sample\"` instead",
                "solver_p" => "UniPC's own predictor is the only one; remove the key",
                "use_dynamic_shifting" | "shift_terminal" | "shift" => "flow-matching schedules are not supported",
                _ => "the key is not known to us and may change the samples; remove it if it does not",
            };
            return Err(unsupported(class, key, value, way_out));
        }
        Ok(())
    }

    fn refuse_unsupported_spacings(&self, class: &SchedulerClass) -> Result<()> {
        let on = Value::Bool(true);
        if self.use_beta_sigmas == Some(true) && !class.sigma_spacings.is_empty() {
            return Err(unsupported(class, "use_beta_sigmas", &on, "use_karras_sigmas or use_exponential_sigmas are"));
        }
        if self.use_flow_sigmas == Some(true) {
            return Err(unsupported(class, "use_flow_sigmas", &on, "flow-matching schedules are not supported"));
        }
        Ok(())
    }
}

fn unsupported(class: &SchedulerClass, field: &str, value: &Value, way_out: &str) -> SchedulerError {
    SchedulerError::Unsupported { class: class.class_name.into(), field: field.into(), value: value.to_string(), way_out: way_out.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn finding(config: Value) -> std::result::Result<(), String> {
        serde_json::from_value::<SchedulerConfig>(config).unwrap().validate().map_err(|error| error.to_string())
    }

    #[test]
    fn published_configs_pass() {
        for config in [
            json!({"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                   "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
                   "clip_sample": false}),
            json!({"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
                   "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true,
                   "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false}),
            json!({"_class_name": "UniPCMultistepScheduler", "solver_p": null, "disable_corrector": [], "flow_shift": 1.0, "use_dynamic_shifting": false,
                   "time_shift_type": "exponential", "shift_terminal": null}),
            json!({"_class_name": "DDIMScheduler", "predict_epsilon": true, "use_beta_sigmas": true, "variance_type": "learned"}),
        ] {
            finding(config).unwrap();
        }
    }

    #[test]
    fn what_would_change_the_samples_is_named_with_its_value() {
        for (config, field, value) in [
            (json!({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": true}), "use_beta_sigmas", "true"),
            (json!({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}), "use_flow_sigmas", "true"),
            (json!({"_class_name": "DDPMScheduler", "variance_type": "learned"}), "variance_type", "learned"),
            (json!({"_class_name": "DDIMScheduler", "predict_epsilon": false}), "predict_epsilon", "false"),
            (json!({"_class_name": "DDIMScheduler", "shift": 3.0}), "shift", "3.0"),
            (json!({"_class_name": "DDIMScheduler", "warp": "hard"}), "warp", "hard"),
            (json!({"_class_name": "DDIMScheduler", "clip_sample_range": -1.0}), "clip_sample_range", "-1"),
            (
                json!({"_class_name": "DDIMScheduler", "thresholding": true, "dynamic_thresholding_ratio": 1.5}),
                "dynamic_thresholding_ratio",
                "1.5",
            ),
        ] {
            let message = finding(config).unwrap_err();
            assert!(message.contains(&format!("`{field}`")) && message.contains(value), "{message}");
        }
    }
}
