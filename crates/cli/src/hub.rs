//! Models of the Hugging Face hub, by id: downloaded into the cache that Python's `huggingface_hub` uses, and found there again.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are obeyed.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use vp_core::input_file;
use vp_models::hub_id::{HubId, WEIGHTS};
use vp_models::weights::chosen_weights;

use crate::progress::{self, Progress};
use crate::terminal::{complain, warn};

/// The folders of a pipeline that are read. A safety checker, among others, is not.
const COMPONENTS: [&str; 7] = ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"];

/// How often a download is tried again, and the wait before the first time; each further one is twice as long.
const RETRIES: u32 = 3;
const WAIT: Duration = Duration::from_millis(500);

/// The model and its revision, as the client names them.
fn handle(id: &HubId) -> Repo {
    Repo::with_revision(id.repo.clone(), RepoType::Model, id.revision.clone().unwrap_or_else(|| "main".into()))
}

/// Returns `path` itself if it exists or is not a hub id. Otherwise returns the folder or file in the cache, after downloading what is missing.
///
/// # Errors
/// When the hub does not give the model, or cannot be reached and the cache does not have it.
pub fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    let Some(id) = HubId::of(path) else { return Ok(path.to_path_buf()) };
    let cached = cached(&id);
    if is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE") {
        return cached.with_context(|| {
            format!("{}: no such path here, and the hub's cache does not have it (HF_HUB_OFFLINE forbids asking the hub)", path.display())
        });
    }
    match (download(&id), cached) {
        (Ok(folder), _) => Ok(folder),
        (Err(error), Some(folder)) if cannot_connect(&error) => {
            warn(format_args!(
                "{}: the hub cannot be reached ({error}); the copy in the cache is used, {}",
                path.display(),
                folder.display()
            ));
            Ok(folder)
        }
        (Err(error), _) => Err(error).with_context(|| format!("{}: no such path here; as a hub id", path.display())),
    }
}

/// The path itself, if something lies there, or what the cache has of the hub's model. Nothing is downloaded.
pub fn here(path: &Path) -> Option<PathBuf> {
    match HubId::of(path) {
        Some(id) => cached(&id),
        None => path.exists().then(|| path.to_path_buf()),
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| !["", "0", "false", "no", "off"].contains(&value.to_lowercase().as_str()))
}

fn cache() -> Cache {
    std::env::var_os("HF_HUB_CACHE").filter(|value| !value.is_empty()).map_or_else(Cache::from_env, |path| Cache::new(path.into()))
}

/// The folder of the hub's cache.
pub fn cache_folder() -> PathBuf {
    cache().path().clone()
}

/// What the cache has of the model.
fn cached(id: &HubId) -> Option<PathBuf> {
    let repo = cache().repo(handle(id));
    match &id.file {
        Some(file) => repo.get(file).or_else(|| of_commit(id).map(|folder| folder.join(file)).filter(|file| file.is_file())),
        None => of_reference(id).or_else(|| of_commit(id)),
    }
}

/// The snapshot that a branch or a tag had when it was downloaded.
fn of_reference(id: &HubId) -> Option<PathBuf> {
    let (cache, handle) = (cache(), handle(id));
    let reference = cache.path().join(handle.folder_name()).join("refs").join(handle.revision());
    let commit = input_file::read_regular_to_string(reference).ok()?;
    let folder = cache.repo(handle).pointer_path(commit.trim());
    folder.is_dir().then_some(folder)
}

/// The snapshot of a revision that is a commit: no reference names it.
fn of_commit(id: &HubId) -> Option<PathBuf> {
    let folder = cache().repo(handle(id)).pointer_path(id.revision.as_deref()?);
    folder.is_dir().then_some(folder)
}

fn cannot_connect(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ApiError>() {
        Some(ApiError::RequestError(error)) => !matches!(**error, ureq::Error::StatusCode(..500)),
        _ => false,
    }
}

