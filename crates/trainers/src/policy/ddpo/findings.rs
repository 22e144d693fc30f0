//! What cannot work among the knobs of `[algo.ddpo]`.

use vp_core::config::Validate;

use super::{Ddpo, Objective};
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::policy::advantages::AdvantagesConfig;
use crate::policy::rollout::NoiseWindow;
use crate::regularizer::RegularizerConfig;

impl Ddpo {
    fn division_findings(&self, accumulation: usize, findings: &mut Vec<String>) {
        let images = self.num_images();
        let epoch = format!(
            "an epoch has {images} images (sample_batch_size {} x num_batches_per_epoch {})",
            self.sample_batch_size, self.num_batches_per_epoch
        );
        let update = self.train_batch_size * accumulation;
        if !images.is_multiple_of(self.images_per_prompt) {
            findings
                .push(format!("{epoch}, which algo.ddpo.images_per_prompt {} does not divide; change one of them", self.images_per_prompt));
        }
        if !images.is_multiple_of(update) {
            findings.push(format!(
                "{epoch}, which an update of {update} (algo.ddpo.train_batch_size {} x optimizer.gradient_accumulation_steps {accumulation}) does not divide; change one of them",
                self.train_batch_size
            ));
        } else if self.objective == Objective::ScoreFunction && self.num_inner_epochs.saturating_mul(images) != update {
            findings.push(format!(
                "algo.ddpo.objective score_function allows one update per rollout, and there are {}: {epoch}, an update takes {update}; raise \
                 optimizer.gradient_accumulation_steps, or choose importance_sampling",
                self.num_inner_epochs * images / update
            ));
        }
        if matches!(self.advantages, AdvantagesConfig::Group(_)) && self.images_per_prompt < 2 {
            findings.push("algo.ddpo.advantages.group compares images of one prompt; images_per_prompt is 1, expected at least 2".into());
        }
        if self.share_initial_latents && self.images_per_prompt < 2 {
            findings.push(
                "algo.ddpo.share_initial_latents needs several images per prompt; images_per_prompt is 1, expected at least 2".into(),
            );
        }
    }

    fn window_findings(&self, steps: usize, findings: &mut Vec<String>) {
        let Some(NoiseWindow { size, min_step, max_step }) = self.noise_window else { return };
        if min_step > max_step || max_step >= steps || !(1..=max_step - min_step + 1).contains(&size) {
            findings.push(format!(
                "algo.ddpo.noise_window is {size} of the steps {min_step}..={max_step}; expected min_step <= max_step <= {}, the last of {steps} \
                 steps, and a size of 1 to max_step - min_step + 1",
                steps.saturating_sub(1)
            ));
        }
        if !self.share_initial_latents {
            findings.push(
                "algo.ddpo.noise_window lets the images of a prompt differ in the noise of its steps alone, so they have to start alike; \
                 expected share_initial_latents = true"
                    .into(),
            );
        }
    }
}

impl Algorithm for Ddpo {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let counts = self.counts();
        self.epoch_knobs(config, &counts).findings(config, findings);
        let positive = [("clip_range", self.clip_range), ("adv_clip_max", self.adv_clip_max)];
        for (name, value) in positive.into_iter().filter(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            findings.push(format!("algo.ddpo.{name} is {value}; expected a number above 0"));
        }
        if !(self.kl_weight >= 0.0 && self.kl_weight.is_finite()) {
            findings.push(format!("algo.ddpo.kl_weight is {}; expected a number of at least 0", self.kl_weight));
        }
        if let Some(kl) = &self.kl {
            let watched: Vec<&str> = config.watch.iter().map(|reward| reward.name()).collect();
            kl.findings(self.kl_weight, &watched, findings);
        }
        self.objective.findings(findings);
        self.advantages.findings(findings);
        self.window_findings(config.num_inference_steps(), findings);
        let accumulation = config.optimizer.gradient_accumulation_steps;
        if counts.iter().all(|(_, count)| *count > 0) && accumulation > 0 {
            self.division_findings(accumulation, findings);
        }
        if let Some(regularizer @ RegularizerConfig::BasePredictions(_)) = &config.regularizer {
            findings.push(regularizer.unused_by("ddpo"));
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}
