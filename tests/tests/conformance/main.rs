//! Conformance: a program behaves as a worker as it does alone. Each program of `tests/conformance/` is a test.

mod comparison;
mod four;
mod only_worker;
mod run;
