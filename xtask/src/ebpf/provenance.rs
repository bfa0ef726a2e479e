//! What an object was made from, and with.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

/// Everything that decides what is in the object, but for the tools.
const SOURCES: [&str; 5] = [
    "master-process-ebpf/Cargo.toml",
    "master-process-ebpf/Cargo.lock",
    "master-process-ebpf/src",
    "master-process-common/Cargo.toml",
    "master-process-common/src",
];

/// As it stands beside the object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Provenance {
    /// A hash of the source. It detects a forgotten build, not a forged one: with the same tools, the bytes are compared.
    pub(super) source: String,
    /// The compiler and the linker.
    pub(super) tools: String,
}

impl Provenance {
    /// Of the source as it is now, and of what these tools say of themselves.
    pub(super) fn of_source(root: &Path, versions: &[Option<String>]) -> Result<Provenance> {
        let mut files = Vec::new();
        for source in SOURCES {
            collect(root, Path::new(source), &mut files)?;
        }
        let mut hash = Hash::new();
        for (name, bytes) in files {
            // With their lengths, so that nothing can pass from one file to the next unseen.
            hash.add(&name.len().to_le_bytes());
            hash.add(name.as_bytes());
            hash.add(&bytes.len().to_le_bytes());
            hash.add(&bytes);
        }
        let versions = versions.iter().map(|version| version.as_deref().unwrap_or("unknown").trim());
        Ok(Provenance { source: format!("{:016x}", hash.0), tools: versions.collect::<Vec<_>>().join(", ") })
    }

    /// Reads what [`Display`](fmt::Display) has written.
    pub(super) fn parse(text: &str) -> Option<Provenance> {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some(Provenance { source: value("source: ")?, tools: value("tools: ")? })
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "What programs.bpf.o was made from and with; `cargo xtask ebpf` writes both.")?;
        writeln!(f, "source: {}", self.source)?;
        writeln!(f, "tools: {}", self.tools)
    }
}

/// Adds a file, or every file below a folder in the order of their names.
fn collect(root: &Path, name: &Path, files: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let path = root.join(name);
    let what = || format!("reading {}", path.display());
    if path.is_dir() {
        let entries: std::io::Result<Vec<_>> = path.read_dir().with_context(what)?.collect();
        let mut names: Vec<_> =
            entries.with_context(what)?.iter().map(std::fs::DirEntry::file_name).collect();
        names.sort();
        return names.iter().try_for_each(|entry| collect(root, &name.join(entry), files));
    }
    files.push((name.to_string_lossy().into_owned(), std::fs::read(&path).with_context(what)?));
    Ok(())
}

/// FNV-1a of 64 bits.
struct Hash(u64);

impl Hash {
    fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hash, Provenance};

    #[test]
    fn what_is_written_is_read_again() {
        let provenance = Provenance { source: "0123".to_owned(), tools: "a 1, b 2".to_owned() };
        assert_eq!(Provenance::parse(&provenance.to_string()), Some(provenance));
        assert_eq!(Provenance::parse("source: 0123\n"), None);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        let mut hash = Hash::new();
        hash.add(b"foobar");
        assert_eq!(hash.0, 0x8594_4171_f739_67e8);
    }
}
