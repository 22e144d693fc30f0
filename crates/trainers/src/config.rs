//! The configuration of `train`: one section an idea, named by the choice where there is one.

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vp_core::config::Validate;
use vp_core::noise::Noise;
use vp_evaluation::sentinel::SentinelConfig;
use vp_models::denoiser::Denoiser;
use vp_models::lora::FACTORS;
use vp_models::pipeline::{Pipeline, Trainable};
use vp_rewards::RewardConfig;

use crate::Error;
use crate::data::preferences::PreferencesSection;
use crate::data::rankings::RankingsSection;
use crate::direct::align_prop::AlignProp;
use crate::direct::draft::Draft;
use crate::direct::drtune::DrTune;
use crate::direct::refl::Refl;
use crate::optim::{EmaConfig, LrSchedulerConfig};
use crate::policy::d3po::D3po;
use crate::policy::ddpo::Ddpo;
use crate::regularizer::RegularizerConfig;
use crate::reward_model::RewardModel;
use crate::sections::{
    CheckpointSection, DataSection, GuardSection, LoraSection, ModelSection, OptimizerSection, PreviewSection, PromptsSection, RunSection,
    SchedulerSection, Settings,
};
use crate::supervised::dpo::Dpo;
use crate::supervised::sft::Sft;
use crate::supervised::vae::Vae;

vp_core::registry! {
    /// The `[algo.<name>]` section.
    pub enum AlgorithmConfig {
        /// Reward feedback learning: the reward, back-propagated through one late denoising step.
        Refl = "refl" => Refl,
        /// DRaFT-K and DRaFT-LV: the reward, back-propagated through the last K steps of sampling.
        Draft = "draft" => Draft,
        /// AlignProp: the reward, back-propagated through the whole chain, randomly truncated.
        AlignProp = "align_prop" => AlignProp,
        /// DRTune: the reward, back-propagated to spaced steps of the whole chain past the network's Jacobian.
        DrTune = "drtune" => DrTune,
        /// Policy gradients over whole sampling trajectories: any reward, differentiable or not.
        Ddpo = "ddpo" => Ddpo,
        /// Two trajectories of a prompt, the better preferred at every step, against the base model.
        D3po = "d3po" => D3po,
        /// Diffusion-DPO: the denoising losses of a chosen and a rejected image, against those of the frozen base model.
        Dpo = "dpo" => Dpo,
        /// Supervised fine-tuning: the denoising loss of UNet, text encoder or both on captioned images.
        Sft = "sft" => Sft,
        /// The autoencoder: reconstruction, edges and KL on images.
        Vae = "vae" => Vae,
        /// A reward model: Bradley-Terry on ranked images, for BLIP with a head (VP-Score) or CLIP; `train-reward` for short.
        RewardModel = "reward_model" => RewardModel,
    }
}

impl AlgorithmConfig {
    /// Whether the reward's gradient with respect to the images is used.
    pub fn needs_gradient(&self) -> bool {
        match self {
            Self::Refl(_) | Self::Draft(_) | Self::AlignProp(_) | Self::DrTune(_) => true,
            Self::Ddpo(_) | Self::D3po(_) | Self::Sft(_) | Self::Vae(_) | Self::Dpo(_) | Self::RewardModel(_) => false,
        }
    }

    /// Backward passes of one minibatch: a policy gradient makes one a timestep.
    pub fn backwards_per_minibatch(&self, num_inference_steps: usize) -> usize {
        match self {
            Self::Ddpo(ddpo) => ddpo.trained_steps(num_inference_steps),
            Self::D3po(d3po) => d3po.trained_steps(num_inference_steps),
            _ => 1,
        }
    }

    /// Images that are kept with their whole trajectories, where they are.
    pub fn images_kept(&self) -> Option<usize> {
        match self {
            Self::Ddpo(ddpo) => Some(ddpo.images()),
            Self::D3po(d3po) => Some(d3po.images()),
            _ => None,
        }
    }
}

