//! The queues of real sockets.

use super::*;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::config::{Listen, ListenAddr};
use crate::policy::WorkerId;
use crate::share::caller_socket::bound_key;
use crate::share::core::{Bind, BindRequest};
use crate::share::listen_fds::InheritedListeners;
use crate::share::report::Report;
use crate::share::sockets::Watch;
use crate::share::unix::Access;
use crate::sys::accept_queue;
use master_process_tests::{TIMEOUT, eventually};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

fn at(second: u64) -> Time {
    Time::new(Duration::from_secs(second))
}

fn no_sockets() -> Sockets {
    Sockets::new(&mut InheritedListeners::default()).expect("an epoll instance")
}

fn with_listen(addr: ListenAddr) -> Sockets {
    let mut inherited = InheritedListeners::default();
    let listen = Listen { name: None, addr, text: "an address".to_owned() };
    inherited.open(&[listen], Access { mode: None, owner: None }, None).expect("opened");
    Sockets::new(&mut inherited).expect("an epoll instance")
}

fn start(sockets: &mut Sockets, slot: u32, serial: u64) {
    sockets.core.started(WorkerId { slot, serial }, 1);
    sockets.core.set_in_rotation(at(0), serial, true);
}

/// A listener of a worker, as its `bind` and `listen` make it.
fn listen(sockets: &mut Sockets, serial: u64, address: &str, backlog: i32) -> (SocketId, SocketAddr) {
    let options = sockets::Tcp { reuseport: true, ..sockets::Tcp::default() };
    let fd = sockets::bind_tcp(address.parse().expect("an address"), options).expect("bound");
    let (id, key) = (sockets::inode(fd.as_fd()).expect("open"), bound_key(fd.as_fd()).expect("bound"));
    let address = sockets::inet_address(fd.as_fd()).expect("it has one");
    let request = BindRequest { serial, id, key: &key, inner: 0, requested_reuseport: false, checked: true };
    assert!(matches!(sockets.core.bind(at(0), request), Bind::Own { .. }));
    sockets::listen(fd.as_fd(), backlog).expect("listening");
    sockets.copies.insert(id, fd).listens(backlog);
    assert!(sockets.core.activated(at(0), serial, id, &key));
    sockets.reconcile(at(0));
    (id, address)
}

fn request(address: SocketAddr) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
    let _in_progress = rustix::net::connect(&fd, &address);
    fd
}

fn queue_of(sockets: &Sockets, id: SocketId) -> AcceptQueue {
    accept_queue::of_tcp(sockets.copies.get(id).expect("kept").fd()).expect("it listens")
}

/// Sends connection requests until the kernel has dropped some for this listener.
fn overflow(sockets: &Sockets, id: SocketId, address: SocketAddr) -> (Vec<OwnedFd>, u32) {
    let mut clients = Vec::new();
    let drops = || accept_queue::drops(sockets.copies.get(id).expect("kept").fd()).expect("known");
    let before = drops();
    eventually(TIMEOUT, "requests are dropped", || {
        if clients.len() < 64 {
            clients.push(request(address));
        }
        drops() > before && queue_of(sockets, id).is_full()
    });
    (clients, drops())
}

fn full(sockets: &mut Sockets) -> Vec<(Option<WorkerId>, String)> {
    let full = |report| {
        if let Report::QueueFull { worker, address, .. } = report { Some((worker, address)) } else { None }
    };
    sockets.take_reports().into_iter().filter_map(full).collect()
}

#[test]
fn a_queue_that_was_idle_is_read_when_a_connection_waits_or_its_limit_changes() {
    // As after an upgrade, until its next connection.
    is_read_after_it_was_idle(false);
    is_read_after_it_was_idle(true);
}

fn is_read_after_it_was_idle(is_watched: bool) {
    let mut sockets = no_sockets();
    start(&mut sockets, 0, 1);
    let (id, address) = listen(&mut sockets, 1, "127.0.0.1:0", 3);
    if is_watched {
        sockets.watch_queue(at(0), id);
    }
    assert_eq!(sockets.copies.get(id).expect("kept").is_watched, is_watched);
    let read = |sockets: &mut Sockets| {
        let queues = sockets.accept_queues(at(1));
        let totals = queues.worker(1).expect("known");
        (totals.length, totals.fullest.limit)
    };
    assert_eq!((read(&mut sockets), read(&mut sockets)), ((0, 3), (0, 3)));
    let client = request(address);
    eventually(TIMEOUT, "it is queued", || read(&mut sockets) == (1, 3));
    let accepted = sockets.copies.get(id).map(|open| rustix::net::accept(open.fd()).expect("it waits"));
    drop((client, accepted));
    assert_eq!(read(&mut sockets), (0, 3));
    let open = sockets.copies.get_mut(id).expect("kept");
    sockets::listen(open.fd(), 7).expect("listening");
    open.listens(7);
    assert_eq!(read(&mut sockets), (0, 7));
    // It is none any more.
    sockets::shut_down(sockets.copies.get(id).expect("kept").fd());
    assert!(sockets.accept_queues(at(1)).worker(1).is_none());
}

