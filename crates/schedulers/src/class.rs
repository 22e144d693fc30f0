//! What the rest of the crate needs to know about a scheduler class. Each class states it once, in the `CLASS` of its own file.

use crate::{
    config::{AlgorithmType, SchedulerConfig, TimestepSpacing},
    error::Result,
    noise_schedule::{Sampler, Scheduler},
    sigma_schedule::SigmaSpacing,
};

/// A scheduler class of diffusers: which config fields it has, their defaults, and how its sampler is built.
///
/// Fields that a class does not have may stand in its config and are ignored, as in diffusers' `from_config`.
#[derive(Debug)]
pub struct SchedulerClass {
    /// The value of `_class_name`, such as `DDIMScheduler`.
    pub class_name: &'static str,
    /// How its sampler is built, and whether a step needs more than the current sample.
    pub(crate) build: Build,
    /// The default of `beta_start`, β_1.
    pub(crate) beta_start: f64,
    /// The default of `beta_end`, β_T.
    pub(crate) beta_end: f64,
    /// The default of `timestep_spacing`.
    pub(crate) timestep_spacing: TimestepSpacing,
    /// Whether it steps along σ = √((1-ᾱ) / ᾱ) rather than along ᾱ itself.
    pub(crate) steps_along_sigmas: bool,
    /// How its σ can be spaced other than by timesteps (`use_karras_sigmas` and the like).
    pub(crate) sigma_spacings: &'static [SigmaSpacing],
    /// Whether it has the field `rescale_betas_zero_snr`.
    pub(crate) rescale_betas_zero_snr: bool,
    /// Whether it has the field `thresholding`.
    pub(crate) thresholding: bool,
    /// The default of `clip_sample`; `None` if it has no such field.
    pub(crate) clip_sample: Option<bool>,
    /// The default of `algorithm_type`; `None` if it has no such field.
    pub(crate) algorithm_type: Option<AlgorithmType>,
    /// Refuses values of its own fields that are not supported; called before `build`.
    pub(crate) check: fn(&SchedulerConfig) -> Result<()>,
}

/// Builds the sampler of a checked config.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Build {
    /// Each step is a distribution that depends on the current sample alone.
    SingleStep {
        /// Whether the steps draw noise at this `eta`, so that they have a density; the last step may be an exception.
        is_stochastic: fn(eta: f64) -> bool,
        /// From the config, the number of inference steps and `eta`.
        build: fn(&SchedulerConfig, usize, f64) -> Result<Box<dyn Scheduler>>,
    },
    /// Steps depend on earlier model outputs too. From the config and the number of inference steps.
    WithHistory(fn(&SchedulerConfig, usize) -> Result<Box<dyn Sampler>>),
}

impl PartialEq for SchedulerClass {
    fn eq(&self, other: &Self) -> bool {
        self.class_name == other.class_name
    }
}

impl Eq for SchedulerClass {}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use crate::registry::SCHEDULERS;

    /// The only file that may list classes.
    const TABLE: &str = "registry.rs";

    fn without_tests(source: &str) -> &str {
        source.split("#[cfg(test)]").next().unwrap_or_default()
    }

    fn has_class(source: &str) -> bool {
        without_tests(source).contains("static CLASS: SchedulerClass")
    }

    /// The lines, comments and unit tests apart, where a file names a class that is not its own.
    fn foreign_classes(file: &str, source: &str) -> Vec<String> {
        let own = has_class(source);
        let is_foreign = |line: &str| {
            let by_name = SCHEDULERS.iter().any(|entry| line.contains(&format!("\"{}\"", entry.class.class_name)));
            let by_path = line.contains("::CLASS") || line.contains("CLASS as") || (line.contains("CLASS") && !own);
            (by_name && !(own && line.trim_start().starts_with("class_name:"))) || (by_path && file != TABLE)
        };
        let lines = without_tests(source).lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.filter(|line| is_foreign(line)).map(|line| format!("{file}: {}", line.trim())).collect()
    }

    #[test]
    fn a_class_is_named_in_its_own_file_and_in_the_table_alone() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (mut findings, mut classes) = (Vec::new(), 0);
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            let (file, source) = (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap());
            classes += usize::from(has_class(&source));
            findings.extend(foreign_classes(&file, &source));
        }
        assert!(
            findings.is_empty(),
            "these lines name a class that is not their own; let its `CLASS` say what they need to know:\n{}",
            findings.join("\n")
        );
        let mut names: Vec<&str> = SCHEDULERS.iter().map(|entry| entry.class.class_name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(classes, names.len(), "each class has a file of its own and at least one row");
    }

    #[test]
    fn naming_a_foreign_class_is_found() {
        for (file, source) in [
            ("validate.rs", "if *class == crate::ddim::CLASS {"),
            ("validate.rs", "use crate::ddim::{CLASS, ddim};"),
            ("prediction.rs", "let clips = class.class_name == \"HeunDiscreteScheduler\";"),
            (
                "heun.rs",
                "pub(crate) static CLASS: SchedulerClass = SchedulerClass {\n    class_name: \"HeunDiscreteScheduler\",\n};\nlet other = &euler::CLASS;",
            ),
            (TABLE, "let ddim = name == \"DDIMScheduler\";"),
        ] {
            assert_eq!(foreign_classes(file, source).len(), 1, "{source}");
        }
        assert!(foreign_classes("heun.rs", "static CLASS: SchedulerClass = SchedulerClass {\nconfig.clipping(&CLASS)").is_empty());
        assert!(foreign_classes(TABLE, "entry(\"ddim\", &crate::ddim::CLASS, &[], \"\"),\n// CLASS\n#[cfg(test)]\nddim::CLASS").is_empty());
    }
}
