//! One set of programs for all supervisors of the host: who uses it, and what is left when they end.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::Acquire;

use master_process::config::Scope;
use master_process::sys::bpf::{self, Mapping};
use master_process_common::{Control, Owner};
use master_process_tests::{TIMEOUT, eventually};

use crate::death::sent;
use crate::harness::{Bench, bench};
use crate::role::again;

/// The values of a field in the descriptions of a process's descriptors, of those that have these words.
fn described(pid: u32, words: &str, field: &str) -> BTreeSet<u32> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("its files").flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let value = |text: String| text.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok());
    texts.filter(|text| text.contains(words)).filter_map(value).collect()
}

fn programs(pid: u32) -> BTreeSet<u32> {
    // `BPF_PROG_TYPE_SYSCALL`.
    described(pid, "prog_type:\t31", "prog_id:")
}

fn links(pid: u32) -> BTreeSet<u32> {
    described(pid, "tp_name:\tsignal_generate", "link_id:")
}

fn maps(pid: u32) -> BTreeSet<u32> {
    described(pid, "map_id:", "map_id:")
}

/// The first supervisor of root makes the directory.
fn make_directory() {
    let _exists = std::fs::DirBuilder::new().mode(0o700).create("/run/master-process");
}

/// Another supervisor, in a process of its own. It is killed when it is dropped.
struct Other(Child);

