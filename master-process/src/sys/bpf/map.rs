//! eBPF maps: the memory that programs share with user space.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use aya_obj::generated::bpf_cmd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{address, blank, bpf, number, owned, short_name};

/// The properties of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapKind {
    /// `BPF_MAP_TYPE_…`.
    pub number: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// The number of entries that it can hold.
    pub entries: u32,
    /// `BPF_F_…`.
    pub flags: u32,
}

impl MapKind {
    /// Parses the fdinfo of a map.
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

/// The types of a map's keys and values.
#[derive(Debug)]
pub struct Types<'a> {
    /// Loaded by [`load_types`].
    pub btf: BorrowedFd<'a>,
    /// The id of the keys' type.
    pub key: u32,
    /// The id of the values' type.
    pub value: u32,
}

/// Loads type information.
///
/// # Errors
/// EPERM without the privilege; EINVAL if the kernel does not accept it.
pub fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: as in `Map::new`.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf_size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    load.btf = address(bytes);
    // SAFETY: the bytes are borrowed for the call, which only reads them.
    owned(unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr) })
}

/// A map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    kind: MapKind,
}

impl Map {
    /// Creates a map. The kernel keeps at most 15 bytes of the name.
    ///
    /// # Errors
    /// EPERM without the privilege, or before Linux 5.11 if the limit of locked memory is too low; ENOMEM.
    pub fn new(name: &str, kind: MapKind) -> io::Result<Map> {
        Map::create(name, kind, None, None)
    }

    /// Creates a map whose values are maps like this one; an array may have another number of entries if it has
    /// `BPF_F_INNER_MAP`. A value is written as the number of a descriptor.
    ///
    /// # Errors
    /// Those of [`Map::new`]; EINVAL if the other map cannot be in a map.
    pub fn of_maps(name: &str, kind: MapKind, like: BorrowedFd<'_>) -> io::Result<Map> {
        Map::create(name, kind, None, Some(like))
    }

    /// Creates a map whose keys and values have these types: the kernel must find the timer in a value.
    ///
    /// # Errors
    /// Those of [`Map::new`]; EINVAL if the types do not fit the sizes.
    pub fn with_types(name: &str, kind: MapKind, types: &Types<'_>) -> io::Result<Map> {
        Map::create(name, kind, Some(types), None)
    }

