//! The rules of the house, as functions over parsed manifests and sources: each is run on this repository and shown to fail on a bad input.
//!
//! CONTRIBUTING.md says what the rules are for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// A crate may depend only on lower floors. `cli` is the source of the root package.
const FLOORS: [(&str, u32); 13] = [
    ("core", 0),
    ("ops", 0),
    ("evaluation", 0),
    ("shapes-model", 0),
    ("shapes-unet", 0),
    ("schedulers", 1),
    ("shapes", 1),
    ("data", 2),
    ("models", 3),
    ("annotation", 3),
    ("rewards", 4),
    ("trainers", 5),
    ("cli", 6),
];
const ROOT_PACKAGE: &str = "visionprefer";
/// Crates that are files of the shipped model and lie where these lie, not under `crates/`.
const DATA: [(&str, &str); 2] = [("shapes-model", "checkpoints"), ("shapes-unet", "checkpoints/shapes/unet")];
const GPU_BACKENDS: [&str; 6] = ["cuda", "metal", "rocm", "vulkan", "webgpu", "wgpu"];
const ROOT_ONLY: [&str; 2] = ["anyhow", "clap"];
const GPU_SOURCE: &str = "crates/cli/src/device.rs";
/// A module of the program for its tests alone.
const TEST_SOURCE: &str = "crates/cli/src/documented.rs";
const LINES: usize = 600;
const EMPTY_NAMES: [&str; 6] = ["utils", "common", "helpers", "misc", "manager", "base"];

// The parsed workspace.

struct Workspace {
    root: Table,
    /// Folder under `crates/`, or name of [`DATA`], and manifest.
    members: Vec<(String, Table)>,
}

struct Dependency<'a> {
    package: &'a str,
    section: &'a str,
    spec: &'a Value,
}

impl Workspace {
    fn shared_dependencies(&self) -> Option<&Table> {
        self.root.get("workspace")?.get("dependencies")?.as_table()
    }

    /// Every dependency of a manifest, target-specific ones included, under its package name (not the name it may be given here).
    fn dependencies<'a>(&'a self, manifest: &'a Table) -> Vec<Dependency<'a>> {
        let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values).filter_map(Value::as_table);
        let mut found = Vec::new();
        for table in targets.chain([manifest]) {
            for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
                for (key, spec) in table.get(section).and_then(Value::as_table).into_iter().flatten() {
                    let shared = self.shared_dependencies().and_then(|shared| shared.get(key));
                    let package = [Some(spec), shared].into_iter().flatten().find_map(|spec| spec.get("package")?.as_str()).unwrap_or(key);
                    found.push(Dependency { package, section, spec });
                }
            }
        }
        found
    }
}

