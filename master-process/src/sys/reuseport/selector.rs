//! An eBPF program that selects among the sockets of a group: `BPF_PROG_TYPE_SK_REUSEPORT`, bpf(2).
//!
//! Two maps belong to it. A `BPF_MAP_TYPE_REUSEPORT_SOCKARRAY` holds the member sockets by index; the kernel takes a
//! socket out when it closes. The selection is one value of 32-bit words: how many targets there are, then a list of
//! them, repeated until it has as many words as there can be members.
//!
//! A change of the selection is one copy of all words, which the program may read meanwhile. It needs no lock and no
//! order: every word of the list is a target of the old selection or of the new one, whichever count it is found with.
//! A word is never half of each: the kernel copies aligned memory by words. (Were it by bytes, indexes below 256 would
//! still be whole.)

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

/// The largest capacity: a selection of 256 KiB, and far more sockets than one address has.
pub const MAX_CAPACITY: u32 = 1 << 16;

/// How many targets the program tries in a row before it leaves the choice to the kernel. Eight closed targets beside
/// one another are more than crash together between two changes of the selection; each costs one lookup.
const TRIES: usize = 8;

/// `sk_reuseport_md.hash`, `<linux/bpf.h>`: of both addresses and ports.
const MD_HASH: i16 = 32;
/// `sk_reuseport_md.migrating_sk`: the listener that closes, or a half-open connection of it.
const MD_MIGRATING: i16 = 48;
/// What the program returns: the selected socket, or the kernel's choice where none was selected.
const SK_PASS: i32 = 1;

/// Where the list begins in the value, in words.
const LIST_AT: u32 = 1;
/// Bytes of a word.
const WORD: u32 = 4;
/// In the place of a target where there are none: beyond every capacity, so it finds no member.
const NO_TARGET: u32 = u32::MAX;

/// `bpf_sk_select_reuseport` is for programs under the GPL alone; the program is what [`program`] writes.
const LICENSE: &CStr = c"GPL";

/// Selects targets for one group of `SO_REUSEPORT` sockets.
///
/// A group keeps the program that is attached to it, and the program keeps both maps: dropping this, or the end of
/// the process, changes nothing for the group; it can only no longer be changed. A group ends with its last socket;
/// the next group of the same address needs [`Selector::attach`] again.
#[derive(Debug)]
pub struct Selector {
    sockets: Map,
    selection: Map,
    program: OwnedFd,
    capacity: u32,
}

impl Selector {
    /// Makes a selector without members and targets. `capacity` bounds the indexes of members and the number of
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

    /// Takes over the descriptors of a selector, as [`Selector::descriptors`] has them, from a process that executed
    /// this program. A selector made anew could not have the members of the old one: a socket is in one array only.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where they are not a selector's; those of [`Map::from_fd`].
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

    /// The maps of sockets and of the selection, and the program; all are close-on-exec.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.sockets.as_fd(), self.selection.as_fd(), self.program.as_fd()]
    }

    /// How many members there can be, and how many targets.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Makes a socket the member `index`, in place of the one that was. It stays until it closes, stops to listen, or
    /// [`Selector::remove`]. It gets nothing until it is a target.
    ///
    /// # Errors
    /// EINVAL for a socket that neither listens (TCP) nor is bound (UDP), or without `SO_REUSEPORT`. EBUSY if it is a
    /// member already, here under another index or of another selector. E2BIG for an index beyond the capacity.
    pub fn insert(&self, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let fd = u64::from(socket.as_raw_fd().cast_unsigned());
        self.sockets.update(&index.to_ne_bytes(), &fd.to_ne_bytes())
    }

    /// Ends a membership; an index without a member is left alone. If it is a target, its share goes to the next one.
    ///
    /// # Errors
    /// E2BIG for an index beyond the capacity. EPERM on old kernels where `CAP_BPF` was dropped since.
    pub fn remove(&self, index: u32) -> io::Result<()> {
        match self.sockets.delete(&index.to_ne_bytes()) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// From now on new connections go to the members of these indexes, in equal shares. The change is atomic: each
    /// connection comes to an old target or to a new one, and only to new ones once this returned. Where a target is
    /// no member the next ones of the list are tried, up to eight in all; without any, and without targets, the kernel
    /// chooses among the whole group.
    ///
    /// The queue of a listener that closes goes to the targets too.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for more targets than the capacity, or an index beyond it. EPERM as in
    /// [`Selector::remove`]. After an error the old targets hold.
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

    /// Has the program select for the whole group that `socket` belongs to, in place of the program that did. Needs no
    /// privilege.
    ///
    /// The socket must listen (TCP) or be bound (UDP). A TCP socket that takes a program earlier becomes a group of its
    /// own: its `listen` fails with EADDRINUSE where others listen.
    ///
    /// # Errors
    /// EINVAL where the socket is in no group: without `SO_REUSEPORT`, or where that was set while it listened already
    /// and no other has joined yet.
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
        // Wide enough for the socket's cookie, which a lookup returns.
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

/// Writes the program, in C:
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
/// It runs in the same way for a connection of a listener that closes: that one is no member any more.
///
/// Kernels before 5.14 load programs whatever attach type they expect, but refuse one that reads `migrating_sk`, which
/// they do not have.
///
/// Unrolled, because the verifier follows mispredicted branches too where `CAP_PERFMON` is missing, and does not find
/// the end of a loop then (tried on 6.18: EFAULT after thousands of rounds).
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
    for _ in 0..TRIES {
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

/// The registers that every try finds: what the program is asked about, the selection and its count, and the number
/// whose remainder is the place in the list.
const MD: Register = R6;
const VALUE: Register = R7;
const COUNT: Register = R9;
const AT: Register = R8;
/// What one try hands on.
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

/// Selects the member whose index `TARGET` has; `r0` is zero where there is one.
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
