//! Text for people: durations, sizes, times, tables, colours.

use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use crate::control::WorkerState;
use crate::report::{Size, wants_colour};

/// The width that the layouts are made for.
pub(super) const WIDTH: usize = 80;

/// Prints text on standard output. If nobody reads it, the exit code still counts.
pub(super) fn print(text: &str) {
    let _closed = std::io::stdout().write_all(text.as_bytes());
    let _closed = std::io::stdout().flush();
}

/// Whether standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether to use colours.
pub(super) fn has_colour() -> bool {
    is_terminal() && wants_colour()
}

/// The columns and rows of the terminal, `COLUMNS`, or those that the layouts are made for.
pub(super) fn size() -> (usize, usize) {
    let window = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_col > 0);
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    match window {
        Some(size) => (size.ws_col.into(), size.ws_row.into()),
        None => (columns.filter(|columns| *columns > 0).unwrap_or(WIDTH), 24),
    }
}

/// The columns that there are room for; `None` if nothing is to be shortened: no terminal shows it, and `COLUMNS` is not set.
pub(super) fn columns() -> Option<usize> {
    (is_terminal() || std::env::var_os("COLUMNS").is_some()).then(|| size().0)
}

/// The colour of a state: red for what needs a person, yellow for what passes, green for what is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Good,
    Passing,
    Bad,
}

impl Colour {
    /// Text in this colour.
    pub(super) fn paint(self, text: &str, colours: bool) -> String {
        let number = match self {
            Colour::Good => 32,
            Colour::Passing => 33,
            Colour::Bad => 31,
        };
        if colours { format!("\x1b[{number}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The colour of a worker's state.
    pub(super) fn of(state: WorkerState) -> Colour {
        match state {
            WorkerState::Ready | WorkerState::Serving => Colour::Good,
            WorkerState::Starting | WorkerState::Draining | WorkerState::Stopping => Colour::Passing,
            WorkerState::Hung | WorkerState::OverLimit | WorkerState::Waiting => Colour::Bad,
        }
    }
}

/// Text of other programs without what could control the terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A duration in its largest unit: `41s`, `3m`, `6d`.
pub(super) fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m", whole / 60),
        3600..86_400 => format!("{}h", whole / 3600),
        _days => format!("{}d", whole / 86_400),
    }
}

/// A duration in its two largest units: `41s`, `3m 20s`, `6d 4h`.
pub(super) fn long_span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let two = |large: u64, one: &str, small: u64, other: &str| match small {
        0 => format!("{large}{one}"),
        small => format!("{large}{one} {small}{other}"),
    };
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => two(whole / 60, "m", whole % 60, "s"),
        3600..86_400 => two(whole / 3600, "h", whole % 3600 / 60, "m"),
        _days => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
    }
}

/// A short duration with a tenth of a second: `0.4s`. Longer ones have no use for it.
pub(super) fn tenths(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.1}s") } else { long_span(seconds) }
}

/// A size with its unit: `212 MiB`.
pub(super) fn size_of(bytes: u64) -> String {
    let text = Size(bytes).to_string();
    // From ten on, a decimal says nothing to a person.
    match text.split_once('.') {
        Some((whole, rest)) if whole.len() > 1 => match rest.split_once(' ') {
            Some((_, unit)) => format!("{whole} {unit}"),
            None => text,
        },
        Some(_) | None => text,
    }
}

/// How long ago a time was, as clients get it; `None` if it is not a time.
pub(super) fn ago(time: &str) -> Option<f64> {
    let at = humantime::parse_rfc3339_weak(time).ok()?;
    Some(SystemTime::now().duration_since(at).unwrap_or_default().as_secs_f64())
}

/// Text that is at most this wide: what is cut off is shown to be.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Text in lines of at most this width, broken between words. Each line but the first begins with `indent` spaces.
/// `None`: in one line.
pub(super) fn wrapped(text: &str, width: Option<usize>, indent: usize) -> String {
    let Some(width) = width.filter(|width| *width > indent) else { return format!("{text}\n") };
    let (mut lines, mut line, mut length, mut is_fresh) = (String::new(), String::new(), 0, true);
    for word in text.split_inclusive(' ') {
        let mut rest = word;
        while !rest.trim_end().is_empty() && length + rest.trim_end().chars().count() > width {
            // A word that no line has room for is broken where the line ends.
            let taken = if is_fresh { width - length } else { 0 };
            let at = rest.char_indices().nth(taken).map_or(rest.len(), |(at, _)| at);
            line.push_str(&rest[..at]);
            rest = &rest[at..];
            lines.push_str(line.trim_end());
            lines.push('\n');
            (line, length, is_fresh) = (" ".repeat(indent), indent, true);
        }
        line.push_str(rest);
        length += rest.chars().count();
        is_fresh &= rest.trim_end().is_empty();
    }
    lines.push_str(line.trim_end());
    lines.push('\n');
    lines
}

