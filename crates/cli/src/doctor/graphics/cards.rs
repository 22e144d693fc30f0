//! Graphics cards by the numbers of their makers: those on the PCI bus, with or without a driver, and those of systems on a chip, which the
//! kernel's graphics drivers name.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::doctor::disk::human;
use crate::machine::Machine;

/// Who made a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    Nvidia,
    Amd,
    Intel,
    Apple,
    Other,
}

/// A graphics card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    pub maker: Maker,
    /// Its name where the system tells it, or its maker's.
    pub name: String,
    /// Maker and model, as `10de:2204`, where they are numbers.
    pub numbers: Option<String>,
    /// The kernel's driver.
    pub driver: Option<String>,
    /// Bytes of its own memory, where the kernel tells.
    pub memory: Option<u64>,
}

/// Makers by their PCI numbers. Those that only show the picture of a server or a virtual machine are not among them.
const MAKERS: [(&str, Maker, &str); 5] = [
    ("10de", Maker::Nvidia, "NVIDIA"),
    ("1002", Maker::Amd, "AMD"),
    ("8086", Maker::Intel, "Intel"),
    ("106b", Maker::Apple, "Apple"),
    ("5143", Maker::Other, "Qualcomm"),
];

impl Card {
    /// One line for people.
    pub fn text(&self) -> String {
        let numbers = self.numbers.as_ref().map_or_else(String::new, |numbers| format!(" ({numbers})"));
        let driver = self.driver.as_ref().map_or_else(|| ", no kernel driver".to_owned(), |driver| format!(", kernel driver {driver}"));
        let memory = self.memory.map_or_else(String::new, |bytes| format!(", {}", human(bytes)));
        format!("{}{numbers}{memory}{driver}", self.name)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({ "name": self.name, "numbers": self.numbers, "kernel_driver": self.driver, "memory_bytes": self.memory })
    }
}

/// The cards of a machine, by their places.
pub fn cards(machine: &Machine) -> Vec<Card> {
    let mut found: BTreeMap<String, Card> = BTreeMap::new();
    for place in machine.names("/sys/bus/pci/devices") {
        let folder = format!("/sys/bus/pci/devices/{place}");
        // Class 3 is a display.
        if machine.text(format!("{folder}/class")).is_some_and(|class| class.starts_with("0x03")) {
            found.extend(card(machine, &folder, &place).map(|card| (place, card)));
        }
    }
    // Connectors, such as card0-DP-1, lie beside the cards.
    for name in machine.names("/sys/class/drm").into_iter().filter(|name| name.starts_with("card") && !name.contains('-')) {
        let folder = format!("/sys/class/drm/{name}/device");
        let place = machine.link_name(&folder).unwrap_or(name);
        if !found.contains_key(&place) {
            found.extend(card(machine, &folder, &place).map(|card| (place, card)));
        }
    }
    // Windows' GPU in its Linux.
    if found.is_empty() && machine.has("/dev/dxg") {
        let name = "a GPU of Windows (WSL)".to_owned();
        found.insert(String::new(), Card { maker: Maker::Other, name, numbers: None, driver: Some("dxgkrnl".into()), memory: None });
    }
    found.into_values().collect()
}

/// The card of a folder with its facts; none if it does not compute.
fn card(machine: &Machine, folder: &str, place: &str) -> Option<Card> {
    let driver = machine.link_name(format!("{folder}/driver"));
    let number = |name: &str| Some(machine.text(format!("{folder}/{name}"))?.trim_start_matches("0x").to_lowercase());
    let Some(vendor) = number("vendor") else {
        // A system on a chip: its graphics are known by their driver alone.
        let uevent = machine.text(format!("{folder}/uevent"))?;
        let driver = driver.or_else(|| uevent.lines().find_map(|line| line.strip_prefix("DRIVER=")).map(str::to_owned))?;
        let maker = if driver == "asahi" { Maker::Apple } else { Maker::Other };
        const COMPUTE: [&str; 9] = ["asahi", "msm", "msm_dpu", "panfrost", "panthor", "v3d", "lima", "powervr", "nouveau"];
        let is_known = COMPUTE.contains(&driver.as_str());
        return is_known.then(|| Card { maker, name: format!("{driver} graphics"), numbers: None, driver: Some(driver), memory: None });
    };
    let (_, maker, name) = MAKERS.iter().find(|(number, ..)| *number == vendor)?;
    let model = match maker {
        Maker::Nvidia => nvidia_model(machine, place),
        _ => machine.text(format!("{folder}/label")).or_else(|| machine.text(format!("{folder}/product_name"))),
    };
    let model = model.filter(|model| !model.is_empty());
    Some(Card {
        maker: *maker,
        name: model.unwrap_or_else(|| format!("{name} graphics")),
        numbers: Some(format!("{vendor}:{}", number("device").unwrap_or_else(|| "?".into()))),
        driver,
        memory: machine.text(format!("{folder}/mem_info_vram_total")).and_then(|bytes| bytes.parse().ok()),
    })
}

