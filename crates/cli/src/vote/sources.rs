//! What is voted on, as records whose images lie in the folder of the votes: linked or copied there, so that it is complete in itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use vp_core::{atomic, input_file};
use vp_data::{Aggregation, AnnotatorId, Completion, OnProblem, Record, open_dataset};
use vp_evaluation::comparison::ImageResult;

use crate::commands::image_of_evaluation;
use crate::image_copies::copy_images;
use crate::serve::{images_with_captions, results_of_evaluation};

/// Where images come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Records, or any published set.
    Records(PathBuf),
    /// An evaluation, finished or under way.
    Evaluation(PathBuf),
    /// Folders of images under the same names.
    Folders(Vec<PathBuf>),
    /// Records that are there already.
    #[cfg(test)]
    Given(Vec<Record>),
}

/// What is voted on, and what is known of it.
#[derive(Debug, Default)]
pub struct Contest {
    /// Of which nothing is said.
    pub records: Vec<Record>,
    /// Which image others prefer: by their name, for a record's id and two completions, 1 where the first is better, −1 where the second is.
    pub others: BTreeMap<String, BTreeMap<(String, usize, usize), f64>>,
    /// When it was read, if more may come.
    read: Option<SystemTime>,
}

impl Source {
    /// Reads what there is, and links its images below `output`.
    ///
    /// # Errors
    /// When something cannot be read, or there are no two images of a prompt to compare.
    pub fn read(&self, output: &Path) -> anyhow::Result<Contest> {
        let contest = match self {
            Self::Records(path) => of_records(path, output)?,
            Self::Evaluation(folder) => of_evaluation(folder, output)?,
            Self::Folders(folders) => of_folders(folders, output)?,
            #[cfg(test)]
            Self::Given(records) => return Ok(Contest { records: records.clone(), ..Contest::default() }),
        };
        if contest.records.is_empty() && contest.read.is_none() {
            bail!("there is nothing to vote on: no prompt has two images");
        }
        Ok(contest)
    }

    /// Reads again what may have grown; `None` if it has not, or cannot be read at the moment.
    pub fn read_again(&self, output: &Path, known: &Contest) -> Option<Contest> {
        match self {
            Self::Evaluation(folder) if newest(folder) != known.read => of_evaluation(folder, output).ok(),
            _ => None,
        }
    }
}

fn of_records(path: &Path, output: &Path) -> anyhow::Result<Contest> {
    let dataset = open_dataset(path).with_context(|| format!("--records {}", path.display()))?;
    let found = dataset.read(OnProblem::Refuse)?.records;
    let mut contest = Contest::default();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for record in found.into_iter().filter(|record| record.completions.len() > 1) {
        contest.add_opinion(&record);
        // Several annotators have a record each for the same images.
        let names = |record: &Record| record.completions.iter().map(|completion| completion.image_path.clone()).collect::<Vec<_>>();
        match places.get(&record.id) {
            Some(place) if names(&contest.records[*place]) == names(&record) => continue,
            Some(_) => bail!("{}: records with the id {} have different images", path.display(), record.id),
            None => places.insert(record.id.clone(), contest.records.len()),
        };
        contest.records.push(bare(record));
    }
    let is_beside = path.parent().is_some_and(|folder| fs::canonicalize(folder).ok() == fs::canonicalize(output).ok());
    if is_beside {
        bail!("--output {} holds the records themselves, which the votes would replace; choose another", output.display());
    }
    copy_images(&dataset, &mut contest.records, output)?;
    Ok(contest)
}

impl Contest {
    /// Keeps what an annotator said of a record's images.
    fn add_opinion(&mut self, record: &Record) {
        let aggregation = Aggregation::default();
        let name = record.annotator.clone().unwrap_or_else(AnnotatorId::human).name;
        let of_other = self.others.entry(name).or_default();
        for (better, worse) in record.pairs(&aggregation) {
            let (first, second, sign) = if better < worse { (better, worse, 1.0) } else { (worse, better, -1.0) };
            of_other.insert((record.id.clone(), first, second), sign);
        }
    }
}

/// A record without what others said.
fn bare(mut record: Record) -> Record {
    record.comparisons.clear();
    record.annotator = None;
    for completion in &mut record.completions {
        completion.annotations.clear();
        completion.rank = None;
    }
    record
}

