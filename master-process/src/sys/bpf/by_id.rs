//! Maps, programs and links of other processes, by their ids. The kernel keeps each as long as any process has it open.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya_obj::generated::{bpf_cmd, bpf_prog_type};

use super::{Map, blank, bpf, owned};

/// The id of a map, program or link, from `/proc/self/fdinfo`; `what` is `map_id`, `prog_id` or `link_id`.
///
/// # Errors
/// Those of reading the file; [`io::ErrorKind::InvalidData`] if it has no such line.
pub fn id_of(fd: BorrowedFd<'_>, what: &str) -> io::Result<u32> {
    field_of(fd, what)?.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A field of `/proc/self/fdinfo`.
fn field_of(fd: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Opens the link with this id, if it attaches a program to this raw tracepoint.
///
/// # Errors
/// ENOENT if there is no such link; EPERM without CAP_SYS_ADMIN; [`io::ErrorKind::NotFound`] if it is another one.
pub fn link_by_id(id: u32, tracepoint: &str) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    unsafe { &mut attr.__bindgen_anon_6 }.__bindgen_anon_1.link_id = id;
    // SAFETY: the attributes hold no address.
    let link = owned(unsafe { bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr) })?;
    if field_of(link.as_fd(), "tp_name").is_ok_and(|name| name == tracepoint) {
        Ok(link)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Opens the program with this id, if it is of the kind [`ProgramKind::Syscall`](super::ProgramKind::Syscall).
///
/// # Errors
/// ENOENT if there is no such program; EPERM without CAP_SYS_ADMIN; [`io::ErrorKind::NotFound`] if it is of another kind.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    unsafe { &mut attr.__bindgen_anon_6 }.__bindgen_anon_1.prog_id = id;
    // SAFETY: the attributes hold no address.
    let program = owned(unsafe { bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr) })?;
    let kind = field_of(program.as_fd(), "prog_type")?;
    if kind.parse() == Ok(bpf_prog_type::BPF_PROG_TYPE_SYSCALL as u32) {
        Ok(program)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Opens the map with this id.
///
/// # Errors
/// ENOENT if there is no such map; EPERM without CAP_SYS_ADMIN.
pub fn map_by_id(id: u32) -> io::Result<Map> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    unsafe { &mut attr.__bindgen_anon_6 }.__bindgen_anon_1.map_id = id;
    // SAFETY: the attributes hold no address.
    Map::from_fd(owned(unsafe { bpf(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attr) })?)
}
