//! Which source measures, where, and what is said of it.

use std::process::Command;

use master_process_tests::profile::{CONTAINER, launcher, ordinary_user};
use master_process_tests::{Supervisor, fixtures, process, skip};

/// The one line that says what measures.
fn choice(supervisor: &Supervisor) -> String {
    supervisor.until("the log says what measures", || {
        let mut lines = supervisor.logged(&["monitor: "]);
        assert!(lines.len() <= 1, "{lines:?}");
        lines.pop()
    })
}

/// Idle workers whose supervisor runs behind these words.
fn behind<S: AsRef<str>>(wrapper: &[S], options: &[&str]) -> Supervisor {
    Supervisor::builder()
        .wrap(wrapper.iter().map(AsRef::as_ref))
        .args(["-w", "2", "--ready", "none"])
        .args(options)
        .command(fixtures::idle())
        .spawn()
}

fn says<S: AsRef<str>>(wrapper: &[S], options: &[&str], expected: &[&str]) {
    let supervisor = behind(wrapper, options);
    let line = choice(&supervisor);
    assert!(expected.iter().all(|words| line.contains(words)), "{line}");
    assert_eq!(supervisor.await_workers(2).len(), 2, "and the workers run");
    assert_eq!(supervisor.stop(), 0);
}

const NOTHING: [&str; 0] = [];

#[test]
fn root_measures_with_ebpf() {
    if !process::is_root() {
        skip!("root_measures_with_ebpf", "not root");
    }
    says(&NOTHING, &[], &["monitor: ebpf"]);
    says(&NOTHING, &["--monitor", "ebpf"], &["monitor: ebpf"]);
}

#[test]
fn two_capabilities_are_enough_for_ebpf() {
    if !process::is_root() {
        skip!("two_capabilities_are_enough_for_ebpf", "not root");
    }
    let user = ordinary_user().to_string();
    let capabilities = "+bpf,+perfmon";
    let wrapper = [
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--inh-caps",
        capabilities,
        "--ambient-caps",
        capabilities,
        "--bounding-set",
        "-all,+bpf,+perfmon",
    ];
    says(&wrapper, &["--monitor", "ebpf"], &["monitor: ebpf"]);
}

#[test]
fn an_ordinary_user_measures_with_procfs_and_is_told_why() {
    if !process::is_root() {
        skip!("an_ordinary_user_measures_with_procfs_and_is_told_why", "to become another user takes root");
    }
    let wrapper = launcher(Some(ordinary_user()), &[]);
    says(&wrapper, &[], &["monitor: procfs; ebpf unavailable: ", "operation not permitted"]);
}

#[test]
fn in_a_containers_profile_procfs_measures() {
    let wrapper = launcher(None, &CONTAINER);
    says(&wrapper, &[], &["monitor: procfs; ebpf unavailable: "]);
}

#[test]
fn in_a_pid_namespace_ebpf_measures_the_right_processes_and_names_killers_by_their_pids_there() {
    if !process::is_root() {
        skip!("in_a_pid_namespace_ebpf_measures_the_right_processes", "not root");
    }
    let wrapper = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let text = "
import os, subprocess, sys, time
x = b'x' * (80 << 20)
print('up', flush=True)
if os.environ['WORKER_INDEX'] == '1':
    time.sleep(1)
    subprocess.run(['sh', '-c', f'echo killer $$; kill -9 {os.getpid()}'])
time.sleep(1000)
";
    let options = ["--monitor", "ebpf", "--max-memory", "60MiB", "--memory-failures", "3"];
    let fast = ["-w", "2", "--ready", "alive:300ms", "--monitor-interval", "100ms", "--monitor-delay", "3s"];
    let supervisor = Supervisor::builder()
        .wrap(wrapper)
        .args(options)
        .args(fast)
        .command([fixtures::python(), "-c".into(), text.into()])
        .spawn();
    let killed =
        supervisor.until("a killer is named", || supervisor.logged(&["sigkill from sh (pid "]).pop());
    let killer = supervisor.output().iter().find_map(|line| line.strip_prefix("killer ").map(str::to_owned));
    assert!(killed.contains(&format!("from sh (pid {}, uid 0)", killer.expect("it said so"))), "{killed}");
    supervisor.until("worker 0 is over its limit", || {
        supervisor.logged(&["worker 0", "exceeded --max-memory ("]).pop()
    });
}

#[test]
fn without_the_kernels_types_procfs_measures() {
    if !process::is_root() {
        skip!("without_the_kernels_types_procfs_measures", "to hide a folder takes root");
    }
    // And the programs of other supervisors, which need none.
    let hide = "mount -t tmpfs none /sys/kernel/btf && mount -t tmpfs none /run && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    let expected = ["monitor: procfs; ebpf unavailable: /sys/kernel/btf/vmlinux: no such file"];
    says(&wrapper, &[], &expected);
}

#[test]
fn ebpf_that_was_asked_for_and_cannot_be_had_is_an_error_before_anything_runs() {
    let finished = Supervisor::builder()
        .wrap(launcher(None, &CONTAINER))
        .args(["--monitor", "ebpf"])
        .command(fixtures::shell("echo started"))
        .run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(finished.stdout, Vec::<String>::new());
    let last = finished.stderr.last().map(String::as_str).unwrap_or_default();
    assert!(last.starts_with("master-process: --monitor ebpf: bpf(BPF_"), "{finished:?}");
}

