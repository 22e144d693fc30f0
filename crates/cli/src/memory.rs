//! The machine's memory, and what it is asked for.

use std::collections::BTreeMap;

use anyhow::bail;
use vp_models::vae::{AutoencoderConfig, Tiling};

use crate::doctor::limits;
use crate::machine::Machine;

/// In bytes.
pub struct Memory {
    /// What the machine has.
    pub total: u64,
    /// What can be had without swapping, and within the limit.
    pub available: u64,
    /// What this process's control group may have, where that is less than the machine has.
    pub limit: Option<u64>,
}

impl Memory {
    /// That of this machine, where the system tells it.
    pub fn look() -> Option<Self> {
        Self::of(&Machine::this())
    }

    /// That of a machine, where its system tells it.
    pub fn of(machine: &Machine) -> Option<Self> {
        let mut memory = parse(&machine.text("/proc/meminfo")?)?;
        if let Some(limit) = limits::memory(machine).filter(|limit| limit.bytes < memory.total) {
            memory.available = memory.available.min(limit.bytes.saturating_sub(limit.used));
            memory.limit = Some(limit.bytes);
        }
        Some(memory)
    }

    /// What this process can have at most.
    pub fn usable(&self) -> u64 {
        self.limit.unwrap_or(self.total)
    }
}

/// The bytes of memory that this process holds, where the system tells it.
pub fn held() -> Option<u64> {
    resident(&vp_core::input_file::read_regular_to_string("/proc/self/status").ok()?)
}