/// A whole `train` configuration. Which of the optional sections must be there is the algorithm's to say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// `[run]`.
    pub run: RunSection,
    /// `[model]`.
    pub model: ModelSection,
    /// `[lora]`; with its defaults where it is absent, and switched off by `model.trainable`.
    pub lora: Option<LoraSection>,
    /// `[algo.<name>]`.
    pub algo: AlgorithmConfig,
    /// `[data]`.
    pub data: Option<DataSection>,
    /// `[preferences]`.
    pub preferences: Option<PreferencesSection>,
    /// `[rankings]`.
    pub rankings: Option<RankingsSection>,
    /// `[prompts]`.
    pub prompts: Option<PromptsSection>,
    /// `[scheduler]`.
    pub scheduler: Option<SchedulerSection>,
    /// `[reward.<name>]`.
    pub reward: Option<RewardConfig>,
    /// `[[watch]]`, each with a `[watch.<name>]`: rewards that are looked at and not trained on.
    #[serde(default)]
    pub watch: Vec<RewardConfig>,
    /// `[regularizer.<name>]`.
    pub regularizer: Option<RegularizerConfig>,
    /// `[preview]`.
    pub preview: Option<PreviewSection>,
    /// `[optimizer]`.
    pub optimizer: OptimizerSection,
    /// `[lr_scheduler.<name>]`.
    #[serde(default)]
    pub lr_scheduler: LrSchedulerConfig,
    /// `[ema]`; without it the last weights are the result.
    pub ema: Option<EmaConfig>,
    /// `[checkpoint]`.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// `[guard]`.
    #[serde(default)]
    pub guard: GuardSection,
    /// `[sentinel]`: rules that tell when a reward is exploited, looked at whenever a preview is drawn.
    pub sentinel: Option<SentinelConfig>,
}

/// The sections that an algorithm driven by a reward needs.
#[derive(Debug, Clone, Copy)]
pub struct RewardDriven<'a> {
    /// `[prompts]`.
    pub prompts: &'a PromptsSection,
    /// `[scheduler]`.
    pub scheduler: &'a SchedulerSection,
    /// `[reward.<name>]`.
    pub reward: &'a RewardConfig,
    /// `[preview]`.
    pub preview: &'a PreviewSection,
}

impl TrainConfig {
    /// What the run itself needs to know.
    pub fn settings(&self) -> Settings {
        let (trainable, micro_batches) = (self.trainable(), self.micro_batches());
        let Self { run, optimizer, lr_scheduler, ema, checkpoint, guard, sentinel, preview, data, preferences, rankings, .. } =
            self.clone();
        let every = [data.map(|data| data.validation_every), preferences.map(|pairs| pairs.validation_every)];
        let validation_every = every.into_iter().flatten().next().or(rankings.map(|rankings| rankings.validation_every));
        let preview_every = validation_every.or(preview.map(|preview| preview.every)).unwrap_or(0);
        Settings { run, trainable, micro_batches, optimizer, lr_scheduler, ema, checkpoint, guard, sentinel, preview_every }
    }

    /// The LoRA that trains, unless whole weights do.
    pub fn lora(&self) -> Option<LoraSection> {
        let whole = self.model.trainable.is_some() || matches!(self.algo, AlgorithmConfig::Vae(_) | AlgorithmConfig::RewardModel(_));
        (!whole).then(|| self.lora.clone().unwrap_or_default())
    }

    /// What trains, in words.
    pub fn what_trains(&self) -> String {
        match self.lora() {
            Some(lora) => format!("a LoRA of rank {}, alpha {}", lora.rank, lora.alpha()),
            None => format!("whole weights that match {:?}", self.trainable()),
        }
    }

    /// The base model, on the plain device, and the model that trains: with factors attached where a LoRA does.
    ///
    /// # Errors
    /// When a pattern is no regular expression, or a LoRA's matches no layer.
    pub fn models<D: Denoiser>(&self, pipeline: &Pipeline, unet: D, noise: &Noise) -> Result<(Trainable<D>, Trainable<D>), Error> {
        if let Some(lora) = self.lora() {
            return Ok(pipeline.adapted(unet, &lora.lora()?, noise)?);
        }
        let pattern = Regex::new(&self.trainable()).map_err(|error| Error::Config(format!("model.trainable: {error}")))?;
        let base = pipeline.trainable(unet, &pattern);
        Ok((base.clone(), base))
    }

    /// Matches the names of the parameters that train.
    fn trainable(&self) -> String {
        match (&self.model.trainable, self.lora()) {
            (Some(pattern), _) => pattern.clone(),
            (None, Some(_)) => FACTORS.into(),
            (None, None) => ".".into(),
        }
    }

    /// Micro-batches an update.
    fn micro_batches(&self) -> usize {
        let steps = self.scheduler.as_ref().map_or(1, |scheduler| scheduler.num_inference_steps);
        self.optimizer.gradient_accumulation_steps * self.algo.backwards_per_minibatch(steps)
    }

    /// The sections of a reward-driven algorithm; the names of those that are missing, otherwise.
    ///
    /// # Errors
    /// When one is missing.
    pub fn reward_driven(&self) -> Result<RewardDriven<'_>, Vec<&'static str>> {
        match (&self.prompts, &self.scheduler, &self.reward, &self.preview) {
            (Some(prompts), Some(scheduler), Some(reward), Some(preview)) => Ok(RewardDriven { prompts, scheduler, reward, preview }),
            (prompts, scheduler, reward, preview) => {
                let sections = [
                    ("[prompts]", prompts.is_none()),
                    ("[scheduler]", scheduler.is_none()),
                    ("[reward.<name>]", reward.is_none()),
                    ("[preview]", preview.is_none()),
                ];
                Err(sections.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect())
            }
        }
    }

