//! One training run: everything around the steps of an algorithm.
//!
//! An algorithm asks for the [next batch](Run::next_batch), computes a loss on the tape, and hands it to [`backward`](Run::backward). The
//! run accumulates and clips gradients, updates the weights and the moving average, writes the journal, saves checkpoints, stops when it is
//! told to, and refuses values that are not finite. Between two batches it can be saved, and then continued to the bit: every random number
//! is named by the batch it belongs to, so there is no generator to save.

pub mod attendant;
mod backward;
mod batch;
pub mod checkpoint;
pub mod export;
pub mod journal;
mod looks;
mod observed;
pub mod preview;
mod reward_failure;
pub mod sentinel;
mod together;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use regex::Regex;
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::number_format::is_cpu;
use vp_models::parameters::{map_parameters, named_parameters, select_trainable};

use crate::Error;
use crate::optim::Workers;
use crate::optim::{AdamW, Ema, GradientAccumulator, LossScale, LrSchedule, NamedTensors};
use crate::ranks::{Grid, Ranks};
use crate::run::checkpoint::{Checkpoint, Checkpoints, Cursor, State};
use crate::run::journal::Journal;
use crate::sections::Settings;
use crate::statistics::mean_and_std;

pub use batch::{Batch, Draw};
pub use observed::{Observed, Values, gathered, values};

/// The number of SIGINT, which Ctrl-C sends, on every system.
const SIGINT: i32 = 2;

/// What is asked of a run from outside, to be done at its next batch: by a signal handler, or by somebody who [watches](attendant) it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    stop: Arc<AtomicI32>,
    save: Arc<AtomicBool>,
}

impl Interrupt {
    /// The flag that ends the run, to which a signal handler writes the signal's number.
    pub fn flag(&self) -> Arc<AtomicI32> {
        self.stop.clone()
    }

