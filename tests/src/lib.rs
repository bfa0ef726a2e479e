//! The harness of the end-to-end tests: a real supervisor, real workers, real clients.
//!
//! Everything here waits for conditions with a deadline, never for a fixed time. A test that fails leaves no process
//! behind and prints what the supervisor logged.
//!
//! | variable | meaning |
//! |---|---|
//! | `MASTER_PROCESS_BIN` | the binary under test; without it the one that was built last beside the tests |
//! | `MASTER_PROCESS_NO_SKIP` | a test that cannot run here fails instead of saying so |
//! | `MASTER_PROCESS_SYSTEMD` | what boots a systemd in a throw-away root and runs a command there: for the ignored test of the units |
//! | `MASTER_PROCESS_SLOW` | a factor for every deadline: for emulated machines |

pub mod address;
pub mod cgroup;
pub mod clients;
pub mod control;
pub mod fixtures;
pub mod flood;
pub mod gate;
pub mod load;
pub mod messages;
pub mod network;
pub mod process;
pub mod profile;
pub mod pty;
pub mod script;
pub mod service_manager;
pub mod supervisor;
pub mod traffic;
pub mod upgraded;
pub mod wait;

pub use supervisor::{Event, Finished, Supervisor};
pub use wait::{TIMEOUT, always, await_some, eventually, offset, scaled};

/// Ends the test and prints that it did not run, and why. Where `MASTER_PROCESS_NO_SKIP` is set, as in an environment
/// that has everything, that is a failure. The test's name is that of its thread, unless it is given.
#[macro_export]
macro_rules! skip {
    ($reason:expr) => {
        $crate::skip!(std::thread::current().name().unwrap_or("a test"), $reason)
    };
    ($name:expr, $reason:expr) => {{
        println!("SKIPPED: {}: {}", $name, $reason);
        assert!(
            std::env::var_os("MASTER_PROCESS_NO_SKIP").is_none(),
            "{} was to run here, but: {}",
            $name,
            $reason
        );
        return;
    }};
}

/// [`skip!`], unless the test runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::process::is_root() {
            $crate::skip!("it needs root");
        }
    };
}
