//! The programs that record signals and OOM kills: one set for all supervisors of the host.
//!
//! A program at a tracepoint is paid by everybody who passes it, so five hundred supervisors must not attach five hundred: the others
//! open those of the first one (`id_file.rs`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use master_process_common::Death;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::load_error::LoadError;
use super::object::Loaded;
use crate::sys::bpf::{self, Map, bytes_of, bytes_of_mut};
use crate::sys::thread;

/// The map of the records, in the object.
pub(super) const MAP: &str = "DEATHS";
/// The programs, which have the names of their tracepoints. The second one may be missing in a kernel.
pub(super) const PROGRAMS: [&str; 2] = ["signal_generate", "mark_victim"];

/// The number of workers of the whole host whose signals are recorded.
pub(super) const HOST_ENTRIES: u32 = 16_384;

/// The attached set, and the map of its records.
#[derive(Debug)]
pub(super) struct DeathPrograms {
    records: Map,
    /// Whether OOM kills are recorded.
    pub(super) sees_oom: bool,
    /// The programs stay attached while these are open.
    links: Vec<OwnedFd>,
    /// When the records of processes that are gone were removed the last time.
    tidied: Option<Instant>,
}

/// How often records of processes that are gone are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// The number of [`DeathPrograms::ids`].
pub(super) const IDS: usize = 3;

impl DeathPrograms {
    /// Attaches the programs of the object.
    ///
    /// # Errors
    /// The kernel lacks the first tracepoint, or does not let the program read its arguments.
    pub(super) fn attach(loaded: &mut Loaded) -> Result<DeathPrograms, LoadError> {
        let mut links = Vec::new();
        for name in PROGRAMS {
            let program = loaded.take_program(name)?;
            let tracepoint = CString::new(name).map_err(|error| LoadError::new(name, error))?;
            match bpf::attach(program.as_fd(), &tracepoint) {
                Ok(link) => links.push(link),
                // This kernel lacks the second tracepoint.
                Err(error) if !links.is_empty() => {
                    tracing::debug!("bpf(BPF_RAW_TRACEPOINT_OPEN) {name}: {error}");
                }
                Err(error) => {
                    return Err(LoadError::new(format_args!("bpf(BPF_RAW_TRACEPOINT_OPEN) {name}"), error));
                }
            }
        }
        let sees_oom = links.len() == PROGRAMS.len();
        Ok(DeathPrograms { records: loaded.take_map(MAP)?, sees_oom, links, tidied: None })
    }

    /// Opens the set with these ids, which another supervisor has attached.
    ///
    /// # Errors
    /// There is none; EPERM without CAP_SYS_ADMIN.
    pub(super) fn open([records, first, second]: [u32; IDS]) -> io::Result<DeathPrograms> {
        let records = bpf::map_by_id(records)?;
        let kind = records.kind();
        if kind.key_size != 4 || kind.value_size as usize != size_of::<Death>() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut links = Vec::new();
        for (id, tracepoint) in [first, second].into_iter().zip(PROGRAMS) {
            if id != 0 {
                links.push(bpf::link_by_id(id, tracepoint)?);
            }
        }
        Ok(DeathPrograms { records, sees_oom: second != 0, links, tidied: None })
    }

    /// The ids by which [`Self::open`] finds it.
    ///
    /// # Errors
    /// Those of reading `/proc/self/fdinfo`.
    pub(super) fn ids(&self) -> io::Result<[u32; IDS]> {
        let mut ids = [bpf::id_of(self.records.as_fd(), "map_id")?, 0, 0];
        for (id, link) in ids.iter_mut().skip(1).zip(&self.links) {
            *id = bpf::id_of(link.as_fd(), "link_id")?;
        }
        Ok(ids)
    }

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
                let _next_time = thread::spawn("deaths", 64 * 1024, move || remove_gone(&records, is_gone));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sys::bpf::MapKind;

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
}