    /// Ends the run as one Ctrl-C does.
    pub fn ask_to_stop(&self) {
        let _ = self.stop.compare_exchange(0, SIGINT, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Lets the run save a checkpoint and go on.
    pub fn ask_to_save(&self) {
        self.save.store(true, Ordering::Relaxed);
    }

    fn takes_request_to_save(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }

    fn signal(&self) -> Option<i32> {
        Some(self.stop.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}

/// The inputs with which a run begins, besides the model.
#[derive(Debug, Default)]
pub struct Start {
    /// The resolved config, as it goes into checkpoints.
    pub config: serde_json::Value,
    /// The checksums of the files and lists that the run starts from.
    pub base: BTreeMap<String, String>,
    /// The checkpoint to resume from, if the run is resumed.
    pub resume: Option<Checkpoint>,
    /// The flag that ends the run from outside.
    pub interrupt: Interrupt,
    /// The run saves and ends before the batch of this number, to prove that resuming changes nothing.
    pub stop_before: Option<u64>,
    /// Bytes that the algorithm's own [memory](Run::memory) takes in a checkpoint.
    pub memory_bytes: u64,
    /// The ranks that train together.
    pub ranks: Ranks,
}

/// The name under which the loss is observed.
const LOSS: &str = "loss";

/// A run under way, training `M`.
pub struct Run<M> {
    /// The trained model, on the tape.
    pub model: M,
    /// The settings of the run that do not depend on its algorithm.
    pub settings: Settings,
    /// The run's random numbers.
    pub noise: Noise,
    /// The number of values that train.
    pub num_trainable: usize,
    /// The journal, which reports the progress of the run.
    pub journal: Journal,
    /// The algorithm's own state from batch to batch, as flattened tensors under names of its choice. It is saved in checkpoints.
    pub memory: NamedTensors,
    /// The ranks that train together.
    pub ranks: Ranks,
    /// What this rank computes of an update.
    grid: Grid,
    /// What is not finite in this rank's part of the update under way, while the others do not know.
    unsound: Option<String>,
    optimizer: AdamW,
    lr_schedule: LrSchedule,
    gradients: GradientAccumulator,
    ema: Option<Ema>,
    /// The trained parameters before the first update, if a sentinel watches; empty otherwise.
    first_weights: NamedTensors,
    state: State,
    /// The update after which the last preview was drawn.
    previewed: Option<u64>,
    /// Observed since the last update, and not yet read from the device.
    pending: Observed,
    checkpoints: Checkpoints,
    /// The cursor of the newest checkpoint on disk.
    saved: Option<Cursor>,
    interrupt: Interrupt,
    stop_before: Option<u64>,
    began: Instant,
    /// Images drawn or read since the last update.
    images: u64,
    /// The mean over ranks of the seconds that they spent with messages in the last update.
    waited: Option<f64>,
    /// What the journal was told of the last update that this process made.
    last_update: Vec<(String, f64)>,
}

impl<M: Module> Run<M> {
    /// Puts `model` on the tape, selects the parameters that train, and makes the optimizer and the moving average; resumes from the
    /// checkpoint in `start`, if there is one. `journal` is called last, with the bytes that a checkpoint will take, so that a run that
    /// cannot start leaves no folder behind.
    ///
    /// # Errors
    /// When no parameter is selected, or the checkpoint belongs to another model.
    pub fn new(model: M, settings: Settings, start: Start, journal: impl FnOnce(u64) -> Result<Journal, Error>) -> Result<Self, Error> {
        let pattern = Regex::new(&settings.trainable).map_err(|e| Error::Config(format!("model.trainable: {e}")))?;
        let (mut model, num_trainable) = select_trainable(model.train(), &pattern);
        if num_trainable == 0 {
            let names: Vec<String> = named_parameters(&model).into_iter().take(2).map(|parameter| parameter.name).collect();
            let example = format!("their names are like {}", names.join(", "));
            return Err(Error::Config(format!("model.trainable {:?} matches no parameter of the model; {example}", settings.trainable)));
        }
        let grid = Grid::of(&start.ranks, settings.micro_batches, &settings.items)?;
        let optimizer = &settings.optimizer;
        let (mut adamw, mut gradients) = (AdamW::new(optimizer.adamw.clone()), GradientAccumulator::default());
        let mut ema = settings.ema.clone().map(|ema| Ema::new(ema, &model));
        let first_weights = if settings.sentinel.is_some() { trained(&model) } else { NamedTensors::new() };
        let fresh = || State {
            looks: Vec::new(),
            cursor: Cursor::default(),
            observed: Vec::new(),
            skipped: 0,
            preview_is_owed: false,
            loss_scale: settings.loss_scaling.then(LossScale::default),
            first_preview: Vec::new(),
            last_preview: Vec::new(),
            best: None,
            config: start.config.clone(),
            base: start.base.clone(),
        };
        let mut memory = NamedTensors::new();
        let (saved, state) = match start.resume {
            None => (None, fresh()),
            Some(Checkpoint { state, mut tensors }) => {
                let mut take = |name: &str| tensors.remove(name).unwrap_or_default();
                model = with_weights(model, &mut take("weights"))?;
                adamw = AdamW::import(optimizer.adamw.clone(), take("optimizer"), &model)?;
                gradients = GradientAccumulator::from(take("gradients"));
                memory = take("memory");
                // The sums of an update that was begun belong to no rank: it is made from its beginning.
                let state = if start.ranks.are_one() {
                    state
                } else {
                    gradients = Default::default();
                    state.before_its_update()
                };
                if let Some(config) = &settings.ema {
                    ema = Some(Ema::import(config.clone(), take("ema"), &model)?);
                }
                // The current config may differ from the saved one in settings that do not affect the weights.
                (Some(state.cursor), State { config: start.config, base: start.base, ..state })
            }
        };
        // Weights, two moments, the moving average, and gradients in the middle of an accumulation.
        let copies = 3 + u64::from(ema.is_some()) + u64::from(settings.micro_batches > 1);
        let previewed = saved.filter(|_| !state.preview_is_owed).map(|cursor: Cursor| cursor.step);
        let journal = journal(4 * copies * num_trainable as u64 + start.memory_bytes)?;
        Ok(Self {
            noise: Noise::new(settings.run.seed),
            num_trainable,
            ranks: start.ranks,
            grid,
            unsound: None,
            optimizer: adamw,
            lr_schedule: LrSchedule::new(settings.lr_scheduler.clone(), optimizer.learning_rate, settings.run.num_train_steps),
            gradients,
            ema,
            first_weights,
            state,
            pending: Observed::new(),
            checkpoints: Checkpoints::of(journal.dir()),
            saved,
            interrupt: start.interrupt,
            stop_before: start.stop_before,
            began: Instant::now(),
            images: 0,
            waited: None,
            last_update: Vec::new(),
            memory,
            previewed,
            journal,
            settings,
            model,
        })
    }

    /// The next micro-batch to compute; `None` when the run is over. Saves a checkpoint if one is due.
    ///
    /// # Errors
    /// When the run was interrupted, after saving a checkpoint, or when a value to save is not finite.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, Error> {
        let Cursor { step, micro } = self.state.cursor;
        let over = step >= self.settings.run.num_train_steps;
        let index = step * self.accumulation() as u64 + micro as u64;
        self.heed_signals()?;
        if self.stop_before == Some(index) {
            return Err(Error::StoppedForProof { checkpoint: self.save()? });
        }
        let every = self.settings.checkpoint.every;
        let due = micro == 0 && step > 0 && (over || (every > 0 && step.is_multiple_of(every)));
        if self.may_save() && self.interrupt.takes_request_to_save() {
            self.save_as_asked()?;
        } else if due && self.saved != Some(self.state.cursor) {
            self.save_if_the_disk_lets()?;
        }
        if micro == 0 {
            self.began = Instant::now();
        }
        Ok((!over).then(|| self.grid.batch(index, micro == 0)))
    }

    /// The next micro-batches to compute side by side: at most `count`, all of one update; `None` when the run is over. Saves a checkpoint if
    /// one is due.
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch).
    pub fn next_batches(&mut self, count: usize) -> Result<Option<Vec<Batch>>, Error> {
        let Some(first) = self.next_batch()? else { return Ok(None) };
        let left = (self.accumulation() - self.state.cursor.micro) / self.grid.lanes;
        let before_stop = self.stop_before.filter(|stop| *stop > first.index).map_or(left, |stop| (stop - first.index) as usize);
        let batch = |offset| Batch {
            index: first.index + (offset * self.grid.lanes) as u64,
            begins_update: first.begins_update && offset == 0,
            part: first.part,
        };
        Ok(Some((0..count.min(left).min(before_stop)).map(batch).collect()))
    }

    /// The threads that compute micro-batches, batches of a rollout, and prompts of a preview side by side: `run.workers` on the CPU, one elsewhere.
    ///
    /// # Errors
    /// When the operating system cannot start them.
    pub fn workers(&self, device: &Device) -> Result<Workers, Error> {
        Workers::on(device, self.settings.run.workers)
    }

    /// Ends the run if a signal asks for it. For use between two parts of a batch that can be repeated from its beginning.
    ///
    /// # Errors
    /// When the run was interrupted, after saving a checkpoint, or when a value to save is not finite.
    pub fn heed_signals(&mut self) -> Result<(), Error> {
        match self.signal_to_any()? {
            Some(signal) => Err(Error::Interrupted { signal, checkpoint: self.save_before_update()? }),
            None => Ok(()),
        }
    }

    /// The random numbers of a micro-batch.
    pub fn draw(&self, batch: Batch) -> Draw {
        Draw { noise: self.noise, number: batch.draw(), part: batch.part }
    }

    /// Counts images that were drawn or read, for the images per second in the journal.
    pub fn count_images(&mut self, count: usize) {
        self.images += count as u64;
    }

    /// The number of updates that have been made or left out.
    pub fn updates(&self) -> u64 {
        self.state.cursor.step
    }

    /// What the journal has under `name` for the update that was made last; `None` if this process has made none, or nothing has that name. For use
    /// right after an update, as a run that is resumed knows nothing of the updates before.
    pub fn last_mean(&self, name: &str) -> Option<f64> {
        self.last_update.iter().find(|(known, _)| known == name).map(|(_, mean)| *mean)
    }

    /// Whether no micro-batch has been computed yet.
    pub fn is_at_the_beginning(&self) -> bool {
        self.state.cursor == Cursor::default()
    }

    /// Micro-batches per update.
    fn accumulation(&self) -> usize {
        self.settings.micro_batches
    }

    /// Reads what was observed, in one transfer.
    fn gather(&mut self) {
        for (name, values) in gathered(std::mem::take(&mut self.pending)) {
            match self.state.observed.iter_mut().find(|(known, _)| *known == name) {
                Some((_, seen)) => seen.extend(values),
                None => self.state.observed.push((name, values)),
            }
        }
    }

    fn update(&mut self) -> Result<Option<u64>, Error> {
        let (grad_norm, lr) = match profile::time(Stage::Optimizer, || self.step()) {
            Ok(stepped) => stepped,
            Err(Error::NonFiniteGradient { name }) => return self.overflowed(&name).map(|()| None),
            Err(error) => return Err(error),
        };
        self.state.loss_scale.iter_mut().for_each(LossScale::keep);
        self.state.cursor = Cursor { step: self.state.cursor.step + 1, micro: 0 };
        profile::time(Stage::Io, || self.write_down(grad_norm, lr))?;
        Ok(Some(self.state.cursor.step))
    }

    /// Where the loss is scaled, the update is made again from its first micro-batch, with half the scale; elsewhere it is left out.
    fn overflowed(&mut self, name: &str) -> Result<(), Error> {
        let Some(scale) = self.state.loss_scale.as_mut().filter(|scale| scale.scale() > 1.0) else {
            return self.leave_out(format!("the gradient of {name}"));
        };
        scale.back_off();
        let (update, scale) = (self.state.cursor.step + 1, scale.scale());
        self.start_update_anew();
        self.journal.warn(format_args!("update {update}: the gradient of {name} overflowed; made again with a loss scale of {scale}"));
        Ok(())
    }

    /// Forgets the micro-batches of the update under way.
    fn start_update_anew(&mut self) {
        self.gradients = GradientAccumulator::default();
        self.unsound = None;
        self.pending.clear();
        self.state.observed.clear();
        self.state.cursor.micro = 0;
    }

    /// Clips the gradients and updates the weights and the moving average. Returns the norm of the gradients before clipping, and the
    /// learning rate.
    fn step(&mut self) -> Result<(f64, f64), Error> {
        let grad_norm = self.gradients.clip_grad_norm(self.settings.optimizer.max_grad_norm)?;
        let lr = self.lr_schedule.rate(self.state.cursor.step);
        let gradients = self.gradients.take();
        self.model = self.optimizer.step(self.model.clone(), &gradients, lr);
        if let Some(ema) = &mut self.ema {
            ema.update(&self.model);
        }
        Ok((grad_norm, lr))
    }

    fn write_down(&mut self, grad_norm: f64, lr: f64) -> Result<(), Error> {
        let seconds = self.began.elapsed().as_secs_f64();
        let mut line: Vec<(String, f64)> = Vec::new();
        for (name, values) in std::mem::take(&mut self.state.observed) {
            let (mean, std) = mean_and_std(&values);
            match name.as_str() {
                "reward" => line.extend([("reward_mean".into(), mean), ("reward_std".into(), std)]),
                "ratio_max_deviation" => line.push((name, values.iter().copied().fold(0.0, f64::max))),
                _ => line.push((name, mean)),
            }
        }
        let images = std::mem::take(&mut self.images);
        line.extend([("grad_norm", grad_norm), ("lr", lr)].map(|(name, value)| (name.to_string(), value)));
        line.extend([("images_per_second", images as f64 / seconds), ("seconds", seconds)].map(|(name, value)| (name.to_string(), value)));
        line.extend(self.waited.take().map(|waited| ("rank_wait_seconds".into(), waited)));
        self.last_update = line;
        let line: Vec<(&str, f64)> = self.last_update.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.journal.update(self.state.cursor.step, self.settings.run.num_train_steps, &line)
    }

    /// Gives up the current update, in which `what` is not finite. The weights stay those of the previous update.
    ///
    /// # Errors
    /// When no more updates may be left out; the last good state has then been saved.
    pub fn leave_out(&mut self, what: String) -> Result<(), Error> {
        let Cursor { step, .. } = self.state.cursor;
        self.start_update_anew();
        let skipped = self.state.skipped;
        if skipped >= self.settings.guard.max_skips {
            let checkpoint = self.save()?;
            return Err(Error::NonFinite { update: step + 1, what, skipped, checkpoint });
        }
        self.state.skipped += 1;
        self.state.cursor.step += 1;
        let line = format!("update {}: {what} is not finite; left out ({} of {})", step + 1, skipped + 1, self.settings.guard.max_skips);
        self.journal.warn(format_args!("{line}"));
        Ok(())
    }

    /// The tuned model, on the device without autodiff: the moving average if there is one, otherwise the current weights.
    pub fn tuned(&self) -> M {
        match &self.ema {
            Some(ema) => ema.apply(self.model.valid()),
            None => self.model.valid(),
        }
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        self.journal.dir()
    }

    /// Saves a checkpoint because somebody asked for it, and says so.
    fn save_as_asked(&mut self) -> Result<(), Error> {
        self.save_if_the_disk_lets()?;
        if self.saved == Some(self.state.cursor) {
            self.journal.say(format_args!("step {}: saved, as was asked", self.state.cursor.step));
        }
        Ok(())
    }

    /// Saves a checkpoint, but only warns if it cannot be written: the disk may have space again later, and the last good checkpoint is
    /// still there.
    fn save_if_the_disk_lets(&mut self) -> Result<(), Error> {
        match self.save() {
            Ok(_) => Ok(()),
            Err(Error::Io { path, source }) => {
                self.journal.warn(format_args!(
                    "no checkpoint of step {}: cannot write {path}: {source}; training goes on",
                    self.state.cursor.step
                ));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn save(&mut self) -> Result<PathBuf, Error> {
        profile::time(Stage::Io, || self.write_checkpoint())
    }

    fn write_checkpoint(&mut self) -> Result<PathBuf, Error> {
        if !self.ranks.is_first() {
            self.saved = Some(self.state.cursor);
            return Ok(self.checkpoints.path(self.state.cursor));
        }
        self.gather();
        let tensors = self.tensors();
        for (file, tensors) in &tensors {
            if let Some(name) = first_non_finite(tensors) {
                return Err(Error::NonFiniteState { step: self.state.cursor.step, file: file.clone(), name });
            }
        }
        let path = self.checkpoints.save(&Checkpoint { state: self.state.clone(), tensors })?;
        self.saved = Some(self.state.cursor);
        self.checkpoints.prune(self.settings.checkpoint.keep_last, self.state.best.map(|(_, step)| step));
        Ok(path)
    }

    fn tensors(&self) -> BTreeMap<String, NamedTensors> {
        let mut tensors = BTreeMap::from([
            ("weights".to_string(), trained(&self.model)),
            ("optimizer".to_string(), self.optimizer.export()),
            ("gradients".to_string(), self.gradients.gradients().clone()),
        ]);
        if let Some(ema) = &self.ema {
            tensors.insert("ema".into(), ema.export());
        }
        if !self.memory.is_empty() {
            tensors.insert("memory".into(), self.memory.clone());
        }
        tensors
    }
}

/// The name of a tensor that is not finite, if there is one: on the CPU the first, elsewhere from one transfer.
fn first_non_finite(tensors: &NamedTensors) -> Option<String> {
    let (here, there): (Vec<_>, Vec<_>) = tensors.iter().partition(|(_, tensor)| is_cpu(&tensor.device()));
    let sum = |tensor: &Tensor<1>| tensor.clone().sum();
    let mut sums: Vec<f64> = here.iter().flat_map(|(_, tensor)| values(&sum(tensor))).collect();
    if !there.is_empty() {
        sums.extend(values(&Tensor::cat(there.iter().map(|(_, tensor)| sum(tensor)).collect(), 0)));
    }
    let names = here.iter().chain(&there).map(|(name, _)| name);
    names.zip(sums).find(|(_, sum)| !sum.is_finite()).map(|(name, _)| (*name).clone())
}

/// The trained parameters of a model, by name.
fn trained<M: Module>(model: &M) -> NamedTensors {
    let trained = named_parameters(model).into_iter().filter(|parameter| parameter.trainable);
    trained.map(|parameter| (parameter.name, parameter.values)).collect()
}

/// `model` with the trained parameters of a checkpoint.
fn with_weights<M: Module>(model: M, weights: &mut NamedTensors) -> Result<M, Error> {
    let problem = |key: &str, problem: String| Error::State { what: "weights", key: key.into(), problem };
    for parameter in named_parameters(&model).iter().filter(|parameter| parameter.trainable) {
        let expected = parameter.values.dims()[0];
        match weights.get(&parameter.name).map(|tensor| tensor.dims()[0]) {
            Some(found) if found == expected => {}
            Some(found) => return Err(problem(&parameter.name, format!("expected {expected} values, found {found}"))),
            None => return Err(problem(&parameter.name, "missing".into())),
        }
    }
    let model = map_parameters(model, |name, trainable, values| match weights.remove(name).filter(|_| trainable) {
        Some(saved) => saved.to_device(&values.device()),
        None => values,
    });
    match weights.keys().next() {
        Some(name) => Err(problem(name, "the model has no trainable parameter of this name".into())),
        None => Ok(model),
    }
}

/// The newest valid checkpoint of a run, with warnings about newer ones that are not valid. Removes the half-written checkpoints of killed
/// processes.
pub fn newest_checkpoint(run: &Path, device: &Device) -> (Option<Checkpoint>, Vec<String>) {
    let checkpoints = Checkpoints::of(run);
    checkpoints.clean();
    let invalid = checkpoints.list().len();
    match checkpoints.newest_valid(device) {
        Some(found) => (Some(found.checkpoint), found.warnings),
        None if invalid > 0 => (None, vec![format!("none of the {invalid} checkpoints in {} is valid", run.display())]),
        None => (None, Vec::new()),
    }
}

#[cfg(test)]
mod tests;
