//! What diffusers' `scheduler_config.json` says.
//!
//! Only what a file states explicitly is stored; what it leaves out takes the *class's* default when a sampler is built. That is how diffusers'
//! `from_config` behaves when one class is built from another's config: stated fields carry over, defaults do not.

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use vp_core::input_file;

use crate::{
    class::SchedulerClass,
    error::{Result, SchedulerError},
};

/// How β_t runs from `beta_start` to `beta_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Equal steps in β.
    Linear,
    /// Equal steps in √β; Stable Diffusion's.
    ScaledLinear,
    /// The cosine ᾱ of Improved DDPM (Nichol & Dhariwal, eq. 17), β capped at 0.999.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
    /// GeoDiff's sigmoid from -6 to 6.
    Sigmoid,
    /// ᾱ(t) = exp(-12 t).
    Exp,
    /// A Laplace-distributed log-SNR.
    Laplace,
}

/// What the network was trained to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise ε.
    Epsilon,
    /// v = √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho, 2202.00512).
    VPrediction,
    /// x_0 itself.
    Sample,
}

/// Which training timesteps are visited (Lin et al., 2305.08891, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly from the first to the last, both included.
    Linspace,
    /// Multiples of T // N, plus `steps_offset`.
    Leading,
    /// Multiples of T / N counted down from the end.
    Trailing,
}

/// Whether Euler's network is told the timestep or, for v-prediction, ln(σ) / 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepType {
    /// Training timesteps.
    Discrete,
    /// EDM's c_noise.
    Continuous,
}

/// DDPM's reverse variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior variance β̃_t.
    FixedSmall,
    /// The same, reached through its logarithm.
    FixedSmallLog,
    /// β_t.
    FixedLarge,
    /// The same, reached through its logarithm.
    FixedLargeLog,
    /// Predicted by the network; refused.
    Learned,
    /// Interpolated by the network; refused.
    LearnedRange,
}

/// How σ between two training timesteps is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterpolationType {
    /// Linear in σ.
    Linear,
    /// Equal steps in ln σ from the largest to the smallest.
    LogLinear,
}

/// Where the last step of a σ-sampler ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmasType {
    /// At σ = 0.
    Zero,
    /// At the smallest σ of training.
    SigmaMin,
}

/// Which integral DPM-Solver discretises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlgorithmType {
    /// The noise prediction's (2206.00927).
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// The data prediction's (2211.01095).
    #[serde(rename = "dpmsolver++")]
    DpmSolverPlusPlus,
    /// Its reverse SDE, noise prediction.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmSolver,
    /// Its reverse SDE, data prediction.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPlusPlus,
    /// DEIS's own; read as `dpmsolver++`, as diffusers does.
    #[serde(rename = "deis")]
    Deis,
}

/// The second-order formula. DPM-Solver knows the first two, UniPC the next two; each reads the other's as its own default, as diffusers
/// does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// DPM-Solver's midpoint rule.
    Midpoint,
    /// DPM-Solver's Heun rule.
    Heun,
    /// UniPC with B(h) = h.
    Bh1,
    /// UniPC with B(h) = e^h - 1.
    Bh2,
    /// DEIS's.
    Logrho,
}

