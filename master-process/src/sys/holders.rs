//! Finds the processes that have a socket open. The search reads whole descriptor tables, so it takes too long for the
//! loop.

use std::collections::HashSet;
use std::fs::{read_dir, read_link};
use std::net::SocketAddr;
use std::os::fd::{AsFd, RawFd};
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;

use super::deferred_close::close_async;
use super::peer::Peer;
use super::{children, sockets};

/// The result of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// This thread has the socket open under this descriptor.
    Found(Pid, RawFd),
    /// An adopted process has it open, and the worker of that process is unknown.
    Unowned,
    /// No process of the tree has it open.
    NoProcess,
    /// Unknown: a descriptor table is not readable, or the tree is too large.
    Unknown,
}

/// The worker that a child of the supervisor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It belongs to the worker of the search.
    Scanned,
    /// It is another worker, or belongs to one.
    Another,
    /// It is an adopted process, and its worker is unknown.
    Unknown,
}

/// The number of processes that one search examines. If a worker has more, the socket it closed stays registered.
const MAX_PROCESSES: usize = 4096;
/// The number of descriptors that one search examines. This takes about a second.
const MAX_DESCRIPTORS: usize = 400_000;
/// The number of sockets of one process that are searched for listeners.
const DESCRIPTORS_FOR_LISTENERS: usize = 256;
/// The number of threads of one process that are examined. Each can have its own descriptor table.
const MAX_THREADS: usize = 4096;

/// How often, and after which time, a search is repeated while a process of the tree has descriptors on their way to it: nobody
/// has them open until it receives them.
const TRIES: u32 = 20;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// Searches for the socket with this inode number in two groups of processes: `root`, if any, and its descendants; and
/// the children of the supervisor that, according to `whose`, do not belong to another worker.
pub fn find(inode: u64, root: Option<Pid>, whose: impl Fn(Pid) -> Whose) -> Holder {
    let mut is_certain = false;
    for _ in 0..TRIES {
        let (found, processes) = find_once(inode, root, &whose);
        if found != Holder::NoProcess || is_certain {
            return found;
        }
        if are_on_their_way(&processes) {
            std::thread::sleep(TRY_AGAIN_AFTER);
        } else {
            // It may have been received since its new process was examined.
            is_certain = true;
        }
    }
    Holder::Unknown
}

/// The same, once. Returns the processes that were examined, too.
fn find_once(inode: u64, root: Option<Pid>, whose: impl Fn(Pid) -> Whose) -> (Holder, HashSet<Pid>) {
    let mut walk = Walk::new(&[inode], MAX_DESCRIPTORS);
    let (mut own, mut unowned) = (Vec::from_iter(root), Vec::new());
    for child in children::ours() {
        match whose(child) {
            Whose::Scanned => own.push(child),
            Whose::Another => {}
            Whose::Unknown => unowned.push(child),
        }
    }
    let found = match walk.trees(own) {
        Some((thread, fd)) => Holder::Found(thread, fd),
        None => match walk.trees(unowned) {
            Some(_) => Holder::Unowned,
            None if walk.unknown => Holder::Unknown,
            None => Holder::NoProcess,
        },
    };
    (found, walk.seen)
}

/// The number of sockets that are asked whether descriptors are on their way to them.
const MAX_RECEIVERS: usize = 4096;

/// Whether a socket of one of these processes has messages with descriptors in its queue: `scm_fds` of proc_pid_fdinfo(5), since
/// Linux 5.6.
fn are_on_their_way(processes: &HashSet<Pid>) -> bool {
    let mut left = MAX_RECEIVERS;
    processes.iter().any(|process| {
        let of = |name| format!("/proc/{}/{name}", process.as_raw_pid());
        let entries = read_dir(of("fd")).into_iter().flatten().flatten();
        let sockets = entries.filter(|entry| read_link(entry.path()).is_ok_and(|to| inode_of(&to).is_some()));
        sockets.take(left).any(|entry| {
            left -= 1;
            let info = std::fs::read_to_string(Path::new(&of("fdinfo")).join(entry.file_name()));
            let count = |info: String| {
                info.lines().find_map(|line| line.strip_prefix("scm_fds:")?.trim().parse::<u64>().ok())
            };
            info.ok().and_then(count).is_some_and(|count| count > 0)
        })
    })
}

/// Whether a process has a socket open. The variants are ordered; the strongest evidence comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// The process has it open.
    Yes,
    /// Unknown: the descriptor table is not readable or too long, or the process has ended and may have passed its
    /// descriptors on.
    Unknown,
    /// The process does not have it open.
    No,
}

/// Searches several processes, one at a time, for any of these sockets.
#[derive(Debug)]
pub struct Search(Walk);

impl Search {
    /// A search for the sockets with these inode numbers. It examines at most `descriptors` descriptors in all
    /// processes together.
    #[must_use]
    pub fn new(inodes: &[u64], descriptors: usize) -> Search {
        Search(Walk::new(inodes, descriptors))
    }

