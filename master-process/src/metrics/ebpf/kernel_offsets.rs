//! The offsets of the kernel's fields that the programs read.

use master_process_common::{KernelOffsets, kfunc};

use super::btf::{Btf, Field, Shape, TypeId};

/// The counters whose sum is a process's resident memory, in the order of `KernelOffsets::mm_pages`.
const COUNTERS: [&str; 3] = ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES"];

/// The ids of the kernel's functions that the programs call, in the order of [`kfunc::NAMES`].
///
/// # Errors
/// The kernel lacks one.
pub(super) fn kernel_functions(
    btf: &Btf<'_>,
    in_first_namespace: bool,
) -> Result<[u32; kfunc::NAMES.len()], String> {
    let mut ids = [0; kfunc::NAMES.len()];
    for (id, name) in ids.iter_mut().zip(kfunc::NAMES) {
        let is_needed = name != NEEDED_IN_NAMESPACE || !in_first_namespace;
        *id = match btf.function(name) {
            Some(found) => found.number(),
            None if is_needed => return Err(format!("the kernel has no function {name}")),
            // In the initial namespace, the other function does the same.
            None => btf.function("bpf_task_from_pid").map_or(0, TypeId::number),
        };
    }
    Ok(ids)
}

/// The function without which the pids of a namespace cannot be translated.
const NEEDED_IN_NAMESPACE: &str = "bpf_task_from_vpid";

/// Looks up all offsets.
///
/// # Errors
/// A field that this kernel lacks, or has in an unknown form.
pub(super) fn kernel_offsets(btf: &Btf<'_>) -> Result<KernelOffsets, String> {
    let structure = |name| Structure::find(btf, name);
    let (task, signal, mm) =
        (structure("task_struct")?, structure("signal_struct")?, structure("mm_struct")?);
    let (files, table) = (structure("files_struct")?, structure("fdtable")?);
    let seccomp = task.field("seccomp")?;
    let filter = btf.field(seccomp.of, "filter").ok_or("the kernel's types have no seccomp.filter")?;
    Ok(KernelOffsets {
        task_tgid: task.field("tgid")?.offset,
        task_mm: task.field("mm")?.offset,
        task_signal: task.field("signal")?.offset,
        task_runtime: entity(btf, &task, "sum_exec_runtime")
            .ok_or("the kernel's types have no sched_entity.sum_exec_runtime")?,
        task_leader: task.field("group_leader")?.offset,
        task_parent: task.field("real_parent")?.offset,
        task_children: task.field("children")?.offset,
        task_sibling: task.field("sibling")?.offset,
        task_thread: task.field("thread_node")?.offset,
        signal_threads: signal.field("thread_head")?.offset,
        signal_runtime: signal.field("sum_sched_runtime")?.offset,
        signal_children: [signal.field("cutime")?.offset, signal.field("cstime")?.offset],
        mm_pages: pages(btf, &mm)?,
        mm_peak: mm.field("hiwater_rss")?.offset,
        task_files: task.field("files")?.offset,
        files_table: files.field("fdt")?.offset,
        table_files: table.field("fd")?.offset,
        table_len: table.field("max_fds")?.offset,
        task_filter: seccomp.offset + filter.offset,
        filter_before: structure("seccomp_filter")?.field("prev")?.offset,
        word: word(btf)?,
        // Without that tracepoint, no program is attached to it.
        victim_is_task: u32::from(victim_is_task(btf).unwrap_or(true)),
    })
}

/// A structure that begins with a 64-bit number.
fn word(btf: &Btf<'_>) -> Result<u32, String> {
    let found = btf.structure("timespec64").filter(|id| counter(btf, *id, "tv_sec") == Some(0));
    found.map(TypeId::number).ok_or_else(|| "the kernel's types have no timespec64".to_owned())
}

/// A kernel structure. Finding one walks all types, so it is found once.
struct Structure<'a> {
    btf: &'a Btf<'a>,
    name: &'a str,
    id: TypeId,
}

