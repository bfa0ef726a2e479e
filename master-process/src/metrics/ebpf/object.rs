//! Loading the object into the kernel.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya_obj::generated::bpf_insn;
use aya_obj::{EbpfSectionKind, Object};
use master_process_common::{KernelOffsets, Params, kfunc};

use super::btf_writer::BtfWriter;
use super::load_error::LoadError;
use crate::sys::bpf::{self, FunctionInfo, Map, MapKind, ProgramKind, Types, bytes_of};

/// The alignment that reading numbers requires.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// The object that `cargo xtask ebpf` builds.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("MASTER_PROCESS_BPF_OBJECT")));

/// The bytes of that object.
pub(super) fn bytes() -> &'static [u8] {
    &OBJECT.0
}

/// The loaded programs and maps, by their names in the object.
#[derive(Debug)]
pub(super) struct Loaded {
    maps: HashMap<String, Map>,
    programs: HashMap<String, OwnedFd>,
}

/// What the object does not contain.
#[derive(Debug)]
pub(super) struct LoadParams<'a> {
    pub(super) kernel_offsets: &'a KernelOffsets,
    pub(super) params: &'a Params,
    /// The numbers of entries of the maps.
    pub(super) entries: &'a HashMap<&'a str, u32>,
    /// The ids of the kernel's functions, in the order of [`kfunc::NAMES`].
    pub(super) functions: &'a [u32; kfunc::NAMES.len()],
    /// For each map of maps, a map like those that will be in it.
    pub(super) inner: &'a [(&'a str, &'a Map)],
    /// The program that the supervisor runs itself.
    pub(super) run_by_hand: &'a str,
    /// The map with the timer.
    pub(super) ticker: &'a str,
}

impl Loaded {
    /// Takes a map out.
    ///
    /// # Errors
    /// The object has none of this name.
    pub(super) fn take_map(&mut self, name: &str) -> Result<Map, LoadError> {
        self.maps.remove(name).ok_or_else(|| LoadError::new("the eBPF object", format_args!("no map {name}")))
    }

    /// Takes a program out.
    ///
    /// # Errors
    /// The object has none of this name.
    pub(super) fn take_program(&mut self, name: &str) -> Result<OwnedFd, LoadError> {
        self.programs
            .remove(name)
            .ok_or_else(|| LoadError::new("the eBPF object", format_args!("no program {name}")))
    }
}

/// Makes the maps and loads the programs.
///
/// # Errors
/// The call that failed, and its error.
pub(super) fn load(load_params: &LoadParams<'_>) -> Result<Loaded, LoadError> {
    let LoadParams { kernel_offsets, params, functions, run_by_hand, .. } = *load_params;
    let mut object = Object::parse(&OBJECT.0).map_err(|error| LoadError::new("the eBPF object", error))?;
    let constants =
        HashMap::from([("OFFSETS", (bytes_of(kernel_offsets), true)), ("PARAMS", (bytes_of(params), true))]);
    object.patch_map_data(constants).map_err(|error| LoadError::new("the eBPF object's constants", error))?;
    let own_types = OwnTypes::load()?;
    let maps = make_maps(&object, load_params, &own_types)?;
    relocate(&mut object, &maps)?;
    let programs = load_programs(&object, functions, run_by_hand, &own_types)?;
    Ok(Loaded { maps, programs })
}

fn make_maps(
    object: &Object,
    load_params: &LoadParams<'_>,
    own_types: &OwnTypes,
) -> Result<HashMap<String, Map>, LoadError> {
    let LoadParams { entries, inner, ticker, .. } = *load_params;
    let mut maps = HashMap::new();
    for (name, definition) in &object.maps {
        let kind = MapKind {
            number: definition.map_type(),
            key_size: definition.key_size(),
            value_size: definition.value_size(),
            entries: entries.get(name.as_str()).copied().unwrap_or(definition.max_entries()),
            flags: definition.map_flags(),
        };
        let refused = |error| LoadError::new(format_args!("bpf(BPF_MAP_CREATE) {name}"), error);
        let like = inner.iter().find(|(of, _)| of == name);
        let map = match like {
            Some((_, like)) => Map::of_maps(name, kind, like.as_fd()),
            None if name == ticker => own_types.timer_map(name, kind),
            None => Map::new(name, kind),
        };
        let map = map.map_err(refused)?;
        if definition.section_kind() == EbpfSectionKind::Rodata {
            let refused = |error| LoadError::new(format_args!("bpf(BPF_MAP_UPDATE_ELEM) {name}"), error);
            map.update(&0u32.to_ne_bytes(), definition.data())
                .and_then(|()| map.freeze())
                .map_err(refused)?;
        }
        maps.insert(name.clone(), map);
    }
    Ok(maps)
}

/// The types that the kernel must know: that of the timer, which it finds in its map by it, and those of the functions of
/// a program that has more than one.
struct OwnTypes {
    btf: OwnedFd,
    key: u32,
    value: u32,
    /// A program, or a callback.
    function: u32,
    /// A function that the verifier checks once, on its own.
    global: u32,
}

/// The size of a value of the map with the timer: the timer and three numbers.
const TICKER_SIZE: u32 = 40;

