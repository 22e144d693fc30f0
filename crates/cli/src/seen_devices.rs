//! On which devices the program has been seen to compute, and how exactly: rows that `scripts/check-gpu` prints.

/// What was seen of a device.
pub struct Seen {
    /// One of [`SYSTEMS`], by its name.
    pub system: &'static str,
    /// As `--device` takes it.
    pub device: &'static str,
    /// The hardware and its driver.
    pub driver: &'static str,
    /// The number formats that were checked.
    pub formats: &'static str,
    /// `verified`: all golden cases, laws and commands. `smoke-tested`: it ran, not everything was checked. `compiles`: no more than that.
    pub state: &'static str,
    /// What that rests on.
    pub what_ran: &'static str,
    /// The largest deviation of the golden cases in f32, relative to the largest value of a tensor, where there is one.
    pub largest_deviation: Option<&'static str>,
    /// When.
    pub date: &'static str,
}

/// The rows, best known first.
pub const SEEN: [Seen; 3] = [
    Seen {
        system: "Linux, x86-64",
        device: "cpu",
        driver: "AVX-512",
        formats: "f32, bf16, f16",
        state: "verified",
        what_ran: "all tests",
        largest_deviation: Some("1.3e-4"),
        date: "2026-11-28",
    },
    Seen {
        system: "Linux, x86-64",
        device: "vulkan",
        driver: "lavapipe (Mesa 25.0.7), a software driver",
        formats: "f32",
        state: "smoke-tested",
        what_ran: "golden cases of rewards, DDPO, DPO, LoRA, optimizer and pipelines; laws of the operations; cases of the doctor; sample (the PNG of the CPU to the byte), score, one update of SFT",
        largest_deviation: Some("9.1e-5"),
        date: "2026-11-28",
    },
    Seen {
        system: "Linux, x86-64",
        device: "cuda",
        driver: "none",
        formats: "",
        state: "compiles",
        what_ran: "it links and starts, and reports that no device was found",
        largest_deviation: None,
        date: "2026-11-28",
    },
];

/// An operating system with its processor.
pub struct System {
    /// What it is called.
    pub name: &'static str,
    /// The backends that exist there.
    pub backends: &'static [&'static str],
}

/// The systems that people have, whether or not anything was seen there.
pub const SYSTEMS: [System; 4] = [
    System { name: "Linux, x86-64", backends: &["cpu", "vulkan", "cuda", "wgpu"] },
    System { name: "Linux, ARM64", backends: &["cpu", "vulkan", "cuda", "wgpu"] },
    System { name: "Windows, x86-64", backends: &["cpu", "vulkan", "cuda", "wgpu"] },
    System { name: "macOS, Apple silicon", backends: &["cpu", "metal", "wgpu"] },
];

/// What is known of a backend on a system, in the words of the table of devices.
pub fn support(system: &System, backend: &str) -> String {
    let seen = SEEN.iter().find(|seen| seen.system == system.name && seen.device.split(':').next() == Some(backend));
    match seen {
        Some(Seen { state, formats: "", .. }) => (*state).to_owned(),
        Some(Seen { state, formats, .. }) => format!("{state}: {formats}"),
        None if system.backends.contains(&backend) => "not tried".to_owned(),
        None => "does not exist".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;

    #[test]
    fn systems_and_backends_are_known_ones() {
        let backends: Vec<&str> = device::names().collect();
        for seen in &SEEN {
            let system = SYSTEMS.iter().find(|system| system.name == seen.system);
            let backend = seen.device.split(':').next().unwrap();
            assert!(system.is_some_and(|system| system.backends.contains(&backend)), "{} on {}", seen.device, seen.system);
        }
        for system in &SYSTEMS {
            assert!(system.backends.iter().all(|backend| backends.contains(backend)), "{}", system.name);
        }
        assert!(backends.iter().all(|backend| SYSTEMS.iter().any(|system| system.backends.contains(backend))), "{backends:?}");
    }

    #[test]
    fn what_was_not_seen_is_said_to_be_so() {
        let [linux, .., mac] = &SYSTEMS;
        assert_eq!(support(linux, "cpu"), "verified: f32, bf16, f16");
        assert_eq!(support(linux, "cuda"), "compiles");
        assert_eq!(support(mac, "cpu"), "not tried");
        assert_eq!(support(mac, "cuda"), "does not exist");
    }
}
