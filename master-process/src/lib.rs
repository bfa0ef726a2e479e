//! A process supervisor for Linux: the library behind the `master-process` binary.

pub mod by_number;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod doctor;
pub mod driver;
pub mod exit_code;
pub mod exposition;
pub mod forms;
pub mod http;
pub mod metrics;
#[cfg(test)]
mod noise;
pub mod policy;
pub mod report;
pub mod share;
pub mod sys;
pub mod tree;
pub mod upgrade;
