//! What a worker of these tests does: a test that only works where the harness has started it for that.

use std::io::Write;
use std::process::{Command, exit};
use std::time::{Duration, Instant};

use master_process::config::Scope;
use master_process::metrics::ebpf::{Ebpf, Thresholds};

use master_process_tests::{TIMEOUT, eventually};

use crate::harness::INTERVAL;

/// Names the role.
pub(crate) const ROLE: &str = "EBPF_TEST_ROLE";

#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (name, argument) = role.split_once(' ').unwrap_or((&role, ""));
    // Before it can have a child that says anything.
    println!("{}", std::process::id());
    perform(name, argument);
    #[expect(clippy::exit, reason = "the end of a worker, not of a test")]
    exit(0);
}

/// The threads that load at the same time: most of the time they wait for the kernel.
const LOADERS: usize = 20;

/// Allows as many descriptors as there can be.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .expect("the limit is not raised above its maximum");
}

fn perform(name: &str, argument: &str) {
    match name {
        "burn" => {
            ready();
            burn(milliseconds(argument));
        }
        "use" => use_up(milliseconds(argument)),
        "sleep" => {
            ready();
            std::thread::sleep(milliseconds(argument));
        }
        // A supervisor that measures nothing yet.
        "supervise" => {
            let ebpf = Ebpf::load(Scope::Tree, 4, INTERVAL, Thresholds::default()).expect("as in the test");
            ready();
            std::thread::sleep(Duration::from_secs(60));
            drop(ebpf);
        }
        // So many of them in one process, each of which takes samples.
        "supervise-many" => {
            let count: usize = argument.parse().expect("a number");
            raise_descriptors();
            let load = || {
                let load = || Ebpf::load(Scope::Worker, 4, INTERVAL, Thresholds::default());
                (0..count / LOADERS).map(|_| load().expect("as in the test")).collect::<Vec<_>>()
            };
            let all: Vec<Ebpf> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..LOADERS).map(|_| scope.spawn(load)).collect();
                threads.into_iter().flat_map(|thread| thread.join().expect("it loads them")).collect()
            });
            for ebpf in &all {
                eventually(TIMEOUT, "a sample", || ebpf.cost().0 > 0);
            }
            ready();
        }
        // One that takes a sample an hour, and then one that takes many.
        "supervise-rarely-and-often" => {
            let load = |interval| Ebpf::load(Scope::Worker, 4, interval, Thresholds::default());
            let rarely = load(Duration::from_secs(3600)).expect("as in the test");
            let often = load(INTERVAL).expect("as in the test");
            eventually(TIMEOUT, "samples", || often.cost().0 > 2);
            assert!(rarely.cost().0 <= 1, "the hour of the kernel's clock can end meanwhile");
            ready();
        }
        // So many MiB, and then nothing.
        "hold" => {
            let size: usize = argument.parse().expect("a size");
            let memory = vec![1u8; size << 20];
            ready();
            std::thread::sleep(Duration::from_secs(60));
            drop(memory);
        }
        // So many MiB, and then a busy loop without any system call.
        "hold-and-burn" => {
            let size: usize = argument.parse().expect("a size");
            let memory = vec![1u8; size << 20];
            ready();
            burn(Duration::from_secs(60));
            drop(memory);
        }
        // So many MiB, and a child that runs in them.
        "hold-and-vfork" => {
            let size: usize = argument.parse().expect("a size");
            let memory = vec![1u8; size << 20];
            ready();
            // SAFETY: the child does nothing but to sleep and to exit.
            unsafe {
                if libc::syscall(libc::SYS_vfork) == 0 {
                    libc::sleep(60);
                    libc::_exit(0);
                }
            }
            drop(memory);
        }
        // A chain of so many processes, each the child of the one before.
        "chain" => {
            let count: u32 = argument.parse().expect("a number");
            for _ in 1..count {
                // SAFETY: this process has one thread that does anything, and the child goes on with it.
                if unsafe { libc::fork() } > 0 {
                    return std::thread::sleep(Duration::from_secs(60));
                }
            }
            ready();
            std::thread::sleep(Duration::from_secs(60));
        }
        // Short children without end.
        "fork" => {
            ready();
            let begun = Instant::now();
            while begun.elapsed() < milliseconds(argument) {
                // SAFETY: the child does nothing but to end, and no status is asked for.
                unsafe {
                    if libc::fork() == 0 {
                        libc::_exit(0);
                    }
                    while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
                }
            }
        }
        // Memory that comes and goes, until it is killed: so many MiB for a second, then as long without.
        "breathe" => {
            let size: usize = argument.parse().expect("a size");
            ready();
            loop {
                let memory = vec![1u8; size << 20];
                std::thread::sleep(Duration::from_secs(1));
                drop(memory);
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        "abort" => std::process::abort(),
        // All memory that there is.
        "gorge" => {
            let mut memory: Vec<Vec<u8>> = Vec::new();
            loop {
                memory.push(vec![1; 16 << 20]);
            }
        }
        "crash" => {
            ready();
            // SAFETY: the very fault that is wanted.
            unsafe { std::ptr::null_mut::<u32>().write_volatile(1) };
        }
        // A child of the given role, waited for.
        "parent" => {
            let mut child = again(argument).spawn().expect("a child");
            let _status = child.wait();
        }
        // A child of the given role that outlives its parent.
        "abandon" => {
            let child = again(argument).spawn().expect("a child");
            std::mem::forget(child);
            std::thread::sleep(Duration::from_secs(60));
        }
        // Another thread than the first becomes the given role.
        "exec" => {
            let argument = argument.to_owned();
            let thread = std::thread::spawn(move || {
                use std::os::unix::process::CommandExt;
                panic!("exec: {}", again(&argument).exec());
            });
            let _never = thread.join();
        }
        // Busy in so many threads.
        "threads" => {
            let count: usize = argument.parse().expect("a number");
            let threads: Vec<_> =
                (0..count).map(|_| std::thread::spawn(|| burn(Duration::from_secs(60)))).collect();
            for thread in threads {
                let _never = thread.join();
            }
        }
        // So many processes, one after the other, each of which uses 10 ms.
        "many" => {
            let count: usize = argument.parse().expect("a number");
            for _ in 0..count {
                let _status = again("use 10").status();
            }
            ready();
            std::thread::sleep(Duration::from_secs(60));
        }
        other => panic!("no such role: {other}"),
    }
}

/// This program in another role.
pub(crate) fn again(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    // With a single thread, as on a machine of one CPU, the test's name would be on the line of the first number.
    command.args(["--exact", "role::role", "--nocapture", "--test-threads", "2"]).env(ROLE, role);
    command
}

fn burn(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::black_box(0);
    }
}

/// Busy for so long, what others take of the CPU not counted.
fn use_up(time: Duration) {
    let used = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("less than a second"))
    };
    let begun = used();
    while used() - begun < time {
        std::hint::black_box(0);
    }
}

/// Tells the harness, by a line that it waits for.
fn ready() {
    println!("ready");
    let _written = std::io::stdout().flush();
}

fn milliseconds(text: &str) -> Duration {
    Duration::from_millis(text.parse().expect("milliseconds"))
}
