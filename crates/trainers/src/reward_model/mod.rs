//! Training a reward model on ranked images: VP-Score, ImageReward, PickScore.
//!
//! ```text
//! loss = Σ over strict pairs of −log σ(r(better) − r(worse)) / pairs        Bradley–Terry, raw scores
//! ```
//!
//! Each image is encoded once per prompt, however many pairs it is in: the same gradient as encoding both images of every pair, for a
//! third of the work with four images per prompt. With a head per aspect, the loss is the mean of the four aspects' and of that of their
//! weighted sum.
//!
//! Where the ratings themselves can be had, a head an aspect can learn those:
//!
//! ```text
//! loss = Σ over aspects of mean over images of (r_a − (rating_a − 3))² / aspects             regression, 3 the middle of 1 to 5
//! ```
//!
//! A pair says which of two images is better, one bit; two ratings say by how much, and on what scale. Source: HelpSteer
//! (arXiv 2311.09528), which regresses on ratings of several attributes.
//!
//! Source: VisionPrefer (arXiv 2404.15100) section 4; ImageReward (arXiv 2304.05977) eq. 1, `train/src/train.py`; with `ties`, PickScore
//! (arXiv 2305.01569), `trainer/criterions/clip_criterion.py`.

mod loss;
pub mod networks;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::profile::{self, Stage};
use vp_data::RgbImage;
use vp_models::parameters::{map_parameters, named_parameters};

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::data::rankings::{RankedImages, Rankings};
use crate::optim::Workers;
use crate::reward_model::loss::{Known, LossWeights};
use crate::run::preview::Preview;
use crate::run::{Batch, Draw, Run, values};
use crate::statistics::mean_and_std;

/// Under which the best weights so far are kept in a run's memory.
const BEST: &str = "best/";

/// The knobs of `[algo.reward_model]`, with ImageReward's values where the file is silent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModel {
    /// Prompts per micro-batch, each with all of its images (16).
    pub batch_size: usize,
    /// Parts of a micro-batch that are computed side by side, each on its share of the cores.
    pub workers: usize,
    /// Share of the blocks of each encoder that is frozen, with the embeddings before them (0.7).
    pub fix_rate: f64,
    /// Whether the head's dropout, 0.2, 0.2 and 0.1 after its first three layers, is on.
    pub dropout: bool,
    /// Whether each aspect has a head of its own, and the score is their weighted sum.
    pub aspects: bool,
    /// What a score is held to.
    pub objective: RewardObjective,
    /// Whether ties are learnt too, as PickScore does.
    pub ties: bool,
    /// At most this many training images are scored for the mean and the standard deviation.
    pub scale_images: usize,
}

/// What a score is held to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardObjective {
    /// Which image of each pair is better: Bradley–Terry, as the paper has it.
    #[default]
    Pairs,
    /// Each aspect's rating: squared error. Needs a head per aspect.
    Ratings,
}

impl Default for RewardModel {
    fn default() -> Self {
        Self {
            batch_size: 16,
            workers: 1,
            fix_rate: 0.7,
            dropout: true,
            aspects: false,
            objective: RewardObjective::Pairs,
            ties: false,
            scale_images: 10_000,
        }
    }
}

/// What a network makes of images and prompts.
pub trait RewardNetwork<M>: Sync {
    /// Normalised pixels as the network takes them, `[b, 3, size, size]`.
    fn pixel_values(&self, images: &[RgbImage]) -> Tensor<4>;

    /// Raw scores `[b, heads]`: overall, and where there are heads for them, the four aspects. `dropout` names the random numbers of
    /// each image.
    fn scores(&self, model: &M, pixel_values: Tensor<4>, prompts: &[String], dropout: Option<Dropout>) -> Tensor<2>;
}

/// The random numbers of dropout: one stream per image.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// The micro-batch's.
    pub draw: Draw,
    /// The number of the first image in its micro-batch.
    pub first: u64,
}

/// One prompt of a batch, ready for the network.
struct Prepared {
    pixel_values: Tensor<4>,
    prompts: Vec<String>,
    known: Known,
    first: u64,
}

/// How well a model orders held-out images.
#[derive(Debug, Clone, Default)]
pub struct RankingValidation {
    /// The loss of each prompt.
    pub losses: Vec<f64>,
    /// The overall score of every image, prompt by prompt.
    pub scores: Vec<Vec<f64>>,
    /// 1 or 0 for each pair of the overall order, whether it is right; then the same of each aspect.
    pub right: [Vec<f64>; 5],
}

impl RankingValidation {
    /// The losses, and of the overall order and each aspect's, whether each pair is right; those that there are.
    pub fn by_name(self) -> Vec<(String, Vec<f64>)> {
        let names = std::iter::once("validation_accuracy".to_string())
            .chain(vp_data::Aspect::ALL.iter().map(|aspect| format!("validation_accuracy_{}", aspect.name())));
        let accuracies = names.zip(self.right).filter(|(_, right)| !right.is_empty());
        std::iter::once(("validation_loss".to_string(), self.losses)).chain(accuracies).collect()
    }
}

