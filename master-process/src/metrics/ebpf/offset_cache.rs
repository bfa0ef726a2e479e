//! The offsets of the running kernel, kept until the next boot: to find them takes some ten milliseconds of CPU time,
//! which five hundred supervisors need not spend.
//!
//! A file is believed only if nobody but this user or root can have written it, and if it was made on this boot, from the
//! same type information, for these programs. A wrong one could make wrong numbers, and nothing else: the programs only read.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use master_process_common::{KernelOffsets, kfunc};
use rustix::fs::{Mode, OFlags};

use super::runtime::{self, is_trusted, open_directory};
use crate::sys::bpf::{bytes_of, bytes_of_mut};

/// What the programs have to know of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KernelTypes {
    pub(super) offsets: KernelOffsets,
    /// The ids of the functions that the programs call.
    pub(super) functions: [u32; kfunc::NAMES.len()],
}

const NAME: &str = "kernel-offsets";
/// More than a file has.
const MAX_LEN: usize = 1024;

/// What the offsets hold for: this boot, type information of this length, these programs, and this kind of PID namespace.
pub(super) fn key(types: &File, programs: &[u8], in_first_namespace: bool) -> Option<String> {
    let length = types.metadata().ok()?.len();
    let (boot, hash) = (runtime::boot_id()?, runtime::hash(programs));
    Some(format!("{boot} {length} {hash:016x} {in_first_namespace}\n"))
}

/// Reads the offsets; `None` if they are not there, or are not to be believed.
pub(super) fn read(key: &str) -> Option<KernelTypes> {
    read_from(Path::new(runtime::DIRECTORY), key)
}

fn read_from(directory: &Path, key: &str) -> Option<KernelTypes> {
    let directory = open_directory(directory)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(&directory, NAME, flags, Mode::empty()).ok()?);
    if !is_trusted(&file) || !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_LEN as u64).read_to_end(&mut bytes).ok()?;
    let rest = bytes.strip_prefix(key.as_bytes())?;
    let mut types = KernelTypes { offsets: KernelOffsets::UNSET, functions: [0; kfunc::NAMES.len()] };
    let (offsets, functions) = rest.split_at_checked(size_of::<KernelOffsets>())?;
    bytes_of_mut(&mut types.offsets).copy_from_slice(offsets);
    let functions = functions.chunks_exact(4).map(|id| id.try_into().map(u32::from_ne_bytes));
    let functions: Vec<u32> = functions.collect::<Result<_, _>>().ok()?;
    types.functions = functions.try_into().ok()?;
    Some(types)
}

/// Keeps the offsets for other supervisors, if possible.
pub(super) fn write(key: &str, types: &KernelTypes) {
    if let Err(error) = write_to(Path::new(runtime::DIRECTORY), key, types) {
        tracing::debug!("the offsets of the kernel are not kept: {error}");
    }
}

fn write_to(path: &Path, key: &str, types: &KernelTypes) -> std::io::Result<()> {
    let Some(directory) = open_directory(path) else {
        return Err(std::io::Error::other("the directory is not there, or others can write to it"));
    };
    let own_name = format!("{NAME}.{}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    // One that a killed supervisor left has the same name.
    let _absent = rustix::fs::unlinkat(&directory, &own_name, rustix::fs::AtFlags::empty());
    let mut file = File::from(rustix::fs::openat(&directory, &own_name, flags, mode)?);
    let mut bytes = key.as_bytes().to_vec();
    bytes.extend(bytes_of(&types.offsets));
    bytes.extend(types.functions.iter().flat_map(|id| id.to_ne_bytes()));
    let written = file
        .write_all(&bytes)
        .and_then(|()| Ok(rustix::fs::renameat(&directory, &own_name, &directory, NAME)?));
    if written.is_err() {
        let _absent = rustix::fs::unlinkat(&directory, &own_name, rustix::fs::AtFlags::empty());
    }
    written
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn types() -> KernelTypes {
        let offsets = KernelOffsets { task_mm: 17, word: 4711, ..KernelOffsets::UNSET };
        KernelTypes { offsets, functions: [1, 2, 3, 4, 5, 6, 7] }
    }

    #[test]
    fn what_was_kept_is_read_on_the_same_boot_only() {
        let directory = tempfile::tempdir().expect("a directory");
        write_to(directory.path(), "boot 1\n", &types()).expect("a file");
        assert_eq!(read_from(directory.path(), "boot 1\n"), Some(types()));
        assert_eq!(read_from(directory.path(), "boot 2\n"), None);
        write_to(directory.path(), "boot 2\n", &types()).expect("it is replaced");
        assert_eq!(read_from(directory.path(), "boot 2\n"), Some(types()));
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 1);
    }

    #[test]
    fn a_file_that_others_can_have_written_is_not_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        write_to(directory.path(), "boot\n", &types()).expect("a file");
        let file = directory.path().join(NAME);
        let chmod =
            |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
        chmod(&file, 0o664);
        assert_eq!(read_from(directory.path(), "boot\n"), None);
        chmod(&file, 0o644);
        assert!(read_from(directory.path(), "boot\n").is_some());
        chmod(directory.path(), 0o777);
        assert_eq!(read_from(directory.path(), "boot\n"), None);
        assert!(write_to(directory.path(), "boot\n", &types()).is_err());
        chmod(directory.path(), 0o755);
        std::fs::rename(&file, directory.path().join("other")).expect("a rename");
        symlink("other", &file).expect("a link");
        assert_eq!(read_from(directory.path(), "boot\n"), None);
    }

    #[test]
    fn a_file_of_another_length_is_not_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        write_to(directory.path(), "boot\n", &types()).expect("a file");
        let file = directory.path().join(NAME);
        let whole = std::fs::read(&file).expect("a file");
        for len in 0..whole.len() {
            std::fs::write(&file, &whole[..len]).expect("ours");
            assert_eq!(read_from(directory.path(), "boot\n"), None, "{len}");
        }
        std::fs::write(&file, [whole.as_slice(), &[0; 4]].concat()).expect("ours");
        assert_eq!(read_from(directory.path(), "boot\n"), None);
    }
}
