//! Where the running kernel keeps what the programs read.

use master_process_common::Layout;

use super::btf::{Btf, Field, Shape, TypeId};

/// The counters of a process's memory whose sum is what is resident, in the order of `Layout::mm_pages`.
const COUNTERS: [&str; 3] = ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES"];

/// The number of the type that a program must name whose arguments are typed, as `bpf::Sight` has it.
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
    let offset = |structure, field| find(btf, structure, field).map(|field| field.offset);
    let (mm_pages, typed) = pages(btf)?;
    Ok(Layout {
        task_tgid: offset("task_struct", "tgid")?,
        task_mm: offset("task_struct", "mm")?,
        task_signal: offset("task_struct", "signal")?,
        task_runtime: entity(btf, "sum_exec_runtime").unwrap_or(0),
        task_runtime_before: entity(btf, "prev_sum_exec_runtime").unwrap_or(0),
        signal_live: offset("signal_struct", "live")?,
        signal_nr_threads: offset("signal_struct", "nr_threads")?,
        mm_pages,
        mm_pages_typed: u32::from(typed),
        // Where there is no such tracepoint, nothing of it will be attached either.
        victim_is_task: u32::from(victim_is_task(btf).unwrap_or(true)),
    })
}

fn find(btf: &Btf<'_>, structure: &str, field: &str) -> Result<Field, String> {
    let unknown = || format!("the kernel's types have no {structure}.{field}");
    btf.structure(structure).and_then(|structure| btf.field(structure, field)).ok_or_else(unknown)
}

/// A field of what the fair scheduler keeps of a thread. Only wanted to make good for switches that were not seen.
fn entity(btf: &Btf<'_>, field: &str) -> Option<u32> {
    let entity = btf.field(btf.structure("task_struct")?, "se")?;
    counter(btf, entity.of, field).map(|offset| entity.offset + offset)
}

/// Up to Linux 6.1, `rss_stat` is a structure with an array of `atomic_long_t`; since then it is an array of
/// `percpu_counter`, whose `count` is right up to what the CPUs have not added to it yet. Whether the verifier can follow.
fn pages(btf: &Btf<'_>) -> Result<([u32; 3], bool), String> {
    let unknown = || "mm_struct.rss_stat is of a type that is not known".to_owned();
    let stat = find(btf, "mm_struct", "rss_stat")?;
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
    let mut pages = [0; 3];
    for (page, name) in pages.iter_mut().zip(COUNTERS) {
        let index = btf.enumerator(name).ok_or_else(|| format!("the kernel's types have no {name}"))?;
        *page = first + index * stride;
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
