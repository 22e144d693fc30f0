//! What this program is and sees: everything that a report of a fault should say about a machine, on one screen.

mod disk;
mod findings;
mod graphics;
pub mod limits;
mod processor;
mod screen;
mod variables;

use serde_json::{Value, json};

use crate::device::{self, FoundDevice, FoundDevices};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::{embedded, hub, listing};

use disk::GrowingFolder;
pub use disk::human;
use findings::{Evidence, Finding};
use graphics::Graphics;
use processor::Processor;
use screen::Screen;
use variables::{Setting, settings};

/// Lines of a screen.
const LINES: usize = 30;
/// How many lines each of these may take, so that all of it fits.
const CARDS: usize = 3;
const FOUND: usize = 3;
/// What is said below all else: an empty line, and two.
const ADVICE: &str = "\nCheck that a device computes rightly: visionprefer doctor --check DEVICE; more of the above: --json\n\
                      Report a fault: visionprefer debug-report; where it came from: RUST_BACKTRACE=1\n";

/// What was seen.
pub struct Surroundings {
    features: Vec<String>,
    /// GPU backends that this build lacks.
    lacks: Vec<String>,
    home: Option<String>,
    processor: Processor,
    memory: Option<Memory>,
    runs: GrowingFolder,
    /// The hub's cache, unpacked models, tuned kernels.
    caches: [GrowingFolder; 3],
    settings: Vec<Setting>,
    graphics: Graphics,
    found: Vec<FoundDevices>,
    findings: Vec<Finding>,
}

impl Surroundings {
    /// Looks around. Opens the devices that a GPU backend of this build finds.
    pub fn look() -> Self {
        let machine = Machine::this();
        let runs = std::path::absolute("runs").unwrap_or_else(|_| "runs".into());
        let caches = [
            GrowingFolder::look("hub cache", &hub::cache_folder()),
            GrowingFolder::look("models", &embedded::cache()),
            GrowingFolder::look("kernels", &embedded::cache().with_file_name("cubecl")),
        ];
        let chosen = machine.variable("VP_DEVICE").and_then(|name| device::parse(name).err()).map(|error| format!("{error:#}"));
        Self::of(&machine, device::found(), GrowingFolder::look("runs", &runs), caches, chosen)
    }

    /// What there is on a machine, given what the backends of this build find there.
    fn of(
        machine: &Machine,
        found: Vec<FoundDevices>,
        runs: GrowingFolder,
        caches: [GrowingFolder; 3],
        chosen_device: Option<String>,
    ) -> Self {
        let short = |name: &str| name.split('[').next().unwrap_or_default().to_owned();
        let gpus = || device::describe().filter(|device| device.add_with.is_some());
        let embedded = cfg!(feature = "embedded").then(|| "embedded".to_owned());
        let (graphics, memory) = (Graphics::look(machine), Memory::of(machine));
        let evidence = Evidence {
            graphics: &graphics,
            found: &found,
            chosen_device,
            memory: memory.as_ref(),
            cache: &caches[1],
            runs: &runs,
            others: &caches[..1],
        };
        let findings = evidence.findings();
        Self {
            features: embedded.into_iter().chain(gpus().filter(|device| device.compiled).map(|device| short(&device.name))).collect(),
            lacks: gpus().filter(|device| !device.compiled).map(|device| short(&device.name)).collect(),
            home: machine.variable("HOME").map(str::to_owned),
            processor: Processor::look(machine),
            settings: settings(&machine.variables),
            memory,
            runs,
            caches,
            graphics,
            found,
            findings,
        }
    }