/// One list of fields makes the struct, the reader and the writer.
macro_rules! scheduler_config {
    ($($(#[$doc:meta])* $field:ident: $type:ty, $expected:literal;)*) => {
        /// The explicit contents of a `scheduler_config.json`; `None` means "the class's default".
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
        pub struct SchedulerConfig {
            /// `_class_name`; kept as text, so that a folder with a class we do not implement can still be built as one we do.
            pub class_name: String,
            $($(#[$doc])* pub $field: Option<$type>,)*
            /// Every other key, written back as it was read.
            pub other: Map<String, Value>,
        }

        impl SchedulerConfig {
            /// A config of this class with nothing but defaults.
            pub fn new(class: &SchedulerClass) -> Self {
                Self { class_name: class.class_name.into(), $($field: None,)* other: Map::new() }
            }
        }

        impl TryFrom<Map<String, Value>> for SchedulerConfig {
            type Error = SchedulerError;

            fn try_from(mut map: Map<String, Value>) -> Result<Self> {
                Ok(Self {
                    class_name: take(&mut map, "_class_name", "the name of a diffusers scheduler class")?.ok_or_else(|| SchedulerError::Field {
                        field: "_class_name".into(),
                        value: "(missing)".into(),
                        expected: "the name of a diffusers scheduler class, such as \"DDIMScheduler\"".into(),
                    })?,
                    $($field: take(&mut map, stringify!($field), $expected)?,)*
                    other: map,
                })
            }
        }

        impl From<SchedulerConfig> for Map<String, Value> {
            fn from(config: SchedulerConfig) -> Self {
                let mut map = Map::new();
                map.insert("_class_name".into(), Value::String(config.class_name));
                for (key, value) in config.other.iter().filter(|(key, _)| key.starts_with('_')) {
                    map.insert(key.clone(), value.clone());
                }
                $(if let Some(value) = config.$field {
                    // Numbers that JSON cannot hold (the -inf default of `lambda_min_clipped`) are never stored as explicit.
                    map.insert(stringify!($field).into(), serde_json::to_value(value).unwrap_or(Value::Null));
                })*
                for (key, value) in config.other {
                    map.entry(key).or_insert(value);
                }
                map
            }
        }
    };
}

scheduler_config! {
    /// T, the number of noise levels in training; default 1000.
    num_train_timesteps: usize, "a whole number";
    /// β_1; each class has its own default.
    beta_start: f64, "a number";
    /// β_T; each class has its own default.
    beta_end: f64, "a number";
    /// Default `linear`.
    beta_schedule: BetaSchedule, "linear, scaled_linear, squaredcos_cap_v2, sigmoid, exp or laplace";
    /// The betas themselves, instead of the three fields above.
    trained_betas: Vec<f64>, "a list of numbers";
    /// Default `epsilon`.
    prediction_type: PredictionType, "epsilon, v_prediction or sample";
    /// Each class has its own default.
    timestep_spacing: TimestepSpacing, "linspace, leading or trailing";
    /// Default `discrete`; Euler only.
    timestep_type: TimestepType, "discrete or continuous";
    /// Added to every timestep of `leading` spacing; default 0, Stable Diffusion's 1.
    steps_offset: usize, "a whole number";
    /// Shift the table so that ᾱ_T = 0; default false.
    rescale_betas_zero_snr: bool, "true or false";
    /// Whether DDIM and PNDM end at ᾱ = 1 rather than ᾱ_0; default true for DDIM, false for PNDM.
    set_alpha_to_one: bool, "true or false";
    /// Clamp the predicted x_0; each class that has the field has its own default.
    clip_sample: bool, "true or false";
    /// Clamp it to plus or minus this; default 1.
    clip_sample_range: f64, "a number";
    /// Imagen's dynamic thresholding of the predicted x_0; default false.
    thresholding: bool, "true or false";
    /// The quantile of |x_0| that thresholding clamps to; default 0.995.
    dynamic_thresholding_ratio: f64, "a number";
    /// The largest value that thresholding clamps to; default 1.
    sample_max_value: f64, "a number";
    /// DDPM's variance; default `fixed_small`.
    variance_type: VarianceType, "fixed_small, fixed_small_log, fixed_large or fixed_large_log";
    /// Default `linear`; Euler only.
    interpolation_type: InterpolationType, "linear or log_linear";
    /// Space σ as Karras et al. (2206.00364, eq. 5); default false.
    use_karras_sigmas: bool, "true or false";
    /// Space σ evenly in ln σ; default false.
    use_exponential_sigmas: bool, "true or false";
    /// Space σ by quantiles of a beta distribution; refused when true.
    use_beta_sigmas: bool, "true or false";
    /// Space σ evenly in λ; default false; DPM-Solver only.
    use_lu_lambdas: bool, "true or false";
    /// Rectified-flow σ; refused when true.
    use_flow_sigmas: bool, "true or false";
    /// The smallest σ of a Karras or exponential spacing; default: that of the table.
    sigma_min: f64, "a number";
    /// The largest σ of such a spacing; default: that of the table.
    sigma_max: f64, "a number";
    /// Default `zero`.
    final_sigmas_type: FinalSigmasType, "zero or sigma_min";
    /// Default `dpmsolver++`.
    algorithm_type: AlgorithmType, "dpmsolver, dpmsolver++, sde-dpmsolver or sde-dpmsolver++";
    /// Default 2.
    solver_order: usize, "1, 2 or 3";
    /// Default `midpoint` (DPM-Solver), `bh2` (UniPC).
    solver_type: SolverType, "midpoint, heun, bh1 or bh2";
    /// Lower the order over the last steps; default true.
    lower_order_final: bool, "true or false";
    /// Take the last step at first order, whatever the number of steps; default false.
    euler_at_final: bool, "true or false";
    /// Leave out timesteps whose λ lies below this; default -inf.
    lambda_min_clipped: f64, "a number";
    /// Leave out PNDM's Runge-Kutta warm-up; default false, Stable Diffusion's true.
    skip_prk_steps: bool, "true or false";
    /// UniPC on the data prediction rather than the noise prediction; default true.
    predict_x0: bool, "true or false";
    /// Steps after which UniPC does not correct; default none.
    disable_corrector: Vec<usize>, "a list of step indices";
}

/// Removes and reads one field; `null` and the `-Infinity` that Python writes count as absent.
fn take<T: DeserializeOwned>(map: &mut Map<String, Value>, field: &str, expected: &str) -> Result<Option<T>> {
    match map.shift_remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let shown = value.to_string();
            serde_json::from_value(value).map(Some).map_err(|_| SchedulerError::Field {
                field: field.into(),
                value: shown,
                expected: expected.into(),
            })
        }
    }
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// Each names the file: unreadable, not JSON (line and column), a field of the wrong type, no `_class_name`.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = input_file::read_regular_to_string(path).map_err(|source| SchedulerError::Read { path: path.into(), source })?;
        let map: Map<String, Value> =
            serde_json::from_str(&without_negative_infinity(&text)).map_err(|source| SchedulerError::Json { path: path.into(), source })?;
        Self::try_from(map).map_err(|source| SchedulerError::InFile { path: path.into(), source: Box::new(source) })
    }

    /// Writes it back, in a form diffusers' `from_pretrained` reads.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut text = format!("{:#}", Value::Object(self.clone().into()));
        text.push('\n');
        std::fs::write(path, text).map_err(|source| SchedulerError::Write { path: path.into(), source })
    }

    /// The same model's noise schedule under another class, like diffusers' `Class.from_config`: explicit fields carry over, defaults are the new
    /// class's.
    pub fn with_class(&self, class: &SchedulerClass) -> Self {
        Self { class_name: class.class_name.into(), ..self.clone() }
    }
}

