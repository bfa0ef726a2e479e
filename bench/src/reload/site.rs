//! One program at work under the supervisor, at an address of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use master_process_tests::load::{Connections, Target};
use master_process_tests::{Supervisor, address, await_some, profile};
use tempfile::TempDir;

use super::clients::Clients;
use super::program::{Program, Programs};

/// How long a condition may take that must come: the slowest program answers all requests of a row in a tenth of it,
/// on a machine that has nothing else to do.
const TIMEOUT: Duration = Duration::from_secs(600);

/// What the workers listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Tcp,
    Unix,
}

/// What the supervisor may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// What root may.
    All,
    /// The same without bpf(2): the kernel resets what waits in a closed listener, so that is worked off first.
    WithoutBpf,
    /// What an ordinary user may.
    User,
    /// What the default profile of container engines leaves: neither bpf(2), nor pidfd_getfd(2), nor io_uring.
    Container,
}

impl Rights {
    /// Words to put in front of the command line.
    fn launcher(self) -> Vec<String> {
        match self {
            Rights::All => Vec::new(),
            Rights::WithoutBpf => profile::launcher(None, &["bpf=1"]),
            Rights::User => profile::launcher(Some(profile::ordinary_user()), &[]),
            Rights::Container => profile::launcher(None, &profile::CONTAINER),
        }
    }
}

/// A supervisor whose workers all listen. Dropping it ends all of it.
pub(super) struct Site {
    pub(super) supervisor: Supervisor,
    pub(super) target: Target,
    program: Program,
    /// What the programs write and the Unix socket; removed last.
    _scratch: TempDir,
}

impl Site {
    pub(super) fn start(
        programs: &Programs,
        program: Program,
        over: Over,
        share: &str,
        workers: usize,
    ) -> Result<Self> {
        Self::start_as(Rights::All, programs, program, over, &["--share", share], workers)
    }

    /// With more to say than what is shared.
    pub(super) fn start_with(
        programs: &Programs,
        program: Program,
        over: Over,
        options: &[&str],
        workers: usize,
    ) -> Result<Self> {
        Self::start_as(Rights::All, programs, program, over, options, workers)
    }

    /// With fewer rights than root's, too.
    pub(super) fn start_as(
        rights: Rights,
        programs: &Programs,
        program: Program,
        over: Over,
        options: &[&str],
        workers: usize,
    ) -> Result<Self> {
        let scratch = tempfile::tempdir().context("making a folder for a program")?;
        let (target, listen) = match over {
            Over::Tcp => {
                let address = address::tcp();
                (Target::Tcp(address), address.to_string())
            }
            Over::Unix => {
                let path = scratch.path().join("socket");
                let text = path.to_str().context("the temporary folder's name is not UTF-8")?.to_owned();
                (Target::Unix(path), text)
            }
        };
        let command = programs.command(program, &listen, scratch.path())?;
        let supervisor = Supervisor::builder()
            // What it did at a moment is wanted when a request fails then.
            .args(["--verbose", "--workers", &workers.to_string()])
            .args(options)
            .env("LISTEN", &listen)
            .wrap(rights.launcher())
            .command(command)
            .spawn();
        let site = Self { supervisor, target, program, _scratch: scratch };
        site.supervisor
            .eventually("every worker listens", || site.supervisor.logged(&[": listening"]).len() >= workers);
        Ok(site)
    }

    pub(super) fn waiting_clients(&self, count: usize, connections: Connections) -> Clients {
        match (&self.target, self.program) {
            (Target::Tcp(address), Program::Redis) => Clients::ping(*address, count),
            (Target::Tcp(_) | Target::Unix(_), _) => Clients::http(&self.target, count, connections),
        }
    }

    /// Waits as long as a whole measurement may take.
    pub(super) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        await_some(TIMEOUT, what, || {
            let found = look();
            assert!(
                found.is_some() || self.supervisor.exited().is_none(),
                "the supervisor ended before: {what}"
            );
            found
        })
    }

    /// Waits until something is so, and gives how long that took.
    pub(super) fn eventually(&self, what: &str, mut so: impl FnMut() -> bool) -> Duration {
        let begun = Instant::now();
        self.until(what, || so().then_some(()));
        begun.elapsed()
    }

    /// Stops it in order.
    pub(super) fn end(self) -> Result<()> {
        let code = self.supervisor.stop();
        ensure!(code == 0, "the supervisor exited with {code}");
        Ok(())
    }
}
