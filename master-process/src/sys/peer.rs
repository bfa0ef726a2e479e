//! A look into another process, through `/proc`: what a waiting call's arguments mean.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::CapabilitySet;

/// The thread that made a call.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    thread: Pid,
}

/// A path that is longer does not exist.
const PATH_MAX: usize = 4096;
/// `/proc/PID/mem` is read in pieces that end with a page: the next page may not be mapped.
const PAGE: u64 = 4096;

/// Who a thread's file-system calls are made as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsIdentity {
    /// Its file-system user id.
    pub uid: u32,
    /// Its file-system group id.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// What it may do beyond that.
    pub capabilities: CapabilitySet,
}

impl Peer {
    /// The thread `thread`, which must wait for our answer for as long as this is used.
    pub fn new(thread: Pid) -> Peer {
        Peer { thread }
    }

    fn path(&self, what: &str) -> String {
        format!("/proc/{}/{what}", self.thread.as_raw_pid())
    }

    /// The inode number of the file behind a descriptor; for a socket, of the socket.
    ///
    /// # Errors
    /// ENOENT where the descriptor is not open, EACCES where we may not look.
    pub fn inode(&self, fd: RawFd) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path(&format!("fd/{fd}")))?.ino())
    }

    /// Whether any descriptor of this process is the socket with this inode number.
    ///
    /// # Errors
    /// As [`inode`](Self::inode).
    pub fn holds(&self, inode: u64) -> io::Result<bool> {
        Ok(self.sockets()?.iter().any(|(_, other)| *other == inode))
    }

    /// Its open sockets: descriptor and inode number.
    ///
    /// # Errors
    /// As [`inode`](Self::inode).
    pub fn sockets(&self) -> io::Result<Vec<(RawFd, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path("fd"))? {
            let entry = entry?;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            found.extend(number.zip(inode.and_then(|inode| inode.parse().ok())));
        }
        Ok(found)
    }

    /// What kind of socket a descriptor is, as the kernel names its protocol: `TCP`, `TCPv6`, `MPTCP`, `UDP`,
    /// `UNIX-STREAM`, and `UNIX` for the other Unix sockets.
    ///
    /// # Errors
    /// EOPNOTSUPP where it is no socket, and as [`inode`](Self::inode).
    pub fn protocol(&self, fd: RawFd) -> io::Result<String> {
        let mut value = [0u8; 64];
        let length =
            rustix::fs::getxattr(self.path(&format!("fd/{fd}")), "system.sockprotoname", &mut value[..])?;
        let name = value[..length].split(|byte| *byte == 0).next().unwrap_or_default();
        // Before Linux 5.15 Unix sockets of every kind have this name, and only the table of all of them tells.
        if name == b"UNIX" && self.is_unix_stream(self.inode(fd)?)? {
            return Ok("UNIX-STREAM".to_owned());
        }
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Whether the table of its network namespace has the Unix socket of this inode number as a stream.
    fn is_unix_stream(&self, inode: u64) -> io::Result<bool> {
        // A path is the bytes that a program gave, and need not be UTF-8.
        let table = std::fs::read(self.path("net/unix"))?;
        let mut lines = table.split(|byte| *byte == b'\n').skip(1).map(String::from_utf8_lossy);
        Ok(lines.any(|line| stream_inode(&line) == Some(inode)))
    }

    /// A copy of a descriptor: the same open file, in our table.
    ///
    /// # Errors
    /// EPERM and ENOSYS where pidfd_getfd(2) is denied, as container engines do; EBADF.
    pub fn copy(&self, fd: RawFd) -> io::Result<OwnedFd> {
        let pidfd = match pidfd_open(self.thread, PidfdFlags::empty()) {
            // Only the thread that a process began with gives a pidfd everywhere.
            Err(_) => pidfd_open(self.process()?, PidfdFlags::empty())?,
            Ok(pidfd) => pidfd,
        };
        Ok(pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())?)
    }

    fn process(&self) -> io::Result<Pid> {
        let status = std::fs::read_to_string(self.path("status"))?;
        field(&status, "Tgid:")
            .and_then(|number| Pid::from_raw(number.trim().parse().ok()?))
            .ok_or_else(|| io::Error::other("no Tgid in status"))
    }

    /// The `O_` flags of a descriptor, `O_CLOEXEC` among them.
    ///
    /// # Errors
    /// As [`inode`](Self::inode).
    pub fn flags(&self, fd: RawFd) -> io::Result<i32> {
        let info = std::fs::read_to_string(self.path(&format!("fdinfo/{fd}")))?;
        field(&info, "flags:")
            .and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok())
            .ok_or_else(|| io::Error::other("no flags in fdinfo"))
    }

    /// `length` bytes of its memory.
    ///
    /// # Errors
    /// EIO where that is not mapped, EACCES where we may not look (a process that is not dumpable).
    pub fn memory(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        File::open(self.path("mem"))?.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// The C string at an address.
    ///
    /// # Errors
    /// ENAMETOOLONG, and as [`memory`](Self::memory).
    pub fn string(&self, mut at: u64) -> io::Result<CString> {
        let memory = File::open(self.path("mem"))?;
        let mut bytes = Vec::new();
        while bytes.len() < PATH_MAX {
            let mut piece = vec![0; usize::try_from(PAGE - at % PAGE).unwrap_or(PATH_MAX)];
            memory.read_exact_at(&mut piece, at)?;
            at += piece.len() as u64;
            if let Some(end) = piece.iter().position(|byte| *byte == 0) {
                bytes.extend_from_slice(&piece[..end]);
                return CString::new(bytes).map_err(io::Error::other);
            }
            bytes.append(&mut piece);
        }
        Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// Whether it lives in our network namespace.
    ///
    /// # Errors
    /// EACCES where we may not look.
    pub fn shares_network(&self) -> io::Result<bool> {
        let ours = std::fs::metadata("/proc/self/ns/net")?;
        let theirs = std::fs::metadata(self.path("ns/net"))?;
        Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
    }

    /// Its root directory, and whether that is ours, in our mount namespace.
    ///
    /// # Errors
    /// EACCES where we may not look.
    pub fn root(&self) -> io::Result<(OwnedFd, bool)> {
        let root = open_directory(&self.path("root"))?;
        let same = |what: &str| -> io::Result<bool> {
            let (ours, theirs) =
                (std::fs::metadata(format!("/proc/self/{what}"))?, std::fs::metadata(self.path(what))?);
            Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
        };
        let ours = same("root")? && same("ns/mnt")?;
        Ok((root, ours))
    }

    /// The same as a path below its root, where that is not ours; `None` where it lies outside.
    pub fn base_below_root(&self, dir: RawFd) -> Option<PathBuf> {
        let base = if dir == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{dir}") };
        let (root, base) = (self.path("root"), self.path(&base));
        let (root, base) = (std::fs::read_link(root).ok()?, std::fs::read_link(base).ok()?);
        Some(base.strip_prefix(root).ok()?.to_owned())
    }

    /// What its relative paths are relative to: its working directory, or, where `dir` is a descriptor, that.
    ///
    /// # Errors
    /// EACCES where we may not look, ENOENT and ENOTDIR where `dir` is no directory.
    pub fn base(&self, dir: RawFd) -> io::Result<OwnedFd> {
        if dir == libc::AT_FDCWD {
            open_directory(&self.path("cwd"))
        } else {
            open_directory(&self.path(&format!("fd/{dir}")))
        }
    }

    /// Who it opens and creates files as.
    ///
    /// # Errors
    /// EACCES where we may not look.
    pub fn fs_identity(&self) -> io::Result<FsIdentity> {
        let status = std::fs::read_to_string(self.path("status"))?;
        // Four numbers: real, effective, saved, file system; see proc_pid_status(5).
        let fourth = |name| field(&status, name)?.split_whitespace().nth(3)?.parse().ok();
        let groups = field(&status, "Groups:").unwrap_or_default().split_whitespace();
        let groups = groups.filter_map(|group| group.parse().ok()).collect();
        let capabilities = field(&status, "CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let capabilities = CapabilitySet::from_bits_retain(capabilities.unwrap_or(0));
        match (fourth("Uid:"), fourth("Gid:")) {
            (Some(uid), Some(gid)) => Ok(FsIdentity { uid, gid, groups, capabilities }),
            _missing => Err(io::Error::other("no Uid or Gid in status")),
        }
    }
}

/// Whether sockets of other processes can be copied here at all.
pub fn can_copy() -> bool {
    let own = || -> io::Result<OwnedFd> {
        let pidfd = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        Ok(pidfd_getfd(&pidfd, std::os::fd::AsRawFd::as_raw_fd(&pidfd.as_fd()), PidfdGetfdFlags::empty())?)
    };
    own().is_ok()
}

fn open_directory(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The inode number in a line of `/proc/net/unix`, where that is of a stream: proc_net_unix(5).
fn stream_inode(line: &str) -> Option<u64> {
    // Num, RefCount, Protocol, Flags, Type, St, Inode, and a path where there is one.
    let mut fields = line.split_whitespace().skip(4);
    let kind = i32::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    (kind == libc::SOCK_STREAM).then_some(inode)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use std::os::fd::AsRawFd;

    #[test]
    fn the_kinds_of_unix_sockets_are_told_apart() {
        let me = Peer::new(rustix::process::getpid());
        let new =
            |kind| socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a socket");
        let (stream, datagram) = (new(SocketType::STREAM), new(SocketType::DGRAM));
        let kind = |fd: &OwnedFd| me.protocol(fd.as_raw_fd()).expect("our own can be looked at");
        assert_eq!((kind(&stream).as_str(), kind(&datagram).as_str()), ("UNIX-STREAM", "UNIX"));
        // What kernels that name all of them alike are asked.
        let listed =
            |fd: &OwnedFd| me.is_unix_stream(me.inode(fd.as_raw_fd()).expect("open")).expect("there");
        assert!(listed(&stream) && !listed(&datagram));
    }

    #[test]
    fn a_line_of_the_table_of_unix_sockets_is_read_by_its_fields() {
        let bound = "0000000000000000: 00000002 00000000 00010000 0001 01 25693 /run/a b.sock";
        assert_eq!(stream_inode(bound), Some(25693));
        assert_eq!(stream_inode("0000000000000000: 00000002 00000000 00000000 0001 01 25694"), Some(25694));
        assert_eq!(stream_inode("0000000000000000: 00000002 00000000 00000000 0002 01 25695"), None);
        assert_eq!(stream_inode(""), None);
    }
}