impl<'a> Structure<'a> {
    fn find(btf: &'a Btf<'a>, name: &'a str) -> Result<Structure<'a>, String> {
        let id = btf.structure(name).ok_or_else(|| format!("the kernel's types have no {name}"))?;
        Ok(Structure { btf, name, id })
    }

    fn field(&self, name: &str) -> Result<Field, String> {
        let unknown = || format!("the kernel's types have no {}.{name}", self.name);
        self.btf.field(self.id, name).ok_or_else(unknown)
    }
}

/// A field of a thread's `sched_entity`.
fn entity(btf: &Btf<'_>, task: &Structure<'_>, field: &str) -> Option<u32> {
    let entity = task.field("se").ok()?;
    counter(btf, entity.of, field)?.checked_add(entity.offset)
}

/// The counters of resident memory. Up to Linux 6.1, `rss_stat` is a structure with an array of `atomic_long_t`; since
/// then it is an array of `percpu_counter`, whose `count` lacks what the CPUs have not added to it yet.
fn pages(btf: &Btf<'_>, mm: &Structure<'_>) -> Result<[u32; 3], String> {
    let unknown = || "mm_struct.rss_stat is of a type that is not known".to_owned();
    let stat = mm.field("rss_stat")?;
    let (first, element) = match btf.shape(stat.of) {
        Shape::Array { of, len: _ } => (stat.offset + counter(btf, of, "count").ok_or_else(unknown)?, of),
        Shape::Structure { .. } => {
            let count = btf.field(stat.of, "count").ok_or_else(unknown)?;
            let Shape::Array { of, len: _ } = btf.shape(count.of) else { return Err(unknown()) };
            (stat.offset + count.offset + counter(btf, of, "counter").ok_or_else(unknown)?, of)
        }
        Shape::Number { .. } | Shape::Pointer(_) | Shape::Prototype | Shape::Other => return Err(unknown()),
    };
    let stride = btf.size(element).ok_or_else(unknown)?;
    let values = btf.enumeration_with(COUNTERS[0]).ok_or_else(unknown)?;
    let mut pages = [0; 3];
    for (page, name) in pages.iter_mut().zip(COUNTERS) {
        let at = btf.value(values, name).and_then(|index| index.checked_mul(stride));
        *page = at.and_then(|at| at.checked_add(first)).ok_or_else(unknown)?;
    }
    Ok(pages)
}

/// The offset of a counter, which must have 64 bits.
fn counter(btf: &Btf<'_>, structure: TypeId, field: &str) -> Option<u32> {
    let field = btf.field(structure, field)?;
    (btf.shape(field.of) == Shape::Number { size: 8 }).then_some(field.offset)
}

/// Whether the first argument of the tracepoint `oom:mark_victim` is a task: since Linux 6.8, and in kernels with the
/// backport.
fn victim_is_task(btf: &Btf<'_>) -> Option<bool> {
    let Shape::Pointer(prototype) = btf.shape(btf.typedef("btf_trace_mark_victim")?) else { return None };
    // The first parameter of the typedef is the program's context.
    let argument = btf.parameter(prototype, 1)?;
    Some(matches!(btf.shape(argument), Shape::Pointer(_)))
}

#[cfg(test)]
mod tests {
    use master_process_common::KernelOffsets;

    use super::super::btf::Btf;
    use super::super::btf_writer::BtfWriter;
    use super::{kernel_functions, kernel_offsets};

    /// The form of `rss_stat`.
    #[derive(Clone, Copy, PartialEq)]
    enum Counters {
        Atomic,
        PerCpu,
        Unknown,
    }

    /// The types of a small kernel. As in the real one, the fields of `mm_struct` are in an anonymous structure.
    fn kernel(counters: Counters, victim_is_task: bool) -> Vec<u8> {
        let mut maker = BtfWriter::new();
        let (int, long) = (maker.int("int", 4), maker.int("long long", 8));
        let s64 = maker.typedef("s64", long);
        let (lock, pointer) = (maker.int("spinlock", 4), maker.pointer(0));
        let rss_stat = match counters {
            Counters::Atomic => {
                let atomic = maker.structure("", 8, &[("counter", s64, 0)]);
                let atomic = maker.typedef("atomic64_t", atomic);
                let atomic = maker.typedef("atomic_long_t", atomic);
                let count = maker.array(atomic, 4);
                maker.structure("mm_rss_stat", 32, &[("count", count, 0)])
            }
            Counters::PerCpu => {
                let members = [("lock", lock, 0), ("count", s64, 8), ("counters", pointer, 32)];
                let counter = maker.structure("percpu_counter", 40, &members);
                maker.array(counter, 4)
            }
            Counters::Unknown => pointer,
        };
        let fields = maker.structure(
            "",
            512,
            &[("pgd", pointer, 16), ("hiwater_rss", long, 24), ("rss_stat", rss_stat, 256)],
        );
        let mm = maker.structure("mm_struct", 512, &[("", fields, 8)]);
        let mm = maker.pointer(mm);
        maker.values(&[("RED", 7)]);
        maker.values(&[("MM_FILEPAGES", 0), ("MM_ANONPAGES", 1), ("MM_SWAPENTS", 2), ("MM_SHMEMPAGES", 3)]);
        let list = maker.structure("list_head", 16, &[("next", pointer, 0), ("prev", pointer, 8)]);
        let members = [
            ("thread_head", list, 16),
            ("cutime", long, 32),
            ("cstime", long, 40),
            ("sum_sched_runtime", long, 48),
        ];
        let signal = maker.structure("signal_struct", 64, &members);
        maker.structure("timespec64", 16, &[("tv_sec", s64, 0), ("tv_nsec", long, 8)]);
        let signal = maker.pointer(signal);
        let members = [("sum_exec_runtime", s64, 24)];
        let entity = maker.structure("sched_entity", 64, &members);
        let seccomp = maker.structure("seccomp", 16, &[("mode", int, 0), ("filter", pointer, 8)]);
        let members = [
            ("se", entity, 64),
            ("mm", mm, 160),
            ("tgid", int, 200),
            ("signal", signal, 208),
            ("real_parent", pointer, 216),
            ("group_leader", pointer, 224),
            ("children", list, 232),
            ("sibling", list, 248),
            ("thread_node", list, 264),
            ("files", pointer, 280),
            ("seccomp", seccomp, 288),
        ];
        let task = maker.structure("task_struct", 304, &members);
        maker.structure("files_struct", 16, &[("fdt", pointer, 8)]);
        maker.structure("fdtable", 16, &[("max_fds", int, 0), ("fd", pointer, 8)]);
        maker.structure("seccomp_filter", 16, &[("prev", pointer, 8)]);
        let task = maker.pointer(task);
        let prototype = maker.prototype(&[pointer, if victim_is_task { task } else { int }]);
        let function = maker.pointer(prototype);
        maker.typedef("btf_trace_mark_victim", function);
        maker.finish()
    }

