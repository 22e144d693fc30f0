//! What becomes of a run in which a reward fails: a server that is gone may come back, and what was trained until then is not to be lost.

use burn::module::Module;

use crate::Error;
use crate::run::Run;
use crate::run::checkpoint::Cursor;

impl<M: Module> Run<M> {
    /// The error that ends the run, after saving a checkpoint if it is a reward's. One that gave up waiting since a signal came is that signal.
    pub fn secured(&mut self, error: Error) -> Error {
        if !self.ranks.are_one() {
            return self.secured_on_ranks(error);
        }
        let (signal, source) = match (self.interrupt.signal(), error) {
            (signal, Error::Reward(source)) if signal.is_some() || !self.is_at_the_beginning() => (signal, source),
            (_, error) => return error,
        };
        let Cursor { step, micro } = self.state.cursor;
        let may_owe = micro == 0 && !self.is_at_the_beginning();
        self.state.preview_is_owed = may_owe && self.preview_is_due(step) && self.previewed != Some(step);
        match (self.save(), signal) {
            (Ok(checkpoint), Some(signal)) => Error::Interrupted { signal, checkpoint },
            (Ok(checkpoint), None) => Error::RewardFailed { source: Box::new(source), checkpoint },
            (Err(error), _) => {
                self.journal.warn(format_args!("no checkpoint of step {step}: {error}"));
                Error::Reward(source)
            }
        }
    }

    /// As [`secured`](Self::secured), on one of several ranks: the first saves the beginning of the update in which another's reward failed.
    fn secured_on_ranks(&mut self, error: Error) -> Error {
        let failed = matches!(error, Error::Reward(_) | Error::OfRank { .. });
        if !failed || self.state.cursor.step == 0 {
            return error;
        }
        let Cursor { step, micro } = self.state.cursor;
        self.state.preview_is_owed = micro == 0 && self.preview_is_due(step) && self.previewed != Some(step);
        match (self.save_before_update(), error) {
            (Ok(checkpoint), Error::Reward(source)) => Error::RewardFailed { source: Box::new(source), checkpoint },
            (Ok(_), error) => error,
            (Err(problem), error) => {
                self.journal.warn(format_args!("no checkpoint of step {step}: {problem}"));
                error
            }
        }
    }

    /// The update whose preview a resumed run still has to draw, because a reward failed in it.
    pub fn owed_preview(&self) -> Option<u64> {
        self.state.preview_is_owed.then_some(self.state.cursor.step)
    }
}
