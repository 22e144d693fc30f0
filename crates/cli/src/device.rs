//! From `--device` to Burn's [`Device`]: the only file that names a GPU backend or its Cargo feature.
//!
//! Autodiff is not chosen here: the caller turns it on with `device.autodiff()` for what it trains.
//!
//! `BURN_DEVICE` is not set either. It steers `Device::default()` alone, which this workspace never calls
//! (`tests/architecture.rs` looks for it), so writing to the process environment, `unsafe` since edition 2024, would buy nothing.
//! One path inside Burn does call it, `ModuleOptimizer::load_record`; our optimizer keeps its own state and does not use that.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use burn::tensor::Device;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
use burn::tensor::DeviceKind;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
use burn::tensor::DeviceType;
use vp_core::contained;
use vp_core::suggest::did_you_mean;
use vp_models::number_format::NumberFormat;

/// The number of this process among the ranks of its machine, counted from 0.
static LOCAL_RANK: AtomicUsize = AtomicUsize::new(0);

/// Says which of the ranks of its machine this process is: that decides what `auto` means.
pub fn set_local_rank(number: usize) {
    LOCAL_RANK.store(number, Ordering::Relaxed);
}

/// A backend that `--device` can name.
#[derive(Debug, PartialEq, Eq)]
pub struct Backend {
    /// The word before the colon.
    pub name: &'static str,
    /// Another word for the same thing.
    pub alias: Option<&'static str>,
    /// Whether `:n` may follow.
    pub indexed: bool,
    /// Whether this build contains it.
    pub compiled: bool,
    /// One line for people.
    pub summary: &'static str,
}

const fn gpu(name: &'static str, compiled: bool, summary: &'static str) -> Backend {
    Backend { name, alias: None, indexed: true, compiled, summary }
}

const fn cpu() -> Backend {
    Backend { name: "cpu", alias: Some("flex"), indexed: false, compiled: true, summary: "The processor, all its cores; in every build." }
}

static BACKENDS: [Backend; 5] = [
    cpu(),
    gpu("wgpu", cfg!(feature = "wgpu"), "GPUs of any maker through WebGPU's shaders, over Vulkan, Metal or DirectX 12."),
    gpu("vulkan", cfg!(feature = "vulkan"), "GPUs of any maker through Vulkan; Linux and Windows."),
    gpu("metal", cfg!(feature = "metal"), "Apple's GPUs through Metal; macOS."),
    gpu("cuda", cfg!(feature = "cuda"), "NVIDIA's GPUs through CUDA; needs the driver and a CUDA toolkit at run time."),
];

/// A backend as `list devices` shows it.
pub struct Description {
    /// What `--device` takes, as `vulkan[:n]`.
    pub name: String,
    /// Whether this build contains it.
    pub compiled: bool,
    /// The command that makes a build that does; none for what every build has.
    pub add_with: Option<String>,
    /// One line for people.
    pub summary: &'static str,
}

/// The names of all backends.
pub fn names() -> impl Iterator<Item = &'static str> {
    BACKENDS.iter().map(|backend| backend.name)
}

/// Every backend.
pub fn describe() -> impl Iterator<Item = Description> {
    BACKENDS.iter().map(|backend| Description {
        name: backend.words(),
        compiled: backend.compiled,
        add_with: backend.indexed.then(|| backend.add_with()),
        summary: backend.summary,
    })
}

impl Backend {
    fn words(&self) -> String {
        match (self.alias, self.indexed) {
            (Some(alias), _) => format!("{}|{alias}", self.name),
            (None, true) => format!("{}[:n]", self.name),
            (None, false) => self.name.to_owned(),
        }
    }

    fn add_with(&self) -> String {
        format!("cargo build --release --features {}", self.name)
    }
}

/// The device that `spec` names: `cpu` (or `flex`), `wgpu[:n]`, `vulkan[:n]`, `metal[:n]`, `cuda[:n]`.
///
/// `n` counts from 0 the devices that the backend finds on this machine; without it the backend's own first choice is taken. With `auto` in place of
/// `n`, the ranks of a machine take its devices in turn.
///
/// # Errors
///
/// One line, for a name that is unknown or not compiled in, for an index that is not a number, has no device or may not be there,
/// and for a backend that finds no device at all.
pub fn parse(spec: &str) -> anyhow::Result<Device> {
    let (name, automatic) = spec.strip_suffix(":auto").map_or((spec, false), |name| (name, true));
    let (backend, mut index) = select(if automatic { name } else { spec }, &BACKENDS)?;
    if automatic {
        index = Some(of_rank(backend, spec)?);
    }
    open(backend.name, index).with_context(|| format!("device `{spec}`"))
}