impl Other {
    fn start(command: &mut Command) -> Other {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a process");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let other = Other(child);
        assert!(output.lines().map_while(Result::ok).any(|line| line == "ready"), "it loads the programs");
        other
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn one_set_of_programs_serves_all_supervisors() {
    make_directory();
    let mut first = bench!("one_set_of_programs_serves_all_supervisors", Scope::Worker);
    if !rustix::process::geteuid().is_root() {
        master_process_tests::skip!("only the supervisors of root share a directory");
    }
    let me = std::process::id();
    let (program, link) = (programs(me), links(me));
    assert_eq!((program.len(), link.len()), (1, 1));
    let other = Other::start(&mut again("supervise"));
    assert_eq!((programs(other.pid()), links(other.pid())), (program.clone(), link.clone()));
    // And a supervisor that measures in another way.
    let mut second = bench!("one_set_of_programs_serves_all_supervisors", Scope::Tree);
    assert_eq!((programs(me), links(me)), (program, link));
    drop(other);

    let mut of_first = first.start("parent hold 8");
    let mut of_second = second.start("parent hold 8");
    of_first.ready();
    of_second.ready();
    let memory = |bench: &Bench, worker| bench.usage(worker).expect("it is watched").memory;
    let (alone, tree) = (memory(&first, &of_first), memory(&second, &of_second));
    assert!(tree > alone + (7 << 20), "each has its own workers, and counts in its own way: {alone} {tree}");

    // It records for both, and outlives the one that has loaded it.
    let (_shell, details) = sent(&mut first, &["KILL"]);
    assert_eq!(details.killer.map(|killer| killer.signal), Some(9));
    drop(first);
    let (_shell, details) = sent(&mut second, &["TERM"]);
    assert_eq!(details.killer.map(|killer| killer.signal), Some(15));
    assert!(memory(&second, &of_second) > 7 << 20, "it is still measured");
}

/// The ids of the programs and maps that this process uses, as the file of them says; `None`: it has loaded its own.
fn shared_ids() -> Option<Vec<u32>> {
    let ours = programs(std::process::id());
    let files = std::fs::read_dir("/run/master-process").ok()?.flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let ids = texts.map(|text| text.split_whitespace().filter_map(|word| word.parse().ok()).collect());
    // The boot's id is no number. The program is after the map and the links of the signals.
    ids.into_iter().find(|ids: &Vec<u32>| ids.get(3).is_some_and(|program| ours.contains(program)))
}

/// The map of maps of the controls, and the table of the owners, in their order in the file.
const CONTROL: usize = 7;
const OWNERS: usize = 9;

/// The control of this supervisor.
fn control_of(supervisor: u32, ids: &[u32]) -> Mapping<Control> {
    let of_each = bpf::map_by_id(ids[CONTROL]).expect("we use it");
    for row in 0..of_each.kind().entries {
        let mut inner = [0; 4];
        if !of_each.lookup(&row.to_ne_bytes(), &mut inner).expect("a row") {
            continue;
        }
        let Ok(map) = bpf::map_by_id(u32::from_ne_bytes(inner)) else { continue };
        let Ok(control) = Mapping::<Control>::new(&map) else { continue };
        if control.first().is_some_and(|of| of.supervisor.load(Acquire) == u64::from(supervisor)) {
            return control;
        }
    }
    panic!("{supervisor} has no row");
}

#[test]
fn a_supervisor_that_was_killed_is_measured_no_longer() {
    make_directory();
    let bench = bench!("a_supervisor_that_was_killed_is_measured_no_longer", Scope::Worker);
    let Some(ids) = shared_ids() else {
        master_process_tests::skip!("only the supervisors of root share a directory");
    };
    let other = Other::start(&mut again("supervise"));
    let control = control_of(other.pid(), &ids);
    let samples = || control.first().expect("one").samples.load(Acquire);
    let at_first = samples();
    eventually(TIMEOUT, "it is measuring", || samples() > at_first);
    drop(other);
    // One that has expired already may be taken to its end.
    let wait = || {
        let ours = bench.ebpf.cost().0;
        eventually(TIMEOUT, "three samples of another one", || bench.ebpf.cost().0 >= ours + 3);
    };
    wait();
    let after = samples();
    wait();
    assert_eq!(samples(), after);
}

/// A command in a role, with a directory of its own: it shares its programs with nobody outside.
fn alone(role: &str) -> Command {
    make_directory();
    let text = "mount -t tmpfs -o mode=700 none /run/master-process && exec \"$0\" \"$@\"";
    let role = again(role);
    let mut command = Command::new("unshare");
    let program = std::env::current_exe().expect("our own path");
    command.args(["--mount", "sh", "-c", text]).arg(program).args(role.get_args());
    command.envs(role.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn the_last_supervisor_leaves_nothing_in_the_kernel() {
    drop(bench!("the_last_supervisor_leaves_nothing_in_the_kernel", Scope::Worker));
    if !rustix::process::geteuid().is_root() {
        master_process_tests::skip!("ids can be opened by root only");
    }
    let last = Other::start(&mut alone("supervise"));
    let (program, link, maps) = (programs(last.pid()), links(last.pid()), maps(last.pid()));
    assert_eq!((program.len(), link.len()), (1, 1));
    let is_there = || {
        program.iter().any(|id| bpf::program_by_id(*id).is_ok())
            || link.iter().any(|id| bpf::link_by_id(*id, "signal_generate").is_ok())
            || maps.iter().any(|id| bpf::map_by_id(*id).is_ok())
    };
    assert!(is_there(), "they can be found");
    let kept =
        std::fs::read_dir(format!("/proc/{}/root/run/master-process", last.pid())).expect("its directory");
    let kept = kept.flatten().filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let id = program.first().expect("one").to_string();
    assert!(
        kept.into_iter().any(|text| text.split_whitespace().any(|word| word == id)),
        "others can open them"
    );
    drop(last);
    eventually(TIMEOUT, "the kernel has freed all of it", || !is_there());
}

#[test]
fn a_row_is_free_again_when_its_supervisor_measures_no_longer() {
    make_directory();
    let first = bench!("a_row_is_free_again_when_its_supervisor_measures_no_longer", Scope::Worker);
    let me = std::process::id();
    let Some(ids) = shared_ids() else {
        master_process_tests::skip!("only the supervisors of root share a directory");
    };
    let owners = Mapping::<Owner>::new(&bpf::map_by_id(ids[OWNERS]).expect("it is kept")).expect("a table");
    let owned = || owners.iter().filter(|owner| owner.0.load(Acquire) & 0xffff_ffff == u64::from(me)).count();
    assert_eq!(owned(), 1);
    let second = bench!("a_row_is_free_again_when_its_supervisor_measures_no_longer", Scope::Worker);
    assert_eq!(owned(), 2);
    drop(second);
    assert_eq!(owned(), 1);
    drop(first);
}

#[test]
fn hundreds_of_supervisors_are_measured() {
    drop(bench!("hundreds_of_supervisors_are_measured", Scope::Worker));
    if !rustix::process::geteuid().is_root() {
        master_process_tests::skip!("only the supervisors of root share a directory");
    }
    // The kernel has no memory for as many timers at once.
    drop(Other::start(&mut alone("supervise-many 700")));
}

#[test]
fn a_supervisor_does_not_wait_for_the_sample_of_another_one() {
    drop(bench!("a_supervisor_does_not_wait_for_the_sample_of_another_one", Scope::Worker));
    if !rustix::process::geteuid().is_root() {
        master_process_tests::skip!("only the supervisors of root share a directory");
    }
    drop(Other::start(&mut alone("supervise-rarely-and-often")));
}
