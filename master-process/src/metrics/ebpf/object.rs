//! The object: reading it, and bringing what is in it into the kernel.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya_obj::{EbpfSectionKind, Object, ProgramSection};
use master_process_common::{Layout, Setup};

use super::refusal::Refusal;
use crate::sys::bpf::{self, AttachKind, Map, MapKind, bytes_of};

/// Reading it as numbers wants it aligned as such.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// What `cargo xtask ebpf` has built.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("MASTER_PROCESS_BPF_OBJECT")));

/// Programs and maps that are in the kernel, by their names in the object.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) maps: HashMap<String, Map>,
    pub(super) programs: HashMap<String, Program>,
}

/// A program that is in the kernel.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) fd: OwnedFd,
    pub(super) attach_kind: AttachKind,
}

/// What the object does not say.
#[derive(Debug)]
pub(super) struct Terms<'a> {
    pub(super) layout: &'a Layout,
    pub(super) setup: &'a Setup,
    /// Entries of maps.
    pub(super) entries: &'a HashMap<&'a str, u32>,
    /// The numbers of the tracepoints whose arguments are typed.
    pub(super) typed: &'a HashMap<&'a str, u32>,
}

/// Makes the maps and loads the programs.
///
/// # Errors
/// What was refused, and how.
pub(super) fn load(terms: &Terms<'_>) -> Result<Loaded, Refusal> {
    let Terms { layout, setup, entries, typed } = *terms;
    let mut object = Object::parse(&OBJECT.0).map_err(|error| Refusal::new("the eBPF object", error))?;
    let constants = HashMap::from([("LAYOUT", (bytes_of(layout), true)), ("SETUP", (bytes_of(setup), true))]);
    object.patch_map_data(constants).map_err(|error| Refusal::new("the eBPF object's constants", error))?;
    let maps = make_maps(&object, entries)?;
    relocate(&mut object, &maps)?;
    let programs = load_programs(&object, typed)?;
    Ok(Loaded { maps, programs })
}

fn make_maps(object: &Object, entries: &HashMap<&str, u32>) -> Result<HashMap<String, Map>, Refusal> {
    let mut maps = HashMap::new();
    for (name, definition) in &object.maps {
        let kind = MapKind {
            number: definition.map_type(),
            key_size: definition.key_size(),
            value_size: definition.value_size(),
            entries: entries.get(name.as_str()).copied().unwrap_or(definition.max_entries()),
            flags: definition.map_flags(),
        };
        let refused = |error| Refusal::new(format_args!("bpf(BPF_MAP_CREATE) {name}"), error);
        let map = Map::new(name, kind).map_err(refused)?;
        if definition.section_kind() == EbpfSectionKind::Rodata {
            let refused = |error| Refusal::new(format_args!("bpf(BPF_MAP_UPDATE_ELEM) {name}"), error);
            map.update(&0u32.to_ne_bytes(), definition.data())
                .and_then(|()| map.freeze())
                .map_err(refused)?;
        }
        maps.insert(name.clone(), map);
    }
    Ok(maps)
}

/// Writes the maps' descriptors into the instructions that refer to them.
fn relocate(object: &mut Object, maps: &HashMap<String, Map>) -> Result<(), Refusal> {
    let refused = |error: &dyn std::error::Error| Refusal::new("the eBPF object's references", error);
    let text: HashSet<usize> = object.functions.keys().map(|(section, _address)| *section).collect();
    let definitions = std::mem::take(&mut object.maps);
    let references = definitions.iter().filter_map(|(name, definition)| {
        Some((name.as_str(), maps.get(name)?.as_fd().as_raw_fd(), definition))
    });
    object.relocate_maps(references, &text).map_err(|error| refused(&error))?;
    object.relocate_calls(&text).map_err(|error| refused(&error))
}

fn load_programs(object: &Object, typed: &HashMap<&str, u32>) -> Result<HashMap<String, Program>, Refusal> {
    let mut programs = HashMap::new();
    for (name, program) in &object.programs {
        let Some(function) = object.functions.get(&program.function_key()) else {
            return Err(Refusal::new("the eBPF object", format_args!("no function {name}")));
        };
        let attach_kind =
            match (matches!(program.section, ProgramSection::BtfTracePoint), typed.get(name.as_str())) {
                (true, Some(number)) => AttachKind::BtfTracepoint(*number),
                (true, None) => return Err(Refusal::new(name, "of an unknown type")),
                (false, _) => AttachKind::RawTracepoint,
            };
        let load = |log: Option<&mut [u8]>| {
            bpf::load(name, attach_kind, &function.instructions, &program.license, log)
        };
        let fd = load(None).map_err(|error| {
            // Asked again, with room for an answer: why is for those who look for it.
            let mut log = vec![0; LOG];
            let _refused_again = load(Some(log.as_mut_slice()));
            tracing::debug!("the verifier on {name}: {}", last_lines(&log));
            Refusal::new(format_args!("bpf(BPF_PROG_LOAD) {name}"), error)
        })?;
        programs.insert(name.clone(), Program { fd, attach_kind });
    }
    Ok(programs)
}

/// Bytes for what the verifier has to say. The largest program takes a tenth of it; where it does not do, the end,
/// which tells why, is lost.
const LOG: usize = 1 << 20;
/// How many lines of that are shown: the reason is in the last ones.
const LINES: usize = 8;

fn last_lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}
