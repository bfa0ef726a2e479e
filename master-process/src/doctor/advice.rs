//! What to do, in the words of whatever starts the supervisor here.

use std::fmt::Display;
use std::path::Path;

use super::row::Fix;
use crate::config::Capabilities;

/// What starts a supervisor on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manager {
    /// systemd: its units have settings.
    Systemd,
    /// A container engine: its command line has options.
    Container,
    /// Another init system, or a shell.
    Other,
}

/// What has to be given to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// A cgroup that it can divide.
    Delegation,
    /// A directory of its own below `/run`.
    RuntimeDirectory,
    /// Capabilities.
    Capabilities(Capabilities),
    /// The hard limit of open files.
    OpenFiles(u64),
    /// The limit of processes and threads of its cgroup.
    Pids(u64),
    /// The limit of processes and threads of its user.
    UserProcesses(u64),
}

impl Manager {
    /// The manager of this process.
    pub(super) fn of_this_process() -> Manager {
        let exists = |path: &str| Path::new(path).exists();
        // The engines leave one of these files, and systemd-nspawn and podman the variable.
        let in_container = exists("/.dockerenv")
            || exists("/run/.containerenv")
            || std::env::var_os("container").is_some()
            || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        match (exists("/run/systemd/system"), in_container) {
            (true, _) => Manager::Systemd,
            (false, true) => Manager::Container,
            (false, false) => Manager::Other,
        }
    }

    /// How to give something to the supervisor.
    pub(super) fn give(self, setting: Setting) -> Fix {
        match self {
            Manager::Systemd => systemd(setting),
            Manager::Container => container(setting),
            Manager::Other => other(setting),
        }
    }

    /// How to change a kernel parameter. A container has the parameters of its own network only.
    pub(super) fn sysctl(self, name: &str, value: impl Display) -> Fix {
        match self {
            Manager::Container if name.starts_with("net.") => Fix::command(
                "start the container with it",
                format!("docker run --sysctl {name}={value} IMAGE"),
            ),
            Manager::Container => {
                Fix::command("set it on the host of the container", format!("sysctl -w {name}={value}"))
            }
            Manager::Systemd | Manager::Other => Fix::command(
                "set it now, and in /etc/sysctl.d for the next boot",
                format!("sysctl -w {name}={value}"),
            ),
        }
    }

    /// How to allow system calls that a seccomp filter denies.
    pub(super) fn allow(self, calls: &str) -> Fix {
        match self {
            Manager::Systemd => {
                Fix::command(format!("allow {calls} in SystemCallFilter= of its unit"), "systemctl edit UNIT")
            }
            Manager::Container => Fix::command(
                format!("allow {calls} in the container's seccomp profile"),
                "docker run --security-opt seccomp=PROFILE.json IMAGE",
            ),
            Manager::Other => Fix::by_hand(format!(
                "allow {calls} in the seccomp filter that this process was started with"
            )),
        }
    }
}

fn systemd(setting: Setting) -> Fix {
    let unit = |line: &dyn Display| {
        Fix::command(format!("add to [Service] of its unit: {line}"), "systemctl edit UNIT")
    };
    match setting {
        Setting::Delegation => unit(&"Delegate=yes"),
        Setting::RuntimeDirectory => unit(&"RuntimeDirectory=NAME"),
        Setting::Capabilities(set) => {
            unit(&format_args!("AmbientCapabilities={}", set.to_string().replace(',', "")))
        }
        Setting::OpenFiles(limit) => unit(&format_args!("LimitNOFILE={limit}")),
        Setting::Pids(limit) => Fix::command(
            "raise it by what the workers start as well",
            format!("systemctl set-property UNIT TasksMax={limit}"),
        ),
        Setting::UserProcesses(limit) => unit(&format_args!("LimitNPROC={limit}")),
    }
}

fn container(setting: Setting) -> Fix {
    let (with, options) = match setting {
        Setting::Delegation => {
            ("a cgroup of its own", "--cgroupns private -v /sys/fs/cgroup:/sys/fs/cgroup:rw".to_owned())
        }
        Setting::RuntimeDirectory => ("a /run that can be written to", "--tmpfs /run".to_owned()),
        Setting::Capabilities(set) => {
            let name = |name: &str| format!("--cap-add {}", name.trim_start_matches("CAP_"));
            let options = set.to_string().split(", ").map(name).collect::<Vec<_>>().join(" ");
            ("these capabilities", options)
        }
        Setting::OpenFiles(limit) => ("this limit", format!("--ulimit nofile={limit}")),
        Setting::Pids(limit) => ("this limit or a higher one", format!("--pids-limit {limit}")),
        Setting::UserProcesses(limit) => ("this limit", format!("--ulimit nproc={limit}")),
    };
    Fix::command(format!("start the container with {with}"), format!("docker run {options} IMAGE"))
}

fn other(setting: Setting) -> Fix {
    match setting {
        Setting::Delegation => {
            Fix::by_hand("start it where the init system delegates a cgroup; with systemd: Delegate=yes")
        }
        Setting::RuntimeDirectory => Fix::command(
            "name a directory that only its user can write to",
            "export XDG_RUNTIME_DIR=DIRECTORY",
        ),
        Setting::Capabilities(set) => {
            let names = set.to_string().to_lowercase().replace("cap_", "+").replace(' ', "");
            Fix::command(
                "start it as root, or with these capabilities",
                format!("setpriv --inh-caps {names} --ambient-caps {names} COMMAND"),
            )
        }
        Setting::OpenFiles(limit) => {
            Fix::command("raise it as root before the start", format!("ulimit -n {limit}"))
        }
        Setting::Pids(limit) => Fix::by_hand(format!(
            "raise pids.max of its cgroup to {limit} or more, by what the workers start as well"
        )),
        Setting::UserProcesses(limit) => {
            Fix::command("raise it as root before the start", format!("ulimit -u {limit}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_thing_is_given_in_the_managers_own_words() {
        let two = ["BPF", "PERFMON"].into_iter().filter_map(Capabilities::named);
        let setting = Setting::Capabilities(two.fold(Capabilities::NONE, Capabilities::union));
        let fix = |manager: Manager| {
            let fix = manager.give(setting);
            (fix.text, fix.command.unwrap_or_default())
        };
        assert!(fix(Manager::Systemd).0.ends_with("AmbientCapabilities=CAP_PERFMON CAP_BPF"));
        assert_eq!(fix(Manager::Container).1, "docker run --cap-add PERFMON --cap-add BPF IMAGE");
        assert_eq!(
            fix(Manager::Other).1,
            "setpriv --inh-caps +perfmon,+bpf --ambient-caps +perfmon,+bpf COMMAND"
        );
    }
}
