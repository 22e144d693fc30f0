//! Training a reward model on ranked images: VP-Score, ImageReward, PickScore.
//!
//! ```text
//! loss = Σ over strict pairs of −log σ(r(better) − r(worse)) / pairs        Bradley–Terry, raw scores
//! ```
//!
//! Each image is encoded once per prompt, however many pairs it is in. The gradient is the same as if both images of every pair were
//! encoded, for a third of the work with four images per prompt. With a head per aspect, the loss is the mean of the losses of the four
//! aspects and of their weighted sum.
//!
//! If the data have ratings, a head per aspect can learn the ratings themselves:
//!
//! ```text
//! loss = Σ over aspects of mean over images of (r_a − (rating_a − 3))² / aspects             regression, 3 the middle of 1 to 5
//! ```
//!
//! A pair gives one bit, which of two images is better; two ratings also say by how much, and on what scale. Source: HelpSteer (arXiv
//! 2311.09528), which regresses on ratings of several attributes.
//!
//! Source: VisionPrefer (arXiv 2404.15100) section 4; ImageReward (arXiv 2304.05977) eq. 1, `train/src/train.py`; with `ties`, PickScore
//! (arXiv 2305.01569), `trainer/criterions/clip_criterion.py`.

mod loss;
pub mod networks;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::profile::{self, Stage};
use vp_data::RgbImage;
use vp_models::parameters::{map_parameters, named_parameters};

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::data::rankings::{RankedImages, Rankings};
use crate::optim::Workers;
use crate::ranks::Ranks;
use crate::reward_model::loss::{Known, LossWeights};
use crate::run::preview::Preview;
use crate::run::{Batch, Draw, Run, values};
use crate::statistics::mean_and_std;

/// Prefix of the names under which the best weights so far are kept in a run's memory.
const BEST: &str = "best/";

/// The knobs of `[algo.reward_model]`. The defaults are ImageReward's values.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModel {
    /// Prompts per micro-batch, each with all its images; at least 1 (16).
    pub batch_size: usize,
    /// Parts of a micro-batch that are computed side by side, each on its share of the cores; 1 to the batch size (1).
    pub workers: usize,
    /// Share of the blocks of each encoder that are frozen, together with the embeddings before them; at least 0 and below 1 (0.7).
    pub fix_rate: f64,
    /// Whether the head uses dropout, with probability 0.2, 0.2 and 0.1 after its first three layers (true).
    pub dropout: bool,
    /// Whether each aspect has its own head, and the score is the weighted sum of theirs (false).
    pub aspects: bool,
    /// The quantity that the scores learn: `pairs` or `ratings` (`pairs`).
    pub objective: RewardObjective,
    /// Whether ties are learnt too, as in PickScore (false).
    pub ties: bool,
    /// How many training images, at most, are scored for the mean and the standard deviation; at least 2 (10000). The prompt that reaches
    /// the number is scored whole.
    pub scale_images: usize,
}

/// The quantity that the scores learn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardObjective {
    /// Which image of each pair is better: Bradley–Terry, as in the paper.
    #[default]
    Pairs,
    /// The rating on each aspect: squared error. Needs a head per aspect.
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

/// A network that scores images for prompts; `M` is the model with its weights.
pub trait RewardNetwork<M>: Sync {
    /// The device of its tensors, without autodiff.
    fn device(&self) -> &Device;

    /// The pixels as the network takes them, resized and normalised, `[b, 3, size, size]`.
    fn pixel_values(&self, images: &[RgbImage]) -> Tensor<4>;

    /// Raw scores `[b, heads]`: overall, then for the four aspects if they have heads. `dropout` names the random numbers of each image;
    /// `None` for no dropout.
    fn scores(&self, model: &M, pixel_values: Tensor<4>, prompts: &[String], dropout: Option<Dropout>) -> Tensor<2>;
}

/// The random numbers of dropout: one stream per image.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// The random numbers of the micro-batch.
    pub draw: Draw,
    /// The number of the first image, counted from 0 in its micro-batch.
    pub first: u64,
}

/// One prompt of a micro-batch with its images, ready for the network.
struct Prepared {
    pixel_values: Tensor<4>,
    prompts: Vec<String>,
    known: Known,
    first: u64,
}

