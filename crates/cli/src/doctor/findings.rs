//! What is missing or known to be bad on a machine, with the package that brings it and the build that uses it.

use serde_json::{Value, json};

use super::disk::{GrowingFolder, human};
use super::graphics::{Graphics, Maker};
use crate::device::FoundDevices;
use crate::memory::Memory;

/// What the first run needs, in bytes.
const NEEDED_MEMORY: u64 = 512 << 20;
/// Less free than this, in bytes, and checkpoints soon do not fit.
const LITTLE_DISK: u64 = 1 << 30;

/// Something that somebody should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// It prevents work on a device of this build.
    pub prevents: bool,
    /// A sentence with the way out.
    pub text: String,
}

impl Finding {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({ "kind": "finding", "prevents_work": self.prevents, "text": self.text })
    }
}

/// What there is to look at.
pub struct Evidence<'a> {
    pub graphics: &'a Graphics,
    /// What each GPU backend of this build finds.
    pub found: &'a [FoundDevices],
    /// What is wrong with the device that `VP_DEVICE` names.
    pub chosen_device: Option<String>,
    pub memory: Option<&'a Memory>,
    /// The program's own cache, without which it cannot run.
    pub cache: &'a GrowingFolder,
    /// Where runs go.
    pub runs: &'a GrowingFolder,
    /// The folders that are only read or filled by some commands.
    pub others: &'a [GrowingFolder],
}