    /// The names of the variables that are set and matter.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.settings.iter().map(|setting| setting.name.as_str())
    }

    /// What prevents work on a device of this build.
    pub fn obstacles(&self) -> impl Iterator<Item = &str> {
        self.findings.iter().filter(|finding| finding.prevents).map(|finding| finding.text.as_str())
    }

    /// One JSON object per line: the program and its machine, devices that can be named, devices that are found, findings.
    pub fn json(&self) -> String {
        let memory = self.memory.as_ref();
        let caches: Vec<Value> = self.caches.iter().map(GrowingFolder::json).collect();
        let variables: Vec<Value> = self.settings.iter().map(|Setting { name, value }| json!({ "name": name, "value": value })).collect();
        let program = json!({
            "kind": "program", "version": env!("CARGO_PKG_VERSION"), "system": std::env::consts::OS,
            "architecture": std::env::consts::ARCH, "features": self.features,
            "cores": std::thread::available_parallelism().ok().map(usize::from), "processor": self.processor.json(),
            "memory_bytes": memory.map(|memory| memory.total), "available_bytes": memory.map(|memory| memory.available),
            "memory_limit_bytes": memory.and_then(|memory| memory.limit), "runs": self.runs.json(), "caches": caches,
            "variables": variables, "graphics": self.graphics.json(),
        });
        let found = self.found.iter().flat_map(|FoundDevices { backend, devices }| {
            devices.iter().flatten().enumerate().map(move |(number, FoundDevice { name, compiled_for, formats })| {
                json!({
                    "kind": "found_device", "device": format!("{backend}:{number}"), "name": name, "compiled_for": compiled_for,
                    "formats": formats,
                })
            })
        });
        let findings = self.findings.iter().map(Finding::json);
        let lines: String = found.chain(findings).map(|line| format!("{line}\n")).collect();
        format!("{program}\n{}{lines}", listing::devices().to_json_lines())
    }

    /// One screen for people.
    pub fn text(&self) -> String {
        let mut screen = Screen::default();
        let features = if self.features.is_empty() { "none".into() } else { self.features.join(", ") };
        let (version, system, architecture) = (env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
        screen.row("version", &format!("visionprefer {version}, {system} {architecture}, features {features}"), 1);
        screen.row("processor", &self.processor.text(), 2);
        screen.row("memory", &self.memory.as_ref().map_or_else(|| "unknown".into(), memory_text), 1);
        let free = |place: &GrowingFolder| place.free.map_or_else(|| "an unknown amount".into(), human);
        screen.row("disk", &format!("{} free for runs, {} for caches", free(&self.runs), free(&self.caches[1])), 1);
        for place in &self.caches {
            screen.row(place.name, &place.text(&self.shortened(&place.path.display().to_string())), 1);
        }
        let variables: Vec<String> =
            self.settings.iter().map(|Setting { name, value }| format!("{name} {}", self.shortened(value))).collect();
        screen.row("variables", &if variables.is_empty() { "none that matter here".into() } else { variables.join("; ") }, 2);
        screen.gap();
        self.devices(&mut screen);
        if !self.findings.is_empty() {
            screen.gap();
        }
        self.warnings(&mut screen);
        screen.finish() + ADVICE
    }

    /// The devices of this build, what they find, and the parts of others.
    fn devices(&self, screen: &mut Screen) {
        screen.row("cpu", "in this build", 1);
        let found: Vec<(String, String)> = self.found.iter().flat_map(found_rows).collect();
        some(screen, &found, FOUND, "devices");
        if !self.lacks.is_empty() {
            screen.row("others", &format!("{} not in this build; cargo build --release --features NAME", self.lacks.join(", ")), 1);
        }
        let cards: Vec<(String, String)> = self.graphics.cards.iter().map(|card| ("GPU".to_owned(), card.text())).collect();
        some(screen, &cards, CARDS, "GPUs");
        if cfg!(target_os = "linux") {
            if cards.is_empty() {
                screen.row("GPU", "none that computes", 1);
            }
            screen.row("Vulkan", &self.graphics.vulkan_text(), 2);
            let module = self.graphics.nvidia_module.as_ref().map_or_else(String::new, |version| format!("NVIDIA's module {version}; "));
            screen.row("CUDA", &format!("{module}{}", self.graphics.cuda_text()), 1);
        }
    }

    fn warnings(&self, screen: &mut Screen) {
        let mut left = LINES.saturating_sub(screen.lines() + ADVICE.lines().count());
        for (number, finding) in self.findings.iter().enumerate() {
            let last = self.findings.len() - number;
            if left == 0 || (left == 1 && last > 1) {
                screen.row("", &format!("and {last} more: --json"), 1);
                return;
            }
            let most = if last == 1 { left } else { (left - 1).min(3) };
            left -= screen.row(if finding.prevents { "WRONG" } else { "warning" }, &finding.text, most);
        }
    }

    /// A path below the user's home, as shells write it.
    fn shortened(&self, text: &str) -> String {
        match self.home.as_deref().filter(|home| home.len() > 1).and_then(|home| text.strip_prefix(home)) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("~{rest}"),
            _ => text.to_owned(),
        }
    }
}

fn memory_text(memory: &Memory) -> String {
    let limit = memory.limit.map_or_else(String::new, |limit| format!(", this process's control group may have {}", human(limit)));
    format!("{}{limit}; {} available", human(memory.total), human(memory.available))
}

/// A row for each device that a backend finds, or for what it says.
fn found_rows(FoundDevices { backend, devices }: &FoundDevices) -> Vec<(String, String)> {
    let row = |(number, FoundDevice { name, compiled_for, formats }): (usize, &FoundDevice)| {
        let kind = compiled_for.as_ref().map_or_else(String::new, |compiled_for| format!(" ({compiled_for})"));
        (format!("{backend}:{number}"), format!("{}{kind}; {}", name.as_deref().unwrap_or("a device"), formats.join(", ")))
    };
    match devices {
        Ok(devices) if devices.is_empty() => vec![((*backend).to_owned(), "in this build; no device".to_owned())],
        Ok(devices) => devices.iter().enumerate().map(row).collect(),
        Err(reason) => vec![((*backend).to_owned(), format!("in this build; {reason}"))],
    }
}

/// The first rows, and how many more there are.
fn some(screen: &mut Screen, rows: &[(String, String)], most: usize, what: &str) {
    let shown = if rows.len() > most { most - 1 } else { rows.len() };
    for (label, text) in &rows[..shown] {
        screen.row(label, text, 1);
    }
    if shown < rows.len() {
        screen.row("", &format!("and {} more {what}: --json", rows.len() - shown), 1);
    }
}

#[cfg(test)]
mod tests;
