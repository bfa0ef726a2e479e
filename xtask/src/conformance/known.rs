//! Differences that are known and stay, each with its reason. A difference that is not in here fails the command.

/// A test of another project that behaves differently as a worker, and why that is right.
pub(super) struct Known {
    pub(super) suite: &'static str,
    pub(super) test: &'static str,
    pub(super) reason: &'static str,
}

/// All of them. One that no longer differs is reported, so that it is taken out.
pub(super) const KNOWN: &[Known] = &[
    Known { suite: "libuv", test: "connection_fail", reason: AFTER_THE_LAST_TEST },
    Known { suite: "libuv", test: "connection_fail_doesnt_auto_close", reason: AFTER_THE_LAST_TEST },
    Known { suite: "libuv", test: "tcp_connect_error_after_write", reason: AFTER_THE_LAST_TEST },
    Known { suite: "libuv", test: "tcp_write_after_connect", reason: AFTER_THE_LAST_TEST },
    Known { suite: "libuv", test: "tcp_close_accept", reason: CLOSED_A_MOMENT_AGO },
    Known {
        suite: "redis",
        test: "Default bind address configuration handling",
        reason: CLOSED_A_MOMENT_AGO,
    },
    Known {
        suite: "ruby",
        test: "TestSocket_UNIXSocket#test_abstract_unix_socket_econnrefused",
        reason: CLOSED_A_MOMENT_AGO,
    },
    Known { suite: "tokio", test: "uds_stream::epollhup", reason: WAITED_AS_IT_CLOSED },
];

/// A closed listener takes connections for up to two seconds, since its worker may be about to end.
const CLOSED_A_MOMENT_AGO: &str = "connects within two seconds after the program closed its listener";
const WAITED_AS_IT_CLOSED: &str =
    "a connection that waits when the program closes its listener is cut off within two seconds";
const AFTER_THE_LAST_TEST: &str = "connects within two seconds after another process of the worker, the last test, ended that listened there";

/// The reason for a known difference.
pub(super) fn reason(suite: &str, test: &str) -> Option<&'static str> {
    KNOWN.iter().find(|known| known.suite == suite && known.test == test).map(|known| known.reason)
}
