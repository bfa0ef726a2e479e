//! Tests of both programs in the running kernel.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use master_process_tests::{TIMEOUT, eventually, skip};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;
use crate::sys::accept_queue;
use crate::sys::sockets::{self, DEFAULT_BACKLOG, Tcp};

/// Creates a selector, or returns from the test if the privilege is missing or the kernel is older than 5.14.
macro_rules! selector {
    ($name:expr, $capacity:expr, $spread:expr) => {
        match Selector::new($capacity, $spread) {
            Ok(selector) => selector,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => skip!($name, error),
            Err(error) => panic!("{error}"),
        }
    };
}

/// The number of connections that wait.
fn waiting(listener: BorrowedFd<'_>) -> u32 {
    accept_queue::of_tcp(listener).expect("it listens").length
}

/// Listeners of one address that no other test uses.
fn listeners(count: usize) -> Vec<TcpListener> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for _ in 0..count {
        let address = listeners
            .first()
            .map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |first| first.local_addr().expect("bound"));
        listeners.push(listener(address));
    }
    listeners
}

fn listener(address: SocketAddr) -> TcpListener {
    let fd = sockets::bind_tcp(address, Tcp { reuseport: true, ..Tcp::default() }).expect("a socket");
    rustix::net::listen(&fd, DEFAULT_BACKLOG).expect("listens");
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(true).expect("nonblocking");
    listener
}

/// UDP sockets of one address.
fn receivers(count: usize, ip: std::net::IpAddr) -> Vec<UdpSocket> {
    let mut sockets: Vec<UdpSocket> = Vec::new();
    for _ in 0..count {
        let address =
            sockets.first().map_or(SocketAddr::from((ip, 0)), |first| first.local_addr().expect("bound"));
        let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).expect("a socket");
        sockopt::set_socket_reuseport(&fd, true).expect("an option");
        rustix::net::bind(&fd, &address).expect("free");
        let socket = UdpSocket::from(fd);
        socket.set_nonblocking(true).expect("nonblocking");
        sockets.push(socket);
    }
    sockets
}

/// Adds all sockets as members, with their positions as indexes.
fn insert_all<S: AsFd>(selector: &Selector, sockets: &[S]) {
    for (index, socket) in (0..).zip(sockets) {
        selector.insert(index, socket.as_fd()).expect("a member of the group");
    }
}

fn connect(listener: &TcpListener) -> TcpStream {
    TcpStream::connect(listener.local_addr().expect("bound")).expect("listens")
}

/// Connects and resets the connection at once, so no port stays in use.
fn connect_and_reset(address: SocketAddr) {
    let stream = TcpStream::connect(address).expect("listens");
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option");
}

/// The number of connections that each listener gets.
fn shares(listeners: &[TcpListener], connections: usize) -> Vec<usize> {
    for _ in 0..connections {
        connect_and_reset(listeners[0].local_addr().expect("bound"));
    }
    let mut shares = vec![0; listeners.len()];
    eventually(TIMEOUT, "every connection is in a queue", || {
        for (share, listener) in shares.iter_mut().zip(listeners) {
            while listener.accept().is_ok() {
                *share += 1;
            }
        }
        shares.iter().sum::<usize>() == connections
    });
    shares
}

/// Accepts connections that have sent a word, and sends it back.
fn answer(listener: &TcpListener, connections: usize) {
    let mut accepted = 0;
    eventually(TIMEOUT, "the connections come to this listener", || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nonblocking(false).expect("a stream");
            let mut word = [0; 4];
            stream.read_exact(&mut word).expect("a word");
            stream.write_all(&word).expect("takes the answer");
            accepted += 1;
        }
        accepted == connections
    });
}

/// Clients that have sent a word and are in the queue of this listener.
fn waiting_clients(listener: &TcpListener, count: u32) -> Vec<TcpStream> {
    let clients: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut client = connect(listener);
            client.write_all(b"word").expect("connected");
            client
        })
        .collect();
    eventually(TIMEOUT, "all wait in the queue", || waiting(listener.as_fd()) == count);
    clients
}

