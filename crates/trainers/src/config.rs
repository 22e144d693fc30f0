//! The configuration of `train`, one section per concern. Where there is a choice, the section is named by it: `[algo.refl]`,
//! `[reward.vp_score]`.

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vp_core::config::Validate;
use vp_core::noise::Noise;
use vp_evaluation::sentinel::SentinelConfig;
use vp_models::denoiser::Denoiser;
use vp_models::lora::{FACTORS, LoraWeights};
use vp_models::pipeline::{Pipeline, Trainable};
use vp_rewards::RewardConfig;

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::data::preferences::PreferencesSection;
use crate::data::rankings::RankingsSection;
use crate::optim::{EmaConfig, LrSchedule, LrSchedulerConfig};
use crate::regularizer::RegularizerConfig;
use crate::sections::{
    CheckpointSection, DataSection, Dtype, GuardSection, LoraSection, ModelSection, OptimizerSection, PreviewSection, PromptsSection,
    RunSection, SchedulerSection, Settings, VaeSection,
};

vp_core::registry! {
    /// The `[algo.<name>]` section.
    pub enum AlgorithmConfig: Algorithm {
        /// Reward feedback learning: back-propagates the reward through one late denoising step.
        Refl = "refl" => crate::direct::refl::Refl,
        /// DRaFT-K and DRaFT-LV: back-propagate the reward through the last K steps of sampling.
        Draft = "draft" => crate::direct::draft::Draft,
        /// AlignProp: back-propagates the reward through the sampling chain, truncated at random.
        AlignProp = "align_prop" => crate::direct::align_prop::AlignProp,
        /// DRTune: back-propagates the reward to spaced steps of the sampling chain, bypassing the network's Jacobian.
        DrTune = "drtune" => crate::direct::drtune::DrTune,
        /// SRPO: back-propagates a reward, or its difference between two texts, through one short step from a known noise at any level.
        Srpo = "srpo" => crate::direct::srpo::Srpo,
        /// LeapAlign: back-propagates the reward of a real image through two long steps along its sampling chain.
        LeapAlign = "leap_align" => crate::direct::leap_align::LeapAlign,
        /// Policy gradients over whole sampling trajectories: any reward, differentiable or not.
        Ddpo = "ddpo" => crate::policy::ddpo::Ddpo,
        /// D3PO: of two trajectories of a prompt, makes every step of the better one likelier, relative to the base model.
        D3po = "d3po" => crate::policy::d3po::D3po,
        /// AWM: lowers the denoising loss of better images and raises that of worse ones: any reward, no trajectories kept.
        Awm = "awm" => crate::forward::awm::Awm,
        /// DiffusionNFT: moves the policy from an older one in the direction that tells better images from worse ones: any reward.
        Nft = "nft" => crate::forward::nft::Nft,
        /// DGPO: Diffusion-DPO for a group of images of one prompt, weighed by advantages: any reward; learns from few images.
        Dgpo = "dgpo" => crate::forward::dgpo::Dgpo,
        /// Diffusion-DPO: compares the denoising losses of a chosen and a rejected image with those of the frozen base model.
        Dpo = "dpo" => crate::supervised::dpo::Dpo,
        /// Diffusion-KTO: likes and dislikes of single images, by how the denoising loss differs from that of the frozen base model.
        Kto = "kto" => crate::supervised::kto::Kto,
        /// Supervised fine-tuning: the denoising loss of UNet, text encoder or both on captioned images.
        Sft = "sft" => crate::supervised::sft::Sft,
        /// Training of the autoencoder: reconstruction, edges and KL on images.
        Vae = "vae" => crate::supervised::vae::Vae,
        /// Training of a reward model on ranked images: BLIP with a head (VP-Score) or CLIP; `train-reward` for short.
        RewardModel = "reward_model" => crate::reward_model::RewardModel,
    }
}

impl AlgorithmConfig {
    /// The algorithm of this name with its default knobs; `None` if there is no such algorithm.
    pub fn with_defaults(name: &str) -> Option<Self> {
        serde_json::from_value(serde_json::json!({ name: {} })).ok()
    }
}

