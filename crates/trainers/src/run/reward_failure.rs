//! What becomes of a run in which a reward fails: a server that is gone may come back, and what was trained until then is not to be lost.

use burn::module::Module;

use crate::Error;
use crate::run::Run;
use crate::run::checkpoint::Cursor;

impl<M: Module> Run<M> {
    /// The error that ends the run, after saving a checkpoint if it is a reward's.
    pub fn secured(&mut self, error: Error) -> Error {
        let source = match error {
            Error::Reward(source) if !self.is_at_the_beginning() => source,
            error => return error,
        };
        let Cursor { step, micro } = self.state.cursor;
        self.state.preview_is_owed = micro == 0 && self.preview_is_due(step) && self.previewed != Some(step);
        match self.save() {
            Ok(checkpoint) => Error::RewardFailed { source: Box::new(source), checkpoint },
            Err(error) => {
                self.journal.warn(format_args!("no checkpoint of step {step}: {error}"));
                Error::Reward(source)
            }
        }
    }

    /// The update whose preview a resumed run still has to draw, because a reward failed in it.
    pub fn owed_preview(&self) -> Option<u64> {
        self.state.preview_is_owed.then_some(self.state.cursor.step)
    }
}
