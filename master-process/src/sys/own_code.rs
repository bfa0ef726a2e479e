//! The memory that this program's own code takes.

use std::ffi::c_void;

use libc::{Elf64_Phdr, PF_W, PT_LOAD, c_int, dl_iterate_phdr, dl_phdr_info, size_t};

/// Has the kernel unmap the code and the constants of this program, all of which it still has in its page cache. What is
/// used again is mapped again, at a fraction of a microsecond for each 64 KiB; what only the start needed, or an answer
/// to a client, is not. Nothing is written back or read anew.
pub fn unmap() {
    // SAFETY: the callback reads what dl_iterate_phdr(3) passes to it, and nothing else.
    unsafe { dl_iterate_phdr(Some(unmap_program), std::ptr::null_mut()) };
}

/// Called for each loaded object, the program itself first. A result that is not 0 ends the calls.
unsafe extern "C" fn unmap_program(info: *mut dl_phdr_info, _size: size_t, _data: *mut c_void) -> c_int {
    // SAFETY: the C library passes a valid structure, whose headers are as many as it says and stay mapped.
    let (base, headers): (_, &[Elf64_Phdr]) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr.cast(), info.dlpi_phnum.into()))
    };
    for header in headers.iter().filter(|header| is_never_written(header)) {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let (from, to) = (base + header.p_vaddr, base + header.p_vaddr + header.p_memsz);
        // A page that a neighbouring segment shares with this one stays.
        let (from, to) = (from.next_multiple_of(page), to / page * page);
        if let (Ok(at), Ok(length)) = (usize::try_from(from), usize::try_from(to.saturating_sub(from))) {
            let at = std::ptr::with_exposed_provenance_mut(at);
            // SAFETY: the pages are whole ones of a segment that is mapped from the program's file and that nobody can write
            // to, relocations included: the next access finds the same content in the file.
            unsafe { libc::madvise(at, length, libc::MADV_DONTNEED) };
        }
    }
    1
}

/// Code and constants. What is relocated is in a segment that is writable, also where it is protected later.
fn is_never_written(header: &Elf64_Phdr) -> bool {
    header.p_type == PT_LOAD && header.p_flags & PF_W == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    static CONSTANTS: [u64; 4] = [1, 2, 3, 5];
    static NAMES: [&str; 3] = ["one", "two", "three"];

    fn resident_file_kib() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("every Linux since 4.14");
        let line = text.lines().find(|line| line.starts_with("Rss:")).expect("the resident memory");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    #[test]
    fn the_program_goes_on_with_less_memory() {
        let before = resident_file_kib();
        unmap();
        let after = resident_file_kib();
        assert!(after < before, "{before} KiB before, {after} KiB after");
        assert_eq!((CONSTANTS.iter().sum::<u64>(), NAMES.concat()), (11, "onetwothree".to_owned()));
    }
}