#[test]
fn a_worker_has_the_sum_of_its_queues_and_the_limit_of_the_fullest() {
    let mut sockets = no_sockets();
    start(&mut sockets, 0, 1);
    start(&mut sockets, 1, 2);
    start(&mut sockets, 2, 3);
    let (small, four) = listen(&mut sockets, 1, "127.0.0.1:0", 3);
    let (large, six) = listen(&mut sockets, 1, "[::1]:0", 100);
    listen(&mut sockets, 2, "127.0.0.1:0", 50);
    let _clients = [request(four), request(four), request(six)];
    eventually(TIMEOUT, "they are queued", || {
        queue_of(&sockets, small).length == 2 && queue_of(&sockets, large).length == 1
    });
    let queues = sockets.accept_queues(at(1));
    let first = queues.worker(1).expect("known");
    assert_eq!((first.length, first.fullest.limit, first.drops, first.unread), (3, 3, Some(0), 0));
    assert_eq!(queues.slot(0), Some(first));
    let second = queues.worker(2).expect("known");
    assert_eq!((second.length, second.fullest.limit, second.is_shared), (0, 50, false));
    assert_eq!((queues.worker(3), queues.slot(2)), (None, None), "it has no listener");
    assert_eq!((queues.length, queues.drops, queues.is_any_full), (3, 0, false));
    assert_eq!(full(&mut sockets), []);
}

#[test]
fn a_full_queue_is_reported_once_by_whoever_reads_it() {
    let mut sockets = no_sockets();
    start(&mut sockets, 4, 7);
    let (id, address) = listen(&mut sockets, 7, "127.0.0.1:0", 2);
    assert!(!sockets.accept_queues(at(0)).is_any_full);
    let (_clients, drops) = overflow(&sockets, id, address);
    assert_eq!(sockets.note_queue(at(1), id), 3);
    assert_eq!(full(&mut sockets), [(Some(WorkerId { slot: 4, serial: 7 }), address.to_string())]);
    let queues = sockets.accept_queues(at(2));
    assert!(queues.is_any_full);
    assert!(queues.slot(4).is_some_and(|slot| slot.drops >= Some(u64::from(drops))));
    assert_eq!(full(&mut sockets), []);
    // Its siblings get the new connections: this queue keeps nobody from being served.
    start(&mut sockets, 5, 8);
    listen(&mut sockets, 8, &address.to_string(), 2);
    sockets.core.set_in_rotation(at(3), 7, false);
    sockets.reconcile(at(3));
    assert!(!sockets.accept_queues(at(4)).is_any_full);
}

/// Sends a segment that no connection has: a reset. Its drop is no overflow.
fn send_reset(to: SocketAddr) -> std::io::Result<()> {
    let SocketAddr::V4(to) = to else { panic!("not IPv4") };
    let kind = SocketType::RAW;
    let tcp = rustix::net::ipproto::TCP;
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, Some(tcp))?;
    let mut segment = [0u8; 20];
    segment[1] = 9;
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    // The header's length in words, and RST.
    (segment[12], segment[13]) = (5 << 4, 4);
    // The pseudo header of RFC 9293: both addresses, the protocol and the length.
    let pseudo = [to.ip().octets(), to.ip().octets(), [0, 6, 0, 20]].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("few words");
    segment[16..18].copy_from_slice(&(!folded).to_be_bytes());
    rustix::net::sendto(&socket, &segment, rustix::net::SendFlags::empty(), &to)?;
    Ok(())
}

