//! The memory that parent and child of a start share. It is freed only after the child has left it.

use std::ffi::c_void;
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::SpawnTemplate;
use super::child::{Report, Shared};

/// Enough for a chain of system calls. The program gets its own stack.
pub(super) const STACK: usize = 64 * 1024;

/// The stack of a child.
#[derive(Debug)]
pub(super) struct Stack(NonNull<c_void>);

impl Stack {
    /// # Errors
    /// ENOMEM.
    pub(super) fn new() -> io::Result<Stack> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address that the kernel chooses overlaps nothing.
        let stack = unsafe { mmap_anonymous(ptr::null_mut(), STACK, protection, MapFlags::PRIVATE) }?;
        NonNull::new(stack).map(Stack).ok_or(io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no child uses it: `Memory` drops its stack only after the child has
        // left it.
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

    /// The lowest address of the stack.
    pub(super) fn stack_start(&self) -> usize {
        self.stack.as_ref().map_or(0, |stack| stack.0.as_ptr().expose_provenance())
    }

    /// Not 0 while the child may be in this memory.
    pub(super) fn inside(&self) -> &AtomicU32 {
        // SAFETY: the structure lives until this value is dropped, and both sides may access this atomic field.
        unsafe { &(*self.shared.as_ptr()).inside }
    }

    /// The last step that the child recorded.
    pub(super) fn step(&self) -> i32 {
        // SAFETY: as above.
        unsafe { (*self.shared.as_ptr()).step.load(Ordering::Relaxed) }
    }

    /// Whether the child has left this memory.
    pub(super) fn is_free(&self) -> bool {
        self.inside().load(Ordering::Acquire) == 0
    }

    /// Records that there is no child any more, if the kernel did not: it does not clear the word for a child that
    /// dumps core.
    pub(super) fn mark_free(&self) {
        self.inside().store(0, Ordering::Release);
    }

    /// The child's report; `None` while the child may still write it.
    pub(super) fn report(&self) -> Option<&Report> {
        // SAFETY: the structure lives until this value is dropped, and the child does not access it any more.
        self.is_free().then(|| unsafe { &(*self.shared.as_ptr()).report })
    }

    pub(super) fn template(&self) -> Option<&SpawnTemplate> {
        // SAFETY: as above.
        self.is_free().then(|| unsafe { &*(*self.shared.as_ptr()).prepared.template })
    }

    /// Takes the stack, for another child.
    pub(super) fn take_stack(&mut self) -> Option<Stack> {
        if self.is_free() { self.stack.take() } else { None }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A child that blocks in the kernel keeps the memory that it may return to.
        if self.is_free() {
            // SAFETY: the pointer came from a box, no other owner exists, and both are dropped only here.
            unsafe {
                drop(Box::from_raw(self.shared.as_ptr()));
                ManuallyDrop::drop(&mut self.stack);
            }
        }
    }
}
