//! Every question of a run, in the input's order, and the key under which its answer is kept.

use std::path::{Path, PathBuf};

use serde_json::json;
use vp_data::{Prompt, Record};

use crate::picture::hex_digest;
use crate::{Annotator, Picture, RunOptions, Task};

/// Part of every key: with another number, all earlier answers are ignored.
const KEY_VERSION: u32 = 1;

/// One question about one prompt.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    /// Index in the input.
    pub(crate) item: usize,
    pub(crate) id: &'a str,
    pub(crate) prompt: &'a str,
    pub(crate) task: Task,
    pub(crate) repeat: u32,
    /// Indices of the completions, as shown.
    pub(crate) shown: Vec<usize>,
    paths: Vec<PathBuf>,
}

impl Question<'_> {
    pub(crate) fn pictures(&self) -> vp_data::Result<Vec<Picture>> {
        self.paths.iter().map(|path| Picture::read(path)).collect()
    }

    /// SHA-256 of everything that the answer depends on.
    pub(crate) fn key(&self, annotator: &dyn Annotator, pictures: &[Picture]) -> String {
        let hashes: Vec<&str> = pictures.iter().map(Picture::hash).collect();
        let parts = json!([
            KEY_VERSION,
            annotator.name(),
            annotator.model(),
            annotator.rubric(self.task),
            self.task,
            self.prompt,
            hashes,
            self.repeat,
            annotator.settings()
        ]);
        hex_digest(parts.to_string().as_bytes())
    }
}

/// The questions of each record: for each repeat, the rating of all images, then every pair of images, in both orders if asked for.
pub(crate) fn of_records<'a>(items: &'a [Record], images_root: &Path, options: &RunOptions) -> Vec<Question<'a>> {
    let mut questions = Vec::new();
    for (item, record) in items.iter().enumerate() {
        let count = record.completions.len();
        for repeat in 0..options.repeats {
            let mut ask = |task: Task, shown: Vec<usize>| {
                let paths = shown.iter().map(|index| images_root.join(&record.completions[*index].image_path)).collect();
                questions.push(Question { item, id: &record.id, prompt: &record.prompt, task, repeat, shown, paths });
            };
            if options.rate && count > 0 {
                ask(Task::Rate, (0..count).collect());
            }
            let pairs = (0..count).flat_map(|first| (first + 1..count).map(move |second| (first, second)));
            for (first, second) in pairs.filter(|_| options.compare) {
                ask(Task::Compare, vec![first, second]);
                if options.swap {
                    ask(Task::Compare, vec![second, first]);
                }
            }
        }
    }
    questions
}

/// The question of how good one image of `prompt` is, which is looked at beside the question.
pub(crate) fn of_image(prompt: &str) -> Question<'_> {
    Question { item: 0, id: "", prompt, task: Task::Rate, repeat: 0, shown: vec![0], paths: Vec::new() }
}

/// One question per prompt: to polish it. `ids` name the prompts.
pub(crate) fn of_prompts<'a>(prompts: &'a [Prompt], ids: &'a [String]) -> Vec<Question<'a>> {
    let question = |(item, (prompt, id)): (usize, (&'a Prompt, &'a String))| Question {
        item,
        id,
        prompt: &prompt.text,
        task: Task::Polish,
        repeat: 0,
        shown: Vec::new(),
        paths: Vec::new(),
    };
    prompts.iter().zip(ids).enumerate().map(question).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Judge;

    fn records() -> Vec<Record> {
        let line = r#"{"id":"7","prompt":"a red circle","completions":[{"image_path":"a"},{"image_path":"b"},{"image_path":"c"}]}"#;
        vec![serde_json::from_str(line).unwrap()]
    }

    #[test]
    fn pairs_are_shown_in_both_orders() {
        let options = RunOptions { compare: true, repeats: 2, ..RunOptions::default() };
        let items = records();
        let shown = |options: &RunOptions| of_records(&items, Path::new("in"), options).into_iter().map(|q| q.shown).collect::<Vec<_>>();
        let once = [vec![0, 1, 2], vec![0, 1], vec![1, 0], vec![0, 2], vec![2, 0], vec![1, 2], vec![2, 1]];
        assert_eq!(shown(&options), [once.clone(), once].concat());
        let options = RunOptions { rate: false, compare: true, swap: false, ..RunOptions::default() };
        assert_eq!(shown(&options), [[0, 1], [0, 2], [1, 2]]);
        assert_eq!(of_records(&items, Path::new("in"), &options)[0].paths, [Path::new("in/a"), Path::new("in/b")]);
    }

    #[test]
    fn a_key_depends_on_all_that_an_answer_depends_on() {
        let items = records();
        let question = &of_records(&items, Path::new(""), &RunOptions::default())[0];
        let key = |question: &Question| question.key(&Judge { whole: true }, &[]);
        let others = [
            Question { prompt: "a blue circle", ..question.clone() },
            Question { task: Task::Compare, ..question.clone() },
            Question { repeat: 1, ..question.clone() },
        ];
        assert!(others.iter().all(|other| key(other) != key(question)));
        assert_eq!(key(&Question { id: "8", item: 3, ..question.clone() }), key(question));
    }
}
