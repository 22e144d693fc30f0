//! The processor: its name, its vector units, and how many of its cores this process may use.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::limits;
use crate::machine::Machine;

/// What is known of the processor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Processor {
    /// As it calls itself.
    pub name: Option<String>,
    /// Its vector units.
    pub vectors: Vec<&'static str>,
    /// The one that the program's kernels use.
    pub kernels: &'static str,
    /// Cores of silicon.
    pub physical: Option<usize>,
    /// Threads of all cores.
    pub logical: Option<usize>,
    /// Those that this process may run on.
    pub allowed: Option<usize>,
    /// How many processors' time its control group may take.
    pub quota: Option<f64>,
}

impl Processor {
    /// That of a machine. The vector units are always those of the machine that this runs on.
    pub fn look(machine: &Machine) -> Self {
        let cpuinfo = machine.text("/proc/cpuinfo").unwrap_or_default();
        let (physical, logical) = cores(machine);
        Self {
            name: name(&cpuinfo, machine),
            vectors: vector_units(),
            kernels: vp_ops::vector_unit(),
            physical,
            logical: logical.or_else(|| std::thread::available_parallelism().ok().map(usize::from)),
            allowed: limits::allowed_processors(machine),
            quota: limits::processors(machine),
        }
    }

    /// One line for people.
    pub fn text(&self) -> String {
        let mut parts = vec![self.name.clone().unwrap_or_else(|| "unknown".into())];
        parts.extend(match (self.physical, self.logical) {
            (Some(physical), Some(logical)) => Some(format!("{}, {}", counted(physical, "core"), counted(logical, "thread"))),
            (None, Some(logical)) => Some(counted(logical, "thread")),
            _ => None,
        });
        if let Some(allowed) = self.allowed.filter(|allowed| self.logical.is_some_and(|logical| *allowed < logical)) {
            parts.push(format!("this process may run on {allowed}"));
        }
        if let Some(quota) = self.quota.filter(|quota| self.logical.is_none_or(|logical| *quota < logical as f64)) {
            parts.push(format!("its control group may take the time of {quota:.1}"));
        }
        let units = if self.vectors.is_empty() { "no vector units".to_owned() } else { self.vectors.join(", ") };
        format!("{}; {units}; kernels use {}", parts.join("; "), self.kernels)
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let Self { name, vectors, kernels, physical, logical, allowed, quota } = self;
        json!({
            "name": name, "vector_units": vectors, "kernels": kernels, "physical_cores": physical, "logical_cores": logical,
            "allowed": allowed, "quota": quota,
        })
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// x86 names its processors in `/proc/cpuinfo`, single-board computers in their device tree, Windows in a variable.
fn name(cpuinfo: &str, machine: &Machine) -> Option<String> {
    let field = |wanted: &str| {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.filter(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim().to_owned()).find(|value| !value.is_empty())
    };
    let tree = || machine.text("/proc/device-tree/model").filter(|model| !model.is_empty());
    let windows = || machine.variable("PROCESSOR_IDENTIFIER").map(str::to_owned);
    let name = field("model name").or_else(tree).or_else(|| field("Hardware")).or_else(|| field("cpu model")).or_else(windows)?;
    Some(name.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Cores and threads of all cores that are on.
fn cores(machine: &Machine) -> (Option<usize>, Option<usize>) {
    const FOLDER: &str = "/sys/devices/system/cpu";
    let is_processor = |name: &String| name.strip_prefix("cpu").is_some_and(|number| number.parse::<usize>().is_ok());
    let place = |name: String| {
        let of = |what: &str| machine.text(format!("{FOLDER}/{name}/topology/{what}"));
        Some((of("physical_package_id")?, of("core_id")?))
    };
    let threads: Vec<_> = machine.names(FOLDER).into_iter().filter(is_processor).filter_map(place).collect();
    let cores = threads.iter().collect::<BTreeSet<_>>().len();
    let known = |count: usize| (count > 0).then_some(count);
    (known(cores), known(threads.len()))
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn vector_units() -> Vec<&'static str> {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let all = [
        ("SSE4.2", is_x86_feature_detected!("sse4.2") && !is_x86_feature_detected!("avx2")),
        ("AVX", is_x86_feature_detected!("avx") && !is_x86_feature_detected!("avx2")),
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512", avx512),
        ("AVX-512 BF16", is_x86_feature_detected!("avx512bf16")),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn vector_units() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected;
    let all = [
        ("NEON", is_aarch64_feature_detected!("neon")),
        ("FP16", is_aarch64_feature_detected!("fp16")),
        ("BF16", is_aarch64_feature_detected!("bf16")),
        ("SVE", is_aarch64_feature_detected!("sve")),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn vector_units() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    #[test]
    fn cores_and_threads_are_told_apart_and_limits_are_told_where_they_bind() {
        let mut files = vec![
            ("/proc/cpuinfo".to_owned(), "processor\t: 0\nmodel name\t: AMD  Test 9 \n".to_owned()),
            ("/proc/self/status".to_owned(), "Cpus_allowed_list:\t0-1\n".to_owned()),
            ("/proc/self/cgroup".to_owned(), "0::/\n".to_owned()),
            ("/sys/fs/cgroup/cpu.max".to_owned(), "150000 100000".to_owned()),
            ("/sys/devices/system/cpu/cpufreq/boost".to_owned(), String::new()),
        ];
        for thread in 0..4 {
            let folder = format!("/sys/devices/system/cpu/cpu{thread}/topology");
            files.push((format!("{folder}/physical_package_id"), "0\n".to_owned()));
            files.push((format!("{folder}/core_id"), format!("{}\n", thread / 2)));
        }
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let root = tree(&files);
        let found = Processor::look(&Machine::at(root.path(), &[]));
        assert_eq!((found.physical, found.logical, found.allowed, found.quota), (Some(2), Some(4), Some(2), Some(1.5)));
        let text = found.text();
        let expected = "AMD Test 9; 2 cores, 4 threads; this process may run on 2; its control group may take the time of 1.5; ";
        assert!(text.starts_with(expected) && text.ends_with(&format!("kernels use {}", found.kernels)), "{text}");
        let free = Processor { allowed: Some(4), quota: Some(4.0), ..found };
        assert!(free.text().starts_with("AMD Test 9; 2 cores, 4 threads; ") && !free.text().contains("may"), "{}", free.text());
    }

    #[test]
    fn the_name_is_found_where_the_system_has_it() {
        let board = tree(&[("/proc/cpuinfo", "processor : 0\n"), ("/proc/device-tree/model", "Raspberry Pi 5\0")]);
        assert_eq!(Processor::look(&Machine::at(board.path(), &[])).name.as_deref(), Some("Raspberry Pi 5"));
        let empty = tree(&[]);
        let windows = Machine::at(empty.path(), &[("PROCESSOR_IDENTIFIER", "Intel64 Family 6")]);
        assert_eq!(Processor::look(&windows).name.as_deref(), Some("Intel64 Family 6"));
        assert!(Processor::look(&Machine::at(empty.path(), &[])).text().starts_with("unknown; "));
    }

    /// The kernels' unit is one that the processor has.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_kernels_use_a_unit_that_is_there() {
        let found = Processor::look(&Machine::this());
        let has = |unit: &str| found.vectors.contains(&unit);
        assert_eq!(found.kernels == "AVX-512", has("AVX-512"), "{found:?}");
        assert!(has(found.kernels) || found.kernels == "no vectors" && !has("AVX2"), "{found:?}");
    }
}