impl OwnTypes {
    fn load() -> Result<OwnTypes, LoadError> {
        let mut writer = BtfWriter::new();
        let (key, number) = (writer.int("u32", 4), writer.int("u64", 8));
        let timer = writer.structure("bpf_timer", 16, &[("first", number, 0), ("second", number, 8)]);
        let value = writer.structure("value", TICKER_SIZE, &[("timer", timer, 0)]);
        let function = writer.function("function", number, false);
        let global = writer.function("global", number, true);
        let loaded = bpf::load_types(&writer.finish());
        let btf = loaded.map_err(|error| LoadError::new("bpf(BPF_BTF_LOAD)", error))?;
        Ok(OwnTypes { btf, key, value, function, global })
    }

    fn timer_map(&self, name: &str, kind: MapKind) -> io::Result<Map> {
        Map::with_types(name, kind, &Types { btf: self.btf.as_fd(), key: self.key, value: self.value })
    }
}

/// Writes the maps' descriptors into the instructions that refer to them.
fn relocate(object: &mut Object, maps: &HashMap<String, Map>) -> Result<(), LoadError> {
    let refused = |error: &dyn std::error::Error| LoadError::new("the eBPF object's references", error);
    let text: HashSet<usize> = object.functions.keys().map(|(section, _address)| *section).collect();
    let definitions = std::mem::take(&mut object.maps);
    let references = definitions.iter().filter_map(|(name, definition)| {
        Some((name.as_str(), maps.get(name)?.as_fd().as_raw_fd(), definition))
    });
    object.relocate_maps(references, &text).map_err(|error| refused(&error))?;
    object.relocate_calls(&text).map_err(|error| refused(&error))
}

fn load_programs(
    object: &Object,
    functions: &[u32],
    run_by_hand: &str,
    own_types: &OwnTypes,
) -> Result<HashMap<String, OwnedFd>, LoadError> {
    let mut programs = HashMap::new();
    for (name, program) in &object.programs {
        let Some(function) = object.functions.get(&program.function_key()) else {
            return Err(LoadError::new("the eBPF object", format_args!("no function {name}")));
        };
        let mut instructions = function.instructions.clone();
        instructions.iter_mut().for_each(|instruction| call_kernel(instruction, functions));
        let kind = if name == run_by_hand { ProgramKind::Syscall } else { ProgramKind::RawTracepoint };
        let of = functions_of(&instructions, own_types);
        let functions = (of.len() > 1).then(|| FunctionInfo { btf: own_types.btf.as_fd(), of });
        let load = |log: Option<&mut [u8]>| {
            bpf::load(name, kind, &instructions, functions.as_ref(), &program.license, log)
        };
        let fd = load(None).map_err(|error| {
            // Loads it again with a buffer for the verifier's output, which is logged at level debug.
            let mut log = vec![0; LOG];
            let _refused_again = load(Some(log.as_mut_slice()));
            tracing::debug!("the verifier on {name}: {}", last_lines(&log));
            LoadError::new(format_args!("bpf(BPF_PROG_LOAD) {name}"), error)
        })?;
        programs.insert(name.clone(), fd);
    }
    Ok(programs)
}

/// The instructions at which the functions of a program begin, with the types of these functions. Without them, the kernel
/// takes no callback, and verifies each function anew for every call.
fn functions_of(instructions: &[bpf_insn], own_types: &OwnTypes) -> Vec<[u32; 2]> {
    let refers = |(at, instruction): (usize, &bpf_insn)| {
        let target = u32::try_from(i64::try_from(at).ok()? + 1 + i64::from(instruction.imm)).ok()?;
        match (instruction.code, instruction.src_reg()) {
            (CALL, OWN_FUNCTION) => Some([target, own_types.global]),
            (LOAD, REFERENCE) => Some([target, own_types.function]),
            _ => None,
        }
    };
    let all = instructions.iter().enumerate().filter_map(refers);
    let mut functions: Vec<[u32; 2]> = all.chain([[0, own_types.function]]).collect();
    functions.sort_unstable();
    functions.dedup();
    functions
}

/// `BPF_LD | BPF_IMM | BPF_DW`.
const LOAD: u8 = 0x18;
/// `BPF_PSEUDO_CALL`.
const OWN_FUNCTION: u8 = 1;
/// `BPF_PSEUDO_FUNC`.
const REFERENCE: u8 = 4;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`.
const KERNEL_FUNCTION: u8 = 2;

/// Makes the call of a helper with a number of [`kfunc`] one of the kernel's function.
fn call_kernel(instruction: &mut bpf_insn, functions: &[u32]) {
    if instruction.code != CALL || instruction.src_reg() != 0 {
        return;
    }
    let function = instruction.imm.cast_unsigned().checked_sub(kfunc::FIRST);
    if let Some(id) = function.and_then(|function| functions.get(function as usize)) {
        instruction.set_src_reg(KERNEL_FUNCTION);
        instruction.imm = id.cast_signed();
    }
}

/// The size of the buffer for the verifier's output. The largest program needs a tenth of it. If it is too small, the
/// end, which has the reason, is lost.
const LOG: usize = 1 << 20;
/// The number of lines to log: the reason is in the last ones.
const LINES: usize = 8;

fn last_lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}
