//! The number of CPUs that this process may use, by its affinity and the quotas of its cgroups, and that of the host.
//!
//! `std::thread::available_parallelism` rounds a quota down: 2.5 CPUs are 2, and half a CPU stays unused. It expects cgroup
//! v2 at one mount point, and ignores it if a v1 hierarchy has the controller `cpu`. It is the fallback for the affinity.

use std::fs;
use std::path::Path;

use crate::sys::cgroup_mounts::{self, Version};

/// CPU time that a cgroup may use, in microseconds of each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quota {
    time: u64,
    period: u64,
}

/// The CPUs that this process may use, at least 1.
pub(super) fn of_this_process() -> u32 {
    usable(affinity(), &quotas(&|path| fs::read(path).ok()))
}

/// The CPUs that are online on the host, at least 1.
pub(super) fn of_the_host() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    count_ranges(&online).unwrap_or_else(affinity).max(1)
}

/// The length of a list such as `0-3,8`: cpuset(7).
fn count_ranges(list: &str) -> Option<u32> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').try_fold(0u32, |sum, range| sum.checked_add(count(range)?))
}

/// The CPUs of the affinity, or the smallest quota if that is fewer. A fraction of a CPU counts as one.
fn usable(affinity: u32, quotas: &[Quota]) -> u32 {
    let whole = |quota: &Quota| u32::try_from(quota.time.div_ceil(quota.period)).unwrap_or(u32::MAX);
    quotas.iter().map(whole).min().unwrap_or(u32::MAX).min(affinity).max(1)
}

fn affinity() -> u32 {
    // The set has a fixed size: on a host with more than 1024 CPUs the kernel returns EINVAL.
    let known = rustix::thread::sched_getaffinity(None).map(|set| set.count());
    let fallback =
        || std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok());
    known.ok().or_else(fallback).unwrap_or(1)
}

/// The quotas of the cgroups of this process and of their parents. The quota of a parent limits its children.
fn quotas(read: &dyn Fn(&Path) -> Option<Vec<u8>>) -> Vec<Quota> {
    let cgroup = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mountinfo = read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    let mut quotas = Vec::new();
    for place in cgroup_mounts::places(&cgroup, &mountinfo, Some("cpu")) {
        let upwards = place.dir.ancestors().take_while(|dir| dir.starts_with(&place.mount));
        quotas.extend(upwards.filter_map(|dir| quota(place.version, dir, read)));
    }
    quotas
}

fn quota(version: Version, dir: &Path, read: &dyn Fn(&Path) -> Option<Vec<u8>>) -> Option<Quota> {
    let read = |name| String::from_utf8(read(&dir.join(name))?).ok();
    let (time, period) = match version {
        Version::V2 => {
            let max = read("cpu.max")?;
            let (time, period) = max.trim().split_once(' ')?;
            (time.parse(), period.parse())
        }
        Version::V1 => (read("cpu.cfs_quota_us")?.trim().parse(), read("cpu.cfs_period_us")?.trim().parse()),
    };
    // Without a limit the time is `max` in v2 and `-1` in v1, which do not parse: no quota.
    let quota = Quota { time: time.ok()?, period: period.ok()? };
    (quota.period > 0).then_some(quota)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// The quotas on a host with these files.
    fn on_host(files: &[(&str, &str)]) -> Vec<Quota> {
        quotas(&|path| {
            files
                .iter()
                .find(|(name, _)| Path::new(name) == path)
                .map(|(_, content)| content.as_bytes().to_vec())
        })
    }

    fn quota_of(time: u64, period: u64) -> Quota {
        Quota { time, period }
    }

    #[test]
    fn the_cpus_of_a_host_are_a_list_of_ranges() {
        assert_eq!(count_ranges("0-1\n"), Some(2));
        assert_eq!(count_ranges("0\n"), Some(1));
        assert_eq!(count_ranges("0-3,8,10-11\n"), Some(7));
        for garbage in ["", "\n", "3-0", "0-", "a-b", "0-4294967295"] {
            assert_eq!(count_ranges(garbage), None, "{garbage:?}");
        }
        assert!(of_the_host() >= affinity(), "all of them");
    }

    #[test]
    fn the_smaller_of_affinity_and_quota_counts() {
        assert_eq!(usable(8, &[]), 8);
        assert_eq!(usable(8, &[quota_of(200_000, 100_000)]), 2);
        assert_eq!(usable(2, &[quota_of(400_000, 100_000)]), 2);
        assert_eq!(usable(8, &[quota_of(400_000, 100_000), quota_of(300_000, 100_000)]), 3);
    }

    #[test]
    fn a_part_of_a_cpu_counts_as_one() {
        assert_eq!(usable(8, &[quota_of(250_000, 100_000)]), 3);
        assert_eq!(usable(8, &[quota_of(1_000, 100_000)]), 1);
        assert_eq!(usable(8, &[quota_of(0, 100_000)]), 1);
        assert_eq!(usable(0, &[]), 1);
        assert_eq!(usable(8, &[quota_of(u64::MAX, 1)]), 8);
    }

    #[test]
    fn v2_quotas_are_found_up_to_the_root() {
        let files = [
            ("/proc/self/cgroup", "0::/system.slice/app.service\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/system.slice/app.service/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/system.slice/cpu.max", "250000 100000\n"),
        ];
        assert_eq!(on_host(&files), [quota_of(250_000, 100_000)]);
    }

    #[test]
    fn v2_is_found_at_any_mount_point() {
        let files = [
            ("/proc/self/cgroup", "1:name=systemd:/\n0::/app\n"),
            ("/proc/self/mountinfo", "41 31 0:38 / /mnt/my\\040groups rw - cgroup2 none rw\n"),
            ("/mnt/my groups/app/cpu.max", "50000 100000"),
        ];
        assert_eq!(on_host(&files), [quota_of(50_000, 100_000)]);
    }

    #[test]
    fn the_mount_of_a_container_is_its_own_cgroup() {
        let files = [
            ("/proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n2:cpuset:/docker/abc\n"),
            (
                "/proc/self/mountinfo",
                "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
            ),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(on_host(&files), [quota_of(150_000, 100_000)]);
    }

    #[test]
    fn no_limit_is_no_quota() {
        let v1 = [
            ("/proc/self/cgroup", "4:cpu:/\n0::/\n"),
            ("/proc/self/mountinfo", "32 31 0:29 / /cpu rw - cgroup cgroup rw,cpu\n"),
            ("/cpu/cpu.cfs_quota_us", "-1\n"),
            ("/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(on_host(&v1), []);
        assert_eq!(on_host(&[]), []);
    }

    #[test]
    fn garbage_is_no_quota() {
        for garbage in ["", "max", "100000", "100000 0", "-1 100000", "x y", "1 2 3", "100000  100000"] {
            let files = [
                ("/proc/self/cgroup", "0::/\n"),
                ("/proc/self/mountinfo", V2_MOUNT),
                ("/sys/fs/cgroup/cpu.max", garbage),
            ];
            assert_eq!(on_host(&files), [], "{garbage:?}");
        }
    }

    #[test]
    fn this_process_can_use_at_least_one() {
        assert!(of_this_process() >= 1);
    }
}