    fn create(
        name: &str,
        kind: MapKind,
        types: Option<&Types<'_>>,
        inner: Option<BorrowedFd<'_>>,
    ) -> io::Result<Map> {
        let mut attr = blank();
        // SAFETY: every member of the union consists of numbers, and all of it is zeroed.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = kind.number;
        create.key_size = kind.key_size;
        create.value_size = kind.value_size;
        create.max_entries = kind.entries;
        create.map_flags = kind.flags;
        create.map_name = short_name(name);
        if let Some(Types { btf, key, value }) = types {
            create.btf_fd = number(*btf);
            (create.btf_key_type_id, create.btf_value_type_id) = (*key, *value);
        }
        if let Some(inner) = inner {
            create.inner_map_fd = number(inner);
        }
        // SAFETY: the command only reads the attributes, and they hold no address.
        let fd = owned(unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) })?;
        Ok(Map { fd, kind })
    }

    /// Takes ownership of a map that another process created, or this one before it executed itself again.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the descriptor is not a map; those of reading `/proc/self/fdinfo`,
    /// proc_pid_fdinfo(5).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Map> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        let kind = MapKind::from_info(&info).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Map { fd, kind })
    }

    /// Its properties.
    pub fn kind(&self) -> MapKind {
        self.kind
    }

    /// Sets an entry. For a stack, whose keys have no bytes, this adds one.
    ///
    /// # Errors
    /// EINVAL if key or value have a size other than the map's; E2BIG if the map is full; bpf(2).
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
        // SAFETY: both are borrowed for the call, and have the sizes that the kernel assumes.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Reads the value of a key into `value`; false if there is none.
    ///
    /// # Errors
    /// EINVAL if key or value have a size other than the map's; bpf(2).
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        if key.len() != self.kind.key_size as usize || value.len() != self.kind.value_size as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = blank();
        // SAFETY: as in `Map::new`.
        let lookup = unsafe { &mut attr.__bindgen_anon_2 };
        lookup.map_fd = number(self.as_fd());
        lookup.key = address(key);
        lookup.__bindgen_anon_1.value = value.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: both are borrowed for the call, with the sizes that the kernel assumes; it writes only the value.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an entry, for map types whose entries can be absent.
    ///
    /// # Errors
    /// ENOENT if there is none; E2BIG for an index beyond the map's end; EINVAL if the key has a size other than the
    /// map's; bpf(2).
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        if key.len() != self.kind.key_size as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = blank();
        // SAFETY: as in `Map::new`.
        let delete = unsafe { &mut attr.__bindgen_anon_2 };
        delete.map_fd = number(self.as_fd());
        delete.key = address(key);
        // SAFETY: the key is borrowed for the call, and has the size that the kernel assumes.
        unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
    }

    /// Sets `key` to the one that follows it, or to the first one if the map has no such key or `key` is `None`. Returns `None`
    /// after the last one.
    ///
    /// # Errors
    /// EINVAL for a map without keys; bpf(2).
    pub fn next_key<const LEN: usize>(&self, key: Option<[u8; LEN]>) -> io::Result<Option<[u8; LEN]>> {
        if LEN != self.kind.key_size as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut next = [0; LEN];
        let mut attr = blank();
        // SAFETY: as in `Map::new`.
        let find = unsafe { &mut attr.__bindgen_anon_2 };
        find.map_fd = number(self.as_fd());
        find.key = key.as_ref().map_or(0, |key| address(key));
        find.__bindgen_anon_1.next_key = next.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: both keys are borrowed for the call, with the size that the kernel assumes; it writes only the second.
        match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => Ok(Some(next)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A second descriptor of the map.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> io::Result<Map> {
        Ok(Map { fd: self.fd.try_clone()?, kind: self.kind })
    }

    /// Makes the map read-only for bpf(2): the verifier then treats its contents as constant.
    ///
    /// # Errors
    /// Those of bpf(2).
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

/// A type for memory that others can write at any time. Any bytes are a valid value, and it is accessed only through
/// shared references, as atomics are.
///
/// # Safety
/// The type must consist of atomics only.
pub unsafe trait Shared {}

/// The values of a map that was created with `BPF_F_MMAPABLE`. The memory lives as long as this value, even if the
/// map's descriptor is closed.
#[derive(Debug)]
pub struct Mapping<T: Shared> {
    base: NonNull<T>,
    entries: usize,
}

// SAFETY: the mapping belongs to the process, and its values are accessed as atomics.
unsafe impl<T: Shared> Send for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    /// Maps an array into memory.
    ///
    /// # Errors
    /// EINVAL if its values have another size; EPERM if it was not created for this; ENOMEM.
    pub fn new(map: &Map) -> io::Result<Mapping<T>> {
        let MapKind { value_size, entries, .. } = map.kind();
        // The kernel pads values of other sizes.
        if value_size as usize != size_of::<T>() || !size_of::<T>().is_multiple_of(8) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let entries = entries as usize;
        let (length, access) = (entries * size_of::<T>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address that the kernel chooses does not touch existing memory.
        let base = unsafe { mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, map.as_fd(), 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Mapping { base, entries })
    }
}

impl<T: Shared> Deref for Mapping<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has this length, is page-aligned, holds values of this size, and lives as long as this
        // value. Any bytes are a valid T, and by its contract others may write a T while references to it exist.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.entries) }
    }
}

impl<T: Shared> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping of this length, and no reference to it outlives the value.
        let _cannot_fail = unsafe { munmap(self.base.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}