fn download(id: &HubId) -> anyhow::Result<PathBuf> {
    let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty());
    let builder = match std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()) {
        Some(endpoint) => ApiBuilder::from_cache(cache()).with_endpoint(endpoint.trim_end_matches('/').into()),
        None => ApiBuilder::from_cache(cache()),
    };
    let builder = if token.is_some() { builder.with_token(token) } else { builder };
    let api: Api = builder.with_progress(false).with_user_agent("visionprefer", env!("CARGO_PKG_VERSION")).build()?;
    let repo = api.repo(handle(id));
    let info = repo.info().map_err(|error| explained(id, error))?;
    if !is_plain(&info.sha) {
        bail!("the hub gives {:?} as its commit; expected a hash", info.sha);
    }
    let snapshot = cache().repo(handle(id)).pointer_path(&info.sha);
    let listed: BTreeSet<String> = info.siblings.into_iter().map(|file| file.rfilename).filter(|name| is_plain(name)).collect();
    let needed = match &id.file {
        Some(file) if listed.contains(file) => vec![file.clone()],
        Some(file) => bail!("it has no file {file}"),
        None => needed(&listed)?,
    };
    let source = Source { id, api: &api, repo: &repo, snapshot: &snapshot };
    source.fetch(&needed)?;
    for index in needed.iter().filter(|name| name.contains(".index.") && name.ends_with(".json")) {
        source.fetch(&shards(&snapshot, index)?)?;
    }
    Ok(id.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
}

/// A model's files on the hub, and the folder in the cache that they are put into.
struct Source<'a> {
    id: &'a HubId,
    api: &'a Api,
    repo: &'a ApiRepo,
    snapshot: &'a Path,
}

impl Source<'_> {
    /// Downloads those of `files` that the cache lacks; a file that was cut off goes on where it stopped.
    fn fetch(&self, files: &[String]) -> anyhow::Result<()> {
        let missing: Vec<&String> = files.iter().filter(|file| !self.snapshot.join(file).exists()).collect();
        if !missing.is_empty() && !progress::is_quiet() {
            complain("hub", format_args!("downloading {} of {} files of {}", missing.len(), files.len(), self.id.repo));
        }
        for file in missing {
            let path = self.download(file).with_context(|| format!("download {file}"))?;
            if !path.starts_with(self.snapshot) {
                bail!("it was changed while it was downloaded; give the command again, or a revision (ORG/NAME@REVISION)");
            }
        }
        Ok(())
    }

    /// Downloads a file; its place in the cache.
    fn download(&self, file: &str) -> anyhow::Result<PathBuf> {
        let about = self.api.metadata(&self.repo.url(file)).map_err(|error| explained(self.id, error))?;
        if !is_plain(about.etag()) {
            bail!("the hub gives {:?} as its checksum; expected a name without folders", about.etag());
        }
        let (blob, size) = (cache().repo(handle(self.id)).blob_path(about.etag()), about.size() as u64);
        for retry in 0.. {
            let reason = match prepare(&blob, size)
                .map_err(ApiError::from)
                .and_then(|()| self.repo.download_with_progress(file, Download::default()))
            {
                Ok(path) if fs::metadata(&path).is_ok_and(|found| found.len() == size) => return Ok(path),
                Ok(path) => {
                    // A server that begins anew where it was asked to go on.
                    fs::remove_file(&blob).and_then(|()| fs::remove_file(path)).ok();
                    anyhow::anyhow!("what came is not the {size} bytes that the hub speaks of")
                }
                Err(error) => explained(self.id, error),
            };
            if retry == RETRIES {
                return Err(reason);
            }
            std::thread::sleep(WAIT * 2u32.pow(retry));
        }
        unreachable!("the last try returns")
    }
}

/// Tells how a download is going, as the client says it.
#[derive(Default)]
struct Download(Option<Progress>);

impl hf_hub::api::Progress for Download {
    fn init(&mut self, size: usize, filename: &str) {
        self.0 = Some(Progress::of_bytes(filename, size as u64));
    }

    fn update(&mut self, size: usize) {
        self.0.iter().for_each(|progress| progress.advance(size));
    }

    fn finish(&mut self) {
        self.0 = None;
    }
}

/// Makes what an earlier process left of a file fit to go on from. A whole file, which was only not renamed any more, loses its last byte: a
/// server has nothing to send from its end on. What is longer is another file.
fn prepare(blob: &Path, size: u64) -> std::io::Result<()> {
    let part = blob.with_extension("part");
    let Ok(found) = fs::metadata(&part) else { return Ok(()) };
    // The client's own lock: who holds it is writing the file.
    let lock = File::create(blob.with_extension("lock"))?;
    if found.len() >= size && lock.try_lock().is_ok() {
        let kept = if found.len() == size { size.saturating_sub(1) } else { 0 };
        OpenOptions::new().write(true).open(part)?.set_len(kept)?;
    }
    Ok(())
}

