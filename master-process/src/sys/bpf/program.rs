//! eBPF programs, for tracepoints and for `SO_REUSEPORT` groups.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_attr__bindgen_ty_4 as LoadAttr;
use aya_obj::generated::{BPF_F_SLEEPABLE, bpf_attach_type, bpf_cmd, bpf_insn, bpf_prog_type};

use super::{blank, bpf, number, owned, short_name};

/// What runs a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// A tracepoint. The arguments are numbers.
    RawTracepoint,
    /// [`run`].
    Syscall,
}

/// The type of each function of a program.
#[derive(Debug)]
pub struct FunctionInfo<'a> {
    /// The types, loaded by [`load_types`](super::load_types).
    pub btf: BorrowedFd<'a>,
    /// For each function, in order, the instruction at which it begins and the id of its type: `struct bpf_func_info`.
    pub of: Vec<[u32; 2]>,
}

/// Loads a program. If a log is passed, the verifier writes its messages into it.
///
/// # Errors
/// EPERM without the privilege; EACCES or EINVAL if the verifier rejects the program; ENOSPC if the log is too short.
pub fn load(
    name: &str,
    kind: ProgramKind,
    instructions: &[bpf_insn],
    functions: Option<&FunctionInfo<'_>>,
    license: &CStr,
    log: Option<&mut [u8]>,
) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    match kind {
        ProgramKind::RawTracepoint => load.prog_type = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT as u32,
        ProgramKind::Syscall => {
            load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SYSCALL as u32;
            load.prog_flags = BPF_F_SLEEPABLE;
        }
    }
    set_code(load, name, instructions, license)?;
    if let Some(FunctionInfo { btf, of }) = functions {
        load.prog_btf_fd = number(*btf);
        load.func_info = of.as_ptr().expose_provenance() as u64;
        load.func_info_rec_size = 8;
        load.func_info_cnt = u32::try_from(of.len()).map_err(io::Error::other)?;
    }
    if let Some(log) = log {
        load.log_level = 1;
        load.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
        load.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    }
    // SAFETY: instructions, types, license and log are borrowed for the call, with their lengths or a NUL at the end.
    // The kernel writes only to the log.
    owned(unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) })
}

/// Loads a program that selects a socket of a `SO_REUSEPORT` group, for new connections and for those of a listener
/// that closes.
///
/// # Errors
/// EPERM without `CAP_BPF`; EACCES or EINVAL if the verifier rejects the program. Before Linux 5.14 the program loads,
/// and the kernel does not run it when a listener closes.
pub fn load_reuseport(name: &str, instructions: &[bpf_insn], license: &CStr) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SK_REUSEPORT as u32;
    load.expected_attach_type = bpf_attach_type::BPF_SK_REUSEPORT_SELECT_OR_MIGRATE as u32;
    set_code(load, name, instructions, license)?;
    // SAFETY: instructions and license are borrowed for the call, with their length or a NUL at the end. The kernel
    // only reads them.
    owned(unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) })
}

/// Sets the attributes that all types of programs have.
fn set_code(load: &mut LoadAttr, name: &str, instructions: &[bpf_insn], license: &CStr) -> io::Result<()> {
    load.prog_name = short_name(name);
    load.insns = instructions.as_ptr().expose_provenance() as u64;
    load.insn_cnt = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    load.license = license.as_ptr().expose_provenance() as u64;
    Ok(())
}

/// Attaches a program to a tracepoint until the returned descriptor is closed.
///
/// # Errors
/// ENOENT if there is no such tracepoint; EINVAL if the program reads more arguments than it has.
pub fn attach(program: BorrowedFd<'_>, tracepoint: &CStr) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let open = unsafe { &mut attr.raw_tracepoint };
    open.name = tracepoint.as_ptr().expose_provenance() as u64;
    open.prog_fd = number(program);
    // SAFETY: the name is borrowed for the call and ends with a NUL.
    owned(unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) })
}

/// Runs a program of the kind [`ProgramKind::Syscall`] once, with a number as its argument.
///
/// # Errors
/// Those of bpf(2).
pub fn run(program: BorrowedFd<'_>, argument: u64) -> io::Result<()> {
    let mut context = argument.to_ne_bytes();
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let test = unsafe { &mut attr.test };
    test.prog_fd = number(program);
    test.ctx_in = context.as_mut_ptr().expose_provenance() as u64;
    test.ctx_size_in = u32::try_from(context.len()).map_err(io::Error::other)?;
    // SAFETY: the argument is borrowed for the call, which may write its eight bytes. The kernel writes its result into the
    // attributes.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
}
