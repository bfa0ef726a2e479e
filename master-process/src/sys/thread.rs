//! Threads that leave nothing behind.
//!
//! The C library keeps the stack of a thread that has ended for the next one, with three pages of it in use, and the standard library
//! gives each thread a second stack for a signal that nothing here handles. A supervisor runs a few threads at its start, and
//! then none for hours. So these threads get their stacks from here, and are given back when they have ended.

use std::ffi::{CString, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// What a thread does.
type Work = Box<dyn FnOnce() + Send>;

/// The threads that have not been waited for.
static THREADS: Mutex<Vec<Thread>> = Mutex::new(Vec::new());

/// Starts a thread with this name and size of the stack in bytes. Nobody waits for it.
///
/// # Errors
/// Those of pthread_create(3) and mmap(2).
pub fn spawn(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let name = CString::new(name)?;
    let named = move || {
        let _name_is_for_people = rustix::thread::set_name(&name);
        work();
    };
    reap();
    let thread = Thread::start(stack, Box::new(named))?;
    THREADS.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    Ok(())
}

/// Gives back what threads had that have ended.
pub fn reap() {
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    threads.retain(|thread| !thread.has_ended());
    threads.shrink_to_fit();
}

/// A thread and its stack. It must have ended before this is dropped.
#[derive(Debug)]
struct Thread {
    id: libc::pthread_t,
    _stack: Stack,
}

// SAFETY: an id is valid in all threads. It is a number in one C library and an address in another, which nobody uses as one.
unsafe impl Send for Thread {}

impl Thread {
    fn start(size: usize, work: Work) -> io::Result<Thread> {
        let stack = Stack::new(size)?;
        let argument = Box::into_raw(Box::new(work));
        let (mut attributes, mut id) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the attributes are initialized before they are used, and freed once. The stack is mapped, and stays so until the
        // thread has ended. The argument is a box that the thread takes.
        let error = unsafe {
            match libc::pthread_attr_init(attributes.as_mut_ptr()) {
                0 => {
                    let attributes = attributes.assume_init_mut();
                    let set = libc::pthread_attr_setstack(attributes, stack.usable(), stack.size);
                    let error = match set {
                        0 => libc::pthread_create(id.as_mut_ptr(), attributes, run, argument.cast()),
                        error => error,
                    };
                    libc::pthread_attr_destroy(attributes);
                    error
                }
                error => error,
            }
        };
        if error != 0 {
            // SAFETY: there is no thread that has taken it.
            drop(unsafe { Box::from_raw(argument) });
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the thread was created.
        Ok(Thread { id: unsafe { id.assume_init() }, _stack: stack })
    }

    /// Whether the thread has ended; it must not be asked again then.
    fn has_ended(&self) -> bool {
        // SAFETY: a thread that was not waited for yet: who gets this answer drops the value.
        unsafe { libc::pthread_tryjoin_np(self.id, ptr::null_mut()) == 0 }
    }
}

/// The first function of a thread.
extern "C" fn run(argument: *mut c_void) -> *mut c_void {
    // SAFETY: the box that `start` has made, which nobody else uses any more.
    let work = unsafe { Box::from_raw(argument.cast::<Work>()) };
    // A panic has been reported; who waits for an answer finds that there is none.
    let _panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    ptr::null_mut()
}

/// The memory of a stack, below which nothing is mapped.
#[derive(Debug)]
struct Stack {
    base: *mut c_void,
    guard: usize,
    size: usize,
}

// SAFETY: the memory belongs to the process, and only the thread uses it.
unsafe impl Send for Stack {}

impl Stack {
    fn new(size: usize) -> io::Result<Stack> {
        let guard = rustix::param::page_size();
        let size = size.next_multiple_of(guard);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::STACK | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), guard + size, access, flags) }?;
        let stack = Stack { base, guard, size };
        // SAFETY: the first page of the new mapping.
        unsafe { mprotect(base, guard, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// The lowest address that the thread may use.
    fn usable(&self) -> *mut c_void {
        self.base.wrapping_byte_add(self.guard)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no thread uses it: one that was started has ended.
        let _cannot_fail = unsafe { munmap(self.base, self.guard + self.size) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    const SIZE: usize = 128 * 1024;

    fn is_mapped(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our own memory");
        maps.lines().any(|line| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16).expect("a number");
            range.is_some_and(|(from, to)| (number(from)..number(to)).contains(&address))
        })
    }

    #[test]
    fn the_stack_of_a_thread_is_given_back_when_it_has_ended() {
        let (sender, receiver) = channel();
        let (end, wait) = channel::<()>();
        spawn("a-thread", SIZE, move || {
            let on_stack = 0u8;
            let name = std::fs::read_to_string("/proc/thread-self/comm").expect("our own name");
            sender.send((&raw const on_stack as usize, name)).expect("the test waits");
            let _closed = wait.recv();
        })
        .expect("a thread");
        let (address, name) = receiver.recv().expect("it says so");
        assert_eq!(name, "a-thread\n");
        reap();
        assert!(is_mapped(address), "it is running");
        drop(end);
        let until = Instant::now() + Duration::from_secs(30);
        while is_mapped(address) {
            assert!(Instant::now() < until, "it ends");
            reap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_thread_that_panics_is_one_that_has_ended() {
        let (sender, receiver) = channel::<()>();
        spawn("panics", SIZE, move || {
            let _sender = sender;
            panic!("as it should");
        })
        .expect("a thread");
        assert!(receiver.recv().is_err(), "its memory was dropped");
    }

    #[test]
    fn below_the_stack_is_a_page_that_nobody_can_use() {
        let stack = Stack::new(SIZE).expect("memory");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our own memory");
        let guard = format!("{:x}-{:x} ---p", stack.base as usize, stack.usable() as usize);
        assert!(maps.contains(&guard), "{guard}\n{maps}");
        assert!(Stack::new(usize::MAX / 2).is_err(), "there is not so much memory");
    }
}
