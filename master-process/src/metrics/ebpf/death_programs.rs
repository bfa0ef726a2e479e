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
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::Leaves;
use super::runtime::{self, is_trusted, open_directory};
use crate::sys::bpf::{self, Map, bytes_of, bytes_of_mut};

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
    /// When the records of processes that are gone were removed the last time.
    pub(super) tidied: Option<Instant>,
}

/// How often records of processes that are gone are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(60);

impl DeathPrograms {
    /// Has the signals to a process recorded, which has this pid in the initial PID namespace. Without a record, it is not
    /// known who killed the worker.
    pub(super) fn record(&mut self, number: u32, namespace: [u64; 2], in_first_namespace: bool) {
        let death = Death { namespace, ..Death::default() };
        let Err(error) = self.records.update(&number.to_ne_bytes(), bytes_of(&death)) else { return };
        tracing::debug!("bpf(BPF_MAP_UPDATE_ELEM) DEATHS: {error}");
        // Supervisors that were killed have left theirs. The pids say something in the initial namespace only.
        if error.raw_os_error() == Some(libc::E2BIG)
            && in_first_namespace
            && self.tidied.is_none_or(|at| at.elapsed() >= TIDY_EVERY)
        {
            self.tidied = Some(Instant::now());
            if let Ok(records) = self.records.try_clone() {
                let thread = std::thread::Builder::new().name("deaths".to_owned()).stack_size(64 * 1024);
                let _next_time = thread.spawn(move || remove_gone(&records, is_gone));
            }
        }
    }

    /// Takes the record of the signals to a process.
    pub(super) fn take(&self, number: u32) -> Option<Death> {
        let key = number.to_ne_bytes();
        let mut death = Death::default();
        let found = self.records.lookup(&key, bytes_of_mut(&mut death));
        let _may_be_absent = self.records.delete(&key);
        found.is_ok_and(|found| found).then_some(death)
    }

    /// Ends the recording for a process.
    pub(super) fn forget(&self, number: u32) {
        let _may_be_absent = self.records.delete(&number.to_ne_bytes());
    }
}

/// Whether there is no process with this pid, not even one that has ended and was not waited for.
fn is_gone(number: u32) -> bool {
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// Removes the records of processes that are gone.
fn remove_gone(records: &Map, is_gone: impl Fn(u32) -> bool) {
    let mut key = None;
    // Others change the map meanwhile, after which the search may begin anew.
    for _ in 0..2 * HOST_ENTRIES {
        let next = records.next_key::<4>(key).ok().flatten();
        // The one before is removed only now: the search goes on from it.
        if let Some(last) = key.filter(|last| is_gone(u32::from_ne_bytes(*last))) {
            let _may_be_absent = records.delete(&last);
        }
        if next.is_none() {
            return;
        }
        key = next;
    }
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
        Some(DeathPrograms { records, sees_oom: ids[1] != 0, links, tidied: None })
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
    use std::collections::BTreeSet;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::bpf::MapKind;

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
    fn records_of_processes_that_are_gone_are_removed() {
        const HASH: u32 = 1;
        let kind = MapKind { number: HASH, key_size: 4, value_size: 48, entries: 64, flags: 0 };
        let records = match Map::new("deaths", kind) {
            Ok(records) => records,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return,
            Err(error) => panic!("{error}"),
        };
        for number in 1..=64u32 {
            records.update(&number.to_ne_bytes(), bytes_of(&Death::default())).expect("there is room");
        }
        remove_gone(&records, |number| number.is_multiple_of(3));
        let left: BTreeSet<u32> = (1..=64)
            .filter(|number: &u32| {
                let mut death = Death::default();
                records.lookup(&number.to_ne_bytes(), bytes_of_mut(&mut death)).expect("it can be read")
            })
            .collect();
        assert_eq!(left, (1..=64).filter(|number: &u32| !number.is_multiple_of(3)).collect());
        assert!(is_gone(u32::MAX) && !is_gone(std::process::id()));
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
