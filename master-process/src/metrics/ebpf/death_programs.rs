//! The programs that record signals and OOM kills: one set for all supervisors of the host.
//!
//! A program at a tracepoint is paid by everybody who passes it, so five hundred supervisors must not attach five hundred. The
//! first supervisor attaches a set and writes its ids to a file; the others open these. The kernel keeps the set as long
//! as any of them has it open, and frees it with the last one, however that ends. To open it by its ids takes
//! CAP_SYS_ADMIN. A supervisor without it, or that cannot use the file, attaches a set of its own.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use master_process_common::Death;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::Leaves;
use super::runtime::{self, is_trusted, open_directory};
use crate::sys::bpf::{self, Map};

/// The map of the records, in the object.
pub(super) const MAP: &str = "DEATHS";
/// The programs, which have the names of their tracepoints. The second one may be missing in a kernel.
pub(super) const PROGRAMS: [&str; 2] = ["signal_generate", "mark_victim"];

/// The number of workers of the whole host whose signals are recorded.
pub(super) const HOST_ENTRIES: u32 = 16_384;

/// How long to wait for the supervisor that attaches the set. It takes some ten milliseconds, unless it is stopped meanwhile.
/// The loop waits, so this is short; then the host has one more set.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);

/// The attached set, and the map of its records.
#[derive(Debug)]
pub(super) struct DeathPrograms {
    pub(super) records: Map,
    /// Whether OOM kills are recorded.
    pub(super) sees_oom: bool,
    /// The programs stay attached while these are open.
    pub(super) links: Vec<OwnedFd>,
}

/// The file with the ids, locked.
#[derive(Debug)]
pub(super) struct Shared {
    file: File,
    boot: String,
}

impl Shared {
    /// Opens the file for the programs of this release, and waits for its lock; `None` if it cannot be used.
    pub(super) fn open(programs: &[u8], leaves: Leaves) -> Option<Shared> {
        Shared::open_in(Path::new(runtime::DIRECTORY), programs, leaves)
    }

    fn open_in(directory: &Path, programs: &[u8], leaves: Leaves) -> Option<Shared> {
        let directory = open_directory(directory)?;
        let name = format!("death-programs-{:016x}", runtime::hash(programs));
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let flags = match leaves {
            Leaves::Files => flags | OFlags::RDWR | OFlags::CREATE,
            Leaves::Nothing => flags | OFlags::RDONLY,
        };
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(&directory, name, flags, mode).ok()?);
        if !is_trusted(&file) || !file.metadata().ok()?.is_file() {
            return None;
        }
        let until = Instant::now() + LOCK_TIMEOUT;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(Shared { file, boot: runtime::boot_id()? })
    }

    /// The set of another supervisor; `None` if there is none.
    pub(super) fn find(&mut self) -> Option<DeathPrograms> {
        let mut text = String::new();
        (&self.file).take(256).read_to_string(&mut text).ok()?;
        let mut words = text.split_whitespace();
        if words.next()? != self.boot {
            return None;
        }
        let mut number = || words.next()?.parse::<u32>().ok();
        let (map, ids) = (number()?, [number()?, number()?]);
        let records = bpf::map_by_id(map).ok()?;
        let kind = records.kind();
        if kind.key_size != 4 || kind.value_size as usize != size_of::<Death>() {
            return None;
        }
        let mut links = Vec::new();
        for (id, tracepoint) in ids.into_iter().zip(PROGRAMS) {
            if id != 0 {
                links.push(bpf::link_by_id(id, tracepoint).ok()?);
            }
        }
        Some(DeathPrograms { records, sees_oom: ids[1] != 0, links })
    }

    /// Keeps the ids of a set for other supervisors. `links` are in the order of [`PROGRAMS`].
    pub(super) fn keep(&mut self, set: &DeathPrograms) -> std::io::Result<()> {
        let mut ids = [0; 2];
        for (id, link) in ids.iter_mut().zip(&set.links) {
            *id = bpf::id_of(link.as_fd(), "link_id")?;
        }
        let map = bpf::id_of(set.records.as_fd(), "map_id")?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        // One write, so that there is no half of it.
        self.file.write_all(format!("{} {map} {} {}\n", self.boot, ids[0], ids[1]).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_of_another_boot_or_with_wrong_ids_names_no_set() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Shared::open_in(directory.path(), b"programs", Leaves::Files).expect("a file");
        assert!(open().find().is_none(), "it is empty");
        let boot = runtime::boot_id().expect("a boot id");
        let path =
            std::fs::read_dir(directory.path()).expect("ours").next().expect("a file").expect("ours").path();
        for text in
            ["another-boot 1 1 1", &format!("{boot} 1 1"), &format!("{boot} 4294967295 4294967295 1"), "\0\0"]
        {
            std::fs::write(&path, text).expect("ours");
            assert!(open().find().is_none(), "{text}");
        }
    }

    #[test]
    fn a_trial_makes_no_file() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Shared::open_in(directory.path(), b"programs", Leaves::Nothing).is_none());
        assert_eq!(std::fs::read_dir(directory.path()).expect("ours").count(), 0);
        drop(Shared::open_in(directory.path(), b"programs", Leaves::Files).expect("a file"));
        let mut found = Shared::open_in(directory.path(), b"programs", Leaves::Nothing).expect("the file");
        assert!(found.find().is_none(), "it is empty");
    }

    #[test]
    fn a_lock_that_is_not_released_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = Shared::open_in(directory.path(), b"programs", Leaves::Files).expect("a file");
        assert!(Shared::open_in(directory.path(), b"programs", Leaves::Files).is_none());
        drop(held);
        assert!(Shared::open_in(directory.path(), b"programs", Leaves::Files).is_some());
    }

    #[test]
    fn a_file_that_others_can_write_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(Shared::open_in(directory.path(), b"programs", Leaves::Files).expect("a file"));
        let path =
            std::fs::read_dir(directory.path()).expect("ours").next().expect("a file").expect("ours").path();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("ours");
        assert!(Shared::open_in(directory.path(), b"programs", Leaves::Files).is_none());
    }
}
