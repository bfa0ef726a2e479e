//! The eBPF source against the real kernel and real processes.
//!
//! The workers are this very program, started again with the name of what it is to do: see `role`.
#![cfg(test)]

mod charge;
mod cost;
mod death;
mod events;
mod family;
mod harness;
mod idle;
mod interval;
mod places;
mod role;
mod shared;
