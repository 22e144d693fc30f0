//! Puts the shipped configs into the binary: every `configs/<folder>/<name>.toml` there is, so that a new one needs no list.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let configs = Path::new("configs");
    println!("cargo::rerun-if-changed={}", configs.display());
    let mut table = String::from("&[\n");
    for folder in sorted(configs) {
        for file in sorted(&folder).into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "toml")) {
            let name = |path: &Path| path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            let (folder, name) = (name(&folder), name(&file));
            let path = format!("configs/{folder}/{name}.toml");
            // Relative to the crate: a target folder may serve the repository and what was packed of it.
            let text = format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{path}\"))");
            writeln!(table, "Config {{ folder: {folder:?}, name: {name:?}, path: {path:?}, text: {text} }},")
                .expect("a string takes everything");
        }
    }
    table += "]\n";
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it"));
    fs::write(out.join("configs.rs"), table).expect("the build's folder can be written");
}

/// What lies in a folder, by name.
fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder that can be read").path()).collect();
    paths.sort();
    paths
}
