//! Ids of models on the Hugging Face hub, which are given where a path may be.

use std::path::Path;

/// The endings of files of weights.
pub const WEIGHTS: [&str; 5] = [".safetensors", ".ckpt", ".bin", ".pt", ".pth"];

/// A model on the hub, `ORG/NAME[/FILE][@REVISION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `ORG/NAME`.
    pub repo: String,
    /// A file of weights within, if it is named.
    pub file: Option<String>,
    /// A branch, a tag or a commit.
    pub revision: Option<String>,
}

impl HubId {
    /// The id that a path is, if nothing lies there.
    pub fn of(path: &Path) -> Option<Self> {
        path.to_str().and_then(Self::parse).filter(|_| !path.exists())
    }

    fn parse(given: &str) -> Option<Self> {
        let (path, revision) = given.split_once('@').map_or((given, None), |(path, revision)| (path, Some(revision.to_string())));
        let plain = |part: &&str| {
            !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let parts: Vec<&str> = path.split('/').collect();
        let is_weights = |file: &str| WEIGHTS.iter().any(|end| file.ends_with(end));
        match parts[..] {
            _ if !parts.iter().all(plain) || revision.as_deref() == Some("") => None,
            [owner, name] if !is_weights(name) => Some(Self { repo: format!("{owner}/{name}"), file: None, revision }),
            [owner, name, .., last] if is_weights(last) => {
                Some(Self { repo: format!("{owner}/{name}"), file: Some(parts[2..].join("/")), revision })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths_are_told_apart() {
        let id = |given: &str| HubId::parse(given).map(|id| (id.repo, id.file, id.revision));
        let some =
            |repo: &str, file: Option<&str>, revision: Option<&str>| Some((repo.into(), file.map(Into::into), revision.map(Into::into)));
        assert_eq!(id("org/sd-1.5"), some("org/sd-1.5", None, None));
        assert_eq!(id("org/sd@fp16"), some("org/sd", None, Some("fp16")));
        assert_eq!(id("org/sd/v1-5.safetensors@main"), some("org/sd", Some("v1-5.safetensors"), Some("main")));
        for path in ["./models/sd15", "/models/sd15", "models", "../sd15", "a/b/c", "models/x.safetensors", "a/b@", "a b/c", "org/.hidden"]
        {
            assert_eq!(id(path), None, "{path}");
        }
    }
}
