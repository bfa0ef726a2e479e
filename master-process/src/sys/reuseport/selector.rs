//! An eBPF program that selects a socket of a group: `BPF_PROG_TYPE_SK_REUSEPORT`, bpf(2).
//!
//! The program has two maps. A `BPF_MAP_TYPE_REUSEPORT_SOCKARRAY` holds the member sockets by index; the kernel removes
//! a socket when it closes. The selection is one value of 32-bit words: the number of targets, then a list of the
//! targets, repeated until it has as many words as there can be members.
//!
//! A change of the selection copies all words at once, and the program can read them meanwhile. It needs no lock and no
//! order: every word of the list is a target of the old or the new selection, whichever count it is combined with. A
//! word is never a mix of both, because the kernel copies aligned memory by words. (If it copied bytes, indexes below
//! 256 would still be whole.)

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_func_id::{BPF_FUNC_get_prandom_u32, BPF_FUNC_sk_select_reuseport};
use aya_obj::generated::{bpf_insn, bpf_map_type};

use super::Spread;
use super::assembler::Register::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};
use super::assembler::{Alu, Assembler, Condition, Label, Operand, Register};
use crate::sys::bpf::{self, Map, MapKind};

use Operand::{K, R};

/// The largest capacity. The selection then has 256 KiB, and one address never has that many sockets.
pub const MAX_CAPACITY: u32 = 1 << 16;

/// The number of targets that the program tries before the kernel chooses. It is unlikely that eight
/// adjacent targets crash between two changes of the selection. Each attempt costs one lookup.
const MAX_TRIES: usize = 8;

/// `sk_reuseport_md.hash`, `<linux/bpf.h>`: a hash of both addresses and ports.
const MD_HASH: i16 = 32;
/// `sk_reuseport_md.migrating_sk`: the listener that closes, or a half-open connection of it.
const MD_MIGRATING: i16 = 48;
/// The return value: the selected socket, or the kernel's choice if none was selected.
const SK_PASS: i32 = 1;

/// The offset of the list in the value, in words.
const LIST_AT: u32 = 1;
/// The size of a word in bytes.
const WORD: u32 = 4;
/// The entry of an empty list. It is above every capacity, so it has no member.
const NO_TARGET: u32 = u32::MAX;

/// `bpf_sk_select_reuseport` is only available to programs under the GPL. This covers the program that [`program`]
/// writes.
const LICENSE: &CStr = c"GPL";

/// Selects targets for one group of `SO_REUSEPORT` sockets.
///
/// A group keeps its attached program, and the program keeps both maps. So after this value is dropped, or after the
/// end of the process, the group works as before and can no longer be changed. A group ends with its last socket; the
/// next group of the same address needs [`Selector::attach`] again.
#[derive(Debug)]
pub struct Selector {
    sockets: Map,
    selection: Map,
    program: OwnedFd,
    capacity: u32,
}

impl Selector {
    /// Creates a selector without members and targets. `capacity` limits the indexes of members and the number of
    /// targets.
    ///
    /// # Errors
    /// EPERM without `CAP_BPF` (or `CAP_SYS_ADMIN`). EACCES before Linux 5.14. ENOSYS in a kernel without bpf(2).
    /// ENOMEM. [`io::ErrorKind::InvalidInput`] for a capacity of zero or above [`MAX_CAPACITY`].
    pub fn new(capacity: u32, spread: Spread) -> io::Result<Selector> {
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sockets = Map::new("mp_sockets", sockets_kind(capacity))?;
        let selection = Map::new("mp_selection", selection_kind(capacity))?;
        let instructions = program(capacity, spread, sockets.as_fd(), selection.as_fd())?;
        let program = bpf::load_reuseport("mp_selector", &instructions, LICENSE)?;
        let selector = Selector { sockets, selection, program, capacity };
        selector.set_targets(&[])?;
        Ok(selector)
    }

