//! End-to-end tests: the real binary, the real kernel, real programs. The name of a test is the requirement.

mod ancestor;
mod bypass;
mod containers;
mod deaths;
mod faults;
mod harness;
mod input;
mod life;
mod limits;
mod listen_fds;
mod log;
mod measuring;
mod orphans;
mod pid_one;
mod pitfalls;
mod programs;
mod ready;
mod reload;
mod resources;
mod security;
mod sharing;
mod signals;
mod slots;
mod unix_gaps;
mod unix_generations;
mod unix_sockets;
