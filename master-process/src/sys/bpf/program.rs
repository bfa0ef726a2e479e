//! eBPF programs, for tracepoints and for `SO_REUSEPORT` groups.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_attr__bindgen_ty_4 as LoadAttr;
use aya_obj::generated::{BPF_F_TEST_RUN_ON_CPU, bpf_attach_type, bpf_cmd, bpf_insn, bpf_prog_type};

use super::{blank, bpf, number, owned, short_name};

/// How a program is attached to a tracepoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachKind {
    /// As a raw tracepoint: the arguments are numbers.
    RawTracepoint,
    /// With BTF: the arguments have the types of the `typedef` with this number in the kernel's type information.
    BtfTracepoint(u32),
}

/// Loads a program for a tracepoint. If a log is passed, the verifier writes its messages into it.
///
/// # Errors
/// EPERM without the privilege; EACCES or EINVAL if the verifier rejects the program; ENOSPC if the log is too short.
pub fn load(
    name: &str,
    attach_kind: AttachKind,
    instructions: &[bpf_insn],
    license: &CStr,
    log: Option<&mut [u8]>,
) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    match attach_kind {
        AttachKind::RawTracepoint => load.prog_type = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT as u32,
        AttachKind::BtfTracepoint(number) => {
            load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
            load.expected_attach_type = bpf_attach_type::BPF_TRACE_RAW_TP as u32;
            load.attach_btf_id = number;
        }
    }
    set_code(load, name, instructions, license)?;
    if let Some(log) = log {
        load.log_level = 1;
        load.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
        load.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    }
    // SAFETY: instructions, license and log are borrowed for the call, with their lengths or a NUL at the end. The
    // kernel writes only to the log.
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

/// Attaches a program to a tracepoint until the returned descriptor is closed. A program with BTF was loaded for its
/// tracepoint and needs no name.
///
/// # Errors
/// ENOENT if there is no such tracepoint; EINVAL if the program reads more arguments than it has.
pub fn attach(program: BorrowedFd<'_>, tracepoint: Option<&CStr>) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let open = unsafe { &mut attr.raw_tracepoint };
    open.name = tracepoint.map_or(0, |name| name.as_ptr().expose_provenance() as u64);
    open.prog_fd = number(program);
    // SAFETY: if there is a name, it is borrowed for the call and ends with a NUL.
    owned(unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) })
}

/// Runs a program once on a CPU, in the context of the task that runs there.
///
/// # Errors
/// ENXIO if the CPU is not online.
pub fn run_on(cpu: usize, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let test = unsafe { &mut attr.test };
    test.prog_fd = number(program);
    test.flags = BPF_F_TEST_RUN_ON_CPU;
    test.cpu = u32::try_from(cpu).map_err(io::Error::other)?;
    // SAFETY: the attributes hold no address. The kernel writes its result into them.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
}