    /// Takes ownership of the [`descriptors`](Self::descriptors) of a selector, from a process that executed this
    /// program. A new selector could not have the members of the old one, because a socket can be in one array only.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if they do not belong to a selector; those of [`Map::from_fd`].
    pub fn from_descriptors([sockets, selection, program]: [OwnedFd; 3]) -> io::Result<Selector> {
        let (sockets, selection) = (Map::from_fd(sockets)?, Map::from_fd(selection)?);
        let capacity = sockets.kind().entries;
        let ours = (1..=MAX_CAPACITY).contains(&capacity)
            && sockets.kind() == sockets_kind(capacity)
            && selection.kind() == selection_kind(capacity);
        if !ours {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Selector { sockets, selection, program, capacity })
    }

    /// The descriptors of the map of sockets, the selection and the program, all close-on-exec.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.sockets.as_fd(), self.selection.as_fd(), self.program.as_fd()]
    }

    /// The limit of members and of targets.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Sets the member `index`, replacing the previous one. A member stays until it closes, stops listening, or
    /// [`Selector::remove`] is called. It gets no connections until it is a target.
    ///
    /// # Errors
    /// EINVAL for a socket that neither listens (TCP) nor is bound (UDP), or without `SO_REUSEPORT`. EBUSY if it is a
    /// member already, with another index or of another selector. E2BIG for an index beyond the capacity.
    pub fn insert(&self, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let fd = u64::from(socket.as_raw_fd().cast_unsigned());
        self.sockets.update(&index.to_ne_bytes(), &fd.to_ne_bytes())
    }

    /// Removes a member; an index without a member is ignored. If it is a target, the next one gets its share.
    ///
    /// # Errors
    /// E2BIG for an index beyond the capacity. EPERM on old kernels if `CAP_BPF` was dropped since.
    pub fn remove(&self, index: u32) -> io::Result<()> {
        match self.sockets.delete(&index.to_ne_bytes()) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Sends new connections to the members with these indexes, in equal shares.
    ///
    /// The change is atomic: each connection goes to an old or to a new target, and only to new ones once this has
    /// returned. If a target has no member, the program tries the next ones of the list, up to eight in total. If it
    /// finds none, or there are no targets, the kernel selects among the whole group.
    ///
    /// The queue of a listener that closes goes to the targets, too.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for more targets than the capacity, or an index beyond it. EPERM as for
    /// [`Selector::remove`]. After an error the old targets remain.
    pub fn set_targets(&self, indexes: &[u32]) -> io::Result<()> {
        let beyond = indexes.iter().any(|index| *index >= self.capacity);
        if beyond || indexes.len() > self.capacity as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let count = u32::try_from(indexes.len()).map_err(io::Error::other)?;
        let targets = if indexes.is_empty() { &[NO_TARGET] } else { indexes };
        let list = targets.iter().copied().cycle().take(self.capacity as usize);
        let value: Vec<u8> = std::iter::once(count).chain(list).flat_map(u32::to_ne_bytes).collect();
        self.selection.update(&0u32.to_ne_bytes(), &value)
    }

    /// Attaches the program to the group of `socket`, replacing its previous program. This needs no privilege.
    ///
    /// The socket must listen (TCP) or be bound (UDP). A TCP socket that gets a program before `listen` becomes a
    /// separate group, and its `listen` fails with EADDRINUSE if others listen.
    ///
    /// # Errors
    /// EINVAL if the socket is in no group: without `SO_REUSEPORT`, or if the option was set after `listen` and no
    /// other socket has joined yet.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let program = self.program.as_raw_fd();
        let length = libc::socklen_t::try_from(size_of_val(&program)).map_err(io::Error::other)?;
        // SAFETY: the kernel reads `length` bytes, the size of `program`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_EBPF,
                std::ptr::from_ref(&program).cast(),
                length,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn sockets_kind(capacity: u32) -> MapKind {
    MapKind {
        number: bpf_map_type::BPF_MAP_TYPE_REUSEPORT_SOCKARRAY as u32,
        key_size: 4,
        // Room for the socket's cookie, which a lookup returns.
        value_size: 8,
        entries: capacity,
        flags: 0,
    }
}

fn selection_kind(capacity: u32) -> MapKind {
    MapKind {
        number: bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        key_size: 4,
        value_size: (LIST_AT + capacity) * WORD,
        entries: 1,
        flags: 0,
    }
}

/// Assembles the program, in C:
///
/// ```c
/// (void)md->migrating_sk;
/// u32 at = by_flow ? md->hash : bpf_get_prandom_u32(), count = value.count;
/// if (count != 0)
///     for (int tries = 0; tries < 8; tries++, at++) {          // unrolled
///         u64 n = at % count;
///         if (n >= capacity) break;                            // for the verifier
///         u32 index = value.list[n];
///         if (bpf_sk_select_reuseport(md, &sockets, &index, 0) == 0) break;
///     }
/// return SK_PASS;
/// ```
///
/// It runs in the same way for the connections of a listener that closes, which is no longer a member then.
///
/// Kernels before 5.14 ignore the expected attach type, and reject a program that reads `migrating_sk`, which they do not
/// have.
///
/// The loop is unrolled: without `CAP_PERFMON` the verifier also follows mispredicted branches, and then does not find
/// the end of a loop (on Linux 6.18: EFAULT after thousands of rounds).
fn program(
    capacity: u32,
    spread: Spread,
    sockets: BorrowedFd<'_>,
    selection: BorrowedFd<'_>,
) -> io::Result<Vec<bpf_insn>> {
    let mut code = Assembler::default();
    let pass = code.label();
    code.mov(MD, R(R1));
    code.load_long(R0, MD, MD_MIGRATING);
    code.load_map_value(VALUE, selection);
    match spread {
        Spread::Random => {
            code.call(BPF_FUNC_get_prandom_u32 as u32);
            code.mov(AT, R(R0));
        }
        Spread::Flow => code.load(AT, MD, MD_HASH),
    }
    code.load(COUNT, VALUE, 0);
    code.jump_if(Condition::Equal, COUNT, K(0), pass);
    for _ in 0..MAX_TRIES {
        read_target(&mut code, capacity, pass)?;
        select_target(&mut code, sockets);
        code.jump_if(Condition::Equal, R0, K(0), pass);
        code.alu(Alu::Add, AT, K(1));
    }
    code.place(pass);
    code.mov(R0, K(SK_PASS));
    code.exit();
    Ok(code.finish())
}

/// The registers with the same contents in every attempt: the program's argument, the selection and its count, and the
/// number whose remainder is the position in the list.
const MD: Register = R6;
const VALUE: Register = R7;
const COUNT: Register = R9;
const AT: Register = R8;
/// The register that one attempt passes on.
const TARGET: Register = R3;

/// Reads a target into `TARGET`.
fn read_target(code: &mut Assembler, capacity: u32, pass: Label) -> io::Result<()> {
    let (n, capacity, word) = (R3, capacity.cast_signed(), WORD.cast_signed());
    let list_at = i16::try_from(LIST_AT * WORD).map_err(io::Error::other)?;
    code.mov(n, R(AT));
    code.remainder(n, COUNT);
    code.jump_if(Condition::AtLeast, n, K(capacity), pass);
    code.alu(Alu::Mul, n, K(word));
    code.alu(Alu::Add, n, R(VALUE));
    code.load(TARGET, n, list_at);
    Ok(())
}

/// Selects the member with the index in `TARGET`. `r0` is zero if there is one.
fn select_target(code: &mut Assembler, sockets: BorrowedFd<'_>) {
    const INDEX_AT: i16 = -4;
    code.store(R10, INDEX_AT, TARGET);
    code.mov(R1, R(MD));
    code.load_map(R2, sockets);
    code.mov(R3, R(R10));
    code.alu(Alu::Add, R3, K(i32::from(INDEX_AT)));
    code.mov(R4, K(0));
    code.call(BPF_FUNC_sk_select_reuseport as u32);
}
