//! Findings on made-up machines.

use super::*;
use crate::machine::Machine;
use crate::machine::tests::tree;

const NVIDIA_CARD: [(&str, &str); 2] =
    [("/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n"), ("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")];
const AMD_CARD: [(&str, &str); 2] =
    [("/sys/bus/pci/devices/0000:02:00.0/class", "0x030000\n"), ("/sys/bus/pci/devices/0000:02:00.0/vendor", "0x1002\n")];
const MODULE: (&str, &str) = ("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu\n");
const LOADER: (&str, &str) = ("/usr/lib64/libvulkan.so.1", "");
const RADV: [(&str, &str); 2] = [
    ("/usr/share/vulkan/icd.d/radeon_icd.json", "{\"ICD\": {\"library_path\": \"libvulkan_radeon.so\"}}"),
    ("/usr/lib64/libvulkan_radeon.so", ""),
];
const LAVAPIPE: [(&str, &str); 2] = [
    ("/usr/share/vulkan/icd.d/lvp_icd.json", "{\"ICD\": {\"library_path\": \"/usr/lib64/libvulkan_lvp.so\"}}"),
    ("/usr/lib64/libvulkan_lvp.so", ""),
];

fn place(free: u64, refused: Option<&str>) -> GrowingFolder {
    GrowingFolder { name: "a folder", path: "/a".into(), held: None, more: false, free: Some(free), refused: refused.map(str::to_owned) }
}

/// The findings on a machine with these files, by a build whose backends find this.
fn findings(files: &[&[(&str, &str)]], found: &[FoundDevices]) -> Vec<Finding> {
    let root = tree(&files.concat());
    let graphics = Graphics::look(&Machine::at(root.path(), &[]));
    let fine = place(1 << 40, None);
    Evidence { graphics: &graphics, found, chosen_device: None, memory: None, cache: &fine, runs: &fine, others: &[] }.findings()
}

fn found(backend: &'static str, devices: Result<Vec<crate::device::FoundDevice>, String>) -> FoundDevices {
    FoundDevices { backend, devices }
}

/// Whether there is one finding, of this weight, that says all this.
#[track_caller]
fn says(findings: &[Finding], prevents: bool, parts: &[&str]) {
    let is_it = |finding: &&Finding| finding.prevents == prevents && parts.iter().all(|part| finding.text.contains(part));
    assert_eq!(findings.iter().filter(is_it).count(), 1, "{parts:?}: {findings:#?}");
}

#[test]
fn a_machine_without_a_gpu_is_fine() {
    assert_eq!(findings(&[], &[]), []);
    assert_eq!(findings(&[&[LOADER]], &[]), []);
}

#[test]
fn nvidias_module_without_libcuda_names_the_packages_of_its_version() {
    let found_here = findings(&[&NVIDIA_CARD, &[MODULE, LOADER]], &[]);
    says(&found_here, false, &["cargo build --release --features vulkan (or cuda)"]);
    says(
        &found_here,
        false,
        &["for cuda", "550.54.14 is loaded, but libcuda.so.1 is missing", "libcuda1", "libnvidia-compute-550", "xorg-x11-drv-nvidia-cuda"],
    );
    says(&found_here, false, &["for vulkan", "nvidia-vulkan-icd", "libnvidia-gl-550"]);
    says(&found_here, false, &["for cuda", "NVRTC (libnvrtc.so) and CUDA's headers are missing", "nvidia-cuda-toolkit"]);
    assert_eq!(found_here.len(), 4, "{found_here:#?}");
}

#[test]
fn a_card_without_its_module_is_told_so_once() {
    let found_here = findings(&[&NVIDIA_CARD, &[LOADER]], &[]);
    says(&found_here, false, &["NVIDIA's kernel module is not loaded", "ubuntu-drivers install", "akmod-nvidia"]);
    assert_eq!(found_here.len(), 2, "{found_here:#?}");
}

#[test]
fn a_whole_cuda_lacks_nothing() {
    let files = [("/usr/lib64/libcuda.so.1", ""), ("/usr/lib64/libnvrtc.so.12", ""), ("/usr/local/cuda/include/cuda_runtime.h", "")];
    let found_here = findings(&[&NVIDIA_CARD, &[MODULE], &files], &[found("cuda", Ok(Vec::new()))]);
    says(&found_here, true, &["cuda is in this build and finds no device: --device cpu works"]);
    assert_eq!(found_here.len(), 1, "{found_here:#?}");
}

#[test]
fn an_amd_card_needs_the_loader_and_mesas_driver() {
    let found_here = findings(&[&AMD_CARD], &[found("vulkan", Err("it panicked".into()))]);
    says(
        &found_here,
        true,
        &["vulkan is in this build and finds no device (it panicked)", "libvulkan1", "vulkan-loader", "mesa-vulkan-drivers"],
    );
    let whole = findings(&[&AMD_CARD, &[LOADER], &RADV], &[]);
    says(&whole, false, &["cargo build --release --features vulkan"]);
    assert_eq!(whole.len(), 1, "{whole:#?}");
    // A driver in software does not run the card.
    let software = findings(&[&AMD_CARD, &[LOADER], &LAVAPIPE], &[]);
    says(&software, false, &["mesa-vulkan-drivers"]);
}

#[test]
fn a_software_driver_is_warned_about_where_it_is_the_only_one() {
    let alone = findings(&[&[LOADER], &LAVAPIPE], &[]);
    says(&alone, false, &["lavapipe", "crash", "--device cpu"]);
    let beside = findings(&[&AMD_CARD, &[LOADER], &LAVAPIPE, &RADV], &[]);
    assert!(beside.iter().all(|finding| !finding.text.contains("lavapipe")), "{beside:#?}");
    let missing = findings(&[&[LOADER], &LAVAPIPE[..1]], &[]);
    says(&missing, false, &["lvp_icd.json names /usr/lib64/libvulkan_lvp.so, which is missing"]);
}

#[test]
fn storage_that_refuses_is_told_and_only_the_cache_prevents_work() {
    let graphics = Graphics::default();
    let (fine, full, closed) = (place(1 << 40, None), place(1 << 20, None), place(1 << 40, Some("Permission denied")));
    let memory = Memory { total: 1 << 40, available: 1 << 20, limit: None };
    let evidence = |cache, runs| Evidence {
        graphics: &graphics,
        found: &[],
        chosen_device: Some("device `cuda`: not compiled in".into()),
        memory: Some(&memory),
        cache,
        runs,
        others: &[],
    };
    let found_here = evidence(&closed, &fine).findings();
    says(&found_here, true, &["/a (Permission denied): XDG_CACHE_HOME"]);
    says(&found_here, true, &["VP_DEVICE: device `cuda`"]);
    says(&found_here, false, &["1.0 MiB of memory", "512.0 MiB"]);
    assert!(found_here[0].prevents && found_here[1].prevents && !found_here[2].prevents, "{found_here:#?}");
    let found_here = evidence(&full, &closed).findings();
    says(&found_here, false, &["runs cannot be written here (Permission denied)"]);
    says(&found_here, false, &["/a has 1.0 MiB free"]);
    assert_eq!(evidence(&full, &full).findings().iter().filter(|finding| finding.text.contains("free")).count(), 1);
}