#[test]
fn an_overflow_between_two_checks_is_reported_and_another_drop_is_not() {
    // In this network nobody else's queue overflows.
    if let Err(reason) = master_process_tests::network::enter_own() {
        master_process_tests::skip!(reason);
    }
    let mut sockets = no_sockets();
    start(&mut sockets, 0, 1);
    let (id, address) = listen(&mut sockets, 1, "127.0.0.1:0", 1);
    sockets.history.begin(at(0));
    send_reset(address).expect("root may send it");
    eventually(TIMEOUT, "the reset is dropped", || {
        accept_queue::drops(sockets.copies.get(id).expect("kept").fd()) == Some(1)
    });
    sockets.note_queue(at(2), id);
    assert_eq!(full(&mut sockets), [], "the queue was empty all the time");
    let (clients, _) = overflow(&sockets, id, address);
    drop(clients);
    let fd = sockets.copies.get(id).expect("kept").fd();
    while sockets::is_readable(fd) {
        drop(rustix::net::accept(fd));
    }
    assert!(!queue_of(&sockets, id).is_full());
    sockets.note_queue(at(4), id);
    assert_eq!(full(&mut sockets).len(), 1);
}

#[test]
fn the_limit_of_another_network_is_not_taken_for_ours() {
    let ours = sockets::bind_tcp("127.0.0.1:0".parse().expect("an address"), sockets::Tcp::default());
    let ours = ours.expect("bound");
    if let Err(reason) = master_process_tests::network::enter_own() {
        master_process_tests::skip!(reason);
    }
    let mut sockets = no_sockets();
    start(&mut sockets, 0, 1);
    std::fs::write("/proc/sys/net/core/somaxconn", "3").expect("it is this network's own");
    let (id, address) = listen(&mut sockets, 1, "127.0.0.1:0", 100);
    let (_clients, _) = overflow(&sockets, id, address);
    sockets.accept_queues(at(1));
    let reports = sockets.take_reports();
    let [Report::QueueFull { queue, .. }] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((queue.queue.limit, queue.backlog, queue.somaxconn), (3, Some(100), Some(3)));
    assert_eq!(accept_queue::somaxconn_of(ours.as_fd()), None);
}

#[test]
fn a_listener_of_all_workers_is_watched_for_connections_and_not_once_it_is_shut_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let mut sockets = with_listen(ListenAddr::Unix(path.clone()));
    let mut scans = Scans::new().expect("an eventfd");
    let id = sockets.core.sockets()[0].id;
    let client = sockets::new_unix().expect("a socket");
    let address = rustix::net::SocketAddrUnix::new(&path).expect("it fits");
    assert_eq!(sockets.take_queue_events(&mut scans, at(1)), [0; 0]);
    rustix::net::connect(&client, &address).expect("connected");
    assert_eq!(sockets.take_queue_events(&mut scans, at(1)), [id]);
    assert_eq!(sockets.take_queue_events(&mut scans, at(1)), [0; 0], "not watched until the check");
    assert_eq!(sockets.check_queue(&mut scans, at(2), id), Watch::ForConnections);
    sockets.watch_queue(at(2), id);
    sockets::shut_down(sockets.copies.get(id).expect("kept").fd());
    assert_eq!(sockets.take_queue_events(&mut scans, at(3)), [0; 0]);
    assert!(!sockets::is_readable(sockets.queue_events()), "nothing wakes the loop");
}

#[test]
fn drops_of_a_slot_go_on_when_its_worker_is_killed_and_replaced() {
    let mut sockets = no_sockets();
    start(&mut sockets, 3, 1);
    let (id, address) = listen(&mut sockets, 1, "127.0.0.1:0", 1);
    let (_clients, before) = overflow(&sockets, id, address);
    // Nobody reads before it dies.
    sockets.worker_ended(at(1), 1, false);
    let queues = sockets.accept_queues(at(1));
    assert_eq!(queues.worker(1), None);
    let waiting = queues.slot(3).expect("its queue waits for the next worker");
    assert!(waiting.length == 2 && waiting.drops >= Some(u64::from(before)), "{waiting:?}");
    let (_more, after) = overflow(&sockets, id, address);
    // The next worker listens elsewhere, and the listener is closed.
    start(&mut sockets, 3, 2);
    listen(&mut sockets, 2, "127.0.0.1:0", 1);
    sockets.core.abandon(3, |_| false);
    sockets.reconcile(at(2));
    assert!(sockets.copies.get(id).is_none(), "it is closed");
    let queues = sockets.accept_queues(at(3));
    let replaced = queues.slot(3).expect("known");
    assert!(replaced.drops >= Some(u64::from(after)) && after > before, "{replaced:?} {after}");
    assert_eq!(queues.worker(2).and_then(|worker| worker.drops), Some(0), "none of its own");
    assert_eq!(Some(queues.drops), replaced.drops);
}