/// A whole `train` configuration. The algorithm decides which of the optional sections are needed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// `[run]`.
    pub run: RunSection,
    /// `[model]`.
    pub model: ModelSection,
    /// `[vae]`; absent: its defaults.
    pub vae: Option<VaeSection>,
    /// `[lora]`; absent: its defaults. `model.trainable` switches it off.
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
    /// `[[watch]]`, each with a `[watch.<name>]`: rewards that are reported but not trained on.
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
    /// `[ema]`; absent: no moving average, and the last weights are the result.
    pub ema: Option<EmaConfig>,
    /// `[checkpoint]`.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// `[guard]`.
    #[serde(default)]
    pub guard: GuardSection,
    /// `[sentinel]`: rules that detect when the reward is being exploited, checked at each preview.
    pub sentinel: Option<SentinelConfig>,
}

/// A config section that only some algorithms use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `[vae]`.
    Vae,
    /// `[lora]`.
    Lora,
    /// `[data]`.
    Data,
    /// `[preferences]`.
    Preferences,
    /// `[rankings]`.
    Rankings,
    /// `[prompts]`.
    Prompts,
    /// `[scheduler]`.
    Scheduler,
    /// `[reward.<name>]`.
    Reward,
    /// `[[watch]]`.
    Watch,
    /// `[regularizer.<name>]`.
    Regularizer,
    /// `[preview]`.
    Preview,
}

impl Section {
    /// All of these sections.
    pub const ALL: [Self; 11] = [
        Self::Vae,
        Self::Lora,
        Self::Data,
        Self::Preferences,
        Self::Rankings,
        Self::Prompts,
        Self::Scheduler,
        Self::Reward,
        Self::Watch,
        Self::Regularizer,
        Self::Preview,
    ];

    /// The section's header, as written in a config.
    pub fn title(self) -> &'static str {
        match self {
            Self::Vae => "[vae]",
            Self::Lora => "[lora]",
            Self::Data => "[data]",
            Self::Preferences => "[preferences]",
            Self::Rankings => "[rankings]",
            Self::Prompts => "[prompts]",
            Self::Scheduler => "[scheduler]",
            Self::Reward => "[reward.<name>]",
            Self::Watch => "[[watch]]",
            Self::Regularizer => "[regularizer.<name>]",
            Self::Preview => "[preview]",
        }
    }

    /// Whether `config` has this section.
    pub fn is_in(self, config: &TrainConfig) -> bool {
        match self {
            Self::Vae => config.vae.is_some(),
            Self::Lora => config.lora.is_some(),
            Self::Data => config.data.is_some(),
            Self::Preferences => config.preferences.is_some(),
            Self::Rankings => config.rankings.is_some(),
            Self::Prompts => config.prompts.is_some(),
            Self::Scheduler => config.scheduler.is_some(),
            Self::Reward => config.reward.is_some(),
            Self::Watch => !config.watch.is_empty(),
            Self::Regularizer => config.regularizer.is_some(),
            Self::Preview => config.preview.is_some(),
        }
    }
}

impl TrainConfig {
    /// The settings of the run that do not depend on its algorithm.
    pub fn settings(&self) -> Settings {
        let (trainable, micro_batches, items) = (self.trainable(), self.micro_batches(), self.algo.chosen().driver().items());
        let Self { run, optimizer, lr_scheduler, ema, checkpoint, guard, sentinel, preview, data, preferences, rankings, .. } =
            self.clone();
        let every = [data.map(|data| data.validation_every), preferences.map(|pairs| pairs.validation_every)];
        let validation_every = every.into_iter().flatten().next().or(rankings.map(|rankings| rankings.validation_every));
        let preview_every = validation_every.or(preview.map(|preview| preview.every)).unwrap_or(0);
        let loss_scaling = self.model.dtype == Some(Dtype::F16);
        Settings {
            run,
            trainable,
            micro_batches,
            items,
            optimizer,
            lr_scheduler,
            ema,
            checkpoint,
            guard,
            loss_scaling,
            sentinel,
            preview_every,
        }
    }

