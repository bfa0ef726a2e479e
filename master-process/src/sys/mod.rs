//! One file per kernel facility: typed in both directions, no policy, no logging.

pub mod bpf;
pub mod capabilities;
pub mod cgroup;
pub mod children;
pub mod closer;
pub mod epoll_entries;
pub mod fds;
pub mod handlers;
pub mod holders;
pub mod inet_diag;
pub mod notify;
pub mod options;
pub mod paths;
pub mod peer;
pub mod pidfd;
pub mod poller;
pub mod proc_stat;
pub mod queue_watch;
mod remote_read;
pub mod reuseport;
pub mod seccomp;
pub mod signals;
pub mod smaps;
pub mod sockets;
pub mod spawn;
pub mod terminal;
pub mod working_directory;
