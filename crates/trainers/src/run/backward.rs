//! The backward pass of a run's micro-batches: one by one, in parts, or several side by side.

use burn::module::Module;
use burn::tensor::Tensor;
use vp_core::profile::{self, Stage};
use vp_models::number_format::is_cpu;
use vp_models::parameters::{map_parameters, named_gradients};

use super::{LOSS, Observed, Run, Values, values};
use crate::Error;
use crate::optim::Workers;

impl<M: Module> Run<M> {
    /// Back-propagates the loss `[1]` of one micro-batch and adds up the gradients of the trained parameters; after the last micro-batch of
    /// an update, makes the update. Returns the number of updates made so far if this call made one, otherwise `None`.
    ///
    /// `observed` are values by name, which the journal averages over the update. If the loss is not finite, `blame` names the first tensor
    /// that is not finite.
    ///
    /// # Errors
    /// When a loss or a gradient is not finite and no more updates may be left out, or when the journal cannot be written.
    pub fn backward(&mut self, loss: Tensor<1>, observed: Observed, blame: &dyn Fn(&M) -> Option<String>) -> Result<Option<u64>, Error> {
        self.pending.push((LOSS.into(), Values::from(&loss)));
        self.pending.extend(observed);
        // The CPU waits for nothing, and spares itself the backward pass. Elsewhere the loss is looked at before the update.
        if is_cpu(&loss.device()) && !values(&loss)[0].is_finite() {
            return self.give_up_micro_batch(values(&loss)[0], blame);
        }
        let (loss_scale, share) = self.scales();
        profile::time(Stage::Backward, || {
            let mut gradients = (loss * loss_scale).backward();
            self.gradients.add(named_gradients(&self.model, &mut gradients), share);
        });
        self.finish_micro_batch(blame)
    }

    /// The factor of the loss in the backward pass, and that of its gradients in their sum. The loss of a part of the rows is a mean over these.
    fn scales(&self) -> (f64, f64) {
        let loss_scale = self.state.loss_scale.map_or(1.0, |scale| scale.scale());
        (loss_scale, 1.0 / (self.accumulation() as f64 * loss_scale * self.grid.part.of as f64))
    }

    /// Leaves out the update, because the loss of a micro-batch is not finite. On one of several ranks, the others have to know first.
    fn give_up_micro_batch(&mut self, loss: f64, blame: &dyn Fn(&M) -> Option<String>) -> Result<Option<u64>, Error> {
        let what = blame(&self.model).unwrap_or_else(|| format!("the loss ({loss})"));
        if self.ranks.are_one() {
            return self.leave_out(what).map(|()| None);
        }
        self.unsound.get_or_insert(what);
        self.finish_micro_batch(blame)
    }

    /// Counts the micro-batch, and makes the update if it was the last of one.
    fn finish_micro_batch(&mut self, blame: &dyn Fn(&M) -> Option<String>) -> Result<Option<u64>, Error> {
        self.state.cursor.micro += self.grid.lanes;
        if self.state.cursor.micro < self.accumulation() {
            return Ok(None);
        }
        self.gather();
        let losses = self.state.observed.iter().find(|(name, _)| name == LOSS);
        let spoilt = losses.and_then(|(_, losses)| losses.iter().copied().find(|loss| !loss.is_finite()));
        if let Some(loss) = spoilt.filter(|_| self.unsound.is_none()) {
            self.unsound = Some(blame(&self.model).unwrap_or_else(|| format!("the loss ({loss})")));
        }
        match self.put_together()? {
            Some(unsound) => self.leave_out(unsound).map(|()| None),
            None => self.update(),
        }
    }

    /// As [`backward`](Self::backward), but for a micro-batch in parts, which are computed side by side, each on its own tape. A single
    /// part is computed as it is. `loss` returns a part's share of the loss, `[1]`, and its observed values; the loss of the micro-batch is
    /// the sum of the shares.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_in_parts<P: Send>(
        &mut self,
        workers: &Workers,
        mut parts: Vec<P>,
        loss: impl Fn(&M, P) -> (Tensor<1>, Observed) + Sync,
        blame: &dyn Fn(&M) -> Option<String>,
    ) -> Result<Option<u64>, Error> {
        if parts.len() == 1 {
            let (loss, observed) = profile::time(Stage::TrackedStep, || loss(&self.model, parts.remove(0)));
            return self.backward(loss, observed, blame);
        }
        let parts: Vec<(M, P)> = parts.into_iter().map(|part| (self.on_its_own_tape(), part)).collect();
        let (loss_scale, share) = self.scales();
        let work = |(model, part): (M, P)| {
            let (loss, observed) = loss(&model, part);
            let (total, mut gradients) = (values(&loss)[0], (loss * loss_scale).backward());
            (total, observed, named_gradients(&model, &mut gradients))
        };
        let done = profile::time(Stage::Backward, || workers.map(parts, work));
        let total: f64 = done.iter().map(|(total, ..)| total).sum();
        if !total.is_finite() {
            return self.give_up_micro_batch(total, blame);
        }
        self.pending.push((LOSS.into(), vec![total].into()));
        for (_, observed, gradients) in done {
            self.pending.extend(observed);
            self.gradients.add(gradients, share);
        }
        self.finish_micro_batch(blame)
    }

    /// As [`backward`](Self::backward), but for several micro-batches of one update, which are computed side by side, each on its own tape. A
    /// single one is computed as it is. `compute` returns a micro-batch's loss, `[1]`, its observed values, and what `blame` needs to name its
    /// first tensor that is not finite. Returns the number of updates made so far if this call made one.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), and the first error of `compute`.
    pub fn backward_side_by_side<I: Send, C: Send>(
        &mut self,
        workers: &Workers,
        mut items: Vec<I>,
        compute: impl Fn(&M, I) -> Result<(Tensor<1>, Observed, C), Error> + Sync,
        blame: impl Fn(&M, &C) -> Option<String>,
    ) -> Result<Option<u64>, Error> {
        if items.len() == 1 {
            let (loss, observed, context) = compute(&self.model, items.remove(0))?;
            return self.backward(loss, observed, &|model| blame(model, &context));
        }
        let items: Vec<(M, I)> = items.into_iter().map(|item| (self.on_its_own_tape(), item)).collect();
        let (loss_scale, share) = self.scales();
        let work = |(model, item): (M, I)| {
            let (loss, observed, context) = compute(&model, item)?;
            let (value, mut gradients) = (values(&loss)[0], (loss * loss_scale).backward());
            Ok((value, observed, named_gradients(&model, &mut gradients), context))
        };
        let done = profile::time(Stage::Backward, || workers.map(items, work)).into_iter().collect::<Result<Vec<_>, Error>>()?;
        let mut updated = None;
        for (value, observed, gradients, context) in done {
            let blame = |model: &M| blame(model, &context);
            if !value.is_finite() {
                updated = self.give_up_micro_batch(value, &blame)?;
                if self.ranks.are_one() {
                    return Ok(None);
                }
                continue;
            }
            self.pending.push((LOSS.into(), vec![value].into()));
            self.pending.extend(observed);
            self.gradients.add(gradients, share);
            updated = self.finish_micro_batch(&blame)?;
        }
        Ok(updated)
    }

    /// The model with leaves of its own: parameters that share a leaf share a tape, and only one thread at a time can back-propagate along a
    /// tape.
    fn on_its_own_tape(&self) -> M {
        map_parameters(self.model.clone(), |_, _, values| values)
    }
}
