//! Where the running kernel keeps what the programs read.

use master_process_common::Layout;

use super::btf::{Btf, Field, Shape, TypeId};

/// The counters of a process's memory whose sum is what is resident, in the order of `Layout::mm_pages`.
const COUNTERS: [&str; 3] = ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES"];

/// The number of the type that a program must name whose arguments are typed, as `bpf::AttachKind` has it.
///
/// # Errors
/// The kernel has no such tracepoint.
pub(super) fn tracepoint(btf: &Btf<'_>, name: &str) -> Result<u32, String> {
    let unknown = || format!("the kernel's types have no tracepoint {name}");
    btf.typedef(&format!("btf_trace_{name}")).map(TypeId::number).ok_or_else(unknown)
}

/// Looks everything up.
///
/// # Errors
/// What this kernel does not have, or has in another form than any that is known.
pub(super) fn layout(btf: &Btf<'_>) -> Result<Layout, String> {
    let structure = |name| Structure::find(btf, name);
    let (task, signal, mm) =
        (structure("task_struct")?, structure("signal_struct")?, structure("mm_struct")?);
    let (mm_pages, typed) = pages(btf, &mm)?;
    Ok(Layout {
        task_tgid: task.field("tgid")?.offset,
        task_mm: task.field("mm")?.offset,
        task_signal: task.field("signal")?.offset,
        task_runtime: entity(btf, &task, "sum_exec_runtime")
            .ok_or("the kernel's types have no sched_entity.sum_exec_runtime")?,
        task_runtime_before: entity(btf, &task, "prev_sum_exec_runtime").unwrap_or(0),
        signal_live: signal.field("live")?.offset,
        signal_nr_threads: signal.field("nr_threads")?.offset,
        mm_pages,
        mm_pages_typed: u32::from(typed),
        // Where there is no such tracepoint, nothing of it will be attached either.
        victim_is_task: u32::from(victim_is_task(btf).unwrap_or(true)),
    })
}

/// A structure of the kernel's. Finding one takes a walk over all its types, so that is done once.
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

/// A field of what the scheduler keeps of a thread.
fn entity(btf: &Btf<'_>, task: &Structure<'_>, field: &str) -> Option<u32> {
    let entity = task.field("se").ok()?;
    counter(btf, entity.of, field)?.checked_add(entity.offset)
}

