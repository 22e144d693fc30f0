//! What a registry asks of the crates, held against the manifests: `cargo package` finds out too, but needs the network. CONTRIBUTING.md says how a
//! release is made.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Of one package, by the registry.
const LARGEST: u64 = 10_000_000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parse(path: &Path) -> Table {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).parse().unwrap()
}

fn strings(value: Option<&Value>) -> Vec<&str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The folders of the workspace's packages, the root's first.
fn folders() -> Vec<PathBuf> {
    let workspace = parse(&root().join("Cargo.toml"));
    let members = strings(workspace["workspace"].get("members")).into_iter().map(|member| root().join(member)).collect::<Vec<_>>();
    [vec![root().to_owned()], members].concat()
}

/// What a page of a registry shows, and how it is found there.
fn unpublishable(name: &str, manifest: &Table, readme_is_there: bool) -> Vec<String> {
    let package = manifest["package"].as_table().unwrap();
    let mut findings = Vec::new();
    let given =
        ["description", "version", "edition", "rust-version", "license", "repository", "readme", "keywords", "categories", "include"];
    findings.extend(given.iter().filter(|key| !package.contains_key(**key)).map(|key| format!("{name}: no `{key}`")));
    if package.contains_key("publish") {
        findings.push(format!("{name}: `publish` keeps it out of the registry, and every crate that needs it"));
    }
    if !readme_is_there {
        findings.push(format!("{name}: its `readme` is not there"));
    }
    for key in ["keywords", "categories"] {
        let words = strings(package.get(key));
        if words.len() > 5 || words.iter().any(|word| word.len() > 20 && key == "keywords") {
            findings.push(format!("{name}: `{key}` holds at most five, and a keyword 20 letters"));
        }
    }
    findings
}

/// Dependencies on our own crates without the version under which a registry has them.
fn unversioned(workspace: &Table) -> Vec<String> {
    let version = format!("={}", workspace["workspace"]["package"]["version"].as_str().unwrap());
    let ours = workspace["workspace"]["dependencies"].as_table().unwrap().iter().filter(|(_, spec)| spec.get("path").is_some());
    ours.filter(|(_, spec)| spec.get("version").and_then(Value::as_str) != Some(&version))
        .map(|(name, _)| format!("{name}: expected `version = \"{version}\"` beside its path"))
        .collect()
}

/// What a package's list of files lets in, without the packages in folders of their own.
fn packed(folder: &Path, include: &[&str]) -> Vec<PathBuf> {
    fn walk(path: &Path, found: &mut Vec<PathBuf>) {
        match path.is_dir() {
            true if path.join("Cargo.toml").is_file() => {}
            true => fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), found)),
            false => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    for pattern in include {
        let pattern = pattern.strip_prefix('/').unwrap_or_else(|| panic!("{}: `{pattern}` begins with no slash", folder.display()));
        let (above, name) = pattern.rsplit_once('/').map_or((folder.to_owned(), pattern), |(above, name)| (folder.join(above), name));
        let entries =
            fs::read_dir(&above).unwrap_or_else(|error| panic!("{}: {error}", above.display())).map(|entry| entry.unwrap().path());
        let (start, open) = name.strip_suffix('*').map_or((name, false), |start| (start, true));
        let is_meant = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            if open { name.starts_with(start) } else { name == start }
        };
        let before = found.len();
        entries.filter(is_meant).for_each(|path| walk(&path, &mut found));
        assert!(found.len() > before, "{}: `{pattern}` lets nothing in", folder.display());
    }
    found
}

/// Files that code outside of tests includes, as paths relative to the source.
fn included(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    let calls = ["include_str!(\"", "include_bytes!(\""].into_iter().flat_map(|call| code.split(call).skip(1));
    calls.filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn every_crate_can_be_published() {
    assert_eq!(unversioned(&parse(&root().join("Cargo.toml"))), [""; 0]);
    for folder in folders() {
        let manifest = parse(&folder.join("Cargo.toml"));
        let name = manifest["package"]["name"].as_str().unwrap();
        let readme = manifest["package"].get("readme").and_then(Value::as_str).is_some_and(|readme| folder.join(readme).is_file());
        assert_eq!(unpublishable(name, &manifest, readme), [""; 0]);
    }
}

#[test]
fn a_package_is_small_and_holds_what_its_code_includes() {
    let mut found = 0;
    for folder in folders() {
        let manifest = parse(&folder.join("Cargo.toml"));
        let name = manifest["package"]["name"].as_str().unwrap();
        let files = packed(&folder, &strings(manifest["package"].get("include")));
        let bytes: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert!(bytes < LARGEST, "{name}: {bytes} bytes before they are compressed, and a registry takes {LARGEST}");
        // The UNet's folder is a part of the model's; its manifest names the licence.
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"].iter().filter(|_| name != "vp-shapes-unet") {
            assert!(files.contains(&folder.join(licence)), "{name}: no {licence}");
        }
        let files: Vec<PathBuf> = files.iter().map(|file| file.canonicalize().unwrap()).collect();
        for source in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
            for path in included(&fs::read_to_string(source).unwrap()) {
                let path = source.parent().unwrap().join(path);
                let there = path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(files.contains(&there), "{name}: {} includes {}, which is not in the package", source.display(), there.display());
                found += 1;
            }
        }
    }
    assert!(found >= 6, "found {found} included files only");
}

#[test]
fn what_a_registry_refuses_is_noticed() {
    let whole = "[package]\ndescription=''\nversion=''\nedition=''\nrust-version=''\nlicense=''\nrepository=''\nreadme=''\ninclude=[]\n";
    let check = |rest: &str| unpublishable("a", &format!("{whole}{rest}").parse().unwrap(), true);
    assert_eq!(check("keywords=['a']\ncategories=['b']"), [""; 0]);
    assert_eq!(check("keywords=['a']"), ["a: no `categories`"]);
    assert_eq!(check("keywords=['a']\ncategories=['b']\npublish=false").len(), 1);
    assert_eq!(check("keywords=['reinforcement-learning']\ncategories=['b']").len(), 1);
    let spec = |spec: &str| {
        unversioned(&format!("[workspace.package]\nversion='1.2.3'\n[workspace.dependencies]\na = {spec}\nb = '1'").parse().unwrap())
    };
    assert_eq!(spec("{ path = 'a', version = '=1.2.3' }"), [""; 0]);
    assert_eq!(spec("{ path = 'a' }").len() + spec("{ path = 'a', version = '=1.2.2' }").len(), 2);
    let text = "const A: &str = include_str!(\"a.css\");\n#[cfg(test)]\nmod tests {\n    const B: &str = include_str!(\"../../b\");\n}";
    assert_eq!(included(text), ["a.css"]);
}
