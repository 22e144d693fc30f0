//! Variables of the environment that change what the program does. What is secret in them is not told.

use std::collections::BTreeMap;

use crate::redaction::{is_secret, without_secrets};

/// How the names begin that matter.
const BEGIN: [&str; 12] =
    ["VP_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "BURN_", "CUBECL_", "CUDA_", "NVIDIA_", "VK_", "WGPU_", "MESA_", "MIMALLOC_"];
/// Names that matter, in capitals.
const NAMES: [&str; 11] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "RAYON_NUM_THREADS",
    "RUST_BACKTRACE",
    "NO_COLOR",
];

/// A variable as it may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    /// Without what is secret in it; `set` if all of it is.
    pub value: String,
}

/// Those that are set and matter, by name.
pub fn settings(variables: &BTreeMap<String, String>) -> Vec<Setting> {
    let matters = |name: &str| {
        let upper = name.to_uppercase();
        // Keys of servers have names of the user's choice.
        BEGIN.iter().any(|begin| name.starts_with(begin)) || NAMES.contains(&upper.as_str()) || upper.ends_with("API_KEY")
    };
    let told = |(name, value): (&String, &String)| Setting { name: name.clone(), value: shown(name, value) };
    variables.iter().filter(|(name, value)| !value.is_empty() && matters(name)).map(told).collect()
}

fn shown(name: &str, value: &str) -> String {
    if is_secret(name) {
        return "set".into();
    }
    // An address of a proxy needs no http:// before it.
    if name.to_uppercase().ends_with("_PROXY") && !value.contains("://") {
        return value.rsplit_once('@').map_or(value, |(_, host)| host).to_owned();
    }
    without_secrets(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_told_and_what_is_secret_is_not() {
        let variables = [
            ("HF_TOKEN", "hf_s3same"),
            ("HTTPS_PROXY", "http://eve:s3same@proxy:3128"),
            ("http_proxy", "eve:s3same@proxy:3128"),
            ("HF_ENDPOINT", "https://hub.example/?token=s3same"),
            ("MISTRAL_API_KEY", "s3same"),
            ("VP_DEVICE", "vulkan"),
            ("VP_PASSWORD", "s3same"),
            ("CUBECL_NOTE", "sk-s3same"),
            ("HF_HOME", ""),
            ("EDITOR", "vi"),
        ];
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let told: Vec<String> = settings(&variables).iter().map(|Setting { name, value }| format!("{name} {value}")).collect();
        let expected = [
            "CUBECL_NOTE (removed)",
            "HF_ENDPOINT https://hub.example/?…",
            "HF_TOKEN set",
            "HTTPS_PROXY http://proxy:3128",
            "MISTRAL_API_KEY set",
            "VP_DEVICE vulkan",
            "VP_PASSWORD set",
            "http_proxy proxy:3128",
        ];
        assert_eq!(told, expected);
    }
}
