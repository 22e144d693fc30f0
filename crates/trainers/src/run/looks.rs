//! How a run is judged while it trains: previews, the best of them, and the findings of the sentinel.

use burn::module::Module;
use vp_core::profile::{self, Stage};
use vp_evaluation::sentinel::{Action, Finding, Look, SentinelConfig, findings};

use crate::Error;
use crate::run::preview::Preview;
use crate::run::sentinel::{Watch, distance, look};
use crate::run::{Run, trained};
use crate::statistics::mean;

impl<M: Module> Run<M> {
    /// Writes a preview of the current step to the journal, and remembers it if it is the best so far.
    ///
    /// # Errors
    /// When the run's folder cannot be written.
    pub fn record_preview(&mut self, preview: &Preview) -> Result<(), Error> {
        let step = self.state.cursor.step;
        self.previewed = Some(step);
        if std::mem::take(&mut self.state.preview_is_owed) {
            // The checkpoint on disk says otherwise.
            self.saved = None;
        }
        if preview.images.is_empty() && preview.scores.is_empty() {
            return Ok(());
        }
        profile::time(Stage::Io, || self.journal.preview(step, preview))?;
        if step == 0 {
            self.state.first_preview = preview.values().cloned().collect();
        }
        self.state.last_preview = preview.values().cloned().collect();
        // With a sentinel, the best is decided by a reward that is not trained on.
        let score = if self.settings.sentinel.is_some() { preview.watched_score() } else { preview.score() };
        if let Some(score) = score
            && step > 0
            && self.state.best.is_none_or(|(best, _)| score > best)
        {
            self.state.best = Some((score, step));
        }
        match self.settings.sentinel {
            Some(config) if !preview.lower_is_better && !preview.scores.is_empty() => self.heed_sentinel(&config, preview),
            _ => Ok(()),
        }
    }

    /// Reports the findings of the sentinel at this preview, and ends the run if the action of one of them is `stop`.
    fn heed_sentinel(&mut self, config: &SentinelConfig, preview: &Preview) -> Result<(), Error> {
        let step = self.state.cursor.step;
        let distance = distance(&self.first_weights, &trained(&self.model));
        self.state.looks.retain(|look| look.step < step);
        self.state.looks.push(look(step, preview, distance));
        self.journal.watch(&Watch { config: *config, looks: self.state.looks.clone() })?;
        let found = findings(&self.state.looks, config).map_err(|error| Error::Config(format!("sentinel: {error}")))?;
        let now: Vec<Finding> = found.into_iter().filter(|finding| finding.step == step).collect();
        for finding in &now {
            self.journal.warn(format_args!("sentinel: {}: {}", finding.rule.name(), finding.reason));
        }
        match now.into_iter().find(|finding| finding.action == Action::Stop) {
            Some(Finding { rule, reason, .. }) => {
                let (checkpoint, best) = (self.save()?, self.best_step().unwrap_or(0));
                Err(Error::Sentinel { step, rule: rule.name(), reason, checkpoint, best })
            }
            None => Ok(()),
        }
    }

    /// The looks at previews that the sentinel has recorded so far.
    pub fn looks(&self) -> &[Look] {
        &self.state.looks
    }

    /// The update after which the best preview was drawn.
    pub fn best_step(&self) -> Option<u64> {
        self.state.best.map(|(_, step)| step)
    }

    /// Whether a preview is due after `step` updates.
    pub fn preview_is_due(&self, step: u64) -> bool {
        let every = self.settings.preview_every;
        step == self.settings.run.num_train_steps || (every > 0 && step.is_multiple_of(every))
    }

    /// Shows the scores of the first preview beside those of the last.
    pub fn summary(&self) {
        let pairs = self.state.first_preview.iter().zip(&self.state.last_preview);
        let rows: Vec<(String, f64, f64)> = pairs.map(|((name, before), (_, after))| (name.clone(), mean(before), mean(after))).collect();
        self.journal.summary(&rows);
    }
}