fn floor(package: &str) -> Option<u32> {
    let folder = if package == ROOT_PACKAGE { "cli" } else { package.strip_prefix("vp-")? };
    FLOORS.iter().find(|(name, _)| *name == folder).map(|(_, floor)| *floor)
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

// The rules. Each returns its findings, one per line.

fn misplaced_crates(workspace: &Workspace) -> Vec<String> {
    let mut findings = Vec::new();
    for (folder, manifest) in &workspace.members {
        if !FLOORS.iter().any(|(name, _)| name == folder) {
            findings.push(format!("crates/{folder}: not in the table of floors (tests/architecture.rs)"));
        }
        let name = manifest.get("package").and_then(|package| package.get("name")?.as_str()).unwrap_or_default();
        if name != format!("vp-{folder}") {
            findings.push(format!("crates/{folder}: its package is `{name}`, expected `vp-{folder}`"));
        }
    }
    findings
}

fn forbidden_edges(workspace: &Workspace) -> Vec<String> {
    let mut findings = Vec::new();
    for (folder, manifest) in &workspace.members {
        let Some(from) = floor(&format!("vp-{folder}")) else { continue };
        for Dependency { package, section, .. } in workspace.dependencies(manifest) {
            if let Some(to) = floor(package).filter(|to| *to >= from) {
                let direction = if to == from { "sideways" } else { "upward" };
                findings.push(format!("crates/{folder} (floor {from}): {direction} edge to {package} (floor {to}) in [{section}]"));
            }
        }
    }
    findings
}

fn stray_backends(workspace: &Workspace) -> Vec<String> {
    let is_gpu = |feature: &str| GPU_BACKENDS.contains(&feature.rsplit('/').next().unwrap_or(feature));
    let mut findings = Vec::new();
    for (key, spec) in workspace.shared_dependencies().into_iter().flatten() {
        for feature in strings(spec.get("features")).filter(|feature| is_gpu(feature)) {
            findings.push(format!("Cargo.toml: [workspace.dependencies] turns on `{feature}` of {key} for every crate"));
        }
    }
    for (folder, manifest) in &workspace.members {
        for Dependency { package, spec, .. } in workspace.dependencies(manifest) {
            for feature in strings(spec.get("features")).filter(|feature| is_gpu(feature)) {
                findings.push(format!("crates/{folder}: turns on `{feature}` of {package}"));
            }
            if package.split_once('-').is_some_and(|(family, backend)| ["burn", "cubecl"].contains(&family) && is_gpu(backend)) {
                findings.push(format!("crates/{folder}: depends on {package}"));
            }
        }
        for (name, enables) in manifest.get("features").and_then(Value::as_table).into_iter().flatten() {
            for feature in strings(Some(enables)).chain([name.as_str()]).filter(|feature| is_gpu(feature)) {
                findings.push(format!("crates/{folder}: its feature `{name}` names `{feature}`"));
            }
        }
    }
    findings
}

fn root_only_dependencies(workspace: &Workspace) -> Vec<String> {
    let mut findings = Vec::new();
    for (folder, manifest) in &workspace.members {
        for Dependency { package, section, .. } in workspace.dependencies(manifest) {
            if ROOT_ONLY.contains(&package) {
                findings.push(format!("crates/{folder}: {package} in [{section}] belongs to the root package"));
            }
        }
    }
    findings
}

fn private_settings(workspace: &Workspace) -> Vec<String> {
    let inherits = |value: Option<&Value>| value.and_then(|value| value.get("workspace")?.as_bool()) == Some(true);
    let mut findings = Vec::new();
    for (folder, manifest) in &workspace.members {
        if !inherits(manifest.get("lints")) {
            findings.push(format!("crates/{folder}: [lints] must say `workspace = true`"));
        }
        for Dependency { package, section, spec } in workspace.dependencies(manifest) {
            if !inherits(Some(spec)) {
                findings.push(format!(
                    "crates/{folder}: {package} in [{section}] must say `workspace = true`; versions live in the root manifest"
                ));
            }
        }
    }
    findings
}

fn long_files(sources: &[(String, String)]) -> Vec<String> {
    let sizes = sources.iter().filter(|(path, _)| path.starts_with("crates/")).map(|(path, text)| (path, text.lines().count()));
    sizes
        .filter(|(_, lines)| *lines > LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines, at most {LINES}; split it by idea"))
        .collect()
}

fn device_choices(sources: &[(String, String)]) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, text) in sources {
        for (number, line) in (1..).zip(text.lines()) {
            let code: String = line.split("//").next().unwrap_or_default().split_whitespace().collect();
            // In two parts, for this file is read too.
            if code.contains(concat!("Device::", "default(")) {
                findings.push(format!("{path}:{number}: the default device depends on what is compiled in; pass a device"));
            }
            let names_gpu = |name: &&str| code.contains(&format!("feature=\"{name}\"")) || code.contains(&format!("Device::{name}("));
            if path != GPU_SOURCE && GPU_BACKENDS.iter().any(names_gpu) {
                findings.push(format!("{path}:{number}: only {GPU_SOURCE} names a GPU backend"));
            }
        }
    }
    findings
}

/// Where a path is opened without a look at what it names: a folder, a device that never ends, a pipe that nobody writes to.
fn unguarded_reads(sources: &[(String, String)]) -> Vec<String> {
    let is_code =
        |path: &str| path.contains("/src/") && !path.starts_with("crates/core/") && !path.ends_with("tests.rs") && path != TEST_SOURCE;
    let mut findings = Vec::new();
    for (path, text) in sources.iter().filter(|(path, _)| is_code(path)) {
        for (number, line) in (1..).zip(text.lines().take_while(|line| !line.trim().starts_with("#[cfg(test)]"))) {
            let reads = ["fs::read(", "fs::read_to_string(", "File::open("].into_iter().find(|call| {
                let before = line.split(call).next().and_then(|before| before.chars().last());
                line.contains(call) && before.is_none_or(|before| !before.is_alphanumeric())
            });
            findings
                .extend(reads.map(|call| format!("{path}:{number}: {call}…) reads whatever is there; vp_core::input_file looks first")));
        }
    }
    findings
}