/// Two texts at the two ends of a line. If there is no room, the second one gets a line of its own.
pub(super) fn ends(left: &str, right: &str, width: usize) -> String {
    let (taken, needed) = (left.chars().count(), right.chars().count());
    if taken + 2 + needed <= width {
        format!("{left}{}{right}\n", " ".repeat(width - taken - needed))
    } else {
        format!("{left}\n{right}\n")
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// Its head, and the one for narrow terminals.
    pub(super) head: [&'static str; 2],
    /// Its least width where there is room.
    pub(super) width: usize,
    /// Whether its text begins at its left.
    pub(super) left: bool,
}

/// A table. `paint` colours a cell, by row and column, after its width is known. Columns get narrower before anything is
/// cut off, and only the last one is cut.
pub(super) fn table(
    columns: &[Column],
    rows: &[Vec<String>],
    width: Option<usize>,
    paint: impl Fn(usize, usize, &str) -> String,
) -> String {
    let widths = |narrow: bool| -> Vec<usize> {
        let cells =
            |at: usize| rows.iter().filter_map(move |row| row.get(at)).map(|cell| cell.chars().count());
        let width = |(at, column): (usize, &Column)| {
            let head = column.head[usize::from(narrow)].chars().count();
            let least = if narrow { 0 } else { column.width };
            cells(at).max().unwrap_or_default().max(head).max(least)
        };
        columns.iter().enumerate().map(width).collect()
    };
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + widths.len().saturating_sub(1);
    let wide = widths(false);
    let last = wide.last().copied().unwrap_or_default();
    // The last column may be cut to the width of its head.
    let least = columns.last().map_or(0, |column| column.width.min(last));
    let narrow = width.is_some_and(|width| total(&wide) - last + least > width);
    let mut widths = if narrow { widths(true) } else { wide };
    if let (Some(width), Some(last)) = (width, widths.last().copied()) {
        let before = total(&widths) - last;
        let room = width.saturating_sub(before).max(4);
        if let Some(widest) = widths.last_mut() {
            *widest = last.min(room);
        }
    }
    let line = |row: Option<usize>, cells: &[String]| {
        let mut line = String::new();
        for (at, (cell, column)) in cells.iter().zip(columns).enumerate() {
            let cell = cut(cell, if at + 1 == columns.len() { widths[at] } else { usize::MAX });
            let pad = " ".repeat(widths[at].saturating_sub(cell.chars().count()));
            let shown = row.map_or(cell.clone(), |row| paint(row, at, &cell));
            if at > 0 {
                line.push(' ');
            }
            line.push_str(&if column.left { format!("{shown}{pad}") } else { format!("{pad}{shown}") });
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let heads: Vec<String> =
        columns.iter().map(|column| column.head[usize::from(narrow)].to_owned()).collect();
    let body = rows.iter().enumerate().map(|(row, cells)| line(Some(row), cells));
    std::iter::once(line(None, &heads)).chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_or_two_units() {
        let cases = [(0.4, "0s", "0s"), (41.9, "41s", "41s"), (200.0, "3m", "3m 20s"), (7200.0, "2h", "2h")];
        for (seconds, short, long) in cases {
            assert_eq!((span(seconds).as_str(), long_span(seconds).as_str()), (short, long));
        }
        assert_eq!((span(532_800.0).as_str(), long_span(532_800.0).as_str()), ("6d", "6d 4h"));
        assert_eq!((tenths(0.44).as_str(), tenths(-1.0).as_str()), ("0.4s", "-1.0s"));
    }

    #[test]
    fn sizes_have_two_digits_or_more() {
        let cases = [(0, "0 B"), (212 << 20, "212 MiB"), (1 << 30, "1.0 GiB"), (15 << 19, "7.5 MiB")];
        for (bytes, text) in cases {
            assert_eq!(size_of(bytes), text);
        }
    }

    #[test]
    fn the_two_ends_of_a_line_or_two_lines() {
        assert_eq!(ends("a", "b", 5), "a   b\n");
        assert_eq!(ends("aaa", "b", 5), "aaa\nb\n");
    }

    #[test]
    fn text_is_broken_between_words_and_nothing_is_lost() {
        let at = |width, text| wrapped(text, width, 2);
        assert_eq!(at(None, "one two  three"), "one two  three\n");
        assert_eq!(at(Some(14), "one two  three"), "one two  three\n");
        assert_eq!(at(Some(13), "one two  three"), "one two\n  three\n");
        assert_eq!(at(Some(7), "one two three four"), "one two\n  three\n  four\n");
        assert_eq!(at(Some(5), "a bcdefgh"), "a\n  bcd\n  efg\n  h\n", "a word that is longer than a line");
        assert_eq!(at(Some(2), "a bc"), "a bc\n", "there is no room at all");
        for width in 3..40 {
            let text = "slot 2  accepts nothing on [::]:3000 since 41s";
            let lines = at(Some(width), text);
            assert!(lines.lines().all(|line| line.chars().count() <= width), "{width}: {lines}");
            let letters = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(letters(&lines), letters(text), "{width}");
        }
    }

    #[test]
    fn a_table_gets_narrow_before_it_cuts() {
        let columns = [
            Column { head: ["NUMBER", "N"], width: 8, left: false },
            Column { head: ["LAST END", "END"], width: 8, left: true },
        ];
        let rows = [vec!["1".to_owned(), "a long story".to_owned()]];
        let at = |width| table(&columns, &rows, width, |_, _, cell| cell.to_owned());
        assert_eq!(at(None), "  NUMBER LAST END\n       1 a long story\n");
        assert_eq!(at(Some(18)), "  NUMBER LAST END\n       1 a long s…\n");
        assert_eq!(at(Some(10)), "N END\n1 a long …\n");
        assert_eq!(at(Some(1)), "N END\n1 a l…\n", "no column is left out");
    }

    #[test]
    fn a_program_cannot_control_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
