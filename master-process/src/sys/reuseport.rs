//! Choosing among the sockets of one address: `SO_ATTACH_REUSEPORT_CBPF`, socket(7).
//!
//! The kernel numbers the sockets of a group in the order in which they began to listen, and asks a classic
//! BPF program for the number that gets a new connection.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where the ancillary loads of a classic program begin; `<linux/filter.h>`.
const SKF_AD_OFF: u32 = 0xffff_f000;
/// A random number.
const SKF_AD_RANDOM: u32 = 56;

/// A program has at most 4096 instructions, three for each run of numbers: more runs than this cannot be told
/// apart. It takes every second of 2,600 workers out of rotation to get there; some of the rest then wait for
/// the next change.
const MOST_RUNS: usize = 1300;

/// Lets new connections come to the sockets of these numbers, in equal shares. The numbers are sorted and
/// there is at least one; `fd` is any socket of the group.
///
/// # Errors
/// EINVAL where the kernel refuses the program, ENOMEM.
pub fn steer(fd: BorrowedFd<'_>, numbers: &[u32]) -> io::Result<()> {
    let program = program(numbers);
    let fprog = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_ptr().cast_mut(),
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(16);
    // SAFETY: the kernel reads `length` bytes, the size of `fprog`, and the program that it points to; both
    // outlive the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&fprog).cast(),
            length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Numbers that follow one another.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    length: u32,
}

fn runs(numbers: &[u32]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.first + run.length == *number => run.length += 1,
            _gap => runs.push(Run { first: *number, length: 1 }),
        }
    }
    runs.truncate(MOST_RUNS);
    runs
}

/// Takes a random number below the count of sockets and finds the run that it falls into.
fn program(numbers: &[u32]) -> Vec<libc::sock_filter> {
    let runs = runs(numbers);
    let count = runs.iter().map(|run| run.length).sum();
    let mut program = vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, SKF_AD_OFF + SKF_AD_RANDOM),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, count),
    ];
    let mut passed = 0;
    for run in runs {
        let end = passed + run.length;
        program.push(instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 2, end));
        program.push(instruction(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, 0, run.first - passed));
        program.push(instruction(libc::BPF_RET | libc::BPF_A, 0, 0));
        passed = end;
    }
    // Never reached: the last run ends with the count. The kernel wants a program to end with a return.
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0));
    program
}

fn instruction(code: u32, jt: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, with this random number.
    fn choose(numbers: &[u32], random: u32) -> u32 {
        let program = program(numbers);
        let (mut at, mut a) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            match u32::from(op.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => a = random,
                code if code == libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K => a %= op.k,
                code if code == libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K => a += op.k,
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => {
                    at += usize::from(if a >= op.k { op.jt } else { op.jf });
                }
                code if code == libc::BPF_RET | libc::BPF_A => return a,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn every_number_gets_the_same_share_and_no_other_gets_any() {
        for numbers in [vec![0], vec![7], vec![0, 1, 2, 3], vec![1, 2, 5, 9, 10, 11], vec![0, 2, 4, 6]] {
            let mut chosen: Vec<_> = (0..u32::try_from(numbers.len() * 3).expect("few"))
                .map(|random| choose(&numbers, random))
                .collect();
            chosen.sort_unstable();
            let expected: Vec<_> = numbers.iter().flat_map(|number| [*number; 3]).collect();
            assert_eq!(chosen, expected);
        }
    }

    #[test]
    fn a_program_never_grows_beyond_what_the_kernel_takes() {
        let scattered: Vec<u32> = (0..10_000).map(|number| number * 2).collect();
        assert!(program(&scattered).len() <= 4096);
        let all: Vec<u32> = (0..10_000).collect();
        assert_eq!(program(&all).len(), 6, "one run, however many");
    }
}
