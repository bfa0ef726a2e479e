//! Memory that is shared with an eBPF program.

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Map, MapKind};

/// What may lie in memory that others write at any time: any bytes are a value of it, and it is used through shared
/// references only, as atomics are.
///
/// # Safety
/// The type must be made of atomics and of nothing else.
pub unsafe trait Shared {}

/// The values of a map that was made with `BPF_F_MMAPABLE`. The memory lives as long as this does, whatever becomes of the
/// map's descriptor.
#[derive(Debug)]
pub struct Mapping<T: Shared> {
    base: NonNull<T>,
    entries: usize,
}

impl<T: Shared> Mapping<T> {
    /// Maps an array.
    ///
    /// # Errors
    /// EINVAL where its values are of another size; EPERM where it was not made for it; ENOMEM.
    pub fn new(map: &Map) -> io::Result<Mapping<T>> {
        let MapKind { value_size, entries, .. } = map.kind();
        // The kernel lays values of other sizes out with gaps.
        if value_size as usize != size_of::<T>() || !size_of::<T>().is_multiple_of(8) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let entries = entries as usize;
        let (length, access) = (entries * size_of::<T>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, map.as_fd(), 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Mapping { base, entries })
    }
}

impl<T: Shared> Deref for Mapping<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is that long, page-aligned, full of values of this size, and lives as long as we do; any bytes are a T, and a T bears
        // being written by others while there are references to it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.entries) }
    }
}

impl<T: Shared> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no reference to it outlives us.
        let _cannot_fail = unsafe { munmap(self.base.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}
