//! A classic BPF program that selects a socket of a group: `SO_ATTACH_REUSEPORT_CBPF`, socket(7).
//!
//! The kernel numbers the sockets of a group in the order in which they started to listen (TCP) or were bound (UDP).
//! For each new connection or datagram, the program returns the number of the socket that gets it. When a socket
//! closes, the last one takes its number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Spread;

/// The offset of the ancillary loads; `<linux/filter.h>`.
const SKF_AD_OFF: u32 = 0xffff_f000;
/// The ancillary load of a random number.
const SKF_AD_RANDOM: u32 = 56;
/// The offset of loads from the IP header. Offset 0 is after the UDP or TCP header (`run_bpf_filter`,
/// net/core/sock_reuseport.c).
const SKF_NET_OFF: u32 = 0xfff0_0000;

/// The number of runs of consecutive numbers that a program can have: it has at most 4096 instructions, and each run
/// takes three. Only with every second of 2,600 workers out of rotation are there more runs; then the last targets get
/// no new connections until the next change.
const MAX_RUNS: usize = 1300;

/// Selects among the sockets with these numbers, in equal shares. The numbers must be sorted and not empty. `fd` is any
/// socket of the group.
///
/// # Errors
/// EINVAL if the kernel rejects the program or the socket is not in a group; ENOMEM.
pub fn attach_selector(fd: BorrowedFd<'_>, numbers: &[u32], spread: Spread) -> io::Result<()> {
    let program = program(numbers, spread);
    let fprog = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_ptr().cast_mut(),
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(16);
    // SAFETY: the kernel reads `length` bytes, the size of `fprog`, and the program that it points to. Both outlive the
    // call, which copies them.
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

/// A run of consecutive numbers.
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
    runs.truncate(MAX_RUNS);
    runs
}

/// Builds the program: it computes a number below the count of targets and finds the run that contains it.
fn program(numbers: &[u32], spread: Spread) -> Vec<libc::sock_filter> {
    let runs = runs(numbers);
    let count = runs.iter().map(|run| run.length).sum();
    let mut program = match spread {
        Spread::Random => vec![load(libc::BPF_W, SKF_AD_OFF + SKF_AD_RANDOM)],
        Spread::Flow => flow_hash(),
    };
    program.push(alu(libc::BPF_MOD, count));
    let mut passed = 0;
    for run in runs {
        let end = passed + run.length;
        program.push(jump(libc::BPF_JGE, end, 2, 0));
        program.push(alu(libc::BPF_ADD, run.first - passed));
        program.push(instruction(libc::BPF_RET | libc::BPF_A, 0));
        passed = end;
    }
    // This is never reached, because the last run ends with the count. The kernel demands a return at the end.
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0));
    program
}

/// Computes a hash of the source address and port, for IPv4 or IPv6.
fn flow_hash() -> Vec<libc::sock_filter> {
    let (v4, v6) = (v4_flow(), v6_flow());
    let mut program = vec![load(libc::BPF_B, SKF_NET_OFF), alu(libc::BPF_RSH, 4)];
    program.push(jump(libc::BPF_JEQ, 6, u8::try_from(v4.len() + 1).unwrap_or(0), 0));
    program.extend(v4);
    program.push(instruction(libc::BPF_JMP | libc::BPF_JA, u32::try_from(v6.len()).unwrap_or(0)));
    program.extend(v6);
    program.extend(finish_hash());
    program
}

/// Hashes the source address, then the port after the header, which can have options.
fn v4_flow() -> Vec<libc::sock_filter> {
    const SOURCE: u32 = SKF_NET_OFF + 12;
    let mut program = vec![load(libc::BPF_W, SOURCE), alu(libc::BPF_MUL, MULTIPLIER)];
    program.push(instruction(libc::BPF_ST, 0));
    program.push(instruction(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, SKF_NET_OFF));
    program.push(instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, SKF_NET_OFF));
    program.extend(add_stored());
    program
}

