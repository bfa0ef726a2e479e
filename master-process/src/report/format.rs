//! Text lines: time, level and message. The fields appear in the JSON format only.

use std::fmt::{self, Write};
use std::time::SystemTime;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How a line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForPeople {
    /// Time and level, in colour if the writer supports it.
    Plain,
    /// The journal's priority. The journal adds the time. See sd-daemon(3).
    Journal,
}

impl<S, N> FormatEvent<S, N> for ForPeople
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        match self {
            ForPeople::Plain => write_head(&mut writer, level)?,
            ForPeople::Journal => write!(writer, "<{}>", priority(level))?,
        }
        let mut message = Message { writer: &mut writer, result: Ok(()) };
        event.record(&mut message);
        message.result?;
        writeln!(writer)
    }
}

fn write_head(writer: &mut Writer<'_>, level: Level) -> fmt::Result {
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    match colour(level).filter(|_| writer.has_ansi_escapes()) {
        Some(colour) => write!(writer, "\x1b[2m{now}\x1b[0m \x1b[{colour}m{level:>5}\x1b[0m "),
        None => write!(writer, "{now} {level:>5} "),
    }
}

fn colour(level: Level) -> Option<u8> {
    match level {
        Level::ERROR => Some(31),
        Level::WARN => Some(33),
        Level::INFO => Some(32),
        _finer => Some(36),
    }
}

/// The numbers of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _finer => 7,
    }
}

struct Message<'a, 'b> {
    writer: &'a mut Writer<'b>,
    result: fmt::Result,
}

impl tracing::field::Visit for Message<'_, '_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.result = write!(OneLine(self.writer), "{value:?}");
        }
    }
}

/// Escapes control characters. A message can contain text from other programs: the name of a process, a path, the
/// status of a worker. Such text can neither start a new line nor control a terminal.
struct OneLine<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for OneLine<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let end = part.char_indices().next_back().filter(|(_, last)| last.is_control());
            let (plain, control) = part.split_at(end.map_or(part.len(), |(at, _)| at));
            self.0.write_str(plain)?;
            write!(self.0, "{}", control.escape_default())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_chose_stays_within_its_line() {
        let written = |text: &str| {
            let mut line = String::new();
            write!(OneLine(&mut line), "from {text} (pid 7)").expect("a string takes it");
            line
        };
        assert_eq!(written("gödel's bash"), "from gödel's bash (pid 7)");
        assert_eq!(written("x\n<3>all is lost"), "from x\\n<3>all is lost (pid 7)");
        assert_eq!(written("\x1b[2J\r\u{9b}m\0"), "from \\u{1b}[2J\\r\\u{9b}m\\u{0} (pid 7)");
        assert_eq!(written(""), "from  (pid 7)");
    }
}
