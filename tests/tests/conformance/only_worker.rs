//! Each program alone and as the only worker, in a fresh folder each: the same lines.

use std::collections::BTreeSet;

use master_process_tests::{network, skip};

use crate::comparison::difference;
use crate::run::{alone, as_only_worker, folder};

/// What a program prints that cannot run on this machine.
const UNSUPPORTED: &str = "UNSUPPORTED:";

fn behaves_the_same(name: &str) {
    // The programs use fixed ports, all of them may run at the same time, and what is in TIME_WAIT after the first run
    // must not be in the second one's way: a network for each.
    if let Err(reason) = network::enter_own() {
        skip!(reason);
    }
    let alone = alone(name);
    if let Some(reason) = alone.iter().find_map(|line| line.strip_prefix(UNSUPPORTED)) {
        skip!(reason.trim());
    }
    network::enter_own().expect("what was possible a moment ago");
    let worker = as_only_worker(name);
    if let Some(report) = difference(&alone, &worker) {
        panic!("{name} behaves differently as a worker:\n{report}");
    }
}

/// One test for each program, of its name.
macro_rules! programs {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                behaves_the_same(stringify!($name));
            }
        )*

        const PROGRAMS: &[&str] = &[$(stringify!($name)),*];
    };
}

programs! {
    accept_timeout
    bind_again_at_once
    bind_close_loop
    bind_errors
    bind_to_device
    client_fin
    client_fixed_port
    close_late
    close_refuses
    dup2_over_listener
    dup_before_bind
    epoll_before_bind
    epoll_edge_before_bind
    exec_keeps_listener
    flags
    fork_before_bind
    fork_child_listens
    freebind
    identity
    interrupted
    ipv6_dual_stack
    ipv6_v6only
    landlock
    listen_odd
    many_threads
    mptcp
    names
    namespaces
    no_sctp
    not_dumpable
    options
    options_more
    overlapping
    own_seccomp
    page_end
    passed_socket
    port_zero
    prefork
    probe_then_bind
    queue_of_closed
    reuseport_one_set
    reuseport_own_selector
    reuseport_processes
    reuseport_set_late
    reuseport_two_sockets
    setfsuid
    shutdown_wakes
    sigio
    tcp_closed
    thread_listener
    thread_own_descriptors
    transparent
    two_clients_one_port
    two_processes
    two_processes_queue
    udp_bind_connect
    udp_bind_twice
    udp_closed
    unix_abstract
    unix_bind_connect
    unix_chmod_chown
    unix_chroot
    unix_closed
    unix_existing
    unix_mode
    unix_other_types
    unix_peercred
    unix_probe
    unix_rebind
    unix_relative
    unix_rename
    unix_unlink
    unprivileged
    uring_before_bind
    user_namespace
}

#[test]
fn every_program_of_the_folder_is_a_test() {
    let files = std::fs::read_dir(folder()).expect("the folder can be read");
    let names = files.flatten().filter_map(|file| file.file_name().into_string().ok());
    let found: BTreeSet<String> =
        names.filter_map(|name| name.strip_suffix(".py").map(str::to_owned)).collect();
    let servers = crate::four::SERVERS.iter().map(|name| format!("serve_{name}"));
    let tested: BTreeSet<String> =
        PROGRAMS.iter().map(|name| (*name).to_owned()).chain(servers).chain(["common".to_owned()]).collect();
    assert_eq!(found, tested);
}