    /// Where this config and the one a run was started with differ in something that touches the weights, one line each.
    /// What is drawn, saved and tolerated on the way may change, and whether memory is bought with time.
    pub fn differences(&self, saved: &Value) -> Vec<String> {
        const FREE: [&str; 8] = [
            "checkpoint",
            "guard",
            "sentinel",
            "preview",
            "data.validation_every",
            "preferences.validation_every",
            "rankings.validation_every",
            "model.gradient_checkpointing",
        ];
        let ours = serde_json::to_value(self).expect("a config is JSON");
        let mut found = Vec::new();
        compare("", &ours, saved, &mut found);
        found.retain(|line| !FREE.iter().any(|section| line.starts_with(section)));
        found
    }
}

fn compare(path: &str, ours: &Value, saved: &Value, found: &mut Vec<String>) {
    let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match (ours, saved) {
        (Value::Object(ours), Value::Object(saved)) => {
            let keys: std::collections::BTreeSet<&String> = ours.keys().chain(saved.keys()).collect();
            for key in keys {
                compare(&below(key), ours.get(key).unwrap_or(&Value::Null), saved.get(key).unwrap_or(&Value::Null), found);
            }
        }
        _ if ours != saved => found.push(format!("{path} is {ours}, the run has {saved}")),
        _ => {}
    }
}

impl Validate for TrainConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if let Some(lora) = &self.lora {
            lora.findings(findings);
        }
        let sections: [&dyn Validate; 4] = [&self.run, &self.model, &self.optimizer, &self.checkpoint];
        sections.iter().for_each(|section| section.findings(findings));
        let optional: [Option<&dyn Validate>; 8] = [
            self.rankings.as_ref().map(|section| section as _),
            self.data.as_ref().map(|section| section as _),
            self.preferences.as_ref().map(|section| section as _),
            self.prompts.as_ref().map(|section| section as _),
            self.scheduler.as_ref().map(|section| section as _),
            self.preview.as_ref().map(|section| section as _),
            self.regularizer.as_ref().map(|section| section as _),
            self.reward.as_ref().map(|section| section as _),
        ];
        optional.iter().flatten().for_each(|section| section.findings(findings));
        self.watch.iter().for_each(|reward| reward.findings(findings));
        if let Some(ema) = &self.ema {
            ema.findings(findings);
        }
        self.sentinel_findings(findings);
        match &self.algo {
            AlgorithmConfig::Refl(refl) => {
                self.reward_driven_findings(findings);
                if let Some(scheduler) = &self.scheduler {
                    refl.findings(scheduler, findings);
                }
            }
            AlgorithmConfig::Draft(draft) => {
                self.reward_driven_findings(findings);
                self.scheduler.iter().for_each(|scheduler| draft.findings(scheduler, findings));
            }
            AlgorithmConfig::AlignProp(align_prop) => {
                self.reward_driven_findings(findings);
                self.scheduler.iter().for_each(|scheduler| align_prop.findings(scheduler, findings));
            }
            AlgorithmConfig::DrTune(drtune) => {
                self.reward_driven_findings(findings);
                self.scheduler.iter().for_each(|scheduler| drtune.findings(scheduler, findings));
            }
            AlgorithmConfig::Ddpo(ddpo) => {
                self.policy_gradient_findings(findings);
                if let Some(scheduler) = &self.scheduler {
                    ddpo.findings(scheduler, self.optimizer.gradient_accumulation_steps, findings);
                }
            }
            AlgorithmConfig::D3po(d3po) => {
                self.policy_gradient_findings(findings);
                if let Some(scheduler) = &self.scheduler {
                    d3po.findings(scheduler, self.optimizer.gradient_accumulation_steps, findings);
                }
            }
            AlgorithmConfig::Sft(sft) => {
                self.supervised_findings(findings);
                sft.findings(findings);
            }
            AlgorithmConfig::Vae(vae) => {
                self.supervised_findings(findings);
                if self.preview.is_some() {
                    findings.push("[preview] draws from prompts, which algo.vae does not; its images are the held-out ones".into());
                }
                if self.lora.is_some() {
                    findings.push("[lora] is not used by [algo.vae], which trains whole weights; remove it".into());
                }
                vae.findings(findings);
            }
            AlgorithmConfig::Dpo(dpo) => {
                self.supervised_findings(findings);
                dpo.findings(findings);
            }
            AlgorithmConfig::RewardModel(reward_model) => {
                self.reward_model_findings(findings);
                reward_model.findings(findings);
            }
        }
    }
}

