//! The screen on made-up machines.

use super::*;
use crate::machine::tests::tree;

fn place(name: &'static str, path: &str) -> GrowingFolder {
    GrowingFolder {
        name,
        path: path.into(),
        held: Some(1 << 33),
        more: true,
        free: Some(1 << 20),
        refused: Some("Read-only file system".into()),
    }
}

fn surroundings(files: &[(&str, &str)], variables: &[(&str, &str)], found: Vec<FoundDevices>) -> Surroundings {
    let root = tree(files);
    let machine = Machine::at(root.path(), variables);
    let long = format!("/home/marie/{}", "deep/".repeat(40));
    let caches = [place("hub cache", &long), place("models", "/home/marie/.cache/visionprefer"), place("kernels", &long)];
    Surroundings::of(&machine, found, place("runs", &long), caches, Some(format!("device `x`: {}", "no such backend ".repeat(20))))
}

/// A machine on which everything is there in numbers and everything is wrong.
#[test]
fn the_worst_machine_fits_one_screen() {
    let mut files: Vec<(String, String)> = vec![
        ("/proc/cpuinfo".into(), format!("model name: {}\n", "Processor ".repeat(20))),
        ("/proc/meminfo".into(), "MemTotal: 4096 kB\nMemAvailable: 3072 kB\n".into()),
        ("/proc/self/cgroup".into(), "0::/\n".into()),
        ("/sys/fs/cgroup/memory.max".into(), "2097152\n".into()),
    ];
    for number in 0..9 {
        let folder = format!("/sys/bus/pci/devices/0000:0{number}:00.0");
        files.push((format!("{folder}/class"), "0x030000".into()));
        files.push((format!("{folder}/vendor"), if number < 5 { "0x10de" } else { "0x1002" }.into()));
        let manifest = format!("{{\"ICD\": {{\"library_path\": \"/missing/{number}/{}.so\"}}}}", "library".repeat(20));
        files.push((format!("/usr/share/vulkan/icd.d/driver{number}.json"), manifest));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let names: Vec<String> = (0..30).map(|number| format!("VP_VARIABLE_{number}")).collect();
    let variables: Vec<(&str, &str)> =
        names.iter().map(|name| (name.as_str(), "/home/marie/value")).chain([("HOME", "/home/marie")]).collect();
    let device = FoundDevice { name: Some("GPU ".repeat(40)), compiled_for: Some("ptx_sm90".into()), formats: vec!["f32", "bf16"] };
    let found = vec![
        FoundDevices { backend: "vulkan", devices: Ok(vec![device; 8]) },
        FoundDevices { backend: "cuda", devices: Err("a long reason ".repeat(30)) },
    ];
    let seen = surroundings(&files, &variables, found);
    let text = seen.text();
    assert!(text.lines().count() <= 30, "{} lines:\n{text}", text.lines().count());
    assert!(text.lines().all(|line| line.chars().count() <= screen::WIDTH), "{text}");
    assert!(text.contains("WRONG") && text.contains(" more: --json") && text.contains("~/.cache/visionprefer"), "{text}");
    assert_eq!(seen.obstacles().count(), 3, "the cache, VP_DEVICE and cuda:\n{text}");
    // What the screen cuts is whole for programs.
    let lines: Vec<Value> = seen.json().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_kind = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!(of_kind("found_device"), 8);
    assert_eq!(lines[0]["graphics"]["cards"].as_array().unwrap().len(), 9);
    assert_eq!(lines[0]["variables"].as_array().unwrap().len(), 30);
    assert_eq!(of_kind("finding"), seen.findings.len());
    assert_eq!(lines[0]["memory_limit_bytes"], 2097152);
}

#[test]
fn a_plain_machine_has_no_findings_but_those_of_its_disks() {
    let seen = surroundings(&[], &[("HF_TOKEN", "hf_s3same"), ("HTTPS_PROXY", "http://eve:s3same@proxy:3128")], Vec::new());
    let (text, json) = (seen.text(), seen.json());
    assert!(text.contains("HF_TOKEN set; HTTPS_PROXY http://proxy:3128"), "{text}");
    assert!(!text.contains("s3same") && !json.contains("s3same"), "{text}{json}");
    assert_eq!(text.contains("no driver"), cfg!(target_os = "linux"), "{text}");
    assert_eq!(text.contains("not in this build"), !seen.lacks.is_empty(), "{text}");
}