    /// Whether this process has one of the sockets open.
    pub fn process(&mut self, process: Pid) -> Holds {
        if self.0.targets.is_empty() {
            return Holds::No;
        }
        self.0.unknown = false;
        if self.0.process(process).is_some() {
            return Holds::Yes;
        }
        let is_gone = || !std::fs::exists(format!("/proc/{}/fd", process.as_raw_pid())).unwrap_or(false);
        if self.0.unknown || is_gone() { Holds::Unknown } else { Holds::No }
    }
}

/// The TCP listeners of a process and its descendants: inode number and address. Only the first descriptors of each
/// process are examined: a listener is opened before its connections, and the kernel assigns the lowest free number.
pub fn tcp_listeners(root: Pid) -> Vec<(u64, SocketAddr)> {
    let (mut processes, mut at, mut found) = (vec![root], 0, Vec::new());
    while let Some(process) = processes.get(at).copied().filter(|_| at < MAX_PROCESSES) {
        at += 1;
        processes.extend(children::of(process).unwrap_or_default());
        let Ok(peer) = Peer::open(process) else { continue };
        for (fd, inode) in peer.sockets(DESCRIPTORS_FOR_LISTENERS).unwrap_or_default() {
            // A socket that cannot be copied cannot be examined.
            let Ok(copy) = peer.copy(fd) else { continue };
            if sockets::is_listening(copy.as_fd()) {
                found.extend(sockets::inet_address(copy.as_fd()).map(|address| (inode, address)));
            }
            close_async(copy);
        }
    }
    found
}

/// The number of processes that a search of the whole host examines.
const MAX_OF_HOST: usize = 32_768;
const DESCRIPTORS_OF_ONE: usize = 65_536;

/// The processes of the host that have one of these sockets open. Descriptor tables that are not readable, and those
/// beyond the limits, are skipped. The search assumes that all threads of a process share one table.
pub fn of_host(inodes: &[u64]) -> Vec<Pid> {
    let targets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let mut left = MAX_DESCRIPTORS;
    let has_one = |process: &Pid| {
        let table = read_dir(format!("/proc/{}/fd", process.as_raw_pid())).into_iter().flatten().flatten();
        table.take(left.min(DESCRIPTORS_OF_ONE)).any(|entry| {
            left = left.saturating_sub(1);
            let target = read_link(entry.path()).unwrap_or_default();
            targets.iter().any(|wanted| target.as_os_str() == wanted.as_str())
        })
    };
    processes.take(MAX_OF_HOST).filter(has_one).collect()
}

#[derive(Debug)]
struct Walk {
    targets: HashSet<u64>,
    seen: HashSet<Pid>,
    left: usize,
    unknown: bool,
}

impl Walk {
    fn new(inodes: &[u64], descriptors: usize) -> Walk {
        let targets = inodes.iter().copied().collect();
        Walk { targets, seen: HashSet::new(), left: descriptors, unknown: false }
    }

    /// Returns the first thread in these process trees that has the socket open, and the descriptor.
    fn trees(&mut self, roots: Vec<Pid>) -> Option<(Pid, RawFd)> {
        let mut processes = roots;
        processes.retain(|root| self.seen.insert(*root));
        let mut at = 0;
        while let Some(process) = processes.get(at).copied() {
            at += 1;
            if let Some(found) = self.process(process) {
                return Some(found);
            }
            let Some(children) = children::of(process) else {
                // If the process has ended, its children are now children of the supervisor.
                self.unknown |= std::fs::exists(format!("/proc/{}", process.as_raw_pid())).unwrap_or(true);
                continue;
            };
            processes.extend(children.into_iter().filter(|child| self.seen.insert(*child)));
            if self.seen.len() > MAX_PROCESSES || self.left == 0 {
                self.unknown = true;
                return None;
            }
        }
        None
    }

    /// The thread of a process that has the socket open, and the descriptor. Threads usually share one table. The first
    /// thread can have ended while the others continue.
    fn process(&mut self, process: Pid) -> Option<(Pid, RawFd)> {
        let threads = read_dir(format!("/proc/{}/task", process.as_raw_pid())).ok()?;
        let threads =
            threads.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        let mut tables: Vec<Pid> = Vec::new();
        for (count, thread) in threads.enumerate() {
            if count >= MAX_THREADS {
                self.unknown = true;
                return None;
            }
            if tables.iter().any(|other| share_table(*other, thread)) {
                continue;
            }
            tables.push(thread);
            if let Some(fd) = self.table(process, thread) {
                return Some((thread, fd));
            }
        }
        None
    }

    fn table(&mut self, process: Pid, thread: Pid) -> Option<RawFd> {
        let path = format!("/proc/{}/task/{}/fd", process.as_raw_pid(), thread.as_raw_pid());
        let entries = match read_dir(path) {
            Ok(entries) => entries,
            Err(error) => {
                // If the process has ended, its descriptors are closed.
                self.unknown |= !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
                return None;
            }
        };
        for entry in entries.flatten() {
            let Some(left) = self.left.checked_sub(1) else {
                self.unknown = true;
                return None;
            };
            self.left = left;
            match read_link(entry.path()) {
                Ok(target) if inode_of(&target).is_some_and(|inode| self.targets.contains(&inode)) => {
                    return entry.file_name().to_str()?.parse().ok();
                }
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => self.unknown = true,
                Ok(_) | Err(_) => {}
            }
        }
        None
    }
}

