//! A process supervisor for Linux: the library behind the `master-process` binary.

pub mod cli;
pub mod config;
pub mod policy;
