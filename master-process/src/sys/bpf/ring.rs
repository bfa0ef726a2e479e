//! The ring buffer by which a program wakes the supervisor.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Map;

/// The positions of a ring buffer (`BPF_MAP_TYPE_RINGBUF`), whose map is readable while a record is unread. The records
/// themselves are not read: that there are some is the message. See Documentation/bpf/ringbuf.rst in the kernel.
#[derive(Debug)]
pub struct Ring {
    /// How far the records were read; user space may write it.
    consumed: NonNull<AtomicU64>,
    /// How far the kernel has written; a page of its own, which user space can only read.
    produced: NonNull<AtomicU64>,
    page: usize,
}

// SAFETY: the mappings belong to the process, and their positions are accessed as atomics.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the positions of a ring buffer into memory.
    ///
    /// # Errors
    /// ENOMEM; EPERM if the map is no ring buffer.
    pub fn new(map: &Map) -> io::Result<Ring> {
        let page = rustix::param::page_size();
        let place = |access, offset| {
            // SAFETY: a new mapping at an address that the kernel chooses does not touch existing memory.
            let base =
                unsafe { mmap(std::ptr::null_mut(), page, access, MapFlags::SHARED, map.as_fd(), offset)? };
            NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let consumed = place(ProtFlags::READ | ProtFlags::WRITE, 0)?;
        match place(ProtFlags::READ, page as u64) {
            Ok(produced) => Ok(Ring { consumed, produced, page }),
            Err(error) => {
                // SAFETY: the mapping was made above, and nothing refers to it.
                let _cannot_fail = unsafe { munmap(consumed.as_ptr().cast(), page) };
                Err(error)
            }
        }
    }

    /// Marks all records as read.
    pub fn skip(&self) {
        // SAFETY: both mappings live as long as this value, are aligned to pages, and hold the position at their start.
        let (consumed, produced) = unsafe { (self.consumed.as_ref(), self.produced.as_ref()) };
        consumed.store(produced.load(Acquire), Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for base in [self.consumed, self.produced] {
            // SAFETY: this value owns the mappings, and no reference to them outlives it.
            let _cannot_fail = unsafe { munmap(base.as_ptr().cast(), self.page) };
        }
    }
}
