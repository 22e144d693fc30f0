//! Training a reward model on ranked images: VP-Score, ImageReward, PickScore.
//!
//! ```text
//! loss = Σ over strict pairs of −log σ(r(better) − r(worse)) / pairs        Bradley–Terry, raw scores
//! ```
//!
//! Each image is encoded once a prompt, however many pairs it is in: the same gradient as encoding both images of every pair, for a
//! third of the work with four images a prompt. With a head an aspect, the loss is the mean of the four aspects' and of that of their
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

pub mod networks;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_data::RgbImage;
use vp_models::parameters::{map_parameters, named_parameters};
use vp_rewards::{pair_losses, tie_losses};

use crate::Error;
use crate::data::rankings::{Order, RankedImages, Rankings};
use crate::optim::Workers;
use crate::run::preview::Preview;
use crate::run::{Batch, Run, values};

/// Under which the best weights so far are kept in a run's memory.
const BEST: &str = "best/";

/// The knobs of `[algo.reward_model]`, with ImageReward's values where the file is silent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModel {
    /// Prompts a micro-batch, each with all of its images (16).
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
    pub objective: Objective,
    /// Whether ties are learnt too, as PickScore does.
    pub ties: bool,
    /// At most this many training images are scored for the mean and the standard deviation.
    pub scale_images: usize,
}

/// What a score is held to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Which image of each pair is better: Bradley–Terry, as the paper has it.
    #[default]
    Pairs,
    /// Each aspect's rating: squared error. Needs a head an aspect.
    Ratings,
}

/// The middle of a rating's scale, 1 to 5, where a head's score is 0.
const MIDDLE: f64 = 3.0;

