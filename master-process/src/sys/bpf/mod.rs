//! The commands of bpf(2) that are needed to load programs and read their maps.

mod by_id;
mod map;
mod program;
mod ring;

use std::ffi::{c_char, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::{bpf_attr, bpf_cmd};

pub use by_id::{id_of, link_by_id, map_by_id, program_by_id};
pub use map::{Map, MapKind, Mapping, Shared, Types, load_types};
pub use program::{FunctionInfo, ProgramKind, attach, load, load_reuseport, run};
pub use ring::Ring;

/// A type that consists of numbers without padding, so all of its bytes are initialized.
///
/// # Safety
/// The type must have these properties.
pub unsafe trait Plain: Copy {}

/// The bytes of a value.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: the value is borrowed as long as its bytes, and has no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The bytes of a value, to be written by the kernel.
pub fn bytes_of_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: as above; any bytes are a valid value, because it consists of numbers.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

fn blank() -> bpf_attr {
    // SAFETY: every member consists of numbers. Zero is a valid value, and the kernel treats it as absent.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// Every address in the attributes must refer to memory that the command may use as it does.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<c_long> {
    // A kernel with fewer attributes checks that the others are zero.
    // SAFETY: the attributes belong to the caller and have the size that is passed; the caller guarantees the rest.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: io::Result<c_long>) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result?).map_err(io::Error::other)?;
    // SAFETY: the commands whose results come here return a new close-on-exec descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

/// Truncates a name to what the kernel stores: 15 bytes and a NUL.
fn short_name(name: &str) -> [c_char; 16] {
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        // Signed on some kinds of CPU and not on others.
        *to = c_char::from_ne_bytes([from]);
    }
    short
}
