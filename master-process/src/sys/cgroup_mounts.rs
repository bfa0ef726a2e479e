//! The directories of the supervisor's own cgroups: what `/proc/self/cgroup` and `/proc/self/mountinfo` say together.

use std::path::{Path, PathBuf};

use procfs_core::process::MountInfo;
use procfs_core::{FromBufRead, ProcessCGroup, ProcessCGroups};

/// The version of cgroups. Each has files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The hierarchy of one controller, or of several.
    V1,
    /// The hierarchy of all controllers.
    V2,
}

/// The supervisor's cgroup in a hierarchy, as it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Of the hierarchy.
    pub version: Version,
    /// The path of the cgroup in its hierarchy, as the supervisor's cgroup namespace names it.
    pub path: String,
    /// The mount point of the hierarchy.
    pub mount: PathBuf,
    /// The directory of the cgroup: `mount`, or below it.
    pub dir: PathBuf,
}

/// The cgroup of the supervisor in the hierarchy of version 2 and in that of `controller` of version 1, for each mount with
/// that cgroup in it.
#[must_use]
pub fn of_this_process(controller: Option<&str>) -> Vec<Place> {
    let read = |file| std::fs::read(file).unwrap_or_default();
    places(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"), controller)
}

/// The same, from the contents of the two files.
#[must_use]
pub fn places(cgroup: &[u8], mountinfo: &[u8], controller: Option<&str>) -> Vec<Place> {
    let Ok(ProcessCGroups(memberships)) = ProcessCGroups::from_buf_read(cgroup) else { return Vec::new() };
    // Line by line: a mount point that is not UTF-8, for example of a USB stick, does not hide the others.
    let mounts = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let mounts: Vec<MountInfo> = mounts.filter_map(|line| MountInfo::from_line(line).ok()).collect();
    let mut found = Vec::new();
    for membership in &memberships {
        let Some(version) = version_of(membership, controller) else { continue };
        found.extend(
            mounts
                .iter()
                .filter(|mount| match version {
                    Version::V1 => {
                        mount.fs_type == "cgroup"
                            && controller.is_some_and(|name| mount.super_options.contains_key(name))
                    }
                    Version::V2 => mount.fs_type == "cgroup2",
                })
                .filter_map(|mount| place(version, &membership.pathname, mount)),
        );
    }
    found
}

/// `None`: a hierarchy of other controllers.
fn version_of(membership: &ProcessCGroup, controller: Option<&str>) -> Option<Version> {
    if membership.controllers.is_empty() {
        return Some(Version::V2);
    }
    membership.controllers.iter().any(|name| Some(name.as_str()) == controller).then_some(Version::V1)
}

/// The directory of the cgroup of this path, if the mount contains it: a mount can show a part of its hierarchy.
fn place(version: Version, path: &str, mount: &MountInfo) -> Option<Place> {
    let below = Path::new(path).strip_prefix(unescaped(&mount.root)).ok()?;
    let point = PathBuf::from(unescaped(mount.mount_point.to_str()?));
    Some(Place { version, path: path.to_owned(), dir: point.join(below), mount: point })
}

/// Undoes the octal escapes of the kernel, proc_pid_mountinfo(5), which procfs-core leaves in paths.
fn unescaped(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn dirs(cgroup: &str, mountinfo: &[u8]) -> Vec<PathBuf> {
        places(cgroup.as_bytes(), mountinfo, Some("cpu")).into_iter().map(|place| place.dir).collect()
    }

    #[test]
    fn the_hierarchy_of_version_2_is_found_among_others() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 /a /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let found = places(b"9:name=systemd:/x\n0::/a/b.service\n", mounts.as_bytes(), Some("cpu"));
        let expected = Place {
            version: Version::V2,
            path: "/a/b.service".to_owned(),
            mount: "/sys/fs/cgroup/unified".into(),
            dir: "/sys/fs/cgroup/unified/b.service".into(),
        };
        assert_eq!(found, [expected]);
        assert!(dirs("9:name=systemd:/x\n", mounts.as_bytes()).is_empty());
        assert!(dirs("0::/\n", b"31 23 0:28 / /sys rw - sysfs sysfs rw\n").is_empty());
    }

    #[test]
    fn version_1_is_the_hierarchy_of_the_controller() {
        let mounts = "32 31 0:29 /docker/a /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                      33 31 0:30 /docker/a /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n";
        let found = places(b"4:cpu,cpuacct:/docker/a\n2:cpuset:/docker/a\n", mounts.as_bytes(), Some("cpu"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].version, Version::V1);
        assert_eq!(found[0].dir, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn a_mount_without_our_cgroup_is_ignored() {
        let mounts = "30 23 0:26 /other /mnt/other rw - cgroup2 cgroup2 rw\n";
        assert!(dirs("0::/mine\n", mounts.as_bytes()).is_empty());
    }

    #[test]
    fn an_unreadable_line_does_not_hide_the_others() {
        let lines =
            [b"29 23 0:25 / /mnt/\xff rw - vfat /dev/sdb1 rw\nx - y\n - \n".as_slice(), V2_MOUNT.as_bytes()];
        assert_eq!(dirs("0::/app\n", &lines.concat()), [Path::new("/sys/fs/cgroup/app")]);
    }

    #[test]
    fn white_space_in_a_mount_point_is_kept() {
        let mounts = b"41 31 0:38 / /mnt/my\\040groups rw - cgroup2 none rw\n";
        assert_eq!(dirs("0::/app\n", mounts), [Path::new("/mnt/my groups/app")]);
    }

    #[test]
    fn an_unreadable_membership_has_no_place() {
        for garbage in ["", ":", "x:y", "7:cpu"] {
            assert!(dirs(garbage, V2_MOUNT.as_bytes()).is_empty(), "{garbage:?}");
        }
    }
}