fn empty_names(paths: &[String]) -> Vec<String> {
    let is_empty = |part: &str| EMPTY_NAMES.contains(&part.split('.').next().unwrap_or(part).to_lowercase().as_str());
    paths.iter().filter(|path| path.split('/').any(is_empty)).map(|path| format!("{path}: name it for what it holds")).collect()
}

/// Public items without a sentence of documentation. Fields and variants need one only where their name does not say it all.
fn undocumented_items(sources: &[(String, String)]) -> Vec<String> {
    const ITEMS: [&str; 8] =
        ["pub fn ", "pub const ", "pub unsafe fn ", "pub struct ", "pub enum ", "pub trait ", "pub type ", "pub static "];
    let mut findings = Vec::new();
    for (path, text) in sources.iter().filter(|(path, _)| path.starts_with("crates/") && path.contains("/src/")) {
        let lines: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").map(str::trim).collect();
        // In a macro the documentation is the caller's.
        let is_item = |line: &str| ITEMS.iter().any(|item| line.starts_with(item)) && !line.contains('$');
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| is_item(line)) {
            // Attributes stand between the documentation and the item, some over several lines.
            let mut above = number;
            let is_comment = |line: &str| line.starts_with("//") && !line.starts_with("///");
            let is_attribute = |line: &str| !line.starts_with("//") && (line.starts_with("#[") || line.ends_with(")]"));
            while above > 0 && (is_attribute(lines[above - 1]) || is_comment(lines[above - 1])) {
                above -= 1;
                while above > 0 && !is_comment(lines[above]) && !lines[above].starts_with("#[") {
                    above -= 1;
                }
            }
            if above == 0 || !lines[above - 1].starts_with("///") {
                findings.push(format!("{path}:{}: `{line}` has no documentation", number + 1));
            }
        }
    }
    findings
}

/// Public types that share their name with another of their crate: a reader who meets the name must not have to ask which.
fn namesakes(sources: &[(String, String)]) -> Vec<String> {
    let mut seen: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut findings = Vec::new();
    for (path, text) in sources {
        let Some(name) = path.strip_prefix("crates/").and_then(|path| path.split_once("/src/")).map(|(name, _)| name) else { continue };
        for line in text.lines() {
            let item = ["pub struct ", "pub enum ", "pub trait "].iter().find_map(|item| line.strip_prefix(item));
            let Some(item) = item.map(|item| item.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(item)) else {
                continue;
            };
            if let Some(other) = seen.insert((name.to_owned(), item.to_owned()), path.clone()) {
                findings.push(format!("{path}: `{item}` is in {other} too; give each a name of its own"));
            }
        }
    }
    findings
}

/// Rows of a table that are named outside it: what an entry knows about itself lies in its file, and nobody else lists the entries.
fn listed_entries(sources: &[(String, String)], table: &RegisteredTable) -> Vec<String> {
    let text = sources.iter().find(|(path, _)| path == table.file).map_or("", |(_, text)| text);
    let row = |line: &str| {
        let (variant, config) = line.trim().trim_end_matches(',').split_once(" => ")?;
        let variant = variant.split_once(" = ")?.0.to_owned();
        Some((variant, config.to_owned()))
    };
    let body =
        text.split_once(&format!("pub enum {}: ", table.name)).and_then(|(_, body)| body.split_once("\n}")).map_or("", |(body, _)| body);
    let rows: Vec<(String, String)> = body.lines().filter_map(row).collect();
    let mut findings: Vec<String> = Vec::new();
    if rows.is_empty() {
        findings.push(format!("{}: no table `{}` with a trait behind it", table.file, table.name));
    }
    for (path, text) in sources.iter().filter(|(path, _)| path.starts_with("crates/") && path.contains("/src/") && path != table.file) {
        let code = text.split("#[cfg(test)]").next().unwrap_or(text);
        for (number, line) in (1..).zip(code.lines()) {
            for (variant, config) in rows.iter().filter(|(variant, _)| line.contains(&format!("{}::{variant}(", table.name))) {
                // The file of the entry itself may name it: the one that defines its config.
                let config = config.rsplit("::").next().unwrap_or(config);
                if !text.contains(&format!("pub struct {config} ")) {
                    findings.push(format!("{path}:{number}: names `{}::{variant}`; ask the entry what it is", table.name));
                }
            }
        }
    }
    findings
}

