//! End-to-end tests: the real binary, the real kernel, real programs. The name of a test is the requirement.

mod ancestor;
mod faults;
mod harness;
mod input;
mod life;
mod listen_fds;
mod log;
mod pid_one;
mod programs;
mod ready;
mod reload;
mod resources;
mod sharing;
mod signals;
mod unix_sockets;
