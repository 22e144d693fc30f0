//! The previews of a run, and how the last one differs from the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vp_core::input_file;
use vp_data::load_image;
use vp_evaluation::comparison::{CompareOptions, Distances, ImageResult, ModelComparison, compare};
use vp_evaluation::pixels;
use vp_evaluation::report::{ImagePair, Picture};
use vp_trainers::run::journal::{RESULTS, image_name};

use super::{PAIRS, ResultsByImage};

/// The previews of a run, in the order of steps.
pub struct Previews {
    steps: Vec<Step>,
}

/// The preview of one step.
struct Step {
    step: u64,
    folder: PathBuf,
    results: Vec<ImageResult>,
    /// The images' files, by the prompt and seed of the results.
    files: BTreeMap<(usize, u64), PathBuf>,
}

impl Previews {
    /// Reads those in `samples/` up to a step: later ones are left from an earlier attempt that went further.
    pub fn read(run: &Path, upto: u64) -> anyhow::Result<Self> {
        let folders = fs::read_dir(run.join("samples")).into_iter().flatten().flatten().map(|entry| entry.path());
        let step_of = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
        let mut found: Vec<(u64, PathBuf)> = folders.filter_map(|path| Some((step_of(&path)?, path))).collect();
        found.retain(|(step, path)| *step <= upto && path.join(RESULTS).is_file());
        found.sort();
        let mut steps = found.into_iter().map(|(step, folder)| Step::read(step, folder)).collect::<anyhow::Result<Vec<_>>>()?;
        if let Some((first, later)) = steps.split_first_mut() {
            first.number();
            later.iter_mut().for_each(|step| step.number_as(first));
        }
        Ok(Self { steps })
    }

    /// The first and the last preview, if there are two or more.
    fn both(&self) -> Option<(&Step, &Step)> {
        match &self.steps[..] {
            [first, .., last] if !last.results.is_empty() => Some((first, last)),
            _ => None,
        }
    }

    /// The names of the first and the last model.
    pub fn ends(&self) -> Option<(&str, &str)> {
        self.both().map(|(first, last)| (first.results[0].model.as_str(), last.results[0].model.as_str()))
    }

    /// How many images a preview has.
    pub fn images(&self) -> usize {
        self.steps.first().map_or(0, |first| first.results.len())
    }

    /// The prompts, each once.
    pub fn prompts(&self) -> Vec<String> {
        let all: BTreeMap<usize, &str> =
            self.steps.iter().take(1).flat_map(|step| &step.results).map(|row| (row.index, row.prompt.as_str())).collect();
        all.into_values().map(String::from).collect()
    }

    /// For each step, the mean of a value over its images.
    pub fn course(&self, value: impl Fn(&ImageResult) -> f64) -> Vec<(f64, f64)> {
        let mean = |step: &Step| step.results.iter().map(&value).sum::<f64>() / step.results.len() as f64;
        self.steps.iter().map(|step| (step.step as f64, mean(step))).collect()
    }

    /// For each step, how far the mean of a reward has moved since the first preview, in standard deviations over that one's images; empty where
    /// they are scored alike, or not at all.
    pub fn change(&self, reward: &str) -> Vec<(f64, f64)> {
        let score = |row: &ImageResult| row.score(reward).unwrap_or(f64::NAN);
        let first: Vec<f64> = self.steps.first().map(|first| first.results.iter().map(score).collect()).unwrap_or_default();
        let mean = first.iter().sum::<f64>() / first.len() as f64;
        let spread = (first.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / first.len() as f64).sqrt();
        if !(spread.is_finite() && spread > 0.0) {
            return Vec::new();
        }
        self.course(score).into_iter().map(|(step, now)| (step, (now - mean) / spread)).collect()
    }

    /// Compares the last preview with the first.
    pub fn compare(&self) -> anyhow::Result<Option<ModelComparison>> {
        let Some((first, last)) = self.both() else { return Ok(None) };
        let rows = [&first.results[..], &last.results].concat();
        let distances = Distances {
            metric: "root mean square of pixels".into(),
            models: [first, last].into_iter().map(Step::distances).collect::<anyhow::Result<_>>()?,
        };
        let several = distances.models.values().any(|of| !of.is_empty());
        let names = [rows[0].model.as_str(), last.results[0].model.as_str()];
        Ok(Some(compare(&rows, &names, several.then_some(&distances), &CompareOptions::default())?))
    }