#[test]
fn a_queue_of_all_workers_is_each_ones_and_counts_once() {
    let mut sockets = with_listen(ListenAddr::Inet("127.0.0.1:0".parse().expect("an address")));
    let id = sockets.core.sockets()[0].id;
    let address = sockets::inet_address(sockets.copies.get(id).expect("kept").fd()).expect("bound");
    start(&mut sockets, 0, 1);
    start(&mut sockets, 1, 2);
    // A reload: both workers of a slot have it.
    start(&mut sockets, 1, 3);
    let _client = request(address);
    eventually(TIMEOUT, "it is queued", || queue_of(&sockets, id).length == 1);
    let queues = sockets.accept_queues(at(1));
    for totals in [queues.worker(1), queues.worker(2), queues.worker(3), queues.slot(0), queues.slot(1)] {
        let totals = totals.expect("known");
        assert!(totals.length == 1 && totals.is_shared, "{totals:?}");
    }
    assert_eq!(queues.length, 1);
}

#[test]
fn a_unix_queue_is_known_once_the_kernel_was_found_to_list_it() {
    use rustix::net::{SocketAddrUnix, connect};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let mut sockets = with_listen(ListenAddr::Unix(path.clone()));
    start(&mut sockets, 0, 1);
    let client = sockets::new_unix().expect("a socket");
    connect(&client, &SocketAddrUnix::new(&path).expect("it fits")).expect("connected");
    assert_eq!(sockets.accept_queues(at(1)).worker(1), None, "nobody has tried yet");
    if crate::sys::inet_diag::unix_queues(|_| false).is_err() {
        return;
    }
    sockets.history.unix.set_listed(true);
    let queues = sockets.accept_queues(at(2));
    let totals = queues.worker(1).expect("known");
    assert_eq!((totals.length, totals.drops), (1, None));
    assert!(totals.fullest.limit > 0);
}

#[test]
fn a_worker_with_many_listeners_does_not_delay_the_others() {
    let mut sockets = no_sockets();
    (0..1000).for_each(|slot| start(&mut sockets, slot, u64::from(slot)));
    (0..MIN_READ_PER_WORKER + 3).for_each(|_| {
        listen(&mut sockets, 0, "127.0.0.1:0", 5);
    });
    listen(&mut sockets, 1, "127.0.0.1:0", 5);
    let queues = sockets.accept_queues(at(1));
    let totals = queues.worker(0).expect("known");
    assert_eq!((totals.read, totals.unread), (MIN_READ_PER_WORKER, 3));
    assert_eq!(queues.worker(1).map(|totals| (totals.read, totals.unread)), Some((1, 0)));
}

#[test]
fn a_worker_hangs_since_the_first_check_in_which_its_queue_did_not_move() {
    let mut sockets = no_sockets();
    start(&mut sockets, 0, 1);
    let (id, address) = listen(&mut sockets, 1, "127.0.0.1:0", 5);
    let _client = request(address);
    eventually(TIMEOUT, "it is queued", || queue_of(&sockets, id).length == 1);
    let mut scans = Scans::new().expect("an eventfd");
    for second in 10..15 {
        sockets.check_queue(&mut scans, at(second), id);
    }
    sockets.confirm_stall(at(15), id, None);
    let since = |sockets: &mut Sockets| {
        sockets.accept_queues(at(16)).worker(1).and_then(|worker| worker.stalled_since)
    };
    assert_eq!(since(&mut sockets), Some(at(10)));
    drop(rustix::net::accept(sockets.copies.get(id).expect("kept").fd()));
    sockets.check_queue(&mut scans, at(17), id);
    assert_eq!(since(&mut sockets), None);
}

#[test]
fn drops_are_counted_among_many_queues_too() {
    let mut sockets = no_sockets();
    (0..MANY).for_each(|number| {
        let (slot, serial) = (u32::try_from(number).expect("small"), number as u64);
        start(&mut sockets, slot, serial);
        listen(&mut sockets, serial, "127.0.0.1:0", 1);
    });
    let (id, address) = listen(&mut sockets, 7, "127.0.0.1:0", 1);
    sockets.accept_queues(at(1));
    let (_clients, drops) = overflow(&sockets, id, address);
    let counted = sockets.accept_queues(at(2)).slot(7).and_then(|slot| slot.drops);
    assert!(counted >= Some(u64::from(drops)), "{counted:?} {drops}");
}