/// Up to Linux 6.1, `rss_stat` is a structure with an array of `atomic_long_t`; since then it is an array of
/// `percpu_counter`, whose `count` is right up to what the CPUs have not added to it yet. Whether the verifier can follow.
fn pages(btf: &Btf<'_>, mm: &Structure<'_>) -> Result<([u32; 3], bool), String> {
    let unknown = || "mm_struct.rss_stat is of a type that is not known".to_owned();
    let stat = mm.field("rss_stat")?;
    let (first, element, typed) = match btf.shape(stat.of) {
        Shape::Array { of, len: _ } => {
            (stat.offset + counter(btf, of, "count").ok_or_else(unknown)?, of, true)
        }
        Shape::Structure { .. } => {
            let count = btf.field(stat.of, "count").ok_or_else(unknown)?;
            let Shape::Array { of, len: _ } = btf.shape(count.of) else { return Err(unknown()) };
            (stat.offset + count.offset + counter(btf, of, "counter").ok_or_else(unknown)?, of, false)
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
    Ok((pages, typed))
}

/// Where the number lies in a counter: it must be one of 64 bits.
fn counter(btf: &Btf<'_>, structure: TypeId, field: &str) -> Option<u32> {
    let field = btf.field(structure, field)?;
    (btf.shape(field.of) == Shape::Number { size: 8 }).then_some(field.offset)
}

/// The first argument of the tracepoint `oom:mark_victim`: a task since Linux 6.8, and in what was backported from it.
fn victim_is_task(btf: &Btf<'_>) -> Option<bool> {
    let Shape::Pointer(prototype) = btf.shape(btf.typedef("btf_trace_mark_victim")?) else { return None };
    // Before its own arguments, a tracepoint has one that is the program's.
    let argument = btf.parameter(prototype, 1)?;
    Some(matches!(btf.shape(argument), Shape::Pointer(_)))
}

#[cfg(test)]
mod tests {
    use master_process_common::Layout;

    use super::super::btf::Btf;
    use super::super::btf_maker::Maker;
    use super::{layout, tracepoint};

    /// How `rss_stat` is kept.
    #[derive(Clone, Copy, PartialEq)]
    enum Counters {
        Atomic,
        PerCpu,
        Unknown,
    }

    /// A kernel of a few types. Like the real one, `mm_struct` has its fields in an anonymous structure.
    fn kernel(counters: Counters, victim_is_task: bool) -> Vec<u8> {
        let mut maker = Maker::new();
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
        let fields = maker.structure("", 512, &[("pgd", pointer, 16), ("rss_stat", rss_stat, 256)]);
        let mm = maker.structure("mm_struct", 512, &[("", fields, 8)]);
        let mm = maker.pointer(mm);
        maker.values(&[("RED", 7)]);
        maker.values(&[("MM_FILEPAGES", 0), ("MM_ANONPAGES", 1), ("MM_SWAPENTS", 2), ("MM_SHMEMPAGES", 3)]);
        let signal = maker.structure("signal_struct", 64, &[("live", int, 4), ("nr_threads", int, 8)]);
        let signal = maker.pointer(signal);
        let members = [("sum_exec_runtime", s64, 24), ("prev_sum_exec_runtime", s64, 40)];
        let entity = maker.structure("sched_entity", 64, &members);
        let members = [("se", entity, 64), ("mm", mm, 160), ("tgid", int, 200), ("signal", signal, 208)];
        let task = maker.structure("task_struct", 256, &members);
        let task = maker.pointer(task);
        let prototype = maker.prototype(&[pointer, if victim_is_task { task } else { int }]);
        let function = maker.pointer(prototype);
        maker.typedef("btf_trace_mark_victim", function);
        maker.finish()
    }

    fn read(file: &[u8]) -> Result<Layout, String> {
        layout(&Btf::parse(file).ok_or("not parsed")?)
    }

    #[test]
    fn atomic_counters_lie_side_by_side() {
        let expected = Layout {
            task_tgid: 200,
            task_mm: 160,
            task_signal: 208,
            task_runtime: 88,
            task_runtime_before: 104,
            signal_live: 4,
            signal_nr_threads: 8,
            mm_pages: [264, 272, 288],
            mm_pages_typed: 0,
            victim_is_task: 0,
        };
        assert_eq!(read(&kernel(Counters::Atomic, false)), Ok(expected));
    }

    #[test]
    fn counters_for_each_cpu_have_a_count_in_them() {
        let layout = read(&kernel(Counters::PerCpu, true)).expect("a layout");
        assert_eq!((layout.mm_pages, layout.mm_pages_typed), ([272, 312, 392], 1));
        assert_eq!(layout.victim_is_task, 1);
    }

    #[test]
    fn counters_of_another_kind_are_refused() {
        let refusal = read(&kernel(Counters::Unknown, true));
        assert_eq!(refusal, Err("mm_struct.rss_stat is of a type that is not known".to_owned()));
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
        let layout = layout(&btf).expect("a layout");
        // What it is right for is tested where it is used; here, that it was found and is not the first best thing.
        assert!(layout.task_tgid > 0 && layout.task_mm > 0 && layout.task_signal > 0, "{layout:?}");
        assert!(layout.task_runtime > 0 && layout.task_runtime_before > layout.task_runtime, "{layout:?}");
        assert!(layout.mm_pages.is_sorted() && layout.mm_pages[0] > 0, "{layout:?}");
        assert!(tracepoint(&btf, "sched_switch").is_ok());
        assert!(tracepoint(&btf, "no_such_thing").is_err());
    }
}