    /// Some pairs of images, first and last, with every prompt once before any comes twice; and the pairs that changed most.
    pub fn pairs(&self, run: &Path, comparison: Option<&ModelComparison>) -> anyhow::Result<(Vec<ImagePair>, Vec<ImagePair>)> {
        let Some((first, last)) = self.both() else { return Ok((Vec::new(), Vec::new())) };
        let rows = [&first.results[..], &last.results].concat();
        let names = [rows[0].model.as_str(), last.results[0].model.as_str()];
        let by_image = ResultsByImage::new(&rows);
        let picture = |row: &ImageResult| {
            let path = if row.model == names[0] { first } else { last }.file(row);
            let bytes = input_file::read_regular(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(Picture { model: row.model.clone(), file: path.strip_prefix(run).ok().map(|path| path.display().to_string()), bytes })
        };
        let some = |images: Vec<(usize, u64)>| {
            let pairs = images.into_iter().filter_map(|(index, seed)| by_image.pair(names, index, seed, picture).transpose());
            pairs.collect::<anyhow::Result<Vec<_>>>()
        };
        let mut of_prompt: BTreeMap<usize, usize> = BTreeMap::new();
        let mut images: Vec<(usize, usize, u64)> = Vec::new();
        for row in &last.results {
            let turn = of_prompt.entry(row.index).or_default();
            images.push((*turn, row.index, row.seed));
            *turn += 1;
        }
        images.sort_unstable();
        let mut shown: Vec<(usize, u64)> = images.into_iter().take(PAIRS).map(|(_, index, seed)| (index, seed)).collect();
        shown.sort_unstable();
        let extremes = comparison.iter().flat_map(|comparison| comparison.extreme_images()).map(|(_, index, seed)| (index, seed));
        Ok((some(shown)?, some(extremes.collect())?))
    }
}

impl Step {
    fn read(step: u64, folder: PathBuf) -> anyhow::Result<Self> {
        let path = folder.join(RESULTS);
        let text = input_file::read_regular_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let line = |(number, line): (usize, &str)| {
            serde_json::from_str(line).with_context(|| format!("{}, line {}: this is not a result of an image", path.display(), number + 1))
        };
        let results = text.lines().enumerate().map(line).collect::<anyhow::Result<Vec<ImageResult>>>()?;
        Ok(Self { step, folder, results, files: BTreeMap::new() })
    }

    /// Drops repeated results, which come from a prompt or a seed that is listed twice.
    fn number(&mut self) {
        let mut seen = BTreeSet::new();
        self.results.retain(|row| seen.insert((row.prompt.clone(), row.seed)));
        self.name_files();
    }

    /// Numbers prompts as the first preview does. The previews of a resumed run may have changed; only images that both have are compared.
    fn number_as(&mut self, first: &Self) {
        self.number();
        let numbers: BTreeMap<(&str, u64), usize> = first.results.iter().map(|row| ((row.prompt.as_str(), row.seed), row.index)).collect();
        let mut files = BTreeMap::new();
        self.results.retain_mut(|row| {
            let Some(index) = numbers.get(&(row.prompt.as_str(), row.seed)) else { return false };
            if let Some(file) = self.files.get(&(row.index, row.seed)) {
                files.insert((*index, row.seed), file.clone());
            }
            row.index = *index;
            true
        });
        self.files = files;
    }

    fn name_files(&mut self) {
        let file = |row: &ImageResult| ((row.index, row.seed), self.folder.join(image_name(row.index, row.seed)));
        self.files = self.results.iter().map(file).collect();
    }

    fn file(&self, row: &ImageResult) -> PathBuf {
        self.files[&(row.index, row.seed)].clone()
    }

    /// The model's name, and for each prompt how far apart its images are.
    fn distances(&self) -> anyhow::Result<(String, BTreeMap<usize, Vec<f64>>)> {
        let mut of_prompts: BTreeMap<usize, Vec<PathBuf>> = BTreeMap::new();
        for row in &self.results {
            of_prompts.entry(row.index).or_default().push(self.file(row));
        }
        let mut distances = BTreeMap::new();
        for (index, files) in of_prompts.into_iter().filter(|(_, files)| files.len() > 1) {
            let images = files.iter().map(load_image).collect::<Result<Vec<_>, _>>()?;
            distances.insert(index, pixels::distances(&images.iter().map(|image| image.as_raw().as_slice()).collect::<Vec<_>>()));
        }
        Ok((self.results[0].model.clone(), distances))
    }
}
