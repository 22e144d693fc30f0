//! What a run would cost, without sending anything.

use std::collections::HashSet;

use crate::journal::{KnownAnswers, Outcome};
use crate::{Annotator, Job, Result, RunOptions, Usage, questions};

/// What a run would still have to ask.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DryRun {
    /// Questions in all.
    pub questions: usize,
    /// Settled already in this output folder, or equal to another question.
    pub known: usize,
    /// Questions with an image that cannot be read.
    pub unreadable: usize,
    /// Requests, if every first reply is usable and the server is never busy.
    pub requests: u64,
    /// Tokens by a rule of thumb (four characters per token, images by OpenAI's tiles or `image_tokens`), and their price. Expect the true
    /// numbers within a factor of two.
    pub usage: Usage,
}

/// Estimates what [`run`](crate::run) would ask and pay. Reads the images and the journal; sends and writes nothing. The cache folder is not
/// looked into.
///
/// # Errors
/// When the options have findings, or the journal cannot be read.
pub fn dry_run(job: Job, annotator: &dyn Annotator, options: &RunOptions) -> Result<DryRun> {
    options.check()?;
    let known = KnownAnswers::read(job.output)?;
    let questions = questions::of_records(job.items, job.images_root, options);
    let mut dry = DryRun { questions: questions.len(), ..DryRun::default() };
    let mut seen = HashSet::new();
    for question in questions {
        let Ok(pictures) = question.pictures() else {
            dry.unreadable += 1;
            continue;
        };
        let key = question.key(annotator, &pictures);
        let is_settled = match known.settled.get(&key) {
            Some(Outcome::SetAside(_)) => !options.retry_set_aside,
            other => other.is_some(),
        };
        if is_settled || !seen.insert(key) {
            dry.known += 1;
            continue;
        }
        let estimate = annotator.estimate(question.task, question.prompt, &pictures);
        dry.requests += estimate.requests;
        dry.usage += estimate.usage;
    }
    Ok(dry)
}