/// How well a model scores held-out images.
#[derive(Debug, Clone, Default)]
pub struct RankingValidation {
    /// The loss of each prompt.
    pub losses: Vec<f64>,
    /// The overall scores of each prompt's images.
    pub scores: Vec<Vec<f64>>,
    /// For each pair, 1 if the scores order it rightly, else 0: for the overall order, then for each aspect.
    pub right: [Vec<f64>; 5],
}

impl RankingValidation {
    /// The losses and the pairwise accuracies by the name of their metric, without those that have no pairs.
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
            findings.push("algo.reward_model.ties = true is not used by algo.reward_model.objective = \"ratings\"; remove it".into());
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
    /// Checks that the data have ratings if ratings are to be learnt.
    ///
    /// # Errors
    /// When ratings are to be learnt, and the images of a prompt were ranked without ratings.
    pub fn check(&self, data: &Rankings) -> Result<(), Error> {
        let all = || data.training.iter().chain(&data.validation);
        let unrated = || all().filter(|ranked| ranked.ratings.iter().all(Vec::is_empty));
        match unrated().next() {
            Some(first) if self.objective == RewardObjective::Ratings => Err(Error::Config(format!(
                "algo.reward_model.objective = \"ratings\" needs ratings of aspects, but {} of {} prompts have none, the first of them {:?}; \
                 leave them out, or learn their order with \"pairs\"",
                unrated().count(),
                all().count(),
                first.prompt
            ))),
            _ => Ok(()),
        }
    }

    /// Trains until the run has made all its updates.
    ///
    /// # Errors
    /// When the run is interrupted, a value is not finite, an image cannot be read, or the run's folder cannot be written.
    pub fn train<M: Module + Sync>(&self, run: &mut Run<M>, network: &impl RewardNetwork<M>, data: &mut Rankings) -> Result<(), Error> {
        let workers = Workers::on(network.device(), self.workers)?;
        if run.is_at_the_beginning() {
            self.look(run, network, data, 0)?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Prompts, each with all its images and their known order or ratings.
            let (prepared, weights) = profile::time(Stage::Io, || self.prepare(network, data, batch))?;
            let images: usize = prepared.iter().map(|one| one.prompts.len()).sum();
            run.count_images(images);
            let (draw, parts_of_batch) = (run.draw(batch), batch.part.of);

            // 2. A score per image, then −log σ of the difference of each pair, or the squared error of each rating, as a mean over the
            //    micro-batch.
            let loss = |model: &M, part: Vec<Prepared>| {
                let dropout = self.dropout.then_some(Dropout { draw, first: part[0].first });
                let (scores, known) = scored(network, model, part, dropout);
                let right = right(&column(&scores, 0), &known.orders[0].pairs);
                let loss = weights.loss(&scores, &known);
                // The run takes what a rank has for a mean over its rows; this is a sum over the whole micro-batch.
                let loss = if parts_of_batch > 1 { loss * parts_of_batch as f64 } else { loss };
                (loss, vec![("accuracy".into(), right.into())])
            };

            // 3. Backward, accumulated; after the last micro-batch of an update: clip, step, moving average, journal.
            let parts = parts(prepared, self.workers);
            let updated = run.backward_in_parts(&workers, parts, loss, &|_| None)?;

            // 4. Validate, and remember the best weights.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                self.look(run, network, data, step)?;
            }
        }
        Ok(())
    }

    /// The prompts of a micro-batch that are this rank's, and the weights in the loss of the whole micro-batch.
    fn prepare<M>(
        &self,
        network: &impl RewardNetwork<M>,
        data: &mut Rankings,
        batch: Batch,
    ) -> Result<(Vec<Prepared>, LossWeights), Error> {
        let drawn = data.batch(batch, self.batch_size);
        let known: Vec<Known> = drawn.iter().map(|ranked| self.known(ranked)).collect();
        let rows = batch.rows(drawn.len());
        let mut first = drawn[..rows.start].iter().map(|ranked| ranked.images.len() as u64).sum();
        let prepared = drawn[rows].iter().map(|ranked| {
            let prepared = self.prepare_one(network, data, ranked, first)?;
            first += ranked.images.len() as u64;
            Ok(prepared)
        });
        Ok((prepared.collect::<Result<_, Error>>()?, self.weights(&known.iter().collect::<Vec<_>>())))
    }

    /// What is known of the images of a prompt.
    fn known(&self, ranked: &RankedImages) -> Known {
        let [a, b, c, d] = if self.aspects { ranked.aspects.clone() } else { Default::default() };
        let ratings = ranked.ratings.each_ref().map(|ratings| ratings.iter().copied().enumerate().collect());
        Known { orders: [ranked.overall.clone(), a, b, c, d], ratings }
    }

    fn prepare_one<M>(
        &self,
        network: &impl RewardNetwork<M>,
        data: &Rankings,
        ranked: &RankedImages,
        first: u64,
    ) -> Result<Prepared, Error> {
        let (pixel_values, known) = (network.pixel_values(&ranked.load()?), self.known(ranked));
        Ok(Prepared { pixel_values, prompts: data.prompts(ranked), known, first })
    }

    /// The weights of the micro-batch's pairs or ratings in its loss.
    fn weights(&self, known: &[&Known]) -> LossWeights {
        match self.objective {
            RewardObjective::Pairs => LossWeights::of_pairs(known, self.ties),
            RewardObjective::Ratings => LossWeights::of_ratings(known),
        }
    }

    /// Validates, writes the results to the journal, and keeps the weights if they are the best so far.
    fn look<M: Module>(&self, run: &mut Run<M>, network: &impl RewardNetwork<M>, data: &Rankings, step: u64) -> Result<(), Error> {
        let model = run.tuned();
        let found = self.validate(network, &model, data, &run.ranks)?;
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

    /// The model with the lowest validation loss; the last one if there was no validation.
    pub fn best<M: Module>(&self, run: &Run<M>) -> M {
        map_parameters(run.tuned(), |name, _, values| run.memory.get(&format!("{BEST}{name}")).cloned().unwrap_or(values))
    }

    /// Validates `model` on the held-out prompts.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn validate<M>(
        &self,
        network: &impl RewardNetwork<M>,
        model: &M,
        data: &Rankings,
        ranks: &Ranks,
    ) -> Result<RankingValidation, Error> {
        let [losses, mut scores, overall, prompt_following, aesthetic, fidelity, harmlessness] =
            ranks.measure(&data.validation, |ranked| {
                let prepared = profile::time(Stage::Io, || self.prepare_one(network, data, ranked, 0))?;
                let weights = self.weights(&[&prepared.known]);
                let (scores, known) = scored(network, model, vec![prepared], None);
                let mut found: [Vec<f64>; 7] = Default::default();
                found[0].push(values(&weights.loss(&scores, &known))[0]);
                found[1] = column(&scores, 0);
                for (head, order) in known.orders.iter().enumerate().take(scores.dims()[1]) {
                    found[2 + head] = right(&column(&scores, head), &order.pairs);
                }
                Ok(found)
            })?;
        let of_prompts = data.validation.iter().map(|ranked| scores.drain(..ranked.ranks.len()).collect()).collect();
        Ok(RankingValidation { losses, scores: of_prompts, right: [overall, prompt_following, aesthetic, fidelity, harmlessness] })
    }

    /// The mean and the standard deviation of the raw overall scores of training images, which normalise the scores. ImageReward's are
    /// 0.167 and 1.033.
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