/// The number of the device that this rank takes: the ranks of a machine take its devices in turn.
fn of_rank(backend: &Backend, spec: &str) -> anyhow::Result<usize> {
    if !backend.indexed {
        bail!("device `{spec}`: `{}` is one device and takes no index; write `{}`", backend.name, backend.name);
    }
    Ok(LOCAL_RANK.load(Ordering::Relaxed) % enumerate(backend.name).len().max(1))
}

/// Whether `spec` names the CPU; the device need not be there, nor its backend be compiled in.
///
/// # Errors
/// When the program was built without that backend, or there is none of this name.
pub fn is_cpu_named(spec: &str) -> anyhow::Result<bool> {
    let name = spec.split_once(':').map_or(spec, |(name, _)| name);
    let known = BACKENDS.iter().find(|backend| backend.name == name || backend.alias == Some(name));
    known.map_or_else(|| select(spec, &BACKENDS).map(|(backend, _)| backend.name == "cpu"), |backend| Ok(backend.name == "cpu"))
}

fn select<'a>(spec: &str, backends: &'a [Backend]) -> anyhow::Result<(&'a Backend, Option<usize>)> {
    let (name, index) = match spec.split_once(':') {
        Some((name, index)) => (name, Some(index)),
        None => (spec, None),
    };
    let Some(backend) = backends.iter().find(|backend| backend.name == name || backend.alias == Some(name)) else {
        // Reversed, so that `gpu` is taken for `wgpu` rather than for `cpu`, which is as near.
        let hint = did_you_mean(name, backends.iter().rev().flat_map(|backend| [Some(backend.name), backend.alias]).flatten());
        bail!("device `{spec}`: no such backend{hint} (known: {})", known(backends));
    };
    if !backend.compiled {
        let compiled: Vec<_> = backends.iter().filter(|backend| backend.compiled).map(|backend| backend.name).collect();
        bail!(
            "device `{spec}`: `{name}` is not compiled into this build, which has {}; `{}` adds it",
            compiled.join(", "),
            backend.add_with()
        );
    }
    let Some(index) = index else { return Ok((backend, None)) };
    if !backend.indexed {
        bail!("device `{spec}`: `{name}` is one device and takes no index; write `{name}`");
    }
    // `usize::from_str` would take a sign.
    match index.parse() {
        Ok(number) if index.bytes().all(|byte| byte.is_ascii_digit()) => Ok((backend, Some(number))),
        _ => bail!("device `{spec}`: the index `{index}` is not a whole number; write `{name}:0` for the first device"),
    }
}