    /// The LoRA that trains; `None` if whole weights train.
    pub fn lora(&self) -> Option<LoraSection> {
        let whole = self.model.trainable.is_some() || self.algo.chosen().driver().trains_whole_weights();
        (!whole).then(|| self.lora.clone().unwrap_or_default())
    }

    /// Steps of a sampling chain in training; 0 for algorithms that do not sample.
    pub fn num_inference_steps(&self) -> usize {
        self.scheduler.as_ref().map_or(0, |scheduler| scheduler.num_inference_steps)
    }

    /// A phrase that says what trains.
    pub fn what_trains(&self) -> String {
        match self.lora() {
            Some(lora) => {
                let begun = lora.init.as_ref().map_or_else(String::new, |path| format!(", begun from {}", path.display()));
                format!("a LoRA of rank {}, alpha {}{begun}", lora.rank, lora.alpha())
            }
            None => format!("whole weights that match {:?}", self.trainable()),
        }
    }

    /// The base model, on the device without autodiff, and the model that trains, with factors attached if a LoRA trains: new ones, or those
    /// of `lora.init`.
    ///
    /// # Errors
    /// When a pattern is not a valid regular expression, `lora.targets` matches no layer, or the LoRA of `lora.init` cannot be trained further.
    pub fn models<D: Denoiser>(&self, pipeline: &Pipeline, denoiser: D, noise: &Noise) -> Result<(Trainable<D>, Trainable<D>), Error> {
        if let Some(section) = self.lora() {
            let (lora, names) = (section.lora()?, pipeline.lora_names(&denoiser));
            let (base, model) = pipeline.adapted(denoiser, &lora, noise)?;
            let Some(path) = &section.init else { return Ok((base, model)) };
            let begun = LoraWeights::read(path, &names).and_then(|weights| weights.attached(model, &lora));
            let in_section = |source: vp_models::Error| Error::InSection { section: "[lora] init", source: Box::new(source.into()) };
            return Ok((base, begun.map_err(in_section)?));
        }
        let base = pipeline.trainable(denoiser, &self.trainable_pattern()?);
        Ok((base.clone(), base))
    }

    /// Matches the names of the parameters that train.
    ///
    /// # Errors
    /// When `model.trainable` is not a valid regular expression.
    pub fn trainable_pattern(&self) -> Result<Regex, Error> {
        Regex::new(&self.trainable()).map_err(|error| Error::Config(format!("model.trainable: {error}")))
    }

    /// Regular expression that matches the names of the parameters that train.
    fn trainable(&self) -> String {
        match (&self.model.trainable, self.lora()) {
            (Some(pattern), _) => pattern.clone(),
            (None, Some(_)) => FACTORS.into(),
            (None, None) => ".".into(),
        }
    }

    /// Micro-batches per update.
    fn micro_batches(&self) -> usize {
        let backwards = match self.algo.chosen().driver() {
            Driver::Reward(algorithm) => algorithm.backwards_per_minibatch(self.num_inference_steps()),
            _ => 1,
        };
        self.optimizer.gradient_accumulation_steps * backwards
    }

    /// The differences between this config and the one that a run was started with, one line each, as far as they affect the weights.
    /// Workers, what ranks send, previews, validation, checkpoints, the guard, the sentinel, gradient checkpointing and the format of AdamW's moments may change, and where
    /// and how fast a reward outside the program is asked.
    pub fn differences(&self, saved: &Value) -> Vec<String> {
        const FREE: [&str; 12] = [
            "run.workers",
            "run.reduction",
            "vae.slicing",
            "checkpoint",
            "guard",
            "sentinel",
            "preview",
            "data.validation_every",
            "preferences.validation_every",
            "rankings.validation_every",
            "model.gradient_checkpointing",
            "optimizer.adamw.moments",
        ];
        // A section that is absent has its defaults.
        let json = |config: &Self| {
            let mut config = Self { vae: Some(config.vae.clone().unwrap_or_default()), ..config.clone() };
            config.reward.iter_mut().chain(&mut config.watch).for_each(|reward| reward.chosen_mut().blank_connection());
            serde_json::to_value(config).expect("a config is JSON")
        };
        // A key that an earlier version did not know has its default.
        let saved = serde_json::from_value(saved.clone()).map_or_else(|_| saved.clone(), |saved| json(&saved));
        let mut found = Vec::new();
        compare("", &json(self), &saved, &mut found);
        found.retain(|line| !FREE.iter().any(|section| line.starts_with(section)));
        found
    }
}