    fn read(file: &[u8]) -> Result<KernelOffsets, String> {
        kernel_offsets(&Btf::parse(file).ok_or("not parsed")?)
    }

    #[test]
    fn atomic_counters_lie_side_by_side() {
        let found = read(&kernel(Counters::Atomic, false)).expect("all fields");
        let word = found.word;
        assert!(word > 0);
        let expected = KernelOffsets {
            task_tgid: 200,
            task_mm: 160,
            task_signal: 208,
            task_runtime: 88,
            task_leader: 224,
            task_parent: 216,
            task_children: 232,
            task_sibling: 248,
            task_thread: 264,
            signal_threads: 16,
            signal_runtime: 48,
            signal_children: [32, 40],
            mm_pages: [264, 272, 288],
            mm_peak: 32,
            task_files: 280,
            files_table: 8,
            table_files: 8,
            table_len: 0,
            task_filter: 296,
            filter_before: 8,
            word,
            victim_is_task: 0,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn counters_for_each_cpu_have_a_count_in_them() {
        let kernel_offsets = read(&kernel(Counters::PerCpu, true)).expect("a kernel_offsets");
        assert_eq!(kernel_offsets.mm_pages, [272, 312, 392]);
        assert_eq!(kernel_offsets.victim_is_task, 1);
    }

    #[test]
    fn counters_of_another_kind_are_refused() {
        let error = read(&kernel(Counters::Unknown, true));
        assert_eq!(error, Err("mm_struct.rss_stat is of a type that is not known".to_owned()));
    }

    #[test]
    fn a_broken_file_is_refused_or_read_wrong_but_ends() {
        let whole = kernel(Counters::PerCpu, true);
        for len in 0..whole.len() {
            let _any = read(&whole[..len]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                let _any = read(&broken);
            }
        }
    }

    #[test]
    fn the_running_kernel_has_a_layout() {
        let file = match std::fs::read("/sys/kernel/btf/vmlinux") {
            Ok(file) => file,
            Err(error) => master_process_tests::skip!("the_running_kernel_has_a_layout", error),
        };
        let btf = Btf::parse(&file).expect("type information");
        let kernel_offsets = kernel_offsets(&btf).expect("a kernel_offsets");
        // What it is right for is tested where it is used; here, that it was found and is not the first best thing.
        assert!(
            kernel_offsets.task_tgid > 0 && kernel_offsets.task_mm > 0 && kernel_offsets.task_signal > 0,
            "{kernel_offsets:?}"
        );
        assert!(kernel_offsets.task_runtime > 0, "{kernel_offsets:?}");
        assert!(kernel_offsets.mm_pages.is_sorted() && kernel_offsets.mm_pages[0] > 0, "{kernel_offsets:?}");
        let task = btf.structure("task_struct").expect("a task");
        assert!(btf.function("bpf_task_from_pid").is_some_and(|id| id != task));
        let functions = kernel_functions(&btf, true);
        assert!(functions.as_ref().is_ok_and(|ids| ids.iter().all(|id| *id > 0)), "{functions:?}");
    }
}
