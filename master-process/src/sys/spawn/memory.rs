//! What a child of a start uses of our memory, which is freed when it has left it and not before.

use std::ffi::c_void;
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::SpawnTemplate;
use super::child::{Report, Shared};

/// Enough for a chain of system calls; the program gets a stack of its own.
pub(super) const STACK: usize = 64 * 1024;

/// A stack for a child.
#[derive(Debug)]
pub(super) struct Stack(NonNull<c_void>);

impl Stack {
    /// # Errors
    /// ENOMEM.
    pub(super) fn new() -> io::Result<Stack> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice overlaps nothing.
        let stack = unsafe { mmap_anonymous(ptr::null_mut(), STACK, protection, MapFlags::PRIVATE) }?;
        NonNull::new(stack).map(Stack).ok_or(io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no child uses it: `Memory` drops none before.
        let _cannot_fail = unsafe { rustix::mm::munmap(self.0.as_ptr(), STACK) };
    }
}

/// The memory of one start.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) shared: NonNull<Shared>,
    stack: ManuallyDrop<Option<Stack>>,
}

impl Memory {
    pub(super) fn new(shared: Shared, stack: Stack) -> Memory {
        let shared = NonNull::from(Box::leak(Box::new(shared)));
        Memory { shared, stack: ManuallyDrop::new(Some(stack)) }
    }

    /// Where its stack begins.
    pub(super) fn stack_start(&self) -> usize {
        self.stack.as_ref().map_or(0, |stack| stack.0.as_ptr().expose_provenance())
    }

    /// Not 0 as long as the child may be inside.
    pub(super) fn inside(&self) -> &AtomicU32 {
        // SAFETY: the structure lives until this value is dropped, and this part of it is for both sides.
        unsafe { &(*self.shared.as_ptr()).inside }
    }

    /// What the child was doing when it was last heard of.
    pub(super) fn step(&self) -> i32 {
        // SAFETY: as above.
        unsafe { (*self.shared.as_ptr()).step.load(Ordering::Relaxed) }
    }

    /// Whether the child has left it.
    pub(super) fn is_free(&self) -> bool {
        self.inside().load(Ordering::Acquire) == 0
    }

    /// Says that there is no child any more, where the kernel did not: it does not for one that dumps core.
    pub(super) fn is_left(&self) {
        self.inside().store(0, Ordering::Release);
    }

    /// What the child has left behind; `None` while it may still write.
    pub(super) fn report(&self) -> Option<&Report> {
        // SAFETY: the structure lives until this value is dropped, and the child does not touch it any more.
        self.is_free().then(|| unsafe { &(*self.shared.as_ptr()).report })
    }

    pub(super) fn template(&self) -> Option<&SpawnTemplate> {
        // SAFETY: as above.
        self.is_free().then(|| unsafe { &*(*self.shared.as_ptr()).prepared.template })
    }

    /// The stack, for another child.
    pub(super) fn take_stack(&mut self) -> Option<Stack> {
        if self.is_free() { self.stack.take() } else { None }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A child that hangs in the kernel keeps what it may come back to.
        if self.is_free() {
            // SAFETY: it came from a box, nobody else has it, and both are dropped once, here.
            unsafe {
                drop(Box::from_raw(self.shared.as_ptr()));
                ManuallyDrop::drop(&mut self.stack);
            }
        }
    }
}
