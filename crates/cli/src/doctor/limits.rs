//! What a container or a service manager lets this process have of the machine: limits of control groups, of both versions.

use std::path::Path;

use crate::machine::Machine;

/// Where there is no limit, version 1 has a number close to the largest possible one.
const NO_LIMIT: u64 = 1 << 60;

/// The memory of a control group, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The most that its processes may have together.
    pub bytes: u64,
    /// What they have now, less what is only a copy of files and would be given up.
    pub used: u64,
}

/// The names of the files that a version of control groups has.
struct Files {
    limits: &'static [&'static str],
    used: &'static str,
    inactive: &'static str,
}

const SECOND: Files = Files { limits: &["memory.max", "memory.high"], used: "memory.current", inactive: "inactive_file" };
const FIRST: Files = Files { limits: &["memory.limit_in_bytes"], used: "memory.usage_in_bytes", inactive: "total_inactive_file" };

/// The smallest memory limit of this process's control group and of those around it.
pub fn memory(machine: &Machine) -> Option<MemoryLimit> {
    let of_group = |files: &Files, group: &str| {
        let bytes = files.limits.iter().filter_map(|name| number(machine, group, name)).filter(|bytes| *bytes < NO_LIMIT).min()?;
        let inactive = machine.text(Path::new(group).join("memory.stat"));
        let inactive = inactive.as_deref().into_iter().flat_map(str::lines).filter_map(|line| line.split_once(' '));
        let inactive = inactive.filter(|(name, _)| *name == files.inactive).find_map(|(_, bytes)| bytes.trim().parse().ok()).unwrap_or(0);
        let used = number(machine, group, files.used).unwrap_or(0).saturating_sub(inactive);
        Some(MemoryLimit { bytes, used })
    };
    let second = groups(machine, "").into_iter().filter_map(|group| of_group(&SECOND, &group));
    let first = groups(machine, "memory").into_iter().filter_map(|group| of_group(&FIRST, &group));
    second.chain(first).min_by_key(|limit| limit.bytes)
}

/// How many processors' time this process's control group and those around it may take, where that is limited.
pub fn processors(machine: &Machine) -> Option<f64> {
    let second = groups(machine, "").into_iter().filter_map(|group| {
        let text = machine.text(Path::new(&group).join("cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.trim().parse::<f64>().ok()?)
    });
    let first = groups(machine, "cpu").into_iter().filter_map(|group| {
        let quota = number(machine, &group, "cpu.cfs_quota_us")?;
        Some(quota as f64 / number(machine, &group, "cpu.cfs_period_us")? as f64)
    });
    second.chain(first).filter(|count| count.is_finite() && *count > 0.0).min_by(f64::total_cmp)
}

/// How many processors this process may run on at all, as `taskset` and containers choose them.
pub fn allowed_processors(machine: &Machine) -> Option<usize> {
    let status = machine.text("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let count = |range: &str| match range.split_once('-') {
        Some((first, last)) => last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1),
        None => range.parse::<usize>().ok().map(|_| 1),
    };
    list.trim().split(',').map(count).sum()
}

/// The folders of this process's group and of those around it, from the innermost on. `controller` is empty for version 2. Within a
/// container the path may be that of the machine outside, where nothing is found; the outermost folder is the container's own then.
fn groups(machine: &Machine, controller: &str) -> Vec<String> {
    let Some(text) = machine.text("/proc/self/cgroup") else { return Vec::new() };
    let path = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_it = if controller.is_empty() { controllers.is_empty() } else { controllers.split(',').any(|one| one == controller) };
        is_it.then_some(path)
    });
    let Some(path) = path else { return Vec::new() };
    let mounts: Vec<&str> = match controller {
        "" => vec!["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
        "cpu" => vec!["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"],
        _ => vec!["/sys/fs/cgroup/memory"],
    };
    let inside = Path::new(path.trim_start_matches('/'));
    let of_mount = |mount: &&str| inside.ancestors().map(|group| format!("{mount}/{}", group.display())).collect::<Vec<_>>();
    mounts.iter().flat_map(of_mount).collect()
}

fn number(machine: &Machine, group: &str, name: &str) -> Option<u64> {
    machine.text(Path::new(group).join(name))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    #[test]
    fn the_smallest_limit_of_a_group_and_those_around_it_counts() {
        let root = tree(&[
            ("/proc/self/cgroup", "0::/machine/job\n"),
            ("/sys/fs/cgroup/machine/memory.max", "4096\n"),
            ("/sys/fs/cgroup/machine/memory.current", "3000\n"),
            ("/sys/fs/cgroup/machine/memory.stat", "anon 1\ninactive_file 1000\n"),
            ("/sys/fs/cgroup/machine/job/memory.max", "max\n"),
            ("/sys/fs/cgroup/machine/job/memory.high", "8192\n"),
            ("/sys/fs/cgroup/machine/job/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/cpu.max", "max 100000\n"),
        ]);
        let machine = Machine::at(root.path(), &[]);
        assert_eq!(memory(&machine), Some(MemoryLimit { bytes: 4096, used: 2000 }));
        assert_eq!(processors(&machine), Some(1.5));
    }

    #[test]
    fn a_container_of_the_first_version_is_read_where_the_path_is_that_outside() {
        let root = tree(&[
            ("/proc/self/cgroup", "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2048\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "100\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let machine = Machine::at(root.path(), &[]);
        assert_eq!(memory(&machine), Some(MemoryLimit { bytes: 2048, used: 100 }));
        assert_eq!(processors(&machine), Some(0.5));
    }

    #[test]
    fn where_nothing_is_limited_there_is_no_limit() {
        let root = tree(&[
            ("/proc/self/cgroup", "9:memory:/\n4:cpu:/\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let machine = Machine::at(root.path(), &[]);
        assert_eq!((memory(&machine), processors(&machine)), (None, None));
    }

    #[test]
    fn processors_are_counted_from_a_list_of_ranges() {
        let count = |list: &str| {
            let root = tree(&[("/proc/self/status", &format!("Name:\tx\nCpus_allowed_list:\t{list}\nMems_allowed:\t1\n"))]);
            allowed_processors(&Machine::at(root.path(), &[]))
        };
        assert_eq!([count("0-3,8"), count("5"), count("3-1"), count("a")], [Some(5), Some(1), None, None]);
    }
}