#[test]
fn the_wish_for_procfs_is_heard() {
    says(&NOTHING, &["--monitor", "procfs"], &["monitor: procfs"]);
}

/// Writes the kernel's type information with `task_struct.tgid` far outside of a `task_struct`, and shows that in the
/// place of the true one: the programs are built from it, and the kernel goes by its own.
const WRONG_TYPES: &str = "
import os, struct, sys
types = bytearray(open('/sys/kernel/btf/vmlinux', 'rb').read())
_, _, _, header, start, length, names, _ = struct.unpack_from('<HBBIIIII', types, 0)
wanted = {name: types.index(b'\\0' + name + b'\\0', header + names) + 1 - header - names for name in (b'task_struct', b'tgid', b'bpf_task_from_pid')}
EACH = {3: (12, 0), 1: (4, 0), 14: (4, 0), 17: (4, 0), 4: (0, 12), 5: (0, 12), 15: (0, 12), 19: (0, 12), 6: (0, 8), 13: (0, 8)}
at, changed, of_another = header + start, 0, 'function' in sys.argv[2]
while at < header + start + length:
    name, info, _ = struct.unpack_from('<III', types, at)
    kind, count = info >> 24 & 31, info & 0xFFFF
    once, each = EACH.get(kind, (0, 0))
    if kind == 12 and of_another and name != wanted[b'bpf_task_from_pid']:
        # The first function of the file has the name of the one that is called.
        struct.pack_into('<I', types, at, wanted[b'bpf_task_from_pid'])
        of_another, changed = False, changed + 1
    if kind == 4 and name == wanted[b'task_struct'] and sys.argv[2] == 'offset':
        for member in range(at + 12, at + 12 + 12 * count, 12):
            if struct.unpack_from('<I', types, member)[0] == wanted[b'tgid']:
                struct.pack_into('<I', types, member + 8, 0xFFFFC0)
                changed += 1
    at += 12 + once + each * count
assert changed == 1, changed
open(sys.argv[1], 'wb').write(types)
";

/// Runs a supervisor where the kernel's type information is wrong, and no offsets are kept from before.
fn with_wrong_types(what: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let types = folder.path().join("types");
    let made = Command::new(fixtures::python()).args(["-c", WRONG_TYPES]).arg(&types).arg(what).output();
    let made = made.expect("python");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let show = format!(
        "mount --bind {} /sys/kernel/btf/vmlinux && mount -t tmpfs none /run && exec \"$@\"",
        types.display()
    );
    (folder, show)
}

#[test]
fn what_the_verifier_refuses_is_not_needed_and_its_words_are_there_for_those_who_ask() {
    if !process::is_root() {
        skip!(
            "what_the_verifier_refuses_is_not_needed_and_its_words_are_there_for_those_who_ask",
            "not root"
        );
    }
    let (_folder, show) = with_wrong_types("function");
    let wrapper = ["unshare", "--mount", "sh", "-c", &show, "sh"];
    says(&wrapper, &[], &["monitor: procfs; ebpf unavailable: bpf(bpf_prog_load) run: "]);
    let supervisor = behind(&wrapper, &["-v"]);
    let words =
        supervisor.until("the verifier's words", || supervisor.logged(&["the verifier on run:"]).pop());
    assert!(words.contains("is not allowed"), "{words}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn types_that_do_not_describe_the_kernel_are_noticed() {
    if !process::is_root() {
        skip!("types_that_do_not_describe_the_kernel_are_noticed", "not root");
    }
    let (_folder, show) = with_wrong_types("offset");
    let wrapper = ["unshare", "--mount", "sh", "-c", &show, "sh"];
    says(&wrapper, &[], &["monitor: procfs; ebpf unavailable: ", "does not describe the running kernel"]);
}

#[test]
fn more_workers_than_ebpf_has_room_for_are_measured_all_the_same() {
    if !process::is_root() {
        skip!("more_workers_than_ebpf_has_room_for_are_measured_all_the_same", "not root");
    }
    // Room is made for the number of workers at the start, several times over; then there are more than that.
    const ROOM: usize = 40;
    let limits = ["--max-memory", "1MiB", "--memory-failures", "100000", "--monitor-delay", "0"];
    let options = ["--ready", "none", "--monitor-interval", "50ms", "--memory-high-signal", "USR1"];
    let supervisor = Supervisor::builder().args(limits).args(options).command(fixtures::idle()).spawn();
    supervisor.await_workers(1);
    for count in 2..=ROOM + 2 {
        supervisor.signal(rustix::process::Signal::TTIN);
        supervisor.await_workers(count);
    }
    // Each of them is measured: it exceeds its limit, which is logged, since it has no handler for the signal.
    supervisor.eventually("every worker is seen over its limit", || {
        (0..ROOM + 2)
            .all(|slot| !supervisor.logged(&[&format!("worker {slot} (pid "), "exceeded 80 %"]).is_empty())
    });
    assert!(supervisor.logged(&["switched to procfs"]).is_empty());
    assert_eq!(supervisor.stop(), 0);
}