/// `VmRSS` of Linux's `/proc/self/status`, which is in KiB.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// `MemTotal` and `MemAvailable` of Linux's `/proc/meminfo`, which are in KiB.
fn parse(meminfo: &str) -> Option<Memory> {
    let fields: BTreeMap<&str, &str> = meminfo.lines().filter_map(|line| line.split_once(':')).collect();
    let bytes = |name: &str| Some(fields.get(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10);
    Some(Memory { total: bytes("MemTotal")?, available: bytes("MemAvailable")?, limit: None })
}

/// The most that this process has had resident, in bytes, where the system tells it.
pub fn peak() -> Option<u64> {
    peak_of(&vp_core::input_file::read_regular_to_string("/proc/self/status").ok()?)
}

/// `VmHWM` of Linux's `/proc/self/status`, which is in KiB.
fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// A size as people write it: `512MiB`, `8 GiB`, `24GB`. A bare number is in bytes.
///
/// # Errors
/// A sentence with what was expected.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 9] = [
        ("", 1.0),
        ("kib", 1024.0),
        ("mib", 1048576.0),
        ("gib", 1073741824.0),
        ("tib", 1099511627776.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
    ];
    let wrong = || format!("{text:?} is not a size; expected a number and a unit, such as 8GiB, 512MiB or 24GB");
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit = unit.trim().to_lowercase();
    let (number, (_, factor)) = number
        .parse::<f64>()
        .ok()
        .zip(UNITS.iter().find(|(name, _)| *name == unit || (unit == "b" && name.is_empty())))
        .ok_or_else(wrong)?;
    let bytes = number * factor;
    if bytes >= 1.0 && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Bytes as people read them.
pub fn readable(bytes: u64) -> String {
    let (gib, mib) = (bytes as f64 / f64::from(1 << 30), bytes as f64 / f64::from(1 << 20));
    if gib >= 1.0 { format!("{gib:.1} GiB") } else { format!("{mib:.0} MiB") }
}

/// Refuses images that cannot be decoded in this machine's memory, before anything is drawn.
///
/// # Errors
/// When decoding takes more than the machine has, or than a container or service manager lets this process have.
pub fn check_decoding(vae: &AutoencoderConfig, size: [usize; 2], images: usize, tiling: Tiling) -> anyhow::Result<()> {
    let Some(memory) = Memory::look() else { return Ok(()) };
    let needed = decoding(vae, size, images, tiling);
    if needed > memory.usable() as f64 {
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        let ([height, width], whole) = (size, tiling.pixels(vae).is_none());
        bail!(
            "{images} image(s) of {width}x{height} pixels at once: decoding takes at least {:.0} GiB, {} {:.0}; ask for smaller \
             images, a smaller --batch-size{}",
            gib(needed),
            if memory.limit.is_some() { "this process's control group may have" } else { "this machine has" },
            gib(memory.usable() as f64),
            if whole { " or --vae-tiling" } else { "" }
        );
    }
    Ok(())
}

/// The bytes that decoding takes at least: what goes into and comes out of the first convolution at the image's own size.
fn decoding(vae: &AutoencoderConfig, size: [usize; 2], images: usize, tiling: Tiling) -> f64 {
    let channels = &vae.block_out_channels;
    let (last, before) = (channels[0], channels[1.min(channels.len() - 1)]);
    let whole = size.map(|side| side as f64);
    let decoded = tiling.pixels(vae).map_or(whole, |tile| whole.map(|side| side.min(tile as f64)));
    let image = 4.0 * vae.out_channels as f64 * whole[0] * whole[1];
    images as f64 * (4.0 * (last + before) as f64 * decoded[0] * decoded[1] + image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;
    use vp_models::NetworkConfig;

    #[test]
    fn memory_is_read_in_bytes() {
        let memory = parse("MemTotal:       1024 kB\nMemFree:  1 kB\nMemAvailable:    512 kB\n").unwrap();
        assert_eq!((memory.total, memory.available), (1 << 20, 1 << 19));
        assert!(parse("MemTotal: 1024 kB\n").is_none());
    }

    #[test]
    fn what_a_process_holds_is_its_resident_set() {
        assert_eq!(resident("Name:\tvisionprefer\nVmRSS:\t    2048 kB\nRssAnon: 1 kB\n"), Some(2 << 20));
        assert_eq!(resident("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let sizes = ["8GiB", "8 gib", "1.5MiB", "24GB", "512", "512 B"].map(|text| size(text).unwrap());
        assert_eq!(sizes, [8 << 30, 8 << 30, 3 << 19, 24_000_000_000, 512, 512]);
        for wrong in ["", "much", "8 bananas", "-1GiB", "0", "1e400GiB", "GiB"] {
            assert!(size(wrong).unwrap_err().contains("expected a number and a unit"), "{wrong}");
        }
        assert_eq!([1 << 20, 3 << 29].map(readable), ["1 MiB", "1.5 GiB"]);
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
    }

    #[test]
    fn a_limit_below_what_the_machine_has_counts() {
        let meminfo = ("/proc/meminfo", "MemTotal: 4096 kB\nMemAvailable: 3072 kB\n");
        let group = [("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.current", "1048576\n")];
        let of = |limit: &str| {
            let root = tree(&[meminfo, ("/sys/fs/cgroup/memory.max", limit), group[0], group[1]]);
            let memory = Memory::of(&Machine::at(root.path(), &[])).unwrap();
            (memory.usable() >> 10, memory.available >> 10, memory.limit.is_some())
        };
        assert_eq!(of("2097152\n"), (2048, 1024, true));
        assert_eq!(of("max\n"), (4096, 3072, false));
        assert_eq!(of("1099511627776\n"), (4096, 3072, false));
    }

    /// 128 and 256 channels of 512x512 f32 are 384 MiB; the image has 3 MiB more.
    #[test]
    fn decoding_is_counted_by_its_largest_maps() {
        let config = r#"{"block_out_channels": [128, 256], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;
        let vae = AutoencoderConfig::parse("config", config).unwrap();
        let mib = |size, images, tiling| decoding(&vae, size, images, tiling) / f64::from(1 << 20);
        assert_eq!(mib([512, 512], 1, Tiling::Off), 387.0);
        assert_eq!(mib([512, 512], 2, Tiling::Off), 774.0);
        assert_eq!(mib([1024, 1024], 1, Tiling::Pixels(512)), 384.0 + 12.0);
        assert!(check_decoding(&vae, [16384, 16384], 64, Tiling::Off).unwrap_err().to_string().contains("--vae-tiling"));
    }
}
