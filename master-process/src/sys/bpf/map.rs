//! Maps: the memory of programs.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use aya_obj::generated::bpf_cmd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{address, blank, bpf, number, owned, short_name};

/// What a map is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapKind {
    /// `BPF_MAP_TYPE_…`.
    pub number: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many entries it holds.
    pub entries: u32,
    /// `BPF_F_…`.
    pub flags: u32,
}

impl MapKind {
    /// What the fdinfo of a map says.
    fn from_info(info: &str) -> Option<MapKind> {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let value = value.trim();
            value
                .strip_prefix("0x")
                .map_or_else(|| value.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
        };
        Some(MapKind {
            number: field("map_type")?,
            key_size: field("key_size")?,
            value_size: field("value_size")?,
            entries: field("max_entries")?,
            flags: field("map_flags")?,
        })
    }
}

/// A map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    kind: MapKind,
}

impl Map {
    /// Makes a map; at most 15 bytes of its name are kept.
    ///
    /// # Errors
    /// EPERM where we may not, or on kernels before 5.11 where the limit of locked memory is too low; ENOMEM.
    pub fn new(name: &str, kind: MapKind) -> io::Result<Map> {
        let mut attr = blank();
        // SAFETY: every member of the union is plain numbers, and all of it is zeroed.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = kind.number;
        create.key_size = kind.key_size;
        create.value_size = kind.value_size;
        create.max_entries = kind.entries;
        create.map_flags = kind.flags;
        create.map_name = short_name(name);
        // SAFETY: the command reads the attributes only, and these hold no address.
        let fd = owned(unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) })?;
        Ok(Map { fd, kind })
    }

    /// Takes over a map that another process made, or this one before it executed itself anew.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where the descriptor is not one of a map; those of reading
    /// `/proc/self/fdinfo`, proc_pid_fdinfo(5).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Map> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        let kind = MapKind::from_info(&info).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Map { fd, kind })
    }

    /// What it is.
    pub fn kind(&self) -> MapKind {
        self.kind
    }

    /// Sets an entry; a stack, whose keys have no bytes, gets one more.
    ///
    /// # Errors
    /// EINVAL where key or value have another size than the map's; E2BIG where it is full; see bpf(2).
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if key.len() != self.kind.key_size as usize || value.len() != self.kind.value_size as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = blank();
        // SAFETY: as in `Map::new`.
        let update = unsafe { &mut attr.__bindgen_anon_2 };
        update.map_fd = number(self.as_fd());
        update.key = if key.is_empty() { 0 } else { address(key) };
        update.__bindgen_anon_1.value = address(value);
        // SAFETY: both are borrowed for the call, and as long as the kernel takes them to be.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes an entry, of the kinds of map whose entries can be absent.
    ///
    /// # Errors
    /// ENOENT where there is none, E2BIG for an index beyond the map's end; EINVAL where the key has another size
    /// than the map's; see bpf(2).
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        if key.len() != self.kind.key_size as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = blank();
        // SAFETY: as in `Map::new`.
        let delete = unsafe { &mut attr.__bindgen_anon_2 };
        delete.map_fd = number(self.as_fd());
        delete.key = address(key);
        // SAFETY: the key is borrowed for the call, and as long as the kernel takes it to be.
        unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
    }

    /// Lets nobody write it through bpf(2) any more: the verifier takes what is in it for constant.
    ///
    /// # Errors
    /// See bpf(2).
    pub fn freeze(&self) -> io::Result<()> {
        let mut attr = blank();
        // SAFETY: as in `Map::new`.
        unsafe { &mut attr.__bindgen_anon_2 }.map_fd = number(self.as_fd());
        // SAFETY: the attributes hold no address.
        unsafe { bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr) }.map(drop)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

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
