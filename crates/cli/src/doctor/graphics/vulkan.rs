//! Vulkan drivers, by the manifests from which the loader knows them: <https://github.com/KhronosGroup/Vulkan-Loader>, LoaderDriverInterface.md.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::libraries::Libraries;
use crate::machine::Machine;

/// A driver that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VulkanDriver {
    /// The manifest.
    pub manifest: String,
    /// What it is called.
    pub name: String,
    /// It computes on the processor.
    pub is_software: bool,
    /// The library, as the manifest names it.
    pub library: String,
    /// Whether the library is there.
    pub is_there: bool,
    /// The version of Vulkan.
    pub version: Option<String>,
}

/// Parts of libraries' names, the drivers' names, and whether they are software.
const KNOWN: [(&str, &str, bool); 16] = [
    ("vulkan_lvp", "lavapipe", true),
    ("vk_swiftshader", "SwiftShader", true),
    ("GLX_nvidia", "NVIDIA", false),
    ("EGL_nvidia", "NVIDIA", false),
    ("vulkan_radeon", "RADV (AMD)", false),
    ("amdvlk", "AMDVLK", false),
    ("vulkan_intel_hasvk", "HASVK (Intel)", false),
    ("vulkan_intel", "ANV (Intel)", false),
    ("vulkan_nouveau", "NVK (NVIDIA)", false),
    ("vulkan_asahi", "Honeykrisp (Apple)", false),
    ("vulkan_freedreno", "Turnip (Qualcomm)", false),
    ("vulkan_broadcom", "V3DV (Broadcom)", false),
    ("vulkan_panfrost", "PanVK (Arm)", false),
    ("vulkan_virtio", "Venus (virtio)", false),
    ("vulkan_gfxstream", "gfxstream", false),
    ("vulkan_dzn", "Dozen (Direct3D 12)", false),
];

/// Folders of manifests on the usual systems.
const FOLDERS: [&str; 4] =
    ["/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/usr/share/vulkan/icd.d", "/run/opengl-driver/share/vulkan/icd.d"];

impl VulkanDriver {
    /// A few words for people.
    pub fn text(&self) -> String {
        let version = self.version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
        let software = if self.is_software { " (software)" } else { "" };
        let missing = if self.is_there { "" } else { " (its library is missing)" };
        format!("{}{version}{software}{missing}", self.name)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let Self { manifest, name, is_software, library, is_there, version } = self;
        json!({ "name": name, "manifest": manifest, "library": library, "library_is_there": is_there, "software": is_software, "version": version })
    }
}

/// The drivers, by their manifests, and the variable that chose them, if one did.
pub fn drivers(machine: &Machine, libraries: &Libraries<'_>) -> (Vec<VulkanDriver>, Option<&'static str>) {
    let chosen = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().find(|name| machine.variable(name).is_some());
    let mut paths = match chosen {
        Some(variable) => machine.folders(variable),
        None => machine.folders("VK_ADD_DRIVER_FILES"),
    };
    if chosen.is_none() {
        let home = machine.variable("HOME").map(PathBuf::from);
        let own = |variable: &str, below: &str| machine.variable(variable).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(below)));
        let own = [own("XDG_CONFIG_HOME", ".config"), own("XDG_DATA_HOME", ".local/share")];
        paths.extend(own.into_iter().flatten().map(|folder| folder.join("vulkan/icd.d")).chain(FOLDERS.iter().map(PathBuf::from)));
    }
    let is_manifest = |name: &String| name.ends_with(".json");
    let manifests = paths.into_iter().flat_map(|path| match machine.path(&path).is_dir() {
        true => machine.names(&path).into_iter().filter(is_manifest).map(|name| path.join(name)).collect(),
        false => vec![path],
    });
    let mut found: Vec<VulkanDriver> = Vec::new();
    for driver in manifests.filter_map(|path| driver(machine, libraries, &path)) {
        // A driver has a manifest for each architecture of processors.
        if !found.iter().any(|other| other.name == driver.name && (other.is_there || !driver.is_there)) {
            found.retain(|other| other.name != driver.name);
            found.push(driver);
        }
    }
    (found, chosen)
}

/// The driver of a manifest, if there is one that can be read.
fn driver(machine: &Machine, libraries: &Libraries<'_>, manifest: &Path) -> Option<VulkanDriver> {
    let text: Value = serde_json::from_str(&machine.text(manifest)?).ok()?;
    let library = text["ICD"]["library_path"].as_str()?.to_owned();
    let is_there = match library.contains('/') {
        // Relative to the manifest; `join` keeps what is absolute.
        true => machine.has(manifest.parent()?.join(&library)),
        false => libraries.find(&library).is_some(),
    };
    let known = KNOWN.iter().find(|(part, ..)| library.contains(part));
    let stem = || manifest.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Some(VulkanDriver {
        manifest: manifest.display().to_string(),
        name: known.map_or_else(stem, |(_, name, _)| (*name).to_owned()),
        is_software: known.is_some_and(|(_, _, software)| *software),
        library,
        is_there,
        version: text["ICD"]["api_version"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    fn manifest(library: &str) -> String {
        json!({ "file_format_version": "1.0.1", "ICD": { "library_path": library, "api_version": "1.4.305" } }).to_string()
    }

    #[test]
    fn drivers_are_told_apart_and_their_libraries_are_looked_for() {
        let [radeon, radeon32, lavapipe, own] =
            ["libvulkan_radeon.so", "/usr/lib32/libvulkan_radeon.so", "/usr/lib/libvulkan_lvp.so", "../own.so"].map(manifest);
        let root = tree(&[
            ("/usr/share/vulkan/icd.d/radeon_icd.i686.json", &radeon32),
            ("/usr/share/vulkan/icd.d/radeon_icd.x86_64.json", &radeon),
            ("/usr/share/vulkan/icd.d/lvp_icd.json", &lavapipe),
            ("/usr/share/vulkan/icd.d/broken.json", "{"),
            ("/etc/vulkan/icd.d/own.json", &own),
            ("/etc/vulkan/own.so", ""),
            ("/usr/lib64/libvulkan_radeon.so", ""),
        ]);
        let machine = Machine::at(root.path(), &[("HOME", "/home/x")]);
        let (found, chosen) = drivers(&machine, &Libraries::of(&machine));
        let told: Vec<String> = found.iter().map(VulkanDriver::text).collect();
        assert_eq!(told, ["own 1.4.305", "lavapipe 1.4.305 (software) (its library is missing)", "RADV (AMD) 1.4.305"]);
        assert_eq!(chosen, None);
        assert_eq!(found[2].manifest, "/usr/share/vulkan/icd.d/radeon_icd.x86_64.json");
    }

    #[test]
    fn a_variable_takes_the_place_of_the_systems_manifests() {
        let [lavapipe, radeon] = ["/lvp/libvulkan_lvp.so", "libvulkan_radeon.so"].map(manifest);
        let root =
            tree(&[("/lvp/icd.json", &lavapipe), ("/lvp/libvulkan_lvp.so", ""), ("/usr/share/vulkan/icd.d/radeon_icd.json", &radeon)]);
        for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
            let machine = Machine::at(root.path(), &[(variable, "/lvp/icd.json")]);
            let (found, chosen) = drivers(&machine, &Libraries::of(&machine));
            assert_eq!((found.len(), found[0].is_software, found[0].is_there, chosen), (1, true, true, Some(variable)));
        }
        let more = Machine::at(root.path(), &[("VK_ADD_DRIVER_FILES", "/lvp/icd.json")]);
        assert_eq!(drivers(&more, &Libraries::of(&more)).0.len(), 2);
    }
}
