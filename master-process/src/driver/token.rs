//! The event that a completion of the ring reports.

/// A source of events. A serial is never reused, so a late completion cannot reach another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The notify socket.
    Messages,
    /// The seccomp listener of the worker with this serial.
    Calls(u64),
    /// The readiness pipe of the worker with this serial.
    ReadyPipe(u64),
    /// Results of the helper thread of the sockets.
    Looks,
    /// Results of the helper thread of the process trees.
    Trees,
    /// Results of the inspector, about a worker that is over a limit.
    Inspected,
    /// The queues of the sockets that workers listen on.
    Queues,
    /// The controlling terminal.
    Terminal,
    /// The signalfd.
    Signals,
    /// The pidfd of the worker with this serial.
    Exit(u64),
}

const KIND_AT: u32 = 56;
const SERIAL: u64 = (1 << KIND_AT) - 1;

impl Token {
    /// Encodes the token as a number that sorts by kind in the order above, so that a worker's messages come before its
    /// end.
    pub(super) fn encode(self) -> u64 {
        match self {
            Token::Messages => 0,
            Token::Calls(serial) => 1 << KIND_AT | serial,
            Token::ReadyPipe(serial) => 2 << KIND_AT | serial,
            Token::Looks => 3 << KIND_AT,
            Token::Trees => 4 << KIND_AT,
            Token::Inspected => 5 << KIND_AT,
            Token::Queues => 6 << KIND_AT,
            Token::Terminal => 7 << KIND_AT,
            Token::Signals => 8 << KIND_AT,
            Token::Exit(serial) => 9 << KIND_AT | serial,
        }
    }

    pub(super) fn decode(number: u64) -> Token {
        let serial = number & SERIAL;
        match number >> KIND_AT {
            0 => Token::Messages,
            1 => Token::Calls(serial),
            2 => Token::ReadyPipe(serial),
            3 => Token::Looks,
            4 => Token::Trees,
            5 => Token::Inspected,
            6 => Token::Queues,
            7 => Token::Terminal,
            8 => Token::Signals,
            _last => Token::Exit(serial),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_ring_and_sorts_by_kind() {
        let all = [
            Token::Messages,
            Token::Calls(7),
            Token::ReadyPipe(7),
            Token::Looks,
            Token::Trees,
            Token::Inspected,
            Token::Queues,
            Token::Terminal,
            Token::Signals,
            Token::Exit(SERIAL),
        ];
        let numbers = all.map(Token::encode);
        assert!(numbers.is_sorted());
        assert_eq!(numbers.map(Token::decode), all);
    }
}
