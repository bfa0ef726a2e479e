//! Another process as `/proc` shows it: what the arguments of an intercepted call mean.
//!
//! The parsers of `status`, `fdinfo` and `net/unix` are our own and not those of the procfs crate, which reject what is not
//! UTF-8 and read without a bound: the worker decides about both. See docs/decisions/proc.md.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::OnceLock;

use super::fs_identity::FsIdentity;
use super::remote_read::{CALLS, Reader};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::CapabilitySet;

/// A pinned thread. One handle of its directory in `/proc` serves all reads, so none of them can reach a later process
/// with the same number.
#[derive(Debug)]
pub struct Peer {
    thread: Pid,
    proc: OwnedFd,
}

/// The longest path that the kernel accepts.
const PATH_MAX: usize = 4096;
/// The part of an environment that is read.
const ENVIRONMENT_MAX: u64 = 64 * 1024;
/// The longest text that is read of a file in `/proc/PID`. `status` with 65,536 groups, the kernel's limit, has 720 kB;
/// an epoll instance with 4,096 entries has 370 kB in `fdinfo`.
const TEXT_MAX: u64 = 1024 * 1024;
/// Reads of `/proc/PID/mem` end at a page boundary, because the next page may not be mapped.
const PAGE: u64 = 4096;
/// `PIDFD_THREAD`, Linux 6.9: a pidfd of a thread that is not the first of its process. Its descriptor table can differ
/// from the process's.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());

/// The variables that a process was started with.
#[derive(Debug, Clone, Default)]
pub struct Environment(Vec<Vec<u8>>);

impl Environment {
    /// Parses `NAME=VALUE` entries that end with a zero byte: proc_pid_environ(5).
    #[must_use]
    pub fn new(bytes: &[u8]) -> Environment {
        Environment(bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
    }

    /// The value of a variable; the first one if the name occurs more than once.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    /// The value of a variable as a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u32> {
        std::str::from_utf8(self.get(name)?).ok()?.parse().ok()
    }
}

/// Shows which system call a thread is in: proc_pid_syscall(5).
#[derive(Debug)]
pub struct CallWatch(File);

impl CallWatch {
    /// Whether the thread may be in one of these calls. The kernel does not show the call of a thread that is running.
    #[must_use]
    pub fn may_be_in(&self, calls: &[i64]) -> bool {
        let mut text = [0; 64];
        let Ok(length) = self.0.read_at(&mut text, 0) else { return false };
        let text = String::from_utf8_lossy(&text[..length]);
        let first = text.split_whitespace().next().unwrap_or_default();
        first == "running" || first.parse().is_ok_and(|call| calls.contains(&call))
    }
}

impl Peer {
    /// Pins a thread. If it waits in an intercepted call, the caller must check afterwards that the call still waits:
    /// only then is it certain that the right thread was pinned.
    ///
    /// # Errors
    /// ENOENT if the thread is gone, EMFILE.
    pub fn open(thread: Pid) -> io::Result<Peer> {
        let path = format!("/proc/{}", thread.as_raw_pid());
        Ok(Peer { thread, proc: open_directory(&path)? })
    }

    /// The metadata of the target of an entry of its directory.
    fn stat(&self, entry: &str) -> io::Result<rustix::fs::Stat> {
        Ok(rustix::fs::statat(&self.proc, entry, AtFlags::empty())?)
    }

