//! When two outputs are the same: numbers in times and ports that the kernel chose aside, and one allowed difference.

/// The lowest port that the kernel chooses by itself (`net.ipv4.ip_local_port_range` as it is by default), and the highest.
const CHOSEN_PORTS: std::ops::RangeInclusive<u32> = 32768..=60999;

/// What a program prints of `SO_REUSEPORT` on a socket that listens: set or not, both are allowed there, and only there.
const LISTENING_REUSEPORT: &str = "listening: SO_REUSEPORT reads ";

/// A line as it is compared.
pub(crate) fn normalized(line: &str) -> String {
    if line.starts_with(LISTENING_REUSEPORT) {
        return format!("{LISTENING_REUSEPORT}…");
    }
    let mut result = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(from.len());
        let (number, after) = from.split_at(end);
        result.push_str(before);
        result.push_str(class(number));
        rest = after;
    }
    result + rest
}

/// What stands for a number: itself, unless it is a time (a decimal fraction) or a port that the kernel chose.
fn class(number: &str) -> &str {
    let is_time = number.matches('.').count() == 1 && !number.ends_with('.');
    let is_port = number.parse().is_ok_and(|port| CHOSEN_PORTS.contains(&port));
    match (is_time, is_port) {
        (true, _) => "TIME",
        (false, true) => "PORT",
        (false, false) => number,
    }
}

/// Both outputs, the lines that differ marked; `None` where they are the same.
pub(crate) fn difference(alone: &[String], worker: &[String]) -> Option<String> {
    let same = |index: usize| {
        let of = |lines: &[String]| lines.get(index).map(|line| normalized(line));
        of(alone) == of(worker)
    };
    let length = alone.len().max(worker.len());
    if (0..length).all(same) {
        return None;
    }
    let mut report = String::new();
    for index in 0..length {
        let text = |lines: &[String]| lines.get(index).cloned().unwrap_or_else(|| "(nothing)".into());
        report += &if same(index) {
            format!("           {}\n", text(alone))
        } else {
            format!("  alone:   {}\n  worker:  {}\n", text(alone), text(worker))
        };
    }
    Some(report)
}

mod tests {
    use super::{difference, normalized};

    #[test]
    fn times_and_chosen_ports_are_not_compared_and_everything_else_is() {
        assert_eq!(normalized("at once 0.0"), normalized("at once 0.1"));
        assert_eq!(normalized("('127.0.0.1', 40123)"), "('127.0.0.1', PORT)");
        assert_ne!(normalized("('127.0.0.1', 28102)"), normalized("('127.0.0.2', 28102)"));
        assert_ne!(normalized("[Errno 98]"), normalized("[Errno 111]"));
        assert_eq!(normalized("set 40000000"), "set 40000000");
    }

    #[test]
    fn only_a_listening_socket_may_read_so_reuseport_as_set() {
        let read = |when: &str, value: u8| normalized(&format!("{when}: SO_REUSEPORT reads {value}"));
        assert_eq!(read("listening", 0), read("listening", 1));
        assert_ne!(read("bound", 0), read("bound", 1));
    }

    #[test]
    fn a_line_more_or_less_is_a_difference() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(difference(&lines("a\nb"), &lines("a\nb")), None);
        assert!(difference(&lines("a\nb"), &lines("a")).is_some());
        assert!(difference(&lines("a"), &lines("a\nb")).is_some());
    }
}
