//! The `master-process` binary.
fn main() {}
