//! The graphics cards, drivers and libraries that a system has, as its files tell them: no graphics API is asked, and none need be compiled in.

mod cards;
mod libraries;
mod vulkan;

use serde_json::{Value, json};

use crate::machine::Machine;

pub use cards::{Card, Maker};
pub use vulkan::VulkanDriver;

/// What a system has.
#[derive(Debug, Clone, Default)]
pub struct Graphics {
    /// Cards that compute, as far as is known; what only shows a picture is left out.
    pub cards: Vec<Card>,
    /// The version of NVIDIA's kernel module, if it is loaded.
    pub nvidia_module: Option<String>,
    /// The Vulkan loader's path.
    pub vulkan_loader: Option<String>,
    /// Vulkan drivers that the loader would find.
    pub vulkan_drivers: Vec<VulkanDriver>,
    /// The variable that chooses those drivers, if one does.
    pub vulkan_chosen_by: Option<&'static str>,
    /// The path of NVIDIA's CUDA driver.
    pub cuda_driver: Option<String>,
    /// The path of the compiler of CUDA kernels.
    pub nvrtc: Option<String>,
    /// The folder of CUDA's headers.
    pub cuda_headers: Option<String>,
}

impl Graphics {
    /// What a machine has.
    pub fn look(machine: &Machine) -> Self {
        let libraries = libraries::Libraries::of(machine);
        let (vulkan_drivers, vulkan_chosen_by) = vulkan::drivers(machine, &libraries);
        Self {
            cards: cards::cards(machine),
            nvidia_module: cards::nvidia_module(machine),
            vulkan_loader: libraries.find("libvulkan.so.1"),
            vulkan_drivers,
            vulkan_chosen_by,
            cuda_driver: libraries.find("libcuda.so.1"),
            nvrtc: libraries.find("libnvrtc.so"),
            cuda_headers: libraries::cuda_headers(machine),
        }
    }

    /// Whether there is a card of a maker.
    pub fn has(&self, maker: Maker) -> bool {
        self.cards.iter().any(|card| card.maker == maker)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let cards: Vec<Value> = self.cards.iter().map(Card::json).collect();
        let drivers: Vec<Value> = self.vulkan_drivers.iter().map(VulkanDriver::json).collect();
        json!({
            "cards": cards, "nvidia_module": self.nvidia_module, "vulkan_loader": self.vulkan_loader, "vulkan_drivers": drivers,
            "vulkan_drivers_chosen_by": self.vulkan_chosen_by, "cuda_driver": self.cuda_driver, "nvrtc": self.nvrtc,
            "cuda_headers": self.cuda_headers,
        })
    }

    /// The loader and the drivers, on a line for people.
    pub fn vulkan_text(&self) -> String {
        let loader = self.vulkan_loader.as_ref().map_or("no loader (libvulkan.so.1)", |_| "loader there");
        let drivers: Vec<String> = self.vulkan_drivers.iter().map(VulkanDriver::text).collect();
        let drivers = if drivers.is_empty() { "no driver".to_owned() } else { drivers.join(", ") };
        let chosen = self.vulkan_chosen_by.map_or_else(String::new, |variable| format!(", by {variable}"));
        format!("{loader}; {drivers}{chosen}")
    }

    /// CUDA's parts, on a line for people.
    pub fn cuda_text(&self) -> String {
        let parts = [("driver (libcuda.so.1)", &self.cuda_driver), ("NVRTC (libnvrtc.so)", &self.nvrtc), ("headers", &self.cuda_headers)];
        let named =
            |there: bool| parts.iter().filter(|(_, found)| found.is_some() == there).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        match (named(true), named(false)) {
            (there, missing) if missing.is_empty() => format!("{there}: there"),
            (there, missing) if there.is_empty() => format!("{missing}: missing"),
            (there, missing) => format!("{there}: there; {missing}: missing"),
        }
    }
}
