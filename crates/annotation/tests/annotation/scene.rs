//! Prompts with images on disk, and a run over them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;
use vp_annotation::{AnnotatorConfig, BuildContext, Clock, Event, Job, RunOptions, Summary, run};
use vp_data::{Record, RgbImage};

pub struct Scene {
    pub folder: TempDir,
    pub items: Vec<Record>,
}

impl Scene {
    /// `prompts` prompts with `images` small images each.
    pub fn new(prompts: usize, images: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        let item = |prompt: usize| {
            let completion = |image: usize| {
                let name = format!("images/{prompt}_{image}.png");
                RgbImage::from_pixel(6, 4, image::Rgb([prompt as u8, image as u8, 9])).save(folder.path().join(&name)).unwrap();
                serde_json::json!({ "image_path": name, "seed": image })
            };
            let completions: Vec<_> = (0..images).map(completion).collect();
            let value = serde_json::json!({ "id": format!("{prompt:03}"), "prompt": format!("prompt number {prompt}"), "completions": completions });
            serde_json::from_value(value).unwrap()
        };
        let items = (0..prompts).map(item).collect();
        Self { folder, items }
    }

    pub fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn job<'a>(&'a self, output: &'a Path) -> Job<'a> {
        Job { items: &self.items, images_root: self.folder.path(), output }
    }

    /// Runs into the folder `output`; returns the summary, or the error, and every notice.
    pub fn run(
        &self,
        annotator: &AnnotatorConfig,
        options: &RunOptions,
        output: &str,
        clock: Clock,
    ) -> (vp_annotation::Result<Summary>, Vec<String>) {
        let notices = Mutex::new(Vec::new());
        let progress = |event: Event| {
            if let Event::Notice(text) = event {
                notices.lock().unwrap().push(text.to_owned());
            }
        };
        let annotator = annotator.build(BuildContext { clock, ..BuildContext::default() }).unwrap();
        let output = self.output(output);
        let summary = run(self.job(&output), annotator.as_ref(), options, &progress, &AtomicBool::new(false));
        (summary, notices.into_inner().unwrap())
    }

    /// A run that ends well, on a simulated clock.
    pub fn runs(&self, annotator: &AnnotatorConfig, options: &RunOptions, output: &str) -> Summary {
        self.run(annotator, options, output, Clock::simulated()).0.unwrap()
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap()
    }
}

/// The `openai` annotator at `base_url`, with further lines of TOML.
pub fn openai(base_url: &str, more: &str) -> AnnotatorConfig {
    let defaults = ["api_key_env = \"VP_TEST_KEY\"", "timeout_s = 30.0"];
    let more: Vec<&str> = defaults.into_iter().filter(|line| !more.contains(&line[..8])).chain([more]).collect();
    toml::from_str(&format!("[openai]\nmodel = \"test\"\nbase_url = \"{base_url}\"\n{}", more.join("\n"))).unwrap()
}

/// Rates, and compares in both orders.
pub fn everything() -> RunOptions {
    RunOptions { compare: true, ..RunOptions::default() }
}