/// Splits the prompts of a micro-batch into `count` parts, or one per prompt if there are fewer, as equal in size as possible.
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

/// The scores of all images of some prompts, `[images, heads]`, and their known orders and ratings.
fn scored<M>(network: &impl RewardNetwork<M>, model: &M, prepared: Vec<Prepared>, dropout: Option<Dropout>) -> (Tensor<2>, Known) {
    let (mut pixel_values, mut prompts, mut known) = (Vec::new(), Vec::new(), Known::default());
    for one in prepared {
        known.extend(&one.known, prompts.len());
        prompts.extend(one.prompts);
        pixel_values.push(one.pixel_values);
    }
    (network.scores(model, Tensor::cat(pixel_values, 0), &prompts, dropout), known)
}

/// The scores of one head, on the host.
fn column(scores: &Tensor<2>, head: usize) -> Vec<f64> {
    let device = scores.device().without_autodiff();
    let index = Tensor::<1, Int>::from_data([head as i64], &device);
    scores.clone().without_autodiff().select(1, index).into_data().iter::<f64>().collect()
}

/// 1 for each pair that the scores order rightly, else 0. Equal scores count as wrong.
fn right(scores: &[f64], pairs: &[(usize, usize)]) -> Vec<f64> {
    pairs.iter().map(|(better, worse)| f64::from(u8::from(scores[*better] > scores[*worse]))).collect()
}