fn are_answered(clients: Vec<TcpStream>) {
    for mut client in clients {
        let mut word = [0; 4];
        client.set_read_timeout(Some(TIMEOUT)).expect("a stream");
        client.read_exact(&mut word).expect("an answer");
        assert_eq!(&word, b"word");
    }
}

/// A client whose connection is not in the listener's queue yet, because the listener waits for the first data.
fn half_open_client(listener: &TcpListener) -> TcpStream {
    let seconds = 60_i32.to_ne_bytes();
    crate::sys::socket_options::set_option(
        listener.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_DEFER_ACCEPT,
        &seconds,
    );
    let client = connect(listener);
    assert_eq!(waiting(listener.as_fd()), 0, "the connection is half-open");
    client
}

#[test]
fn connections_spread_evenly_over_targets() {
    let selector = selector!("connections_spread_evenly_over_targets", 16, Spread::Random);
    let listeners = listeners(4);
    insert_all(&selector, &listeners);
    selector.set_targets(&[0, 1, 3]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");

    let shares = shares(&listeners, 300);
    assert_eq!(shares[2], 0, "no target");
    // Six standard deviations from 100.
    assert!([0, 1, 3].iter().all(|index| (50..=150).contains(&shares[*index])), "{shares:?}");
}

#[test]
fn without_targets_the_kernel_chooses_among_all() {
    let selector = selector!("without_targets_the_kernel_chooses_among_all", 2, Spread::Random);
    let listeners = listeners(2);
    insert_all(&selector, &listeners);
    selector.attach(listeners[0].as_fd()).expect("a group");
    assert!(shares(&listeners, 200).iter().all(|share| *share > 30));
}

#[test]
fn targets_beyond_the_capacity_are_refused_and_change_nothing() {
    let selector = selector!("targets_beyond_the_capacity_are_refused", 2, Spread::Random);
    let listeners = listeners(2);
    insert_all(&selector, &listeners);
    selector.attach(listeners[0].as_fd()).expect("a group");
    selector.set_targets(&[1]).expect("within the capacity");
    for beyond in [vec![2], vec![0, 1, 0]] {
        selector.set_targets(&beyond).expect_err("beyond the capacity");
    }
    assert_eq!(shares(&listeners, 20), [0, 20]);
}

#[test]
fn a_socket_without_a_group_is_refused() {
    let selector = selector!("a_socket_without_a_group_is_refused", 2, Spread::Random);
    let alone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    let refused = |result: io::Result<()>| result.expect_err("no group").raw_os_error();
    assert_eq!(refused(selector.insert(0, alone.as_fd())), Some(libc::EINVAL));
    assert_eq!(refused(selector.attach(alone.as_fd())), Some(libc::EINVAL));
    let listeners = listeners(1);
    assert_eq!(refused(selector.insert(2, listeners[0].as_fd())), Some(libc::E2BIG));
    selector.insert(0, listeners[0].as_fd()).expect("a member of the group");
    assert_eq!(refused(selector.insert(1, listeners[0].as_fd())), Some(libc::EBUSY));
}

/// Each change leads to a set that is disjoint from the previous one. A connection must go to a target of a set that
/// was active while the connection was made. Most are made within one set, or during one change.
#[test]
fn an_exchange_under_load_never_leads_to_a_listener_that_is_no_target() {
    const TARGETS: [&[u32]; 4] = [&[0], &[1, 2, 3], &[4, 0], &[2]];
    let name = "an_exchange_under_load_never_leads_to_a_listener_that_is_no_target";
    let selector = selector!(name, 5, Spread::Random);
    let listeners = listeners(5);
    let address = listeners[0].local_addr().expect("bound");
    insert_all(&selector, &listeners);
    selector.set_targets(TARGETS[0]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    // An even value: the set of half of it is active. An odd value: the change to the next set is in progress.
    let (epoch, certain, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));

    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                for (index, listener) in (0_u8..).zip(&listeners) {
                    while let Ok((mut stream, _)) = listener.accept() {
                        let _may_be_gone = stream.write_all(&[index]);
                    }
                }
                std::thread::yield_now();
            }
        });
        let flood = scope.spawn(|| {
            while certain.load(Ordering::SeqCst) < 500 {
                let before = epoch.load(Ordering::SeqCst);
                let mut stream = TcpStream::connect(address).expect("listens");
                let after = epoch.load(Ordering::SeqCst);
                let mut index = [0];
                stream.read_exact(&mut index).expect("an answer");
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option");
                let sets = before / 2..=after.div_ceil(2);
                let mut targets = sets.clone().flat_map(|set| TARGETS[set % TARGETS.len()]);
                assert!(targets.any(|target| *target == u32::from(index[0])), "{index:?} in {sets:?}");
                certain.fetch_add(usize::from(before == after), Ordering::SeqCst);
            }
        });
        let mut exchanges = 0;
        while !flood.is_finished() {
            let seen = certain.load(Ordering::SeqCst);
            exchanges += 1;
            epoch.store(2 * exchanges - 1, Ordering::SeqCst);
            selector.set_targets(TARGETS[exchanges % TARGETS.len()]).expect("within the capacity");
            epoch.store(2 * exchanges, Ordering::SeqCst);
            // Some changes follow each other directly, others wait for a connection with a certain set.
            while exchanges % 64 == 0 && certain.load(Ordering::SeqCst) == seen && !flood.is_finished() {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::SeqCst);
        flood.join().expect("only targets were reached");
    });
}

