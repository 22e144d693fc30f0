//! On which devices the program has been seen to compute, and how exactly: rows that `scripts/check-gpu` prints.

/// What was seen of a device.
pub struct Seen {
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
        device: "cpu",
        driver: "Linux, x86-64 with AVX-512",
        formats: "f32, bf16, f16",
        state: "verified",
        what_ran: "all tests",
        largest_deviation: Some("1.3e-4"),
        date: "2026-11-28",
    },
    Seen {
        device: "vulkan",
        driver: "lavapipe (Mesa 25.0.7), a software driver",
        formats: "f32",
        state: "smoke-tested",
        what_ran: "golden cases of rewards, DDPO, DPO, LoRA, optimizer and pipelines; laws of the operations; cases of the doctor; sample (the PNG of the CPU to the byte), score, one update of SFT",
        largest_deviation: Some("9.1e-5"),
        date: "2026-11-28",
    },
    Seen {
        device: "cuda",
        driver: "none",
        formats: "",
        state: "compiles",
        what_ran: "it links and starts, and reports that no device was found",
        largest_deviation: None,
        date: "2026-11-28",
    },
];
