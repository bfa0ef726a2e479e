//! Programs for raw tracepoints.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use aya_obj::generated::{BPF_F_TEST_RUN_ON_CPU, bpf_cmd, bpf_insn, bpf_prog_type};

use super::{blank, bpf, number, owned, short_name};

/// Loads a program for a raw tracepoint. With a log, the verifier says in it what it thinks.
///
/// # Errors
/// EPERM where we may not, EACCES or EINVAL where the verifier refuses, ENOSPC where the log is too short.
pub fn load(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    log: Option<&mut [u8]>,
) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT as u32;
    load.prog_name = short_name(name);
    load.insns = instructions.as_ptr().expose_provenance() as u64;
    load.insn_cnt = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    load.license = license.as_ptr().expose_provenance() as u64;
    if let Some(log) = log {
        load.log_level = 1;
        load.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
        load.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    }
    // SAFETY: instructions, license and log are borrowed for the call, with their lengths or a NUL at the end; the
    // kernel writes to the log alone.
    owned(unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) })
}

/// Has a program run at a tracepoint, for as long as the descriptor that is returned is open.
///
/// # Errors
/// ENOENT where there is no such tracepoint; EINVAL where the program wants more arguments than it has.
pub fn attach(program: BorrowedFd<'_>, tracepoint: &CStr) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let open = unsafe { &mut attr.raw_tracepoint };
    open.name = tracepoint.as_ptr().expose_provenance() as u64;
    open.prog_fd = number(program);
    // SAFETY: the name is borrowed for the call and ends with a NUL.
    owned(unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) })
}

/// Runs a program once, there and now, on a CPU, in the name of whoever runs there.
///
/// # Errors
/// ENXIO where that CPU is not online.
pub fn run_on(cpu: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let test = unsafe { &mut attr.test };
    test.prog_fd = number(program);
    test.flags = BPF_F_TEST_RUN_ON_CPU;
    test.cpu = cpu;
    // SAFETY: the attributes hold no address; the kernel writes its answer into them.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
}
