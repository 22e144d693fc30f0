//! Ratings of images as they are drawn, for a reward that a model is trained on: no records and no journal, but the rubric, the cache and
//! the budget of a run.

use std::path::PathBuf;

use vp_core::waits;
use vp_data::Ratings;

use crate::cache::Cache;
use crate::concurrently::concurrently;
use crate::journal::{JournalLine, Outcome};
use crate::{Annotator, Answered, Ask, Budget, Error, OpenAi, Picture, Result, Task, Unanswered, Usage, questions};

/// A model behind a server that rates one image at a time, so that a rating does not depend on which images are drawn together.
pub struct OnlineRater {
    /// Who rates.
    pub annotator: OpenAi,
    /// How much may be spent.
    pub budget: Budget,
    /// Questions in flight.
    pub concurrency: usize,
    /// A folder of answers shared with other runs.
    pub cache: Option<PathBuf>,
}

impl OnlineRater {
    /// The ratings of each image for its prompt; for an image that the model did not rate, however often it was asked, why.
    ///
    /// # Errors
    /// When the server refuses or does not reply, a limit of the budget is reached, or the cache cannot be read or written. What was answered
    /// before is in the cache.
    pub fn rate(&self, prompts: &[String], pictures: &[Picture]) -> Result<Vec<Result<Ratings, String>>> {
        let count = pictures.len().min(prompts.len());
        concurrently(count, self.concurrency, |number, stopped| self.rate_one(&prompts[number], &pictures[number], stopped))
    }

    fn rate_one(&self, prompt: &str, picture: &Picture, stopped: &dyn Fn() -> bool) -> Result<Result<Ratings, String>> {
        let picture = std::slice::from_ref(picture);
        let key = questions::of_image(prompt).key(&self.annotator, picture);
        let cache = Cache(self.cache.clone());
        if let Some(JournalLine { said: Outcome::Rated(ratings), .. }) = cache.find(&key)? {
            return Ok(ratings.into_iter().next().ok_or_else(|| "the cache holds no rating of it".into()));
        }
        // Without a journal, an unusable reply is not kept. The budget has already counted it.
        let keep = |_: &crate::Unusable, _: Usage| Ok(());
        let stopped = || stopped() || waits::are_ended();
        let ask = Ask { key: &key, repeat: 0, stopped: &stopped, notice: &waits::tell, budget: &self.budget, unusable: &[], keep: &keep };
        match self.annotator.rate(prompt, picture, &ask) {
            Ok(Answered { value, usage, repaired }) => {
                let said = Outcome::Rated(value.clone());
                cache.store(&JournalLine { key: key.clone(), item: String::new(), task: Task::Rate, said, usage, repaired })?;
                Ok(value.into_iter().next().ok_or_else(|| "the reply rates no image".into()))
            }
            // A request that the server rejects, as a filter of contents does, is about this image.
            Err(Unanswered::SetAside(reason) | Unanswered::Rejected(reason)) => Ok(Err(reason)),
            Err(Unanswered::Unreachable(reason)) => Err(Error::NoAnswer { reason }),
            Err(Unanswered::BudgetSpent(limit)) => Err(Error::NoAnswer { reason: format!("{limit}; raise it to go on") }),
            Err(Unanswered::Stopped) => Err(Error::NoAnswer { reason: "stopped".into() }),
            Err(Unanswered::Fatal(error)) => Err(error),
        }
    }
}