impl Evidence<'_> {
    /// All findings: first what prevents work.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.backends();
        findings.extend(self.chosen_device.iter().map(|reason| prevents(format!("VP_DEVICE: {reason}"))));
        findings.extend(self.storage());
        findings.extend(self.drivers());
        findings.extend(self.unused_cards());
        findings.sort_by_key(|finding| !finding.prevents);
        findings
    }

    /// GPU backends that are in this build and find nothing.
    fn backends(&self) -> Vec<Finding> {
        let nothing = |found: &&FoundDevices| found.devices.as_ref().map_or(true, Vec::is_empty);
        let told = |found: &FoundDevices| {
            let reason = found.devices.as_ref().err().map_or_else(String::new, |reason| format!(" ({reason})"));
            let missing = if found.backend == "cuda" { self.missing_for_cuda() } else { self.missing_for_vulkan() };
            let missing = if missing.is_empty() { vec!["--device cpu works".to_owned()] } else { missing };
            prevents(format!("{} is in this build and finds no device{reason}: {}", found.backend, missing.join("; ")))
        };
        self.found.iter().filter(nothing).map(told).collect()
    }

    /// What Vulkan lacks here, and where it comes from.
    fn missing_for_vulkan(&self) -> Vec<String> {
        let Graphics { vulkan_loader, vulkan_drivers, nvidia_module, .. } = self.graphics;
        let mut missing = Vec::new();
        if vulkan_loader.is_none() {
            missing.push("Vulkan's loader, libvulkan.so.1, is missing (Debian, Ubuntu: libvulkan1; Fedora: vulkan-loader)".to_owned());
        }
        let has_driver = |name: &str| vulkan_drivers.iter().any(|driver| driver.name.contains(name) && driver.is_there);
        if self.graphics.has(Maker::Nvidia) && !has_driver("NVIDIA") {
            missing.push(match nvidia_module {
                Some(version) => format!(
                    "NVIDIA's Vulkan driver is missing (Debian: nvidia-vulkan-icd; Ubuntu: libnvidia-gl-{}; Fedora: xorg-x11-drv-nvidia-libs; \
                     in a container NVIDIA_DRIVER_CAPABILITIES=all)",
                    major(version)
                ),
                None => NO_NVIDIA_MODULE.to_owned(),
            });
        }
        let is_mesas = self.graphics.cards.iter().any(|card| matches!(card.maker, Maker::Amd | Maker::Intel | Maker::Apple | Maker::Other));
        let has_hardware_driver = vulkan_drivers.iter().any(|driver| driver.is_there && !driver.is_software && driver.name != "NVIDIA");
        if is_mesas && !has_hardware_driver {
            missing.push("Mesa's Vulkan drivers are missing (Debian, Ubuntu, Fedora: mesa-vulkan-drivers)".to_owned());
        }
        missing
    }

    /// What CUDA lacks here, and where it comes from.
    fn missing_for_cuda(&self) -> Vec<String> {
        let Graphics { nvidia_module, cuda_driver, nvrtc, cuda_headers, .. } = self.graphics;
        let mut missing = Vec::new();
        match (nvidia_module, cuda_driver) {
            (_, Some(_)) => {}
            (Some(version), None) => missing.push(format!(
                "NVIDIA's module {version} is loaded, but libcuda.so.1 is missing (Debian: libcuda1; Ubuntu: libnvidia-compute-{}; Fedora: \
                 xorg-x11-drv-nvidia-cuda; a container needs NVIDIA's container toolkit)",
                major(version)
            )),
            (None, None) => missing.push(NO_NVIDIA_MODULE.to_owned()),
        }
        if nvrtc.is_none() || cuda_headers.is_none() {
            let what = match (nvrtc, cuda_headers) {
                (None, None) => "NVRTC (libnvrtc.so) and CUDA's headers are",
                (None, _) => "NVRTC (libnvrtc.so) is",
                _ => "CUDA's headers (CUDA_PATH, /usr/local/cuda) are",
            };
            missing.push(format!("{what} missing (Debian, Ubuntu: nvidia-cuda-toolkit; Fedora: cuda-toolkit of NVIDIA's repository)"));
        }
        missing
    }

    /// Drivers that are known to be bad, and manifests without a library. They matter to a build with Vulkan, and to whoever means to make one.
    fn drivers(&self) -> Vec<Finding> {
        let drivers = &self.graphics.vulkan_drivers;
        let mut findings = Vec::new();
        let software: Vec<&str> =
            drivers.iter().filter(|driver| driver.is_software && driver.is_there).map(|driver| driver.name.as_str()).collect();
        let is_alone = drivers.iter().filter(|driver| driver.is_there).all(|driver| driver.is_software);
        if !software.is_empty() && is_alone {
            findings.push(warning(format!(
                "the only Vulkan driver is {}, software: kernels of cubecl 0.11 that share memory crash in it \
                 (docs/decisions/0002-burn-wgpu.md); --device cpu is right and faster",
                software.join(" and ")
            )));
        }
        if drivers.iter().any(|driver| driver.name == "Dozen (Direct3D 12)" && driver.is_there) {
            findings
                .push(warning("Dozen is not a conformant Vulkan driver: doctor --check vulkan tells whether it computes rightly".into()));
        }
        findings.extend(drivers.iter().filter(|driver| !driver.is_there).map(|driver| {
            warning(format!("{} names {}, which is missing: install the driver's package again", driver.manifest, driver.library))
        }));
        findings
    }

    /// Cards that no backend of this build uses, and what it takes to use them.
    fn unused_cards(&self) -> Vec<Finding> {
        if !self.found.is_empty() || self.graphics.cards.is_empty() {
            return Vec::new();
        }
        let nvidia = self.graphics.has(Maker::Nvidia);
        let mut text = "this build computes on the processor alone; for the GPU: cargo build --release --features vulkan".to_owned();
        if nvidia {
            text += " (or cuda)";
        }
        let mut findings = vec![warning(text)];
        findings.extend(self.missing_for_vulkan().into_iter().map(|missing| warning(format!("for vulkan, {missing}"))));
        // Whoever has NVIDIA's module need not have CUDA: vulkan runs on the driver alone.
        let cuda = if nvidia && self.graphics.nvidia_module.is_some() { self.missing_for_cuda() } else { Vec::new() };
        findings.extend(cuda.into_iter().map(|missing| warning(format!("for cuda, {missing}"))));
        findings
    }

    /// Memory and disks.
    fn storage(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(refused) = &self.cache.refused {
            let place = self.cache.path.display();
            findings.push(prevents(format!("nothing can be written to {place} ({refused}): XDG_CACHE_HOME names another place")));
        }
        if let Some(refused) = &self.runs.refused {
            findings.push(warning(format!("runs cannot be written here ({refused}): go to another folder, or give --output")));
        }
        for place in self.others.iter().filter(|place| place.refused.is_some()) {
            findings.push(warning(format!("{}: nothing can be written to {}", place.name, place.path.display())));
        }
        let mut little: Vec<&GrowingFolder> =
            [self.runs, self.cache].into_iter().filter(|place| place.free.is_some_and(|free| free < LITTLE_DISK)).collect();
        little.dedup_by_key(|place| place.free);
        findings.extend(little.into_iter().map(|place| {
            warning(format!("{} has {} free: checkpoints and caches may not fit", place.path.display(), human(place.free.unwrap_or(0))))
        }));
        if let Some(memory) = self.memory.filter(|memory| memory.available < NEEDED_MEMORY) {
            findings.push(warning(format!(
                "{} of memory can be had; the smallest run needs {}",
                human(memory.available),
                human(NEEDED_MEMORY)
            )));
        }
        findings
    }
}

const NO_NVIDIA_MODULE: &str =
    "NVIDIA's kernel module is not loaded (Debian: nvidia-driver; Ubuntu: `ubuntu-drivers install`; Fedora: akmod-nvidia of RPM Fusion)";

fn prevents(text: String) -> Finding {
    Finding { prevents: true, text }
}

fn warning(text: String) -> Finding {
    Finding { prevents: false, text }
}

/// The part of a driver's version that Ubuntu names its packages by.
fn major(version: &str) -> &str {
    version.split('.').next().filter(|major| major.bytes().all(|byte| byte.is_ascii_digit())).unwrap_or("NNN")
}

#[cfg(test)]
mod tests;