/// The files of shards that an index names.
fn shards(snapshot: &Path, index: &str) -> anyhow::Result<Vec<String>> {
    let path = snapshot.join(index);
    let text = input_file::read_regular_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let index: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let names: BTreeSet<&str> =
        index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str()).filter(|name| is_plain(name)).collect();
    let folder = Path::new(&path).strip_prefix(snapshot).ok().and_then(Path::parent).unwrap_or(Path::new(""));
    Ok(names.into_iter().map(|name| folder.join(name).to_string_lossy().into_owned()).collect())
}

/// Whether a name from a server stays within its folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The files that loading needs: of a pipeline, its index and the configs, tokenizers and weights of its components, in one form; of
/// anything else, what lies at the top.
fn needed(listed: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    if !listed.contains("model_index.json") {
        return needed_of_folder(listed, "", None);
    }
    let mut all = vec!["model_index.json".to_string()];
    for component in COMPONENTS {
        let stem = match component {
            "unet" | "vae" => Some("diffusion_pytorch_model"),
            "text_encoder" | "text_encoder_2" => Some("model"),
            _ => None,
        };
        all.extend(needed_of_folder(listed, &format!("{component}/"), stem)?);
    }
    Ok(all)
}

fn needed_of_folder(listed: &BTreeSet<String>, folder: &str, stem: Option<&str>) -> anyhow::Result<Vec<String>> {
    let inside = |name: &&String| name.strip_prefix(folder).is_some_and(|rest| !rest.contains('/'));
    let here: BTreeSet<String> = listed.iter().filter(inside).map(|name| name[folder.len()..].to_string()).collect();
    let is_small = |name: &&String| [".json", ".txt"].iter().any(|end| name.ends_with(end)) && !name.contains(".index.");
    let mut found: Vec<String> = here.iter().filter(is_small).cloned().collect();
    let stems = stem.map_or(vec!["model", "open_clip_model", "diffusion_pytorch_model"], |stem| vec![stem]);
    let mut chosen = None;
    for stem in stems {
        let weights = chosen_weights(&here, stem);
        chosen = chosen.or(weights.map_err(|variants| anyhow::anyhow!("{folder}: weights in several variants ({variants})"))?);
    }
    match chosen {
        Some(weights) => found.push(weights),
        None if stem.is_none() && folder.is_empty() => {
            let weights: Vec<&String> = here.iter().filter(|name| WEIGHTS.iter().any(|end| name.ends_with(end))).collect();
            match weights[..] {
                [only] => found.push(only.clone()),
                [] => bail!("it has no weights that are read here (no model_index.json, {})", WEIGHTS.join(", ")),
                [first, ..] => {
                    bail!("it has {} files of weights and no model_index.json; name one, such as ORG/NAME/{first}", weights.len())
                }
            }
        }
        None => {}
    }
    Ok(found.into_iter().map(|name| format!("{folder}{name}")).collect())
}

/// An error of the hub with the way out.
fn explained(id: &HubId, error: ApiError) -> anyhow::Error {
    let status = match &error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    };
    let revision = id.revision.as_deref().unwrap_or("main");
    let way_out = match status {
        Some(401 | 403) => Some(format!(
            "the hub refuses {} (it is private, gated or not there): accept its terms on its page, and set HF_TOKEN to a token that may read it",
            id.repo
        )),
        Some(404) => Some(format!("the hub has no model {} with a revision {revision}", id.repo)),
        Some(429) => Some("the hub asks to wait; try again later, or set HF_TOKEN".into()),
        _ => None,
    };
    match way_out {
        Some(way_out) => anyhow::Error::new(error).context(way_out),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_is_needed() {
        let listed = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect::<BTreeSet<String>>();
        let found = needed(&listed(&[
            "README.md",
            "model_index.json",
            "v1-5-pruned.ckpt",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "unet/config.json",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
        ]));
        let expected = [
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "scheduler/scheduler_config.json",
        ];
        assert_eq!(found.unwrap(), expected);
        assert_eq!(
            needed(&listed(&["config.json", "model.safetensors", "pytorch_model.bin"])).unwrap(),
            ["config.json", "model.safetensors"]
        );
        assert_eq!(needed(&listed(&["HPS_v2.1_compressed.pt", "README.md"])).unwrap(), ["HPS_v2.1_compressed.pt"]);
        let several = needed(&listed(&["a.safetensors", "b.safetensors"])).unwrap_err().to_string();
        assert!(several.contains("ORG/NAME/a.safetensors"), "{several}");
    }

    #[test]
    fn names_that_leave_their_folder_are_not_plain() {
        for name in ["../x", "/etc/passwd", "a/../../b", ""] {
            assert!(!is_plain(name), "{name}");
        }
        assert!(is_plain("unet/config.json"));
    }
}