impl TrainConfig {
    fn supervised_findings(&self, findings: &mut Vec<String>) {
        let name = self.algo.name();
        let is_dpo = matches!(self.algo, AlgorithmConfig::Dpo(_));
        if self.model.initialize && is_dpo {
            findings.push("model.initialize is not used by [algo.dpo]: its reference is the model it starts from; see sft".into());
        } else if self.model.initialize && self.lora().is_some() {
            findings.push("model.initialize draws weights that a LoRA would then freeze; set model.trainable".into());
        }
        let (data, pairs) = (("data", self.data.is_some()), ("preferences", self.preferences.is_some()));
        let ((needed, there), (other, other_there)) = if is_dpo { (pairs, data) } else { (data, pairs) };
        if !there {
            findings.push(format!("[algo.{name}] needs [{needed}]"));
        }
        let other = format!("[{other}]");
        let unused = [
            ("[rankings]", self.rankings.is_some()),
            (other.as_str(), other_there),
            ("[prompts]", self.prompts.is_some()),
            ("[scheduler]", self.scheduler.is_some()),
            ("[reward.<name>]", self.reward.is_some()),
            ("[[watch]]", !self.watch.is_empty()),
            ("[regularizer.<name>]", self.regularizer.is_some()),
        ];
        let unused = unused.into_iter().filter(|(_, there)| *there);
        findings.extend(unused.map(|(section, _)| format!("{section} is not used by [algo.{name}]; remove it")));
        if self.preview.as_ref().is_some_and(|preview| preview.every > 0) {
            findings.push(format!("preview.every is not used by [algo.{name}]; images are drawn whenever {needed}.validation_every says"));
        }
    }

    fn sentinel_findings(&self, findings: &mut Vec<String>) {
        let Some(sentinel) = &self.sentinel else { return };
        if let Err(error) = sentinel.validate() {
            findings.push(format!("sentinel: {error}"));
        }
        if self.reward.is_none() {
            findings.push(format!("[sentinel] is not used by [algo.{}], which has no reward to exploit; remove it", self.algo.name()));
        }
    }

    fn reward_model_findings(&self, findings: &mut Vec<String>) {
        if self.rankings.is_none() {
            findings.push("[algo.reward_model] needs [rankings]".into());
        }
        let unused = [
            ("[lora]", self.lora.is_some()),
            ("[data]", self.data.is_some()),
            ("[preferences]", self.preferences.is_some()),
            ("[prompts]", self.prompts.is_some()),
            ("[scheduler]", self.scheduler.is_some()),
            ("[reward.<name>]", self.reward.is_some()),
            ("[[watch]]", !self.watch.is_empty()),
            ("[regularizer.<name>]", self.regularizer.is_some()),
            ("[preview]", self.preview.is_some()),
            ("model.size", self.model.size.is_some()),
        ];
        let unused = unused.into_iter().filter(|(_, there)| *there);
        findings.extend(unused.map(|(section, _)| format!("{section} is not used by [algo.reward_model]; remove it")));
    }

    fn policy_gradient_findings(&self, findings: &mut Vec<String>) {
        self.reward_driven_findings(findings);
        let name = self.algo.name();
        match (&self.regularizer, &self.algo) {
            (None, _) | (Some(RegularizerConfig::Images(_) | RegularizerConfig::None(_)), AlgorithmConfig::Ddpo(_)) => {}
            (Some(regularizer), _) => findings.push(format!(
                "[regularizer.{}] is not used by [algo.{name}], whose own tie to the base model is a knob of it; remove it",
                regularizer.name()
            )),
        }
    }

    fn reward_driven_findings(&self, findings: &mut Vec<String>) {
        let name = self.algo.name();
        if self.data.is_some() {
            findings.push(format!("[data] is not used by [algo.{name}]; captioned images go into [regularizer.images]"));
        }
        for (section, there) in [("[preferences]", self.preferences.is_some()), ("[rankings]", self.rankings.is_some())] {
            if there {
                findings.push(format!("{section} is not used by [algo.{name}]; remove it"));
            }
        }
        if self.model.initialize {
            findings.push(format!("model.initialize is not used by [algo.{name}]: a reward cannot teach random weights to draw; see sft"));
        }
        if let Err(missing) = self.reward_driven() {
            findings.push(format!("[algo.{}] needs {}", self.algo.name(), missing.join(", ")));
        }
        if self.watch.is_empty() {
            let example = "add a [[watch]] with a reward that is not trained on, e.g. [watch.saturation]";
            findings.push(format!("nothing is watched; {example}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_named_by_field() {
        let mut found = Vec::new();
        let (ours, saved) = (json!({ "a": { "b": 1, "c": [2] }, "d": null }), json!({ "a": { "b": 3, "c": [2] }, "e": 5 }));
        compare("", &ours, &saved, &mut found);
        assert_eq!(found, ["a.b is 1, the run has 3", "e is null, the run has 5"]);
    }
}