/// The inode number of the socket that the link of a descriptor names.
fn inode_of(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether two threads share their descriptor table: kcmp(2). False if that is unknown.
fn share_table(one: Pid, other: Pid) -> bool {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: the call compares two kernel objects and accesses no memory of this process.
    let result =
        unsafe { libc::syscall(libc::SYS_kcmp, one.as_raw_pid(), other.as_raw_pid(), KCMP_FILES, 0, 0) };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn an_open_socket_is_found_and_a_closed_one_has_no_holder() {
        let me = rustix::process::getpid();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let inode = crate::sys::sockets::inode(listener.as_fd()).expect("open");
        assert!(
            matches!(find(inode, Some(me), |_| Whose::Unknown), Holder::Found(_, fd) if fd == listener.as_raw_fd())
        );
        drop(listener);
        assert_eq!(find(inode, Some(me), |_| Whose::Unknown), Holder::NoProcess);
    }

    #[test]
    fn a_socket_on_its_way_to_a_process_is_not_closed() {
        use rustix::net::{
            AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
            SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        };
        let me = rustix::process::getpid();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let inode = crate::sys::sockets::inode(listener.as_fd()).expect("open");
        let (to, from) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .expect("a pair of sockets");
        {
            let fds = [listener.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let data = [std::io::IoSlice::new(b"x")];
            sendmsg(&to, &data, &mut control, SendFlags::empty()).expect("there is room");
        }
        drop(listener);
        assert_eq!(find(inode, Some(me), |_| Whose::Unknown), Holder::Unknown);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut data = [0; 1];
        let mut data = [std::io::IoSliceMut::new(&mut data)];
        recvmsg(&from, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).expect("it is there");
        assert!(matches!(find(inode, Some(me), |_| Whose::Unknown), Holder::Found(..)));
        drop(control);
        assert_eq!(find(inode, Some(me), |_| Whose::Unknown), Holder::NoProcess);
    }

    #[test]
    fn a_child_with_a_socket_counts_by_its_worker() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let inode = crate::sys::sockets::inode(listener.as_fd()).expect("open");
        let sleep = |stdin: std::process::Stdio| {
            let started = std::process::Command::new("sleep").arg("60").stdin(stdin).spawn();
            started.expect("a process")
        };
        let mut worker = sleep(std::process::Stdio::null());
        let mut holder = sleep(std::os::fd::OwnedFd::from(listener).into());
        let (root, pid) = (Pid::from_child(&worker), Pid::from_child(&holder));
        let find =
            |whose: Whose| find(inode, Some(root), |child| if child == pid { whose } else { Whose::Another });
        let found = [Whose::Scanned, Whose::Another, Whose::Unknown].map(find);
        for child in [&mut worker, &mut holder] {
            child.kill().and_then(|()| child.wait()).expect("it is ours");
        }
        assert_eq!(found, [Holder::Found(pid, 0), Holder::NoProcess, Holder::Unowned]);
    }

    #[test]
    fn one_process_is_searched_for_several_sockets_within_bounds() {
        let me = rustix::process::getpid();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let inode = crate::sys::sockets::inode(listener.as_fd()).expect("open");
        assert_eq!(Search::new(&[1, inode], 10_000).process(me), Holds::Yes);
        assert_eq!(Search::new(&[], 10_000).process(me), Holds::No);
        assert_eq!(Search::new(&[inode], 1).process(me), Holds::Unknown, "there are more descriptors");
        // `spawn` returns after exec, which closed the inherited descriptors.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let other = Pid::from_child(&child);
        assert_eq!(Search::new(&[inode], 10_000).process(other), Holds::No);
        let _killed = child.kill().and_then(|()| child.wait());
        assert_eq!(Search::new(&[inode], 10_000).process(other), Holds::Unknown, "it is gone");
    }

    #[test]
    fn the_holders_of_a_socket_are_found_on_the_whole_host() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let inode = crate::sys::sockets::inode(listener.as_fd()).expect("open");
        // Another test may fork at this moment. Its child has a copy of our descriptors until it runs a program.
        assert!(of_host(&[inode]).contains(&rustix::process::getpid()));
        drop(listener);
        assert!(!of_host(&[inode]).contains(&rustix::process::getpid()));
    }

    #[test]
    fn a_thread_with_its_own_descriptor_table_is_searched() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            // SAFETY: from here on, this thread uses no descriptor of the other threads.
            unsafe { libc::unshare(libc::CLONE_FILES) };
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
            sender.send(crate::sys::sockets::inode(listener.as_fd()).expect("open")).expect("heard");
            let _until_told = wait.recv();
        });
        let inode = receiver.recv().expect("said");
        let found = find(inode, Some(rustix::process::getpid()), |_| Whose::Unknown);
        drop(done);
        thread.join().expect("ended");
        assert!(matches!(found, Holder::Found(..)), "{found:?}");
    }
}