impl Default for RewardModel {
    fn default() -> Self {
        Self {
            batch_size: 16,
            workers: 1,
            fix_rate: 0.7,
            dropout: true,
            aspects: false,
            objective: Objective::Pairs,
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
    fn scores(&self, model: &M, pixel_values: Tensor<4>, prompts: &[String], dropout: Option<Dropout<'_>>) -> Tensor<2>;
}

/// The random numbers of dropout: one stream an image.
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    /// The run's.
    pub noise: &'a Noise,
    /// The micro-batch's.
    pub draw: u64,
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

/// What is known of some images.
#[derive(Default)]
struct Known {
    /// Of their order: overall, then on each aspect; as indices into the images.
    orders: [Order; 5],
    /// Each aspect's ratings, with the images they are of.
    ratings: [Vec<(usize, f64)>; 4],
}

impl Known {
    /// Takes up what is known of further images, which are the `first` and the next.
    fn extend(&mut self, other: &Self, first: usize) {
        let shift = |(a, b): &(usize, usize)| (a + first, b + first);
        for (all, order) in self.orders.iter_mut().zip(&other.orders) {
            all.pairs.extend(order.pairs.iter().map(shift));
            all.ties.extend(order.ties.iter().map(shift));
        }
        for (all, ratings) in self.ratings.iter_mut().zip(&other.ratings) {
            all.extend(ratings.iter().map(|(image, rating)| (image + first, *rating)));
        }
    }
}

/// How well a model orders held-out images.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// The loss of each prompt.
    pub losses: Vec<f64>,
    /// The overall score of every image, prompt by prompt.
    pub scores: Vec<Vec<f64>>,
    /// 1 or 0 for each pair of the overall order, whether it is right; then the same of each aspect.
    pub right: [Vec<f64>; 5],
}

impl RewardModel {
    /// Appends what cannot be.
    pub fn findings(&self, findings: &mut Vec<String>) {
        if self.batch_size == 0 {
            findings.push("algo.reward_model.batch_size is 0; expected at least 1".into());
        }
        if !(1..=self.batch_size.max(1)).contains(&self.workers) {
            findings.push(format!("algo.reward_model.workers is {}; expected 1 to the batch size, {}", self.workers, self.batch_size));
        }
        if !(0.0..1.0).contains(&self.fix_rate) {
            findings.push(format!("algo.reward_model.fix_rate is {}; expected at least 0 and less than 1", self.fix_rate));
        }
        if self.objective == Objective::Ratings && !self.aspects {
            findings.push(
                "algo.reward_model.objective = \"ratings\" needs a head an aspect: algo.reward_model.aspects = true, or \"pairs\"".into(),
            );
        }
        if self.objective == Objective::Ratings && self.ties {
            findings.push("algo.reward_model.ties = true means nothing with algo.reward_model.objective = \"ratings\"".into());
        }
        if self.scale_images < 2 {
            findings.push(format!("algo.reward_model.scale_images is {}; expected at least 2", self.scale_images));
        }
    }

    /// Whether the data have what is to be learnt.
    ///
    /// # Errors
    /// When ratings are to be learnt and a prompt's images were ranked without any.
    pub fn check(&self, data: &Rankings) -> Result<(), Error> {
        let all = || data.training.iter().chain(&data.validation);
        let unrated = || all().filter(|ranked| ranked.ratings.iter().all(Vec::is_empty));
        match unrated().next() {
            Some(first) if self.objective == Objective::Ratings => Err(Error::Config(format!(
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
        let (noise, workers) = (run.noise, Workers::new(self.workers)?);
        if run.is_at_the_beginning() {
            self.look(run, network, data, 0)?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Prompts, each with all of its images and what is known of their order.
            let prepared = profile::time(Stage::Io, || self.prepare(network, data, batch))?;
            let images: usize = prepared.iter().map(|one| one.prompts.len()).sum();
            run.count_images(images);
            let weights = self.weights(&prepared);

            // 2. A score an image, then −log σ of the difference of each pair or the squared error of each rating, a mean over the
            //    micro-batch.
            let loss = |model: &M, part: Vec<Prepared>| {
                let dropout = self.dropout.then_some(Dropout { noise: &noise, draw: batch.draw(), first: part[0].first });
                let (scores, known) = scored(network, model, part, dropout);
                let right = right(&column(&scores, 0), &known.orders[0].pairs);
                (weights.loss(&scores, &known), vec![("accuracy".into(), right)])
            };

            // 3. Backward in parts, accumulated; after the last micro-batch clip, update, follow with the moving average, write down.
            let parts = parts(prepared, self.workers);
            let updated = run.backward_in_parts(&workers, parts, loss, &|_| None)?;

            // 4. Look; remember the best.
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
        match self.objective {
            Objective::Pairs => LossWeights::of_pairs(prepared, self.ties),
            Objective::Ratings => LossWeights::of_ratings(prepared),
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
        let names = std::iter::once("validation_accuracy".to_string())
            .chain(vp_data::Aspect::ALL.iter().map(|aspect| format!("validation_accuracy_{}", aspect.name())));
        let accuracies = names.zip(found.right).filter(|(_, right)| !right.is_empty());
        let scores = std::iter::once(("validation_loss".to_string(), found.losses)).chain(accuracies).collect();
        run.preview(&Preview::of_losses(scores, None))?;
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
    pub fn validate<M>(&self, network: &impl RewardNetwork<M>, model: &M, data: &Rankings) -> Result<Validation, Error> {
        let mut found = Validation::default();
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
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let std = (scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / n).sqrt();
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
fn scored<M>(network: &impl RewardNetwork<M>, model: &M, prepared: Vec<Prepared>, dropout: Option<Dropout<'_>>) -> (Tensor<2>, Known) {
    let (mut pixel_values, mut prompts, mut known) = (Vec::new(), Vec::new(), Known::default());
    for one in prepared {
        known.extend(&one.known, prompts.len());
        prompts.extend(one.prompts);
        pixel_values.push(one.pixel_values);
    }
    (network.scores(model, Tensor::cat(pixel_values, 0), &prompts, dropout), known)
}

/// What one of what is known counts in the loss of a micro-batch.
enum LossWeights {
    /// A pair of each order, and whether ties are learnt.
    Pairs([f64; 5], bool),
    /// A rating on each aspect.
    Ratings([f64; 4]),
}

/// Every kind of which there is one counts alike, and so do all of a kind.
fn alike<const N: usize>(counts: [usize; N]) -> [f64; N] {
    let kinds = counts.iter().filter(|count| **count > 0).count().max(1) as f64;
    counts.map(|count| 1.0 / (kinds * count.max(1) as f64))
}

impl LossWeights {
    fn of_pairs(prepared: &[Prepared], ties: bool) -> Self {
        let count = |order: &Order| order.pairs.len() + if ties { order.ties.len() } else { 0 };
        Self::Pairs(alike(std::array::from_fn(|i| prepared.iter().map(|one| count(&one.known.orders[i])).sum())), ties)
    }

    fn of_ratings(prepared: &[Prepared]) -> Self {
        Self::Ratings(alike(std::array::from_fn(|i| prepared.iter().map(|one| one.known.ratings[i].len()).sum())))
    }

    /// `[1]`.
    fn loss(&self, scores: &Tensor<2>, known: &Known) -> Tensor<1> {
        let [images, heads] = scores.dims();
        let device = scores.device().without_autodiff();
        let of_head = |head| scores.clone().narrow(1, head, 1).reshape([images]);
        let mut total = Tensor::zeros([1], &device);
        match self {
            Self::Pairs(weights, ties) => {
                for (head, (order, weight)) in known.orders.iter().zip(weights).enumerate().take(heads) {
                    if !order.pairs.is_empty() {
                        total = pair_losses(of_head(head), &order.pairs).sum() * *weight + total;
                    }
                    if *ties && !order.ties.is_empty() {
                        total = tie_losses(of_head(head), &order.ties).sum() * *weight + total;
                    }
                }
            }
            Self::Ratings(weights) => {
                for (head, (ratings, weight)) in (1..heads).zip(known.ratings.iter().zip(weights)) {
                    if !ratings.is_empty() {
                        total = squared_errors(of_head(head), ratings, &device).sum() * *weight + total;
                    }
                }
            }
        }
        total
    }
}

/// `(score − (rating − 3))²` of each rating.
fn squared_errors(scores: Tensor<1>, ratings: &[(usize, f64)], device: &Device) -> Tensor<1> {
    let (images, values): (Vec<i64>, Vec<f32>) = ratings.iter().map(|(image, rating)| (*image as i64, (rating - MIDDLE) as f32)).unzip();
    let rated = scores.select(0, Tensor::<1, Int>::from_data(&images[..], device));
    (rated - Tensor::from_data(&values[..], device)).square()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratings_are_learnt_as_squared_errors_a_mean_over_images_then_over_rated_aspects() {
        let device = Device::flex();
        // Overall, then four aspects, of two images.
        let scores = Tensor::<2>::from_data([[9.0, 1.0, 0.0, 0.5, 7.0], [9.0, -1.0, 0.0, 0.0, 7.0]], &device);
        // Prompt following 4 and 3, fidelity 5 of the second image alone; the others were not rated.
        let ratings = [vec![(0, 4.0), (1, 3.0)], vec![], vec![(1, 5.0)], vec![]];
        let prepared = Prepared {
            pixel_values: Tensor::zeros([1, 1, 1, 1], &device),
            prompts: vec![],
            known: Known { ratings, ..Known::default() },
            first: 0,
        };
        let loss = LossWeights::of_ratings(std::slice::from_ref(&prepared)).loss(&scores, &prepared.known);
        // ((1 − 1)² + (−1 − 0)²) / 2 and (0 − 2)², halved.
        assert_eq!(values(&loss), [(0.5 + 4.0) / 2.0]);
    }

    #[test]
    fn what_is_known_of_further_images_is_said_of_them() {
        let order = Order { pairs: vec![(1, 0)], ties: vec![(0, 2)] };
        let one = Known { orders: std::array::from_fn(|_| order.clone()), ratings: std::array::from_fn(|_| vec![(2, 4.5)]) };
        let mut all = Known::default();
        all.extend(&one, 0);
        all.extend(&one, 3);
        assert_eq!((&all.orders[4].pairs[..], &all.orders[4].ties[..]), (&[(1, 0), (4, 3)][..], &[(0, 2), (3, 5)][..]));
        assert_eq!(all.ratings[3], [(2, 4.5), (5, 4.5)]);
    }
}
