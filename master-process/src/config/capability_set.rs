//! Sets of capabilities: capabilities(7).

use std::fmt;

/// A set of capabilities; bit N is capability number N, as in `/proc/PID/status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

/// The name of each capability by its number, without `CAP_`. Linux 5.9 added the newest one.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Capabilities {
    /// The empty set.
    pub const NONE: Capabilities = Capabilities(0);

    /// The set of the one capability with this name: `net_bind_service` or `CAP_NET_BIND_SERVICE`, in any case.
    #[must_use]
    pub fn named(name: &str) -> Option<Capabilities> {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|known| *known == short)?;
        Some(Capabilities(1 << number))
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The union of both sets.
    #[must_use]
    pub fn union(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    /// The capabilities of this set that are not in the other.
    #[must_use]
    pub fn without(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & !other.0)
    }

    /// The numbers of the capabilities.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |number| self.0 & (1 << number) != 0)
    }
}

/// The names, separated by commas: `CAP_CHOWN, CAP_KILL`.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.numbers().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match NAMES.get(number as usize) {
                Some(name) => write!(f, "{separator}CAP_{name}")?,
                None => write!(f, "{separator}capability {number}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_optional_prefix_and_any_case() {
        let expected = Some(Capabilities(1 << 10));
        for name in ["net_bind_service", "CAP_NET_BIND_SERVICE", "Cap_Net_Bind_Service"] {
            assert_eq!(Capabilities::named(name), expected, "{name}");
        }
        assert_eq!(Capabilities::named("checkpoint_restore"), Some(Capabilities(1 << 40)));
        for unknown in ["", "cap_", "all", "10", "net bind service", "cap_cap_kill"] {
            assert_eq!(Capabilities::named(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        // Independent of the table: the constants of linux/capability.h in rustix.
        use rustix::thread::CapabilitySet as Kernel;
        let sample = [
            ("chown", Kernel::CHOWN),
            ("setuid", Kernel::SETUID),
            ("sys_ptrace", Kernel::SYS_PTRACE),
            ("sys_tty_config", Kernel::SYS_TTY_CONFIG),
            ("setfcap", Kernel::SETFCAP),
            ("syslog", Kernel::SYSLOG),
            ("audit_read", Kernel::AUDIT_READ),
            ("bpf", Kernel::BPF),
            ("checkpoint_restore", Kernel::CHECKPOINT_RESTORE),
        ];
        for (name, bit) in sample {
            assert_eq!(Capabilities::named(name), Some(Capabilities(bit.bits())), "{name}");
        }
    }

    #[test]
    fn a_set_displays_its_names() {
        assert_eq!(Capabilities::NONE.to_string(), "");
        assert_eq!(Capabilities(0b10_0001).to_string(), "CAP_CHOWN, CAP_KILL");
        assert_eq!(Capabilities(1 << 63).to_string(), "capability 63");
    }
}