/// The images of every prompt and seed that two models or more have drawn, with the rewards' opinions of them.
fn of_evaluation(folder: &Path, output: &Path) -> anyhow::Result<Contest> {
    if !folder.join("evaluation.json").is_file() {
        bail!("--evaluation {}: expected the folder of an evaluation (it has no evaluation.json)", folder.display());
    }
    let read = newest(folder);
    let mut drawn: BTreeMap<(usize, u64), Vec<(usize, ImageResult)>> = BTreeMap::new();
    for (side, rows) in results_of_evaluation(folder) {
        rows.into_iter().for_each(|row| drawn.entry((row.index, row.seed)).or_default().push((side, row)));
    }
    let mut contest = Contest { read, ..Contest::default() };
    for ((index, seed), rows) in drawn {
        let mut completions = Vec::new();
        let id = format!("{index:06}-{seed}");
        for (side, row) in &rows {
            let path = image_of_evaluation(Path::new(""), *side, index, row.seed);
            let image_path = path.display().to_string().replace('\\', "/");
            if link(&folder.join(&path), &output.join(&path))? {
                completions
                    .push((Completion { image_path, model: Some(row.model.clone()), seed: Some(seed), ..Completion::default() }, row));
            }
        }
        if completions.len() < 2 {
            continue;
        }
        for (first, second) in (0..completions.len()).flat_map(|first| (first + 1..completions.len()).map(move |second| (first, second))) {
            for (reward, score) in &completions[first].1.scores {
                let difference =
                    completions[second].1.scores.get(reward).map(|other| score - other).filter(|difference| difference.is_finite());
                if let Some(difference) = difference.filter(|difference| *difference != 0.0) {
                    contest.others.entry(reward.clone()).or_default().insert((id.clone(), first, second), difference.signum());
                }
            }
        }
        let mut record = Record::new(id, rows[0].1.prompt.clone(), completions.into_iter().map(|(completion, _)| completion).collect());
        record.extra.extend(rows[0].1.category.clone().map(|category| ("category".to_string(), category.into())));
        contest.records.push(record);
    }
    Ok(contest)
}

/// When the results of an evaluation were written last.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder.join("results")).into_iter().flatten().flatten();
    let newest = entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max();
    // Even without results it may still begin.
    newest.or(Some(SystemTime::UNIX_EPOCH))
}

/// Images that every folder has under the same name.
fn of_folders(folders: &[PathBuf], output: &Path) -> anyhow::Result<Contest> {
    let mut listed = Vec::new();
    for folder in folders {
        if !folder.is_dir() {
            bail!("--images {}: expected a folder of images", folder.display());
        }
        listed.push(images_with_captions(folder));
    }
    let names: BTreeSet<&String> = listed[0].keys().filter(|name| listed.iter().all(|images| images.contains_key(*name))).collect();
    if names.is_empty() {
        bail!("--images: the folders have no image under the same name; compared are A/NAME.png and B/NAME.png");
    }
    let mut contest = Contest::default();
    for name in names {
        let mut completions = Vec::new();
        for (number, folder) in folders.iter().enumerate() {
            let image_path = format!("images/{number}/{name}");
            link(&folder.join(name), &output.join(&image_path))?;
            completions.push(Completion { image_path, model: Some(label(folders, number)), ..Completion::default() });
        }
        let prompt = listed.iter().map(|images| &images[name]).find(|prompt| !prompt.is_empty());
        contest.records.push(Record::new(name.clone(), prompt.map_or("(no prompt)", String::as_str), completions));
    }
    Ok(contest)
}

/// A folder's name, with its number where two have the same.
fn label(folders: &[PathBuf], number: usize) -> String {
    let name =
        |folder: &PathBuf| folder.file_name().map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned());
    let own = name(&folders[number]);
    let is_shared = folders.iter().filter(|folder| name(folder) == own).count() > 1;
    if is_shared { format!("{own} ({})", number + 1) } else { own }
}

/// Links or copies an image, unless it is there already; whether there was one.
fn link(from: &Path, to: &Path) -> anyhow::Result<bool> {
    if to.exists() || !from.is_file() {
        return Ok(to.exists());
    }
    let folder = to.parent().context("an image lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    if fs::hard_link(from, to).is_err() {
        let bytes = input_file::read_regular(from).with_context(|| format!("read {}", from.display()))?;
        atomic::write(to, &bytes).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_the_same_name_are_compared_and_others_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, output] = ["a", "b", "out"].map(|name| dir.path().join(name));
        for folder in [&a, &b] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("1.png"), "").unwrap();
        }
        fs::write(a.join("2.png"), "").unwrap();
        fs::write(b.join("metadata.jsonl"), "{\"file_name\": \"1.png\", \"text\": \"a cat\"}\n").unwrap();
        let contest = Source::Folders(vec![a.clone(), b]).read(&output).unwrap();
        assert_eq!(contest.records.len(), 1);
        assert_eq!((&*contest.records[0].prompt, contest.records[0].completions[1].model.as_deref()), ("a cat", Some("b")));
        assert!(output.join("images/1/1.png").is_file());
        let told = Source::Folders(vec![a, output]).read(dir.path()).unwrap_err().to_string();
        assert!(told.contains("no image under the same name"), "{told}");
    }
}
