//! What the tools of this repository share: running other programs, and installing what a fresh machine lacks.

pub mod run;
pub mod tools;