/// What NVIDIA's module calls the card in this place.
fn nvidia_model(machine: &Machine, place: &str) -> Option<String> {
    let information = machine.text(format!("/proc/driver/nvidia/gpus/{place}/information"))?;
    Some(information.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
}

/// The version of NVIDIA's kernel module, such as `550.54.14`.
pub fn nvidia_module(machine: &Machine) -> Option<String> {
    let text = machine.text("/proc/driver/nvidia/version")?;
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    Some(text.lines().next()?.split_whitespace().find(is_version).unwrap_or("of an unknown version").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    #[test]
    fn cards_on_the_bus_are_told_and_those_of_servers_are_left_out() {
        let root = tree(&[
            ("/sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n"),
            ("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
            ("/sys/bus/pci/devices/0000:01:00.0/device", "0x2204\n"),
            ("/sys/bus/pci/devices/0000:02:00.0/class", "0x030000\n"),
            ("/sys/bus/pci/devices/0000:02:00.0/vendor", "0x1a03\n"),
            ("/sys/bus/pci/devices/0000:03:00.0/class", "0x020000\n"),
            ("/sys/bus/pci/devices/0000:03:00.0/vendor", "0x8086\n"),
            ("/sys/class/drm/card0-DP-1/status", "connected"),
            ("/sys/class/drm/card1/device/vendor", "0x1002\n"),
            ("/sys/class/drm/card1/device/device", "0x744c\n"),
            ("/sys/class/drm/card1/device/mem_info_vram_total", "25753026560\n"),
            ("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\nGCC\n"),
            ("/proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3090\nIRQ: 1\n"),
        ]);
        let machine = Machine::at(root.path(), &[]);
        let told: Vec<String> = cards(&machine).iter().map(Card::text).collect();
        let expected = ["NVIDIA GeForce RTX 3090 (10de:2204), no kernel driver", "AMD graphics (1002:744c), 24.0 GiB, no kernel driver"];
        assert_eq!(told, expected);
        assert_eq!(nvidia_module(&machine).as_deref(), Some("550.54.14"));
    }

    #[cfg(unix)]
    #[test]
    fn a_card_on_the_bus_that_has_a_driver_is_told_once() {
        let root = tree(&[
            ("/sys/bus/pci/devices/0000:05:00.0/class", "0x038000\n"),
            ("/sys/bus/pci/devices/0000:05:00.0/vendor", "0x1002\n"),
            ("/sys/bus/pci/devices/0000:05:00.0/device", "0x74a1\n"),
            ("/sys/class/drm/card0/dev", "226:0"),
        ]);
        let sys = root.path().join("sys");
        std::os::unix::fs::symlink("../../drivers/amdgpu", sys.join("bus/pci/devices/0000:05:00.0/driver")).unwrap();
        std::os::unix::fs::symlink("../../../bus/pci/devices/0000:05:00.0", sys.join("class/drm/card0/device")).unwrap();
        let told: Vec<String> = cards(&Machine::at(root.path(), &[])).iter().map(Card::text).collect();
        assert_eq!(told, ["AMD graphics (1002:74a1), kernel driver amdgpu"]);
    }

    #[test]
    fn a_system_on_a_chip_and_windows_linux_have_cards_too() {
        let board = tree(&[
            ("/sys/class/drm/card0/device/uevent", "DRIVER=v3d\nOF_NAME=gpu\n"),
            ("/sys/class/drm/card1/device/uevent", "DRIVER=vc4-drm\n"),
        ]);
        let told: Vec<String> = cards(&Machine::at(board.path(), &[])).iter().map(Card::text).collect();
        assert_eq!(told, ["v3d graphics, kernel driver v3d"]);
        let wsl = tree(&[("/dev/dxg", "")]);
        assert_eq!(cards(&Machine::at(wsl.path(), &[])).len(), 1);
        assert!(cards(&Machine::at(tree(&[]).path(), &[])).is_empty());
    }
}