fn open(name: &str, index: Option<usize>) -> anyhow::Result<Device> {
    match name {
        "cpu" => pick(&[Device::flex()], index, Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" => pick(&Device::enumerate(DeviceType::Wgpu), index, Device::wgpu(DeviceKind::DefaultDevice)),
        #[cfg(feature = "vulkan")]
        "vulkan" => pick(&Device::enumerate(DeviceType::Vulkan), index, Device::vulkan(DeviceKind::DefaultDevice)),
        #[cfg(feature = "metal")]
        "metal" => pick(&Device::enumerate(DeviceType::Metal), index, Device::metal(DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        "cuda" => pick(&Device::enumerate(DeviceType::Cuda), index, Device::cuda(0usize)),
        _ => unreachable!("the table says that `{name}` is compiled in"),
    }
}

/// Burn opens a device with its first tensor and panics if there is none. It is looked for here, so that the user gets a message instead.
fn pick<D: Clone>(found: &[D], index: Option<usize>, preferred: D) -> anyhow::Result<D> {
    match (found.len(), index) {
        (0, _) => bail!("this machine has no such device, or no driver for it"),
        (_, None) => Ok(preferred),
        (count, Some(index)) => found.get(index).cloned().with_context(|| format!("this machine has {count}, numbered from 0")),
    }
}

/// What a GPU backend of this build finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevices {
    /// As `--device` takes it.
    pub backend: &'static str,
    /// The devices in order, or why looking for them failed.
    pub devices: Result<Vec<FoundDevice>, String>,
}

/// A device that a backend finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevice {
    /// As it calls itself, if it does.
    pub name: Option<String>,
    /// What kernels are compiled for, if the backend says.
    pub compiled_for: Option<String>,
    /// The number formats that it computes in.
    pub formats: Vec<&'static str>,
}

/// What every GPU backend of this build finds. Opens each device.
pub fn found() -> Vec<FoundDevices> {
    let look = |backend: &Backend| {
        // A driver that is broken ends in a panic of the backend.
        let devices = contained::contain(|| enumerate(backend.name).iter().map(described).collect());
        let reason = |payload: Box<dyn std::any::Any + Send>| {
            let text = payload.downcast_ref::<String>().cloned().or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            text.and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_else(|| "it failed".into())
        };
        FoundDevices { backend: backend.name, devices: devices.map_err(reason) }
    };
    BACKENDS.iter().filter(|backend| backend.compiled && backend.indexed).map(look).collect()
}

fn enumerate(name: &str) -> Vec<Device> {
    match name {
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::enumerate(DeviceType::Wgpu).into_vec(),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::enumerate(DeviceType::Vulkan).into_vec(),
        #[cfg(feature = "metal")]
        "metal" => Device::enumerate(DeviceType::Metal).into_vec(),
        #[cfg(feature = "cuda")]
        "cuda" => Device::enumerate(DeviceType::Cuda).into_vec(),
        _ => Vec::new(),
    }
}

fn described(device: &Device) -> FoundDevice {
    let formats = [NumberFormat::F32, NumberFormat::Bf16, NumberFormat::F16].into_iter().filter(|format| format.check(device).is_ok());
    let formats = formats.map(NumberFormat::name).collect();
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
    if let Some(identity) = device.identity() {
        return FoundDevice { name: Some(identity.name), compiled_for: Some(identity.fingerprint), formats };
    }
    FoundDevice { name: None, compiled_for: None, formats }
}

fn known(backends: &[Backend]) -> String {
    backends.iter().map(Backend::words).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: [Backend; 3] = [cpu(), gpu("vulkan", true, ""), gpu("cuda", false, "")];

    fn error(spec: &str) -> String {
        let text = format!("{:#}", select(spec, &BUILD).expect_err(spec));
        assert!(!text.contains('\n'), "more than a line: {text}");
        text
    }

    #[test]
    fn cpu_and_flex_are_the_same_device() {
        assert_eq!(parse("cpu").unwrap(), Device::flex());
        assert_eq!(parse("flex").unwrap(), Device::flex());
    }

    #[test]
    fn index_is_optional_on_a_gpu() {
        assert_eq!(select("vulkan", &BUILD).unwrap(), (&BUILD[1], None));
        assert_eq!(select("vulkan:0", &BUILD).unwrap(), (&BUILD[1], Some(0)));
        assert_eq!(select("vulkan:12", &BUILD).unwrap(), (&BUILD[1], Some(12)));
    }

    #[test]
    fn backend_not_compiled_in_says_what_is_and_how_to_add_it() {
        for spec in ["cuda", "cuda:1"] {
            let text = error(spec);
            assert!(text.starts_with(&format!("device `{spec}`")), "{text}");
            assert!(text.contains("which has cpu, vulkan;"), "{text}");
            assert!(text.contains("`cargo build --release --features cuda`"), "{text}");
        }
    }

    #[test]
    fn misspelt_backend_suggests_the_nearest() {
        assert_eq!(error("vulcan:1"), "device `vulcan:1`: no such backend, did you mean `vulkan`? (known: cpu|flex, vulkan[:n], cuda[:n])");
        assert!(error("CUDA").contains("did you mean `cuda`?"));
        assert!(error("flx").contains("did you mean `flex`?"));
        assert!(format!("{:#}", select("gpu", &BACKENDS).expect_err("no such backend")).contains("did you mean `wgpu`?"));
    }

    #[test]
    fn far_off_name_gets_the_list_alone() {
        for spec in ["tensorcore", "mps", "", ":0"] {
            let text = error(spec);
            assert!(!text.contains("did you mean"), "{text}");
            assert!(text.contains("cpu|flex, vulkan[:n], cuda[:n]"), "{text}");
        }
    }

    #[test]
    fn bad_index_is_refused() {
        for spec in ["vulkan:", "vulkan:x", "vulkan:-1", "vulkan:+1", "vulkan:1.0", "vulkan:0:1", "vulkan:99999999999999999999999"] {
            assert!(error(spec).contains("is not a whole number; write `vulkan:0`"), "{spec}");
        }
        assert!(error("cpu:0").contains("takes no index; write `cpu`"));
        assert!(parse("cpu:auto").unwrap_err().to_string().contains("takes no index; write `cpu`"));
    }

    #[test]
    fn device_that_is_not_there_is_refused() {
        assert!(pick(&[] as &[&str], None, "default").unwrap_err().to_string().contains("no such device"));
        assert!(pick(&["a", "b"], Some(2), "default").unwrap_err().to_string().contains("has 2, numbered from 0"));
        assert_eq!(pick(&["a", "b"], Some(1), "default").unwrap(), "b");
        assert_eq!(pick(&["a", "b"], None, "default").unwrap(), "default");
    }
}