impl TrainConfig {
    /// Checks that a run of `saved` is the beginning of this longer one: that no update which it made, or has yet to make, would have had
    /// another learning rate.
    ///
    /// # Errors
    /// When the learning rate depends on the length of the run.
    pub fn check_lengthening(&self, saved: &Self) -> Result<(), Error> {
        let schedule =
            |config: &Self| LrSchedule::new(config.lr_scheduler.clone(), config.optimizer.learning_rate, config.run.num_train_steps);
        let (shorter, longer, updates) = (schedule(saved), schedule(self), saved.run.num_train_steps);
        let Some(step) = (0..updates).find(|step| shorter.rate(*step) != longer.rate(*step)) else { return Ok(()) };
        Err(Error::Config(format!(
            "run.num_train_steps is {}, but the run was started with {updates}, and [lr_scheduler.{}] spreads the learning rate over the whole \
             run: update {} would have had the rate {:.3e} in place of {:.3e}. A run with a constant rate can be made longer; the result of this \
             one can be trained further by a new run, with lora.init or model.path",
            self.run.num_train_steps,
            self.lr_scheduler.name(),
            step + 1,
            longer.rate(step),
            shorter.rate(step)
        )))
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
        _ if ours != saved => found.push(format!("{path} is {ours}, but the run was started with {saved}")),
        _ => {}
    }
}

impl Validate for TrainConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if let Some(lora) = &self.lora {
            lora.findings(findings);
        }
        if self.model.trainable.is_some() && self.lora.as_ref().is_some_and(|lora| lora.init.is_some()) {
            findings.push("lora.init is not used where model.trainable selects whole weights; remove one of them".into());
        }
        let sections: [&dyn Validate; 4] = [&self.run, &self.model, &self.optimizer, &self.checkpoint];
        sections.iter().for_each(|section| section.findings(findings));
        let optional: [Option<&dyn Validate>; 9] = [
            self.vae.as_ref().map(|section| section as _),
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
        let algorithm = self.algo.chosen();
        if self.run.workers > 1 && !matches!(algorithm.driver(), Driver::Reward(_)) {
            findings.push(format!(
                "run.workers is for algorithms that learn from a reward; [algo.{}] is another kind (sft and reward_model have workers of their own, \
                 algo.sft.workers and algo.reward_model.workers); remove it",
                self.algo.name()
            ));
        }
        algorithm.driver().findings(self, findings);
        algorithm.findings(self, findings);
    }
}

impl TrainConfig {
    fn sentinel_findings(&self, findings: &mut Vec<String>) {
        let Some(sentinel) = &self.sentinel else { return };
        if let Err(error) = sentinel.validate() {
            findings.push(format!("sentinel: {error}"));
        }
        if self.reward.is_none() {
            findings.push(format!("[sentinel] is not used by [algo.{}], which has no reward to exploit; remove it", self.algo.name()));
        }
    }
}