impl Algorithm for RewardModel {
    fn driver(&self) -> Driver<'_> {
        Driver::Rankings(self)
    }

    fn findings(&self, _: &TrainConfig, findings: &mut Vec<String>) {
        if self.batch_size == 0 {
            findings.push("algo.reward_model.batch_size is 0; expected at least 1".into());
        }
        if !(1..=self.batch_size.max(1)).contains(&self.workers) {
            findings.push(format!("algo.reward_model.workers is {}; expected 1 to the batch size, {}", self.workers, self.batch_size));
        }
        if !(0.0..1.0).contains(&self.fix_rate) {
            findings.push(format!("algo.reward_model.fix_rate is {}; expected at least 0 and less than 1", self.fix_rate));
        }
        if self.objective == RewardObjective::Ratings && !self.aspects {
            findings.push(
                "algo.reward_model.objective = \"ratings\" needs a head per aspect: algo.reward_model.aspects = true, or \"pairs\"".into(),
            );
        }
        if self.objective == RewardObjective::Ratings && self.ties {
            findings.push("algo.reward_model.ties = true means nothing with algo.reward_model.objective = \"ratings\"".into());
        }
        if self.scale_images < 2 {
            findings.push(format!("algo.reward_model.scale_images is {}; expected at least 2", self.scale_images));
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}

impl RewardModel {
    /// Whether the data have what is to be learnt.
    ///
    /// # Errors
    /// When ratings are to be learnt and a prompt's images were ranked without any.
    pub fn check(&self, data: &Rankings) -> Result<(), Error> {
        let all = || data.training.iter().chain(&data.validation);
        let unrated = || all().filter(|ranked| ranked.ratings.iter().all(Vec::is_empty));
        match unrated().next() {
            Some(first) if self.objective == RewardObjective::Ratings => Err(Error::Config(format!(
                "algo.reward_model.objective = \"ratings\" needs ratings of aspects, and {} of {} prompts have none, the first is {:?}; leave \
                 them out, or learn their order: \"pairs\"",
                unrated().count(),
                all().count(),
                first.prompt
            ))),
            _ => Ok(()),
        }
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// When the run is interrupted, something is not finite, an image cannot be read, or the run's folder cannot be written.
    pub fn train<M: Module + Sync>(&self, run: &mut Run<M>, network: &impl RewardNetwork<M>, data: &mut Rankings) -> Result<(), Error> {
        let workers = Workers::new(self.workers)?;
        if run.is_at_the_beginning() {
            self.look(run, network, data, 0)?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Prompts, each with all of its images and what is known of their order.
            let prepared = profile::time(Stage::Io, || self.prepare(network, data, batch))?;
            let images: usize = prepared.iter().map(|one| one.prompts.len()).sum();
            run.count_images(images);
            let (weights, draw) = (self.weights(&prepared), run.draw(batch));

            // 2. A score an image, then −log σ of the difference of each pair or the squared error of each rating, a mean over the
            //    micro-batch.
            let loss = |model: &M, part: Vec<Prepared>| {
                let dropout = self.dropout.then_some(Dropout { draw, first: part[0].first });
                let (scores, known) = scored(network, model, part, dropout);
                let right = right(&column(&scores, 0), &known.orders[0].pairs);
                (weights.loss(&scores, &known), vec![("accuracy".into(), right)])
            };

            // 3. Backward, accumulated; after the last micro-batch of an update: clip, step, moving average, journal.
            let parts = parts(prepared, self.workers);
            let updated = run.backward_in_parts(&workers, parts, loss, &|_| None)?;

            // 4. Validate; remember the best weights.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                self.look(run, network, data, step)?;
            }
        }
        Ok(())
    }

    fn prepare<M>(&self, network: &impl RewardNetwork<M>, data: &mut Rankings, batch: Batch) -> Result<Vec<Prepared>, Error> {
        let mut first = 0;
        let drawn = data.batch(batch, self.batch_size);
        let prepared = drawn.iter().map(|ranked| {
            let prepared = self.prepare_one(network, data, ranked, first)?;
            first += ranked.images.len() as u64;
            Ok(prepared)
        });
        prepared.collect()
    }

    fn prepare_one<M>(
        &self,
        network: &impl RewardNetwork<M>,
        data: &Rankings,
        ranked: &RankedImages,
        first: u64,
    ) -> Result<Prepared, Error> {
        let [a, b, c, d] = if self.aspects { ranked.aspects.clone() } else { Default::default() };
        let ratings = ranked.ratings.each_ref().map(|ratings| ratings.iter().copied().enumerate().collect());
        let known = Known { orders: [ranked.overall.clone(), a, b, c, d], ratings };
        Ok(Prepared { pixel_values: network.pixel_values(&ranked.load()?), prompts: data.prompts(ranked), known, first })
    }

    /// What everything that is known of a micro-batch counts in its loss.
    fn weights(&self, prepared: &[Prepared]) -> LossWeights {
        let known: Vec<&Known> = prepared.iter().map(|one| &one.known).collect();
        match self.objective {
            RewardObjective::Pairs => LossWeights::of_pairs(&known, self.ties),
            RewardObjective::Ratings => LossWeights::of_ratings(&known),
        }
    }

    /// Validates, writes down, and keeps the weights if they are the best.
    fn look<M: Module>(&self, run: &mut Run<M>, network: &impl RewardNetwork<M>, data: &Rankings, step: u64) -> Result<(), Error> {
        let model = run.tuned();
        let found = self.validate(network, &model, data)?;
        if found.losses.is_empty() {
            return Ok(());
        }
        if !found.losses.iter().all(|loss| loss.is_finite()) {
            return Err(Error::NonFinitePreview { step, what: "the validation loss".into() });
        }
        run.record_preview(&Preview::of_losses(found.by_name(), None))?;
        if run.best_step() == Some(step) {
            let trained = named_parameters(&run.model).into_iter().filter(|parameter| parameter.trainable).map(|parameter| parameter.name);
            let trained: std::collections::BTreeSet<String> = trained.collect();
            let weights = named_parameters(&model).into_iter().filter(|parameter| trained.contains(&parameter.name));
            run.memory = weights.map(|parameter| (format!("{BEST}{}", parameter.name), parameter.values)).collect();
        }
        Ok(())
    }

    /// The model with the lowest validation loss; without a validation the last.
    pub fn best<M: Module>(&self, run: &Run<M>) -> M {
        map_parameters(run.tuned(), |name, _, values| run.memory.get(&format!("{BEST}{name}")).cloned().unwrap_or(values))
    }

    /// How `model` orders the held-out images.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn validate<M>(&self, network: &impl RewardNetwork<M>, model: &M, data: &Rankings) -> Result<RankingValidation, Error> {
        let mut found = RankingValidation::default();
        for ranked in &data.validation {
            let prepared = profile::time(Stage::Io, || self.prepare_one(network, data, ranked, 0))?;
            let weights = self.weights(std::slice::from_ref(&prepared));
            let (scores, known) = scored(network, model, vec![prepared], None);
            found.losses.push(values(&weights.loss(&scores, &known))[0]);
            let heads = scores.dims()[1];
            for (head, order) in known.orders.iter().enumerate().take(heads) {
                found.right[head].extend(right(&column(&scores, head), &order.pairs));
            }
            found.scores.push(column(&scores, 0));
        }
        Ok(found)
    }

    /// Mean and standard deviation of the raw overall scores of training images, as ImageReward's 0.167 and 1.033 are of its own.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn scale<M>(&self, network: &impl RewardNetwork<M>, model: &M, data: &Rankings) -> Result<(f64, f64), Error> {
        let mut scores = Vec::new();
        for ranked in &data.training {
            let prepared = profile::time(Stage::Io, || self.prepare_one(network, data, ranked, 0))?;
            scores.extend(column(&scored(network, model, vec![prepared], None).0, 0));
            if scores.len() >= self.scale_images {
                break;
            }
        }
        let (mean, std) = mean_and_std(&scores);
        Ok((mean, if std > 0.0 { std } else { 1.0 }))
    }
}