    fn file(&self, entry: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.proc, entry, flags, Mode::empty())?.into())
    }

    /// The first [`TEXT_MAX`] bytes of a file of its directory. Bytes that are not UTF-8 are replaced.
    fn text(&self, entry: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(self.file(entry)?, TEXT_MAX), &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn directory(&self, entry: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.proc, entry, flags, Mode::empty())?)
    }

    fn link(&self, entry: &str) -> io::Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let target = rustix::fs::readlinkat(&self.proc, entry, Vec::new())?;
        Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }

    /// The inode number of the file of a descriptor; for a socket, the socket's.
    ///
    /// # Errors
    /// ENOENT if the descriptor is not open, EACCES if we may not inspect it.
    pub fn inode(&self, fd: RawFd) -> io::Result<u64> {
        Ok(self.stat(&format!("fd/{fd}"))?.st_ino)
    }

    /// Its descriptors and the targets of their links in `/proc/PID/fd`.
    fn descriptors(&self) -> io::Result<impl Iterator<Item = io::Result<(RawFd, Vec<u8>)>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.proc, "fd", flags, Mode::empty())?;
        Ok(Dir::read_from(&directory)?.filter_map(move |entry| {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            let number = entry.file_name().to_str().ok()?.parse().ok()?;
            // A descriptor that was closed meanwhile has no target.
            let target = rustix::fs::readlinkat(&directory, entry.file_name(), Vec::new());
            Some(Ok((number, target.unwrap_or_default().into_bytes())))
        }))
    }

    /// Its open sockets, at most `most`: descriptors and inode numbers.
    ///
    /// # Errors
    /// Those of [`inode`](Self::inode).
    pub fn sockets(&self, most: usize) -> io::Result<Vec<(RawFd, u64)>> {
        let mut found = Vec::new();
        for descriptor in self.descriptors()? {
            let (fd, target) = descriptor?;
            found.extend(socket_inode(&target).map(|inode| (fd, inode)));
            if found.len() >= most {
                break;
            }
        }
        Ok(found)
    }

    /// Its epoll instances.
    ///
    /// # Errors
    /// Those of [`inode`](Self::inode), and E2BIG if it has more than `most` descriptors.
    pub fn epolls(&self, most: usize) -> io::Result<Vec<RawFd>> {
        let mut found = Vec::new();
        for (count, descriptor) in self.descriptors()?.enumerate() {
            if count >= most {
                return Err(io::Error::from_raw_os_error(libc::E2BIG));
            }
            let (fd, target) = descriptor?;
            if target == b"anon_inode:[eventpoll]" {
                found.push(fd);
            }
        }
        Ok(found)
    }

    /// The text of `/proc/PID/fdinfo` for a descriptor.
    ///
    /// # Errors
    /// Those of [`inode`](Self::inode).
    pub fn descriptor_info(&self, fd: RawFd) -> io::Result<String> {
        self.text(&format!("fdinfo/{fd}"))
    }

    /// The kernel's name of a socket's protocol: `TCP`, `TCPv6`, `MPTCP`, `UDP`, `UNIX-STREAM`, and `UNIX` for other
    /// Unix sockets.
    ///
    /// # Errors
    /// EOPNOTSUPP if the descriptor is not a socket, and those of [`inode`](Self::inode).
    pub fn protocol(&self, fd: RawFd) -> io::Result<String> {
        let mut value = [0u8; 64];
        // getxattrat(2) needs Linux 6.13. The path of our handle leads to the pinned directory.
        let path = format!("/proc/self/fd/{}/fd/{fd}", std::os::fd::AsRawFd::as_raw_fd(&self.proc));
        let length = rustix::fs::getxattr(path, "system.sockprotoname", &mut value[..])?;
        let name = value[..length].split(|byte| *byte == 0).next().unwrap_or_default();
        // Before Linux 5.15 all Unix sockets have this name, and only the table of Unix sockets has the type.
        if name == b"UNIX" && self.is_unix_stream(self.inode(fd)?)? {
            return Ok("UNIX-STREAM".to_owned());
        }
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Whether the table of its network namespace lists the Unix socket with this inode number as a stream.
    fn is_unix_stream(&self, inode: u64) -> io::Result<bool> {
        // The table is read line by line: its length depends on the host. A path can have bytes that are not UTF-8.
        for line in io::BufRead::split(io::BufReader::new(self.file("net/unix")?), b'\n') {
            if stream_inode(&String::from_utf8_lossy(&line?)) == Some(inode) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Duplicates a descriptor of the thread: the same open file description, in our table.
    ///
    /// # Errors
    /// EPERM and ENOSYS if pidfd_getfd(2) is denied, as by container engines; EBADF; ESTALE if the process has another
    /// file under this number than the thread, whose descriptor table can differ.
    pub fn copy(&self, fd: RawFd) -> io::Result<OwnedFd> {
        let pidfd = pidfd_open(self.thread, PidfdFlags::empty())
            .or_else(|_| pidfd_open(self.thread, PIDFD_THREAD))
            .or_else(|_| Ok::<_, io::Error>(pidfd_open(self.process()?, PidfdFlags::empty())?))?;
        let copy = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())?;
        if rustix::fs::fstat(&copy)?.st_ino == self.inode(fd)? {
            return Ok(copy);
        }
        super::deferred_close::close_async(copy);
        Err(io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// The process of the thread.
    ///
    /// # Errors
    /// ESRCH if it is gone.
    pub fn process(&self) -> io::Result<Pid> {
        field(&self.text("status")?, "Tgid:")
            .and_then(|number| Pid::from_raw(number.trim().parse().ok()?))
            .ok_or_else(|| io::Error::other("no Tgid in status"))
    }

    /// The `O_` flags of a descriptor, including `O_CLOEXEC`.
    ///
    /// # Errors
    /// Those of [`inode`](Self::inode).
    pub fn flags(&self, fd: RawFd) -> io::Result<i32> {
        field(&self.descriptor_info(fd)?, "flags:")
            .and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok())
            .ok_or_else(|| io::Error::other("no flags in fdinfo"))
    }

    /// Reads `length` bytes of its memory.
    ///
    /// # Errors
    /// EIO if the address is not mapped, EACCES if we may not inspect it (a process that is not dumpable), ETIMEDOUT if the
    /// memory belongs to a file that cannot be read in time.
    pub fn memory(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let memory = self.file("mem")?;
        CALLS.read(move || {
            let mut bytes = vec![0; length];
            memory.read_exact_at(&mut bytes, at)?;
            Ok(bytes)
        })
    }

    /// Reads a C string from its memory.
    ///
    /// # Errors
    /// ENAMETOOLONG, and those of [`memory`](Self::memory).
    pub fn string(&self, at: u64) -> io::Result<CString> {
        let memory = self.file("mem")?;
        let bytes = CALLS.read(move || read_string(&memory, at))?;
        CString::new(bytes).map_err(io::Error::other)
    }

    /// The variables that it was started with, at most 64 KiB of them.
    ///
    /// # Errors
    /// EACCES if we may not inspect it, ETIMEDOUT if it is in a file whose file system does not answer.
    pub fn environment(&self) -> io::Result<Environment> {
        self.environment_by(&CALLS)
    }

    /// The same, with the reader of another purpose than a waiting call's.
    ///
    /// # Errors
    /// As [`environment`](Self::environment), and EAGAIN if that reader is exhausted.
    pub fn environment_by(&self, reader: &'static Reader) -> io::Result<Environment> {
        // The environment is in the memory of the process.
        let environment = io::Read::take(self.file("environ")?, ENVIRONMENT_MAX);
        let bytes = reader.read(move || {
            let (mut environment, mut bytes) = (environment, Vec::new());
            io::Read::read_to_end(&mut environment, &mut bytes)?;
            Ok(bytes)
        })?;
        Ok(Environment::new(&bytes))
    }

    /// Whether it is in our network namespace.
    ///
    /// # Errors
    /// EACCES if we may not inspect it.
    pub fn shares_network(&self) -> io::Result<bool> {
        static OURS: OnceLock<Option<(u64, u64)>> = OnceLock::new();
        self.shares("ns/net", &OURS)
    }

    /// Whether it is in our user namespace. User ids and capabilities of another one are valid only inside it;
    /// user_namespaces(7).
    ///
    /// # Errors
    /// EACCES if we may not inspect it.
    pub fn shares_users(&self) -> io::Result<bool> {
        static OURS: OnceLock<Option<(u64, u64)>> = OnceLock::new();
        self.shares("ns/user", &OURS)
    }

    /// Whether it is in our PID namespace, so its own pid is the one that we have.
    ///
    /// # Errors
    /// EACCES if we may not inspect it.
    pub fn shares_pids(&self) -> io::Result<bool> {
        static OURS: OnceLock<Option<(u64, u64)>> = OnceLock::new();
        self.shares("ns/pid", &OURS)
    }

    /// Its real user id.
    ///
    /// # Errors
    /// ESRCH if it is gone.
    pub fn real_uid(&self) -> io::Result<u32> {
        let status = self.text("status")?;
        let first =
            field(&status, "Uid:").and_then(|numbers| numbers.split_whitespace().next()?.parse().ok());
        first.ok_or_else(|| io::Error::other("no Uid in status"))
    }

    /// Whether it runs the same file as this process, or a program with the name of this one.
    pub fn is_supervisor(&self) -> bool {
        const NAME: &str = "master-process";
        let ours = std::fs::metadata("/proc/self/exe").ok().map(|file| (file.dev(), file.ino()));
        let theirs = self.stat("exe").ok().map(|file| (file.st_dev, file.st_ino));
        let program = self.link("exe").ok();
        let is_called_so = match program.as_deref().and_then(std::path::Path::file_name) {
            Some(name) => name.to_string_lossy().starts_with(NAME),
            // Without permission to read `exe`, the name that `ps` shows decides.
            None => self.text("comm").is_ok_and(|name| name.trim_end().starts_with(NAME)),
        };
        is_called_so || (theirs.is_some() && ours == theirs)
    }

    /// Compares a namespace with ours. The supervisor never changes its namespaces, so its own are read once.
    fn shares(&self, namespace: &str, ours: &OnceLock<Option<(u64, u64)>>) -> io::Result<bool> {
        let ours = ours.get_or_init(|| {
            let metadata = std::fs::metadata(format!("/proc/self/{namespace}")).ok()?;
            Some((metadata.dev(), metadata.ino()))
        });
        let theirs = self.stat(namespace)?;
        Ok(*ours == Some((theirs.st_dev, theirs.st_ino)))
    }

    /// A handle that shows whether the thread is still in its current call.
    ///
    /// # Errors
    /// EACCES if we may not inspect it, ENOENT if the kernel does not have the file.
    pub fn watch_call(&self) -> io::Result<CallWatch> {
        self.file("syscall").map(CallWatch)
    }

    /// Its root directory, and whether it has our root and our mount namespace.
    ///
    /// # Errors
    /// EACCES if we may not inspect it.
    pub fn root(&self) -> io::Result<(OwnedFd, bool)> {
        let root = self.directory("root")?;
        let same = |what: &str| -> io::Result<bool> {
            let ours = std::fs::metadata(format!("/proc/self/{what}"))?;
            let theirs = self.stat(what)?;
            Ok((ours.dev(), ours.ino()) == (theirs.st_dev, theirs.st_ino))
        };
        let ours = same("root")? && same("ns/mnt")?;
        Ok((root, ours))
    }

    /// The path of [`base`](Self::base) below its root directory; `None` if it is outside.
    pub fn base_below_root(&self, dir: RawFd) -> Option<PathBuf> {
        let (root, base) = (self.link("root").ok()?, self.link(&base(dir)).ok()?);
        Some(base.strip_prefix(root).ok()?.to_owned())
    }

    /// The directory that its relative paths start at: the directory of descriptor `dir`, or the working directory for
    /// `AT_FDCWD`.
    ///
    /// # Errors
    /// EACCES if we may not inspect it; ENOENT and ENOTDIR if `dir` is not a directory.
    pub fn base(&self, dir: RawFd) -> io::Result<OwnedFd> {
        self.directory(&base(dir))
    }

    /// The identity that the kernel checks its file-system calls against.
    ///
    /// # Errors
    /// EACCES if we may not inspect it.
    pub fn fs_identity(&self) -> io::Result<FsIdentity> {
        let status = self.text("status")?;
        // Each line has four ids: real, effective, saved, file system; proc_pid_status(5).
        let fourth = |name| field(&status, name)?.split_whitespace().nth(3)?.parse().ok();
        let groups = field(&status, "Groups:").unwrap_or_default().split_whitespace();
        let groups = groups.filter_map(|group| group.parse().ok()).collect();
        let capabilities = field(&status, "CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let capabilities = CapabilitySet::from_bits_retain(capabilities.unwrap_or(0));
        let umask = field(&status, "Umask:").and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
        match (fourth("Uid:"), fourth("Gid:"), umask) {
            (Some(uid), Some(gid), Some(umask)) => Ok(FsIdentity { uid, gid, groups, capabilities, umask }),
            _missing => Err(io::Error::other("no Uid, Gid or Umask in status")),
        }
    }
}

/// Reads the bytes before the first zero byte.
fn read_string(memory: &File, mut at: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < PATH_MAX {
        let mut piece = vec![0; usize::try_from(PAGE - at % PAGE).unwrap_or(PATH_MAX)];
        memory.read_exact_at(&mut piece, at)?;
        at += piece.len() as u64;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&piece[..end]);
            return Ok(bytes);
        }
        bytes.append(&mut piece);
    }
    Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
}

fn base(dir: RawFd) -> String {
    if dir == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{dir}") }
}

/// Duplicates a descriptor of this process in the way in which [`Peer::copy`] duplicates those of other processes.
///
/// # Errors
/// EPERM and ENOSYS if pidfd_getfd(2) is denied, as by container engines.
pub fn try_to_copy() -> io::Result<()> {
    let pidfd = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let own = std::os::fd::AsRawFd::as_raw_fd(&pidfd.as_fd());
    Ok(pidfd_getfd(&pidfd, own, PidfdGetfdFlags::empty()).map(drop)?)
}

fn open_directory(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The inode number in the target of a socket's link in `/proc/PID/fd`.
fn socket_inode(target: &[u8]) -> Option<u64> {
    std::str::from_utf8(target).ok()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inode number in a line of `/proc/net/unix` if the socket is a stream: proc_net_unix(5).
fn stream_inode(line: &str) -> Option<u64> {
    // The fields are Num, RefCount, Protocol, Flags, Type, St, Inode, and an optional path.
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

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = Environment::new(b"A_B=1\0A=x=y\0A=2\0EMPTY=\0NUMBER=42\0");
        assert_eq!(environment.get("A"), Some(&b"x=y"[..]), "the first");
        assert_eq!((environment.get("EMPTY"), environment.get("B")), (Some(&b""[..]), None));
        assert_eq!((environment.number("NUMBER"), environment.number("EMPTY")), (Some(42), None));
    }
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_thread_is_seen_in_its_call_until_that_is_over() {
        use std::io::{Read, Write};
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            sender.send(rustix::thread::gettid()).expect("the test waits");
            reader.read_exact(&mut [0]).expect("a byte comes");
            std::thread::park();
        });
        let watch =
            Peer::open(receiver.recv().expect("it runs")).and_then(|peer| peer.watch_call()).expect("ours");
        let shown = || {
            let mut text = [0; 64];
            let length = watch.0.read_at(&mut text, 0).expect("it lives");
            String::from_utf8_lossy(&text[..length]).into_owned()
        };
        let wait_for = |call: i64| {
            let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while !shown().starts_with(&format!("{call} ")) {
                assert!(std::time::Instant::now() < end, "{}", shown());
                std::thread::yield_now();
            }
        };
        wait_for(libc::SYS_read);
        assert!(watch.may_be_in(&[libc::SYS_unlink, libc::SYS_read]));
        writer.write_all(b"x").expect("it reads");
        wait_for(libc::SYS_futex);
        assert!(!watch.may_be_in(&[libc::SYS_unlink, libc::SYS_read]));
        thread.thread().unpark();
        thread.join().expect("it ends");
        assert!(!watch.may_be_in(&[libc::SYS_unlink, libc::SYS_read]), "it is gone");
    }

    #[test]
    fn a_name_that_is_cut_inside_a_character_does_not_hide_the_rest_of_the_status() {
        let name = CString::new("\u{e9}".repeat(9)).expect("no zero byte");
        let thread = std::thread::spawn(move || {
            rustix::thread::set_name(&name).expect("its own name");
            let me = Peer::open(rustix::thread::gettid()).expect("we live");
            let shown = std::fs::read(format!("/proc/{}/status", me.thread.as_raw_pid())).expect("there");
            assert!(std::str::from_utf8(&shown).is_err(), "the kernel cuts it after 15 bytes");
            (me.process().ok(), me.fs_identity().ok().map(|identity| identity.uid), me.real_uid().ok())
        });
        let uid = rustix::process::getuid().as_raw();
        let expected = (Some(rustix::process::getpid()), Some(uid), Some(uid));
        assert_eq!(thread.join().expect("it ends"), expected);
    }

    #[test]
    fn the_kinds_of_unix_sockets_are_told_apart() {
        let me = Peer::open(rustix::process::getpid()).expect("we live");
        let new =
            |kind| socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a socket");
        let (stream, datagram) = (new(SocketType::STREAM), new(SocketType::DGRAM));
        let kind = |fd: &OwnedFd| me.protocol(fd.as_raw_fd()).expect("our own can be inspected");
        assert_eq!((kind(&stream).as_str(), kind(&datagram).as_str()), ("UNIX-STREAM", "UNIX"));
        // The fallback for kernels that have one name for all Unix sockets.
        let listed =
            |fd: &OwnedFd| me.is_unix_stream(me.inode(fd.as_raw_fd()).expect("open")).expect("there");
        assert!(listed(&stream) && !listed(&datagram));
    }

    #[test]
    fn sockets_and_epoll_instances_are_found_up_to_a_limit() {
        let me = Peer::open(rustix::process::getpid()).expect("we live");
        let new = || socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (one, _other) = (new().expect("a socket"), new().expect("a socket"));
        let epoll =
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let inode = crate::sys::sockets::inode(one.as_fd()).expect("open");
        assert!(me.sockets(usize::MAX).expect("our own").contains(&(one.as_raw_fd(), inode)));
        assert_eq!(me.sockets(1).expect("our own").len(), 1);
        let epolls = me.epolls(4096).expect("our own");
        assert!(epolls.contains(&epoll.as_raw_fd()) && !epolls.contains(&one.as_raw_fd()));
        assert_eq!(me.epolls(1).expect_err("there are more").raw_os_error(), Some(libc::E2BIG));
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