/// A `registry!` with a trait behind it.
struct RegisteredTable {
    name: &'static str,
    file: &'static str,
}

const TABLES: [RegisteredTable; 2] = [
    RegisteredTable { name: "AlgorithmConfig", file: "crates/trainers/src/config.rs" },
    RegisteredTable { name: "RewardConfig", file: "crates/rewards/src/lib.rs" },
];

// This repository.

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(text: &str) -> Table {
    text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("a path of this repository").to_str().expect("a UTF-8 path").replace('\\', "/")
}

/// Files and folders under `folder`, deepest last. Golden cases keep the names of the formats they are in.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    if folder.ends_with("tests/golden") || !folder.is_dir() {
        return;
    }
    for path in entries(folder) {
        found.push(path.clone());
        walk(&path, found);
    }
}

fn this_workspace() -> Workspace {
    let folders = entries(&root().join("crates")).into_iter().filter(|path| path.is_dir() && !path.ends_with("cli"));
    let named = folders.map(|path| (path.file_name().and_then(|name| name.to_str()).expect("a UTF-8 path").to_owned(), path));
    let data = DATA.iter().map(|(name, folder)| ((*name).to_owned(), root().join(folder)));
    let members = named.chain(data).map(|(name, path)| (name, parse(&read(&path.join("Cargo.toml")))));
    Workspace { root: parse(&read(&root().join("Cargo.toml"))), members: members.collect() }
}

fn these_sources() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    ["crates", "tests"].iter().for_each(|folder| walk(&root().join(folder), &mut paths));
    paths
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (relative(path), read(path)))
        .collect()
}

#[track_caller]
fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn manifests_follow_the_rules() {
    let workspace = this_workspace();
    assert_eq!(workspace.members.len(), FLOORS.len() - 1, "every crate of the table but `cli`, which is the root package");
    assert!(workspace.members.iter().any(|(_, manifest)| !workspace.dependencies(manifest).is_empty()), "found no dependency");
    for rule in [misplaced_crates, forbidden_edges, stray_backends, root_only_dependencies, private_settings] {
        assert_none(&rule(&workspace));
    }
}

#[test]
fn sources_follow_the_rules() {
    let sources = these_sources();
    assert!(sources.iter().any(|(path, _)| path == GPU_SOURCE), "did not find {GPU_SOURCE}");
    assert_none(&long_files(&sources));
    assert_none(&device_choices(&sources));
    assert_none(&unguarded_reads(&sources));
    assert_none(&namesakes(&sources));
    assert_none(&undocumented_items(&sources));
    TABLES.iter().for_each(|table| assert_none(&listed_entries(&sources, table)));
}

#[test]
fn names_say_something() {
    let mut paths = Vec::new();
    ["checkpoints", "configs", "crates", "docs", "scripts", "tests"].iter().for_each(|folder| walk(&root().join(folder), &mut paths));
    let paths: Vec<_> = paths.iter().map(|path| relative(path)).collect();
    assert!(paths.iter().any(|path| path == GPU_SOURCE), "did not find {GPU_SOURCE}");
    assert_none(&empty_names(&paths));
}

// What each rule refuses.

fn workspace(root: &str, members: &[(&str, &str)]) -> Workspace {
    let members = members.iter().map(|(folder, manifest)| {
        let package = format!("[package]\nname = \"vp-{folder}\"\n[lints]\nworkspace = true\n");
        ((*folder).to_owned(), parse(&(package + manifest)))
    });
    Workspace { root: parse(root), members: members.collect() }
}

fn sources(path: &str, text: &str) -> Vec<(String, String)> {
    vec![(path.to_owned(), text.to_owned())]
}

#[test]
fn edges_go_down_only() {
    let edges = |folder: &str, manifest: &str| forbidden_edges(&workspace("", &[(folder, manifest)]));
    assert_none(&edges("models", "[dependencies]\nvp-core.workspace = true\nvp-data.workspace = true\nburn.workspace = true"));

    let up = edges("models", "[dependencies]\nvp-trainers.workspace = true");
    assert_eq!(up, ["crates/models (floor 3): upward edge to vp-trainers (floor 5) in [dependencies]"]);
    let sideways = edges("shapes", "[dependencies]\nvp-schedulers.workspace = true");
    assert_eq!(sideways, ["crates/shapes (floor 1): sideways edge to vp-schedulers (floor 1) in [dependencies]"]);

    for section in ["dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies", "target.'cfg(unix)'.dev-dependencies"] {
        assert_eq!(edges("data", &format!("[{section}]\nvp-models.workspace = true")).len(), 1, "{section}");
    }
    assert_eq!(edges("core", "[dev-dependencies]\nvisionprefer = { path = \"../..\" }").len(), 1);
}

