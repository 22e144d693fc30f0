//! A run on several ranks: what they agree on, and how their parts of an update become one.

use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use vp_models::parameters::trainable_parameters;

use super::{Batch, Run};
use crate::Error;
use crate::optim::{GradientAccumulator, NamedTensors};
use crate::ranks::{Grid, Told};

impl Grid {
    /// The micro-batch of this rank, of those from number `first` on that are computed at the same time.
    pub(super) fn batch(&self, first: u64, begins_update: bool) -> Batch {
        Batch { index: first + self.lane as u64, begins_update: begins_update && self.lane == 0, part: self.part }
    }
}

impl<M: Module> Run<M> {
    /// The last of the micro-batches that all ranks compute at the time of `batch`.
    pub(crate) fn last_at_the_time_of(&self, batch: Batch) -> u64 {
        batch.index + (self.grid.lanes - 1 - self.grid.lane) as u64
    }

    /// The values of all rows of a micro-batch, `[b]` and off the tape, of which this rank has computed some. All ranks take part in this at the
    /// same time.
    ///
    /// # Errors
    /// When a rank ended with an error.
    pub(crate) fn gather_rows(&self, own: &Tensor<1>) -> Result<Tensor<1>, Error> {
        let (own, parts) = (own.clone().without_autodiff(), self.grid.part.of);
        if parts == 1 {
            return Ok(own);
        }
        let all = self.ranks.gather_values(&own.to_data().iter::<f32>().collect::<Vec<_>>())?;
        let rows: Vec<f32> = all.into_iter().skip(self.grid.lane * parts).take(parts).flatten().collect();
        Ok(Tensor::from_data(rows.as_slice(), &own.device()))
    }

    /// The signal that asks for the end of the run, to whichever rank it came.
    pub(super) fn signal_to_any(&self) -> Result<Option<i32>, Error> {
        let own = self.interrupt.signal();
        if self.ranks.are_one() {
            return Ok(own);
        }
        let all = self.ranks.gather(&own.unwrap_or(0).to_le_bytes())?;
        let signals = all.iter().filter_map(|bytes| Some(i32::from_le_bytes(bytes.as_slice().try_into().ok()?)));
        Ok(signals.into_iter().find(|signal| *signal != 0))
    }

    /// Whether a checkpoint can be saved here: each of several ranks has sums of its own within an update.
    pub(super) fn may_save(&self) -> bool {
        self.ranks.are_one() || (self.ranks.is_first() && self.state.cursor.micro == 0)
    }

    /// Saves a checkpoint: on one rank of the position that was reached, on several of the beginning of the update under way.
    pub(super) fn save_before_update(&mut self) -> Result<PathBuf, Error> {
        if !self.ranks.are_one() && self.state.cursor.micro > 0 {
            self.start_update_anew();
        }
        self.save()
    }

    /// Makes one update of the parts of all ranks: sums their gradients, and gathers what they observed. Returns what is not finite, if a rank has
    /// something that is not.
    pub(super) fn put_together(&mut self) -> Result<Option<String>, Error> {
        if self.ranks.are_one() {
            return Ok(self.unsound.take());
        }
        let mut own = Told::of(&self.state.observed);
        own.images = self.images;
        own.unsound = self.unsound.take();
        own.with_gradient = self.gradients.gradients().keys().cloned().collect();
        own.waited = self.ranks.take_waited().as_secs_f64();
        let all = own.exchanged(&self.ranks)?;
        let unsound =
            all.iter().enumerate().find_map(|(rank, told)| Some(format!("{} on {}", told.unsound.as_ref()?, self.ranks.name(rank))));
        if unsound.is_some() {
            return Ok(unsound);
        }
        self.state.observed = Told::observed(&all);
        self.images = all.iter().map(|told| told.images).sum();
        self.waited = Some(all.iter().map(|told| told.waited).sum::<f64>() / all.len() as f64);
        self.sum_gradients(&all)?;
        Ok(None)
    }

    /// Replaces the gradients by their sums over the ranks. One that only some ranks have counts as 0 on the others.
    fn sum_gradients(&mut self, all: &[Told]) -> Result<(), Error> {
        let own = self.gradients.take();
        let is_known = |name: &String| all.iter().any(|told| told.with_gradient.contains(name));
        let mut layout: Vec<(String, usize, Device)> = Vec::new();
        let mut values: Vec<f32> = Vec::new();
        for parameter in trainable_parameters(&self.model).into_iter().filter(|parameter| is_known(&parameter.name)) {
            let count = parameter.values.dims()[0];
            match own.get(&parameter.name) {
                Some(gradient) => values.extend(gradient.to_data().iter::<f32>()),
                None => values.resize(values.len() + count, 0.0),
            }
            layout.push((parameter.name, count, parameter.values.device().without_autodiff()));
        }
        self.ranks.sum(&mut values, self.settings.run.reduction)?;
        let (mut sums, mut rest) = (NamedTensors::new(), values.as_slice());
        for (name, count, device) in layout {
            let (values, others) = rest.split_at(count);
            sums.insert(name, Tensor::from_data(TensorData::new(values.to_vec(), [count]), &device));
            rest = others;
        }
        self.gradients = GradientAccumulator::from(sums);
        Ok(())
    }
}
