//! bpf(2): the few commands that loading programs, and asking them something, takes.

mod map;
mod mapping;
mod program;

use std::ffi::{c_char, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::{bpf_attr, bpf_cmd};

pub use map::{Map, MapKind};
pub use mapping::{Mapping, Shared};
pub use program::{Sight, attach, load, load_reuseport, run_on};

/// A value that is all numbers, without padding: all of its bytes are written.
///
/// # Safety
/// The type must be so.
pub unsafe trait Plain: Copy {}

/// The bytes that a value lies in memory as.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: the value is borrowed for as long as its bytes are, and has no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn blank() -> bpf_attr {
    // SAFETY: every member is plain numbers, for which zero is a value, and the one that the kernel takes for absent.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// Every address in the attributes must be that of memory that the command may use as it does.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<c_long> {
    // A kernel that knows fewer attributes looks whether the rest is zero.
    // SAFETY: the attributes are ours for the call, of the size that is given; the caller vouches for the rest.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: io::Result<c_long>) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result?).map_err(io::Error::other)?;
    // SAFETY: the commands that come here return a new descriptor, close-on-exec, that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

/// A name as the kernel keeps it: 15 bytes and a NUL.
fn short_name(name: &str) -> [c_char; 16] {
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        // Signed on some kinds of CPU and not on others.
        *to = c_char::from_ne_bytes([from]);
    }
    short
}