#[test]
fn renamed_dependency_is_still_an_edge() {
    let local = workspace("", &[("core", "[dependencies]\nplain = { package = \"vp-trainers\", path = \"../trainers\" }")]);
    assert_eq!(forbidden_edges(&local).len(), 1);
    let root = "[workspace.dependencies]\nplain = { package = \"vp-trainers\", path = \"crates/trainers\" }";
    let shared = workspace(root, &[("core", "[dependencies]\nplain.workspace = true")]);
    assert_eq!(forbidden_edges(&shared).len(), 1);
}

#[test]
fn every_crate_has_a_floor_and_a_prefixed_name() {
    assert_none(&misplaced_crates(&workspace("", &[("core", "")])));
    assert_eq!(misplaced_crates(&workspace("", &[("extras", "")])), ["crates/extras: not in the table of floors (tests/architecture.rs)"]);
    let misnamed = Workspace { root: Table::new(), members: vec![("core".to_owned(), parse("[package]\nname = \"vp-data\""))] };
    assert_eq!(misplaced_crates(&misnamed), ["crates/core: its package is `vp-data`, expected `vp-core`"]);
}

#[test]
fn gpu_backends_belong_to_the_root() {
    let flex = "[dependencies]\nburn = { workspace = true, features = [\"flex\"] }";
    assert_none(&stray_backends(&workspace("[features]\ncuda = [\"burn/cuda\"]", &[("models", flex)])));
    assert_eq!(
        stray_backends(&workspace("[workspace.dependencies]\nburn = { version = \"1\", features = [\"flex\", \"wgpu\"] }", &[])).len(),
        1
    );
    for manifest in [
        "[dependencies]\nburn = { workspace = true, features = [\"vulkan\"] }",
        "[dev-dependencies]\nburn = { workspace = true, features = [\"metal\"] }",
        "[target.'cfg(unix)'.dependencies]\nburn = { workspace = true, features = [\"cuda\"] }",
        "[features]\nfast = [\"burn/cuda\"]",
        "[features]\nfast = [\"burn?/wgpu\"]",
        "[features]\nwgpu = []",
        "[dependencies]\nburn-cuda.workspace = true",
        "[dependencies]\ncubecl-wgpu.workspace = true",
    ] {
        assert_eq!(stray_backends(&workspace("", &[("models", manifest)])).len(), 1, "{manifest}");
    }
}

#[test]
fn anyhow_and_clap_belong_to_the_root() {
    let root = "[dependencies]\nanyhow.workspace = true\nclap.workspace = true";
    assert_none(&root_only_dependencies(&workspace(root, &[("core", "[dependencies]\nthiserror.workspace = true")])));
    for manifest in ["[dependencies]\nanyhow.workspace = true", "[dev-dependencies]\nclap.workspace = true"] {
        assert_eq!(root_only_dependencies(&workspace("", &[("core", manifest)])).len(), 1, "{manifest}");
    }
}

#[test]
fn versions_and_lints_live_in_the_root() {
    assert_none(&private_settings(&workspace("", &[("core", "[dependencies]\nserde.workspace = true")])));
    for manifest in ["[dependencies]\nserde = \"1\"", "[dependencies]\nserde = { version = \"1\" }"] {
        assert_eq!(private_settings(&workspace("", &[("core", manifest)])).len(), 1, "{manifest}");
    }
    let unlinted = Workspace { root: Table::new(), members: vec![("core".to_owned(), Table::new())] };
    assert_eq!(private_settings(&unlinted), ["crates/core: [lints] must say `workspace = true`"]);
}

#[test]
fn files_stay_short() {
    assert_none(&long_files(&sources("crates/core/src/lib.rs", &"x\n".repeat(LINES))));
    let long = long_files(&sources("crates/core/src/lib.rs", &"x\n".repeat(LINES + 1)));
    assert_eq!(long, ["crates/core/src/lib.rs: 601 lines, at most 600; split it by idea"]);
}