/// The prompts of a micro-batch in as many parts, as equal as they can be.
fn parts(mut prepared: Vec<Prepared>, count: usize) -> Vec<Vec<Prepared>> {
    let total = prepared.len();
    let mut parts = Vec::new();
    for part in 0..count.min(total) {
        let end = (part + 1) * total / count.min(total) - part * total / count.min(total);
        let rest = prepared.split_off(end);
        parts.push(prepared);
        prepared = rest;
    }
    parts
}

/// The scores of all images of some prompts, `[images, heads]`, and what is known of them.
fn scored<M>(network: &impl RewardNetwork<M>, model: &M, prepared: Vec<Prepared>, dropout: Option<Dropout>) -> (Tensor<2>, Known) {
    let (mut pixel_values, mut prompts, mut known) = (Vec::new(), Vec::new(), Known::default());
    for one in prepared {
        known.extend(&one.known, prompts.len());
        prompts.extend(one.prompts);
        pixel_values.push(one.pixel_values);
    }
    (network.scores(model, Tensor::cat(pixel_values, 0), &prompts, dropout), known)
}

/// One head's scores on the host.
fn column(scores: &Tensor<2>, head: usize) -> Vec<f64> {
    let device = scores.device().without_autodiff();
    let index = Tensor::<1, Int>::from_data([head as i64], &device);
    scores.clone().without_autodiff().select(1, index).into_data().iter::<f64>().collect()
}

/// 1 for each pair that the scores order rightly, else 0; equal scores are wrong.
fn right(scores: &[f64], pairs: &[(usize, usize)]) -> Vec<f64> {
    pairs.iter().map(|(better, worse)| f64::from(u8::from(scores[*better] > scores[*worse]))).collect()
}