#[test]
fn a_removed_member_gets_nothing_and_its_share_goes_to_the_other_targets() {
    let selector = selector!(
        "a_removed_member_gets_nothing_and_its_share_goes_to_the_other_targets",
        16,
        Spread::Random
    );
    let listeners = listeners(3);
    insert_all(&selector, &listeners);
    selector.set_targets(&[0, 1]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    selector.remove(0).expect("a member");
    selector.remove(0).expect("no member any more, and no error");
    selector.remove(7).expect("never was a member");
    assert_eq!(shares(&listeners, 50), [0, 50, 0]);

    selector.insert(0, listeners[0].as_fd()).expect("can come back");
    assert!(shares(&listeners, 100)[0] > 0);
}

#[test]
fn the_queue_of_a_closed_listener_moves_to_a_target() {
    let name = "the_queue_of_a_closed_listener_moves_to_a_target";
    // The closed member is a target in the first case only.
    for targets in [&[0, 1][..], &[1][..]] {
        let selector = selector!(name, 16, Spread::Random);
        let mut listeners = listeners(3);
        insert_all(&selector, &listeners);
        selector.set_targets(&[0]).expect("within the capacity");
        selector.attach(listeners[0].as_fd()).expect("a group");
        let clients = waiting_clients(&listeners[0], 5);
        selector.set_targets(targets).expect("within the capacity");

        drop(listeners.remove(0));

        answer(&listeners[0], 5);
        assert_eq!(waiting(listeners[1].as_fd()), 0, "not a target");
        are_answered(clients);
    }
}

#[test]
fn the_queue_of_a_listener_that_is_shut_down_moves_to_a_target() {
    let name = "the_queue_of_a_listener_that_is_shut_down_moves_to_a_target";
    let selector = selector!(name, 16, Spread::Random);
    let listeners = listeners(2);
    insert_all(&selector, &listeners);
    selector.set_targets(&[0]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    let clients = waiting_clients(&listeners[0], 5);
    selector.set_targets(&[0, 1]).expect("within the capacity");

    sockets::shut_down(listeners[0].as_fd());

    answer(&listeners[1], 5);
    are_answered(clients);
}

#[test]
fn a_queue_without_a_live_target_moves_to_whoever_listens() {
    let name = "a_queue_without_a_live_target_moves_to_whoever_listens";
    let selector = selector!(name, 16, Spread::Random);
    let mut listeners = listeners(2);
    insert_all(&selector, &listeners);
    selector.set_targets(&[0]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    let clients = waiting_clients(&listeners[0], 5);
    drop(listeners.remove(0));
    answer(&listeners[0], 5);
    are_answered(clients);
}

#[test]
fn the_queue_of_the_last_listener_is_reset() {
    let selector = selector!("the_queue_of_the_last_listener_is_reset", 16, Spread::Random);
    let listeners = listeners(1);
    insert_all(&selector, &listeners);
    selector.set_targets(&[0]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    let clients = waiting_clients(&listeners[0], 5);
    drop(listeners);
    for mut client in clients {
        let error = client.read(&mut [0]).expect_err("no listener is left to answer");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_group_that_is_new_at_the_address_needs_the_program_again() {
    let name = "a_group_that_is_new_at_the_address_needs_the_program_again";
    let selector = selector!(name, 16, Spread::Random);
    let old = listeners(1);
    let address = old[0].local_addr().expect("bound");
    insert_all(&selector, &old);
    selector.set_targets(&[0]).expect("within the capacity");
    selector.attach(old[0].as_fd()).expect("a group");
    drop(old);

    let listeners = [listener(address), listener(address)];
    insert_all(&selector, &listeners);
    assert!(shares(&listeners, 100)[1] > 10, "no program of the group that is gone");
    selector.attach(listeners[0].as_fd()).expect("a group");
    assert_eq!(shares(&listeners, 100), [100, 0]);
}

#[test]
fn the_address_is_free_once_the_last_listener_is_closed_whatever_is_half_open() {
    let name = "the_address_is_free_once_the_last_listener_is_closed_whatever_is_half_open";
    let selector = selector!(name, 16, Spread::Random);
    let listeners = listeners(2);
    let address = listeners[0].local_addr().expect("bound");
    insert_all(&selector, &listeners);
    selector.set_targets(&[0]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    let mut client = half_open_client(&listeners[0]);
    drop(listeners);

    let alone = sockets::bind_tcp(address, Tcp::default()).expect("free");
    rustix::net::listen(&alone, DEFAULT_BACKLOG).expect("free");
    client.write_all(b"word").expect("the client has no reset yet");
    let error = client.read(&mut [0]).expect_err("its listener is gone");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(waiting(alone.as_fd()), 0, "the new listener is not in its group");
}

#[test]
fn a_half_open_connection_of_a_closed_listener_comes_to_a_target() {
    let name = "a_half_open_connection_of_a_closed_listener_comes_to_a_target";
    for targets in [&[0, 1][..], &[1][..]] {
        let selector = selector!(name, 16, Spread::Random);
        let mut listeners = listeners(3);
        insert_all(&selector, &listeners);
        selector.set_targets(&[0]).expect("within the capacity");
        selector.attach(listeners[0].as_fd()).expect("a group");
        let mut client = half_open_client(&listeners[0]);
        selector.set_targets(targets).expect("within the capacity");

        drop(listeners.remove(0));
        client.write_all(b"word").expect("connected");

        answer(&listeners[0], 1);
        are_answered(vec![client]);
    }
}

#[test]
fn a_group_outlives_the_selector_and_still_moves_queues() {
    let name = "a_group_outlives_the_selector_and_still_moves_queues";
    let selector = selector!(name, 3, Spread::Random);
    let mut listeners = listeners(3);
    insert_all(&selector, &listeners);
    selector.set_targets(&[0, 2]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    drop(selector);

    let shares = shares(&listeners, 100);
    assert!(shares[0] > 10 && shares[1] == 0 && shares[2] > 10, "{shares:?}");

    let clients: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut client = connect(&listeners[0]);
            client.write_all(b"word").expect("connected");
            client
        })
        .collect();
    drop(listeners.remove(0));
    answer(&listeners[1], 8);
    are_answered(clients);
}

#[test]
fn a_selector_that_is_taken_over_goes_on_where_the_other_stood() {
    let name = "a_selector_that_is_taken_over_goes_on_where_the_other_stood";
    let selector = selector!(name, 3, Spread::Random);
    let listeners = listeners(3);
    insert_all(&selector, &listeners[..2]);
    selector.set_targets(&[0]).expect("within the capacity");
    selector.attach(listeners[0].as_fd()).expect("a group");
    let descriptors = selector.descriptors().map(|fd| fd.try_clone_to_owned().expect("descriptors"));
    drop(selector);

    let selector = Selector::from_descriptors(descriptors).expect("its descriptors");
    assert_eq!(shares(&listeners, 20), [20, 0, 0]);
    selector.set_targets(&[1]).expect("within the capacity");
    assert_eq!(shares(&listeners, 20), [0, 20, 0]);
    selector.insert(2, listeners[2].as_fd()).expect("a member of the group");
    selector.set_targets(&[2]).expect("within the capacity");
    assert_eq!(shares(&listeners, 20), [0, 0, 20]);
}

#[test]
fn other_descriptors_are_no_selector() {
    let selector = selector!("other_descriptors_are_no_selector", 3, Spread::Random);
    let [sockets, selection, program] = selector.descriptors();
    let null = std::fs::File::open("/dev/null").expect("exists");
    for wrong in
        [[selection, sockets, program], [sockets, program, program], [null.as_fd(), selection, program]]
    {
        let wrong = wrong.map(|fd| fd.try_clone_to_owned().expect("descriptors"));
        let error = Selector::from_descriptors(wrong).expect_err("not a selector's");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

/// Sends three times from each client. Returns the senders of what each receiver got.
fn flows(receivers: &[UdpSocket], clients: usize) -> Vec<Vec<SocketAddr>> {
    let address = receivers[0].local_addr().expect("bound");
    let clients: Vec<UdpSocket> =
        (0..clients).map(|_| UdpSocket::bind((address.ip(), 0)).expect("free")).collect();
    for _ in 0..3 {
        for client in &clients {
            client.send_to(b"word", address).expect("loopback");
        }
    }
    let mut received = vec![Vec::new(); receivers.len()];
    eventually(TIMEOUT, "every datagram arrives", || {
        for (received, receiver) in received.iter_mut().zip(receivers) {
            while let Ok((_, from)) = receiver.recv_from(&mut [0; 16]) {
                received.push(from);
            }
        }
        received.iter().map(Vec::len).sum::<usize>() == 3 * clients.len()
    });
    received
}

/// Checks that all datagrams of a client went to one receiver out of `targets`, and that each target got some.
fn assert_flows_stay_together(received: &[Vec<SocketAddr>], targets: &[usize]) {
    for (index, mut flows) in received.iter().cloned().enumerate() {
        assert_eq!(!flows.is_empty(), targets.contains(&index), "{index}: {}", flows.len());
        flows.sort_unstable();
        assert!(flows.chunks(3).all(|chunk| chunk.len() == 3 && chunk[0] == chunk[2]), "{flows:?}");
    }
}

#[test]
fn datagrams_of_a_flow_come_to_one_target_with_ebpf() {
    let selector = selector!("datagrams_of_a_flow_come_to_one_target_with_ebpf", 16, Spread::Flow);
    let receivers = receivers(4, Ipv4Addr::LOCALHOST.into());
    insert_all(&selector, &receivers);
    selector.set_targets(&[3, 0, 1]).expect("within the capacity");
    selector.attach(receivers[0].as_fd()).expect("a group");
    assert_flows_stay_together(&flows(&receivers, 60), &[0, 1, 3]);
}

#[test]
fn datagrams_of_a_flow_come_to_one_number_with_classic_bpf() {
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let receivers = receivers(4, ip);
        attach_selector(receivers[0].as_fd(), &[0, 1, 3], Spread::Flow).expect("a group");
        assert_flows_stay_together(&flows(&receivers, 60), &[0, 1, 3]);
    }
}

#[test]
fn connections_come_to_the_numbers_of_a_classic_program() {
    let listeners = listeners(4);
    for spread in [Spread::Random, Spread::Flow] {
        attach_selector(listeners[0].as_fd(), &[0, 1, 3], spread).expect("a group");
        let shares = shares(&listeners, 300);
        assert_eq!(shares[2], 0, "not wanted");
        assert!([0, 1, 3].iter().all(|index| (50..=150).contains(&shares[*index])), "{spread:?}: {shares:?}");
    }
}

/// Runs `act` in a thread, because capabilities belong to threads.
fn with_capabilities<T: Send>(kept: CapabilitySet, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = capabilities(None).expect("capget");
            sets.effective &= kept;
            set_capabilities(None, sets).expect("fewer than before");
            act()
        });
        thread.join().expect("no panic")
    })
}

#[test]
fn without_the_capability_there_is_an_error() {
    let error = with_capabilities(CapabilitySet::empty(), || Selector::new(16, Spread::Random));
    assert_eq!(Errno::from_io_error(&error.expect_err("may not")), Some(Errno::PERM));
}

#[test]
fn cap_bpf_alone_is_enough() {
    let _may = selector!("cap_bpf_alone_is_enough", 16, Spread::Random);
    with_capabilities(CapabilitySet::BPF, || {
        let selector = Selector::new(16, Spread::Random).expect("CAP_BPF");
        let listeners = listeners(1);
        insert_all(&selector, &listeners);
        selector.set_targets(&[0]).expect("within the capacity");
        selector.attach(listeners[0].as_fd()).expect("a group");
    });
}

/// The memory in bytes that bpf(2) accounts to a map or a program.
fn memory(fd: BorrowedFd<'_>) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).expect("fdinfo");
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("a map or a program");
    line.trim().parse().expect("a number")
}

#[test]
fn a_selector_costs_little() {
    let selector = selector!("a_selector_costs_little", 16, Spread::Random);
    let costs = selector.descriptors().map(memory);
    println!("sockets, selection, program: {costs:?}");
    assert!(costs.iter().sum::<u64>() <= 3 * 4096, "{costs:?}");
}

#[test]
fn the_setting_for_migration_is_read() {
    let enabled = is_migration_enabled().expect("readable");
    let text = std::fs::read_to_string(MIGRATE_REQ).unwrap_or_default();
    assert_eq!(enabled, text.trim() == "1");
}

/// Runs `act` in a thread with its own network namespace, whose settings are not the host's.
fn in_a_network_of_its_own(act: impl FnOnce() + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call affects this thread only, and no descriptors.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                return Err(io::Error::last_os_error());
            }
            act();
            Ok(())
        });
        thread.join().expect("no panic")
    })
}

fn set_up_loopback() {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    // SAFETY: every member consists of numbers, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l'.cast_signed(), b'o'.cast_signed()]);
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).expect("small");
    // SAFETY: the kernel reads a name and flags from the request, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn migration_without_a_program_is_believed_when_it_was_seen() {
    let name = "migration_without_a_program_is_believed_when_it_was_seen";
    if !std::fs::exists(MIGRATE_REQ).expect("procfs") {
        skip!(name, "the kernel lacks the setting");
    }
    let outcome = in_a_network_of_its_own(|| {
        set_up_loopback();
        assert!(!is_migration_enabled().expect("readable"));
        assert!(!migrates_without_program().expect("loopback works"));
        if std::fs::write(MIGRATE_REQ, "1").is_ok() {
            assert!(is_migration_enabled().expect("readable"));
            let migrates = migrates_without_program().expect("loopback works");
            // The program and migration need Linux 5.14. Linux 5.10.223 has only the setting.
            let program = Selector::new(1, Spread::Random);
            assert_eq!(migrates, program.is_ok(), "{program:?}");
        }
    });
    if let Err(error) = outcome {
        skip!(name, error);
    }
}