/// Python writes `-Infinity` for `lambda_min_clipped`, which JSON forbids; `null` means the same default. Text inside strings stays.
fn without_negative_infinity(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        if !in_string && rest.starts_with("-Infinity") {
            // Padded to the same width, so that the parser's columns stay true.
            out.push_str("null     ");
            rest = &rest["-Infinity".len()..];
            continue;
        }
        let mut width = c.len_utf8();
        if in_string && c == '\\' {
            width += rest[width..].chars().next().map_or(0, char::len_utf8);
        } else if c == '"' {
            in_string = !in_string;
        }
        out.push_str(&rest[..width]);
        rest = &rest[width..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ddim, pndm};

    fn parse(text: &str) -> Result<SchedulerConfig> {
        SchedulerConfig::try_from(serde_json::from_str::<Map<String, Value>>(text).unwrap())
    }

    #[test]
    fn explicit_fields_survive_a_round_trip_and_a_change_of_class() {
        let text = r#"{"_class_name":"PNDMScheduler","_diffusers_version":"0.6.0","beta_start":0.00085,"beta_schedule":"scaled_linear","clip_sample":false,
                       "skip_prk_steps":true,"trained_betas":null,"tensor_format":"pt"}"#;
        let config = parse(text).unwrap();
        assert_eq!((config.class().unwrap(), config.beta_start, config.beta_end), (&pndm::CLASS, Some(0.00085), None));
        assert_eq!(config.trained_betas, None);

        let ddim = config.with_class(&ddim::CLASS);
        assert_eq!((ddim.clip_sample, ddim.set_alpha_to_one), (Some(false), None));

        let written = serde_json::to_value(&config).unwrap();
        assert_eq!(written["_diffusers_version"], "0.6.0");
        assert_eq!(written["tensor_format"], "pt");
        assert_eq!(serde_json::from_value::<SchedulerConfig>(written).unwrap(), config);
    }

    #[test]
    fn errors_name_the_field_the_value_and_what_was_expected() {
        let error = parse(r#"{"_class_name":"DDIMScheduler","beta_schedule":"cosine"}"#).unwrap_err().to_string();
        assert!(error.contains("`beta_schedule`") && error.contains("\"cosine\"") && error.contains("squaredcos_cap_v2"), "{error}");
        let error = parse(r#"{"num_train_timesteps":1000}"#).unwrap_err().to_string();
        assert!(error.contains("_class_name"), "{error}");
        let error = parse(r#"{"_class_name":"DEISMultistepScheduler"}"#).unwrap().class().unwrap_err().to_string();
        assert!(error.contains("DEISMultistepScheduler") && error.contains("DDIMScheduler"), "{error}");
    }

    #[test]
    fn pythons_negative_infinity_is_read_and_file_errors_carry_the_path() {
        let path = std::env::temp_dir().join(format!("vp-scheduler-config-{}.json", std::process::id()));
        std::fs::write(
            &path,
            r#"{"_class_name": "DPMSolverMultistepScheduler", "note \"-Infinity": null, "lambda_min_clipped": -Infinity}"#,
        )
        .unwrap();
        let config = SchedulerConfig::read(&path).unwrap();
        assert_eq!(config.lambda_min_clipped, None);
        assert!(config.other.contains_key("note \"-Infinity"));
        config.write(&path).unwrap();
        assert_eq!(SchedulerConfig::read(&path).unwrap(), config);

        for bad in ["{\"_class_name\": ", "[]", r#"{"_class_name": "DDIMScheduler", "beta_start": "x"}"#] {
            std::fs::write(&path, bad).unwrap();
            let error = SchedulerConfig::read(&path).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(SchedulerConfig::read(&path).unwrap_err().to_string().contains(path.to_str().unwrap()));
    }
}
