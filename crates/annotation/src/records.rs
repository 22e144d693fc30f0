//! Records of all answers, in the input's order. They depend on the input and the answers alone, not on when or in which order these came.

use std::path::{self, Path};

use vp_data::{AnnotatorId, Comparison, Completion, Record};

use crate::journal::Outcome;
use crate::questions::Question;
use crate::settle::{QuestionState, Settled};
use crate::{Annotator, Error, Result, Task};

/// One record per item, repeat and task whose questions are all settled and of which at least one has an answer.
///
/// A pair that should be shown in both orders but was answered in one alone does not count: it could not show a bias for a position.
pub(crate) fn records(items: &[Record], questions: &[Question], settled: &Settled, annotator: &dyn Annotator, swap: bool) -> Vec<Record> {
    let asked: Vec<(&Question, Option<&Outcome>)> =
        questions.iter().zip(&settled.states).map(|(question, state)| (question, said(settled, state))).collect();
    let is_open = |(_, state): &(&Question, &QuestionState)| {
        matches!(state, QuestionState::Open) || matches!(state, QuestionState::Key(key) if !settled.known.settled.contains_key(key))
    };
    let open: Vec<bool> = questions.iter().zip(&settled.states).map(|pair| is_open(&pair)).collect();
    let mut records = Vec::new();
    let mut at = 0;
    let same = |a: &(&Question, Option<&Outcome>), b: &(&Question, Option<&Outcome>)| {
        (a.0.item, a.0.repeat, a.0.task) == (b.0.item, b.0.repeat, b.0.task)
    };
    for group in asked.chunk_by(same) {
        let is_settled = !open[at..at + group.len()].contains(&true);
        at += group.len();
        let question = group[0].0;
        let mut record = unsaid(&items[question.item], annotator, question);
        let has_answer = match question.task {
            Task::Rate => rate(&mut record, group[0].1),
            Task::Compare => compare(&mut record, group, swap),
            Task::Polish => false,
        };
        if is_settled && has_answer {
            records.push(record);
        }
    }
    records
}

fn said<'a>(settled: &'a Settled, state: &QuestionState) -> Option<&'a Outcome> {
    match state {
        QuestionState::Key(key) => settled.known.settled.get(key),
        QuestionState::Unreadable(_) | QuestionState::Open => None,
    }
}

/// The item without earlier annotations.
fn unsaid(item: &Record, annotator: &dyn Annotator, question: &Question) -> Record {
    let mut record = item.clone();
    record.comparisons.clear();
    for Completion { annotations, rank, .. } in &mut record.completions {
        annotations.clear();
        *rank = None;
    }
    record.annotator = Some(AnnotatorId {
        name: annotator.name().to_owned(),
        model: annotator.model().map(str::to_owned),
        rubric: annotator.rubric(question.task).map(str::to_owned),
        repeat: question.repeat,
    });
    record
}

fn rate(record: &mut Record, said: Option<&Outcome>) -> bool {
    let Some(Outcome::Rated(ratings)) = said else { return false };
    for (completion, ratings) in record.completions.iter_mut().zip(ratings) {
        completion.annotations.clone_from(ratings);
    }
    true
}

fn compare(record: &mut Record, group: &[(&Question, Option<&Outcome>)], swap: bool) -> bool {
    for orders in group.chunks(if swap { 2 } else { 1 }) {
        let comparison = |(question, said): &(&Question, Option<&Outcome>)| match (said, question.shown[..].try_into()) {
            (Some(Outcome::Compared(choice)), Ok(shown)) => {
                Some(Comparison { shown, preferred: choice.preferred, rationale: choice.rationale.clone() })
            }
            _ => None,
        };
        let both: Option<Vec<Comparison>> = orders.iter().map(comparison).collect();
        record.comparisons.extend(both.unwrap_or_default());
    }
    !record.comparisons.is_empty()
}

/// The path of an image for a record in `folder`: relative if the image lies below it, else absolute.
pub(crate) fn image_path(images_root: &Path, image: &str, folder: &Path) -> Result<String> {
    let image = images_root.join(image);
    let absolute = |path: &Path| path::absolute(path).map_err(Error::io("find the folder of", path));
    let (image, folder) = (absolute(&image)?, absolute(folder)?);
    let path = image.strip_prefix(&folder).unwrap_or(&image);
    Ok(path.to_string_lossy().into_owned())
}
