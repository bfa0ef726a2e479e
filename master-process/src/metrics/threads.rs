//! Finding the busiest thread of a worker.

use std::time::Instant;

use rustix::process::Pid;

use crate::policy::Busiest;
use crate::sys::proc_stat::{self, StatFile};

/// A worker with more threads has no single loop that could be stuck. The limit bounds the cost of a look to a
/// millisecond or two.
const MAX_THREADS: usize = 256;

/// The CPU times of a worker's threads at one look, sorted by thread id.
#[derive(Debug)]
pub(super) struct Threads {
    at: Instant,
    all: Vec<Thread>,
}

#[derive(Debug, Clone, Copy)]
struct Thread {
    tid: Pid,
    /// Tells apart two threads that had the same id.
    started: u64,
    cpu_ns: u64,
    at: Instant,
}

/// Looks at the threads of these processes; `None` if there are too many.
pub(super) fn look(processes: &[Pid]) -> Option<Threads> {
    let at = Instant::now();
    let mut all = Vec::new();
    for pid in processes {
        for tid in proc_stat::threads(*pid) {
            if all.len() >= MAX_THREADS {
                return None;
            }
            // A thread that has ended was not stuck.
            let Ok(stat) = StatFile::open_thread(*pid, tid).and_then(|file| file.read()) else { continue };
            all.push(Thread { tid, started: stat.started, cpu_ns: stat.cpu_ns, at: Instant::now() });
        }
    }
    all.sort_unstable_by_key(|thread| thread.tid.as_raw_pid());
    Some(Threads { at, all })
}

/// The thread that used the most CPU time between two looks. For a new thread, all its CPU time counts.
pub(super) fn busiest(before: &Threads, now: &Threads) -> Option<Busiest> {
    let used = |thread: &Thread| {
        let found = before.all.binary_search_by_key(&thread.tid.as_raw_pid(), |of| of.tid.as_raw_pid()).ok();
        let found = found.map(|at| before.all[at]).filter(|before| before.started == thread.started);
        let (since, had) = found.map_or((before.at, 0), |before| (before.at, before.cpu_ns));
        let span_ns = thread.at.saturating_duration_since(since).as_nanos();
        Busiest {
            span_ns: u64::try_from(span_ns).unwrap_or(u64::MAX),
            cpu_ns: thread.cpu_ns.saturating_sub(had),
        }
    };
    now.all.iter().map(used).max_by_key(|busiest| busiest.cpu_ns)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn threads(at: Instant, all: &[(i32, u64, u64)]) -> Threads {
        let thread = |(tid, started, cpu_ms): &(i32, u64, u64)| Thread {
            tid: Pid::from_raw(*tid).expect("a number"),
            started: *started,
            cpu_ns: cpu_ms * 1_000_000,
            at,
        };
        Threads { at, all: all.iter().map(thread).collect() }
    }

    fn found(before: &[(i32, u64, u64)], now: &[(i32, u64, u64)]) -> Option<u64> {
        let start = Instant::now();
        let later = start + Duration::from_secs(2);
        let busiest = busiest(&threads(start, before), &threads(later, now));
        busiest.inspect(|busiest| assert_eq!(busiest.span_ns, 2_000_000_000)).map(|of| of.cpu_ns / 1_000_000)
    }

    #[test]
    fn it_is_the_one_that_used_the_most_since_and_not_ever() {
        assert_eq!(found(&[(5, 1, 90_000), (7, 1, 10)], &[(5, 1, 90_100), (7, 1, 1900)]), Some(1890));
    }

    #[test]
    fn a_thread_that_is_new_has_used_all_that_it_has() {
        assert_eq!(found(&[(5, 1, 100)], &[(5, 1, 150), (9, 8, 1500)]), Some(1500));
        assert_eq!(found(&[(5, 1, 5000)], &[(5, 2, 700)]), Some(700), "its number was another one's");
    }

    #[test]
    fn nobody_is_the_busiest_of_none() {
        assert_eq!(found(&[(5, 1, 100)], &[]), None);
    }

    #[test]
    fn a_thread_of_this_process_that_works_is_found() {
        let own = [rustix::process::getpid()];
        let before = look(&own).expect("few threads");
        let start = Instant::now();
        let mut turns = 0u64;
        // Less than this is below a tick.
        while start.elapsed() < Duration::from_millis(300) {
            turns = std::hint::black_box(turns + 1);
        }
        let found = busiest(&before, &look(&own).expect("few threads")).expect("this thread");
        assert!(found.cpu_ns >= 20_000_000 && found.span_ns >= 300_000_000, "{found:?}");
    }

    #[test]
    fn too_many_threads_are_not_looked_at() {
        let (keep, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let threads: Vec<_> = (0..MAX_THREADS)
            .map(|_| {
                let wait = std::sync::Arc::clone(&wait);
                let builder = std::thread::Builder::new().stack_size(16 * 1024);
                builder.spawn(move || drop(wait.lock().map(|wait| wait.recv()))).expect("a thread")
            })
            .collect();
        assert!(look(&[rustix::process::getpid()]).is_none());
        drop(keep);
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
    }
}