#[cfg(test)]
impl TrainConfig {
    /// A config of `algo` with a DDIM of `steps`, for tests of an algorithm's findings.
    pub(crate) fn with_steps(algo: AlgorithmConfig, steps: usize) -> Self {
        let config = serde_json::json!({
            "run": { "seed": 0, "num_train_steps": 1 },
            "model": { "path": "model" },
            "algo": { "sft": {} },
            "optimizer": { "learning_rate": 0.1 },
            "scheduler": { "name": "ddim", "num_inference_steps": steps },
        });
        Self { algo, ..serde_json::from_value(config).unwrap() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn slices_may_change_on_resume_and_tiles_may_not() {
        let saved = TrainConfig::with_steps(AlgorithmConfig::Ddpo(Default::default()), 10);
        let json = serde_json::to_value(&saved).unwrap();
        let with = |vae| TrainConfig { vae: Some(vae), ..saved.clone() }.differences(&json);
        assert_eq!(with(VaeSection { slicing: true, ..Default::default() }), [""; 0]);
        let tiled = with(VaeSection { tiling: "64".parse().unwrap(), ..Default::default() });
        assert_eq!(tiled, ["vae.tiling is 64, but the run was started with false"]);
    }

    /// A server may have moved; another reward is another run.
    #[test]
    fn the_address_of_a_reward_may_change_on_resume() {
        let with = |reward: &str| TrainConfig {
            reward: Some(vp_core::config::parse(reward, "a reward", &[]).unwrap()),
            ..TrainConfig::with_steps(AlgorithmConfig::Ddpo(Default::default()), 10)
        };
        let differences = |now: &str, then: &str| with(now).differences(&serde_json::to_value(with(then)).unwrap());
        let server = "[http]\nurl = \"http://127.0.0.1:1/score\"";
        assert_eq!(differences(&server.replace(":1/", ":2/"), &format!("{server}\nbatch_size = 3")), [""; 0]);
        let term = |reward: &str| format!("[[weighted_sum.terms]]\nweight = 1.0\n[weighted_sum.terms.reward.http]\nurl = \"{reward}\"");
        assert_eq!(differences(&term("http://a"), &term("http://b")), [""; 0]);
        let asked = |model: &str, url: &str| format!("[vlm.openai]\nmodel = \"{model}\"\nbase_url = \"{url}\"");
        assert_eq!(differences(&asked("m", "http://a"), &asked("m", "http://b")), [""; 0]);
        assert_eq!(differences(&asked("m", "http://a"), &asked("n", "http://a")).len(), 1);
        let program = |word: &str| format!("[command]\nprogram = [\"{word}\"]");
        assert_eq!(differences(&program("a"), &program("b")).len(), 1);
    }

    #[test]
    fn a_run_is_made_longer_where_its_learning_rates_stay() {
        let lengthened = |schedule: serde_json::Value, from: u64, to: u64| {
            let mut saved = TrainConfig::with_steps(AlgorithmConfig::Ddpo(Default::default()), 10);
            saved.lr_scheduler = serde_json::from_value(schedule).unwrap();
            saved.run.num_train_steps = from;
            let mut longer = saved.clone();
            longer.run.num_train_steps = to;
            longer.check_lengthening(&saved).map_err(|error| error.to_string())
        };
        lengthened(json!({ "constant": {} }), 2, 4).unwrap();
        lengthened(json!({ "constant_with_warmup": { "num_warmup_steps": 3 } }), 6, 100).unwrap();
        // The warm-up took half of the shorter run.
        let told = lengthened(json!({ "constant_with_warmup": { "num_warmup_steps": 3 } }), 4, 6).unwrap_err();
        assert!(told.contains("update 2 would have had the rate 3.333e-2 in place of 5.000e-2"), "{told}");
        for schedule in ["linear", "cosine"] {
            let told = lengthened(json!({ schedule: {} }), 4, 6).unwrap_err();
            assert!(told.contains(&format!("[lr_scheduler.{schedule}] spreads")) && told.contains("update 2 "), "{told}");
        }
    }

    #[test]
    fn differences_are_named_by_field() {
        let mut found = Vec::new();
        let (ours, saved) = (json!({ "a": { "b": 1, "c": [2] }, "d": null }), json!({ "a": { "b": 3, "c": [2] }, "e": 5 }));
        compare("", &ours, &saved, &mut found);
        assert_eq!(found, ["a.b is 1, but the run was started with 3", "e is null, but the run was started with 5"]);
    }
}