/// Hashes the four words of the source address, then the port if UDP or TCP follows the header. With extension headers,
/// which are rare, only the address identifies the flow.
fn v6_flow() -> Vec<libc::sock_filter> {
    const SOURCE: [u32; 4] = [SKF_NET_OFF + 8, SKF_NET_OFF + 12, SKF_NET_OFF + 16, SKF_NET_OFF + 20];
    const NEXT_HEADER: u32 = SKF_NET_OFF + 6;
    const PORT: u32 = SKF_NET_OFF + 40;
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_IMM, 0)];
    for word in SOURCE {
        program.push(alu(libc::BPF_MUL, MULTIPLIER));
        program.push(instruction(libc::BPF_ST, 0));
        program.push(load(libc::BPF_W, word));
        program.extend(add_stored());
    }
    program.push(alu(libc::BPF_MUL, MULTIPLIER));
    program.push(instruction(libc::BPF_ST, 0));
    program.push(load(libc::BPF_B, NEXT_HEADER));
    program.push(jump(libc::BPF_JEQ, libc::IPPROTO_UDP.cast_unsigned(), 3, 0));
    program.push(jump(libc::BPF_JEQ, libc::IPPROTO_TCP.cast_unsigned(), 2, 0));
    program.push(instruction(libc::BPF_LD | libc::BPF_IMM, 0));
    program.push(instruction(libc::BPF_JMP | libc::BPF_JA, 1));
    program.push(load(libc::BPF_H, PORT));
    program.extend(add_stored());
    program
}

/// Separates words that differ by little: the fraction of the golden ratio in 32 bits, as in `<linux/hash.h>`.
const MULTIPLIER: u32 = 0x61c8_8647;

/// Adds the stored value.
fn add_stored() -> [libc::sock_filter; 2] {
    [
        instruction(libc::BPF_LDX | libc::BPF_MEM, 0),
        instruction(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
    ]
}

/// Mixes all bits into the lowest ones, which determine the remainder: the last steps of MurmurHash3 by Austin Appleby,
/// which is in the public domain.
fn finish_hash() -> Vec<libc::sock_filter> {
    let fold = |bits| {
        [
            instruction(libc::BPF_MISC | libc::BPF_TAX, 0),
            alu(libc::BPF_RSH, bits),
            instruction(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0),
        ]
    };
    let mut program = Vec::from(fold(16));
    program.push(alu(libc::BPF_MUL, 0x85eb_ca6b));
    program.extend(fold(13));
    program.push(alu(libc::BPF_MUL, 0xc2b2_ae35));
    program.extend(fold(16));
    program
}

/// Loads `size` from the offset `at`.
fn load(size: u32, at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | size | libc::BPF_ABS, at)
}

/// Computes with a constant.
fn alu(op: u32, k: u32) -> libc::sock_filter {
    instruction(libc::BPF_ALU | op | libc::BPF_K, k)
}

/// Compares with a constant. Skips `jt` instructions if the condition holds, otherwise `jf`.
fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { jt, jf, ..instruction(libc::BPF_JMP | condition | libc::BPF_K, k) }
}

fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// The input of a program.
    #[derive(Debug, Default)]
    struct Packet {
        random: u32,
        /// The bytes from the IP header on.
        bytes: Vec<u8>,
    }

    impl Packet {
        fn random(random: u32) -> Packet {
            Packet { random, ..Packet::default() }
        }

        /// A datagram from `source`, with this many bytes of options in an IPv4 header.
        fn from(source: SocketAddr, options: usize) -> Packet {
            let mut bytes = vec![0; 40];
            match source {
                SocketAddr::V4(source) => {
                    bytes.resize(20 + options, 0xa5);
                    bytes[0] = 0x40 | u8::try_from(bytes.len() / 4).expect("short");
                    bytes[12..16].copy_from_slice(&source.ip().octets());
                }
                SocketAddr::V6(source) => {
                    (bytes[0], bytes[6]) = (0x60, 17);
                    bytes[8..24].copy_from_slice(&source.ip().octets());
                }
            }
            bytes.extend(source.port().to_be_bytes());
            Packet { random: 0, bytes }
        }

        fn load(&self, size: u32, at: u32) -> u32 {
            if at == SKF_AD_OFF + SKF_AD_RANDOM {
                return self.random;
            }
            let at = at.wrapping_sub(SKF_NET_OFF) as usize;
            let length = [(libc::BPF_W, 4), (libc::BPF_H, 2), (libc::BPF_B, 1)]
                .into_iter()
                .find_map(|(code, length)| (code == size).then_some(length))
                .expect("a size");
            self.bytes[at..at + length].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
        }
    }

    /// Runs the program as the kernel would.
    fn run(program: &[libc::sock_filter], packet: &Packet) -> u32 {
        let (mut at, mut a, mut x, mut stored) = (0, 0_u32, 0, 0);
        loop {
            let op = program[at];
            at += 1;
            let code = u32::from(op.code);
            let operand = if code & libc::BPF_X == 0 { op.k } else { x };
            match code & 0x07 {
                libc::BPF_LD => {
                    a = match code & 0xe0 {
                        libc::BPF_ABS => packet.load(code & 0x18, op.k),
                        libc::BPF_IND => packet.load(code & 0x18, op.k.wrapping_add(x)),
                        libc::BPF_IMM => op.k,
                        mode => panic!("unknown load {mode:#x}"),
                    }
                }
                libc::BPF_LDX if code & 0xe0 == libc::BPF_MEM => x = stored,
                libc::BPF_LDX => x = 4 * (packet.load(libc::BPF_B, op.k) & 0xf),
                libc::BPF_ST => stored = a,
                libc::BPF_ALU => {
                    a = match code & 0xf0 {
                        libc::BPF_MOD => a % operand,
                        libc::BPF_ADD => a.wrapping_add(operand),
                        libc::BPF_MUL => a.wrapping_mul(operand),
                        libc::BPF_RSH => a >> operand,
                        libc::BPF_XOR => a ^ operand,
                        alu => panic!("unknown operation {alu:#x}"),
                    }
                }
                libc::BPF_JMP => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JGE => a >= op.k,
                        libc::BPF_JEQ => a == op.k,
                        jump => {
                            assert_eq!(jump, libc::BPF_JA);
                            at += op.k as usize;
                            continue;
                        }
                    };
                    at += usize::from(if holds { op.jt } else { op.jf });
                }
                libc::BPF_RET => return if code & 0x18 == libc::BPF_A { a } else { op.k },
                _misc => x = a,
            }
        }
    }

    #[test]
    fn every_number_gets_the_same_share_and_no_other_gets_any() {
        for numbers in [vec![0], vec![7], vec![0, 1, 2, 3], vec![1, 2, 5, 9, 10, 11], vec![0, 2, 4, 6]] {
            let program = program(&numbers, Spread::Random);
            let mut chosen: Vec<_> = (0..u32::try_from(numbers.len() * 3).expect("few"))
                .map(|random| run(&program, &Packet::random(random)))
                .collect();
            chosen.sort_unstable();
            let expected: Vec<_> = numbers.iter().flat_map(|number| [*number; 3]).collect();
            assert_eq!(chosen, expected);
        }
    }

    #[test]
    fn ports_of_one_address_and_addresses_with_one_port_spread_evenly() {
        let ports = (40_000..43_000).map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
        let v6_ports = (40_000..43_000).map(|port| SocketAddr::from(([0xfe80, 0, 0, 0, 0, 0, 0, 1], port)));
        let addresses = (0..3000_u32).map(|n| SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 5060)));
        let v6_addresses = (0..3000).map(|n| SocketAddr::from(([0x2001, 0xdb8, 0, n, 0, 0, 0, 1], 5060)));
        let all: [Vec<SocketAddr>; 4] =
            [ports.collect(), v6_ports.collect(), addresses.collect(), v6_addresses.collect()];
        for (sources, count) in all.iter().zip([3, 4, 5, 8]) {
            let numbers: Vec<u32> = (0..count).collect();
            let program = program(&numbers, Spread::Flow);
            let mut shares = vec![0_usize; numbers.len()];
            for source in sources {
                shares[run(&program, &Packet::from(*source, 0)) as usize] += 1;
            }
            let fair = sources.len() / numbers.len();
            assert!(shares.iter().all(|share| share.abs_diff(fair) < fair / 5), "{shares:?} of {fair}");
        }
    }

    #[test]
    fn a_flow_keeps_its_number_whatever_options_its_packets_have() {
        let program = program(&(0..1000).collect::<Vec<_>>(), Spread::Flow);
        let source = SocketAddr::from(([192, 0, 2, 1], 40_000));
        let number = run(&program, &Packet::from(source, 0));
        assert_eq!(run(&program, &Packet::from(source, 8)), number);
        let other = SocketAddr::from(([192, 0, 2, 1], 40_001));
        assert_ne!(run(&program, &Packet::from(other, 0)), number);
    }

    #[test]
    fn extension_headers_of_ipv6_are_not_taken_for_a_port() {
        let program = program(&(0..1000).collect::<Vec<_>>(), Spread::Flow);
        let chosen = [1, 2].map(|id| {
            let mut packet = Packet::from(SocketAddr::from(([0xfe80, 0, 0, 0, 0, 0, 0, 1], id)), 0);
            packet.bytes[6] = 60;
            run(&program, &packet)
        });
        assert_eq!(chosen[0], chosen[1]);
    }

    #[test]
    fn a_program_never_grows_beyond_what_the_kernel_takes() {
        let scattered: Vec<u32> = (0..10_000).map(|number| number * 2).collect();
        assert!(program(&scattered, Spread::Flow).len() <= 4096);
        let all: Vec<u32> = (0..10_000).collect();
        assert_eq!(program(&all, Spread::Random).len(), 6, "one run, however many");
    }
}