#[test]
fn devices_are_chosen_in_one_file() {
    let default = concat!("let device = Device::", "default();");
    assert_eq!(device_choices(&sources(GPU_SOURCE, default)).len(), 1);
    assert_none(&device_choices(&sources("crates/core/src/lib.rs", concat!("/// Never `Device::", "default()`."))));
    for line in [concat!("#[cfg(feature = ", "\"cuda\")]"), concat!("Device::", "vulkan(kind)")] {
        assert_eq!(device_choices(&sources("crates/models/src/lib.rs", line)).len(), 1, "{line}");
        assert_none(&device_choices(&sources(GPU_SOURCE, line)));
    }
}

#[test]
fn files_are_looked_at_before_they_are_read() {
    let found = |path: &str, line: &str| unguarded_reads(&sources(path, line)).len();
    let lines = ["let text = std::fs::read_to_string(path)?;", "let bytes = fs::read(&path)?;", "let file = File::open(path)?;"];
    for line in lines {
        assert_eq!(found("crates/models/src/lib.rs", line), 1, "{line}");
        assert_eq!(found("crates/core/src/input_file.rs", line) + found("crates/data/tests/a.rs", line), 0);
        assert_eq!(found("crates/models/src/lib.rs", &format!("#[cfg(test)]\nmod tests {{\n    {line}\n}}")), 0);
    }
    assert_eq!(found("crates/data/src/lib.rs", "let table = ParquetFile::open(path)?;"), 0);
}

#[test]
fn empty_names_are_refused() {
    let paths = |path: &str| empty_names(&[path.to_owned()]);
    for path in
        ["crates/core/src/utils.rs", "crates/misc", "tests/common/mod.rs", "scripts/helpers.py", "crates/core/src/Manager.rs", "docs/base"]
    {
        assert_eq!(paths(path), [format!("{path}: name it for what it holds")]);
    }
    for path in ["crates/models/src/base_model.rs", "crates/core/src/rng.rs", "docs/README.md"] {
        assert_none(&paths(path));
    }
}

#[test]
fn two_public_types_of_a_crate_never_share_a_name() {
    let two = |second: &str| {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        namesakes(&[file("crates/data/src/a.rs", "pub struct Batch {}\nstruct Row;"), file(second, "pub enum Batch<T> {}\nstruct Row;")])
    };
    assert_eq!(two("crates/data/src/b.rs"), ["crates/data/src/b.rs: `Batch` is in crates/data/src/a.rs too; give each a name of its own"]);
    assert_none(&two("crates/models/src/b.rs"));
}

#[test]
fn entries_of_a_table_are_named_in_their_own_files_alone() {
    let table = RegisteredTable { name: "FruitConfig", file: "crates/fruit/src/lib.rs" };
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let rows = "pub enum FruitConfig: Fruit {\n    /// Red.\n    Apple = \"apple\" => crate::apple::Apple,\n}";
    let with = |path: &str, text: &str| listed_entries(&[file("crates/fruit/src/lib.rs", rows), file(path, text)], &table);
    let listed = with("crates/cli/src/eat.rs", "match fruit {\n    FruitConfig::Apple(_) => 1,");
    assert_eq!(listed, ["crates/cli/src/eat.rs:2: names `FruitConfig::Apple`; ask the entry what it is"]);
    assert_none(&with("crates/fruit/src/apple.rs", "pub struct Apple {\n}\nlet me = FruitConfig::Apple(self);"));
    assert_none(&with("tests/fruit.rs", "FruitConfig::Apple(apple)"));
    assert_eq!(listed_entries(&[file("crates/fruit/src/lib.rs", "")], &table).len(), 1);
}

#[test]
fn public_items_say_what_they_are() {
    let found = |text: &str| undocumented_items(&sources("crates/core/src/lib.rs", text)).len();
    assert_eq!(found("/// The seed.\n#[derive(Debug)]\npub struct Seed {\n    pub value: u64,\n}"), 0);
    assert_eq!(found("/// What went wrong.\n#[error(\n    \"x\",\n    y\n)]\npub enum Error {}"), 0);
    for undocumented in ["pub fn seed() {}", "#[derive(Debug)]\npub struct Seed;", "// The seed.\npub const SEED: u64 = 0;"] {
        assert_eq!(found(undocumented), 1, "{undocumented}");
    }
    assert_eq!(found("#[cfg(test)]\nmod tests {\n    pub fn seed() {}\n}"), 0);
}
