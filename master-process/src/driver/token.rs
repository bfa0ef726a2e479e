//! What a completion of the ring stands for.

/// Something that is waited for. A serial is never used twice, so a late completion finds nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The notify socket.
    Messages,
    /// The seccomp listener of the worker with this serial.
    Calls(u64),
    /// The pipe on which it says that it is ready.
    ReadyPipe(u64),
    /// What the helper thread of the sockets has found.
    Looks,
    /// What the helper thread of the process trees has found.
    Trees,
    /// What was found out about a worker that is over a limit.
    Inspected,
    /// The queues of the sockets that workers listen on.
    Queues,
    /// The controlling terminal.
    Terminal,
    /// The signalfd.
    Signals,
    /// Its pidfd.
    Exit(u64),
}

const KIND_AT: u32 = 56;
const SERIAL: u64 = (1 << KIND_AT) - 1;

impl Token {
    /// As a number that sorts by kind in the order above: what was said comes before the end of who said it.
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
