//! The report as text and as JSON.

use serde_json::{Map, Value, json};

use super::row::{Row, State};

/// The width that the text is designed for, in columns.
pub const WIDTH: usize = 80;
/// A narrower terminal gets this width.
const MIN_WIDTH: usize = 40;
/// The version of the JSON. Fields are only ever added.
const SCHEMA: u32 = 1;

/// Where the lines about a problem begin.
const INDENT: &str = "    ";
/// The space between two columns.
const GAP: &str = "  ";

/// Everything that was found out.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// The release of the kernel.
    pub kernel: String,
    /// The effective user.
    pub uid: u32,
    /// The number of workers that the limits are compared with.
    pub workers: u32,
    /// The rows, those of a group together.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether something is not used in its best form.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.rows.iter().any(|row| row.state.is_problem())
    }

    /// The text, in lines of at most `width` columns.
    #[must_use]
    pub fn text(&self, width: usize, colours: bool) -> String {
        let width = width.max(MIN_WIDTH);
        let mut page = Page { width, text: String::new() };
        let Report { version, kernel, uid, workers, rows } = self;
        let plural = if *workers == 1 { "worker" } else { "workers" };
        page.paragraph(
            "",
            &format!("master-process {version}, Linux {kernel}, uid {uid}, {workers} {plural}"),
        );
        let names = rows.iter().map(|row| row.check.len()).chain(["CHECK".len()]).max().unwrap_or(0);
        let states = rows.iter().map(|row| row.state.word().len()).chain(["STATE".len()]).max().unwrap_or(0);
        page.text.push('\n');
        page.paragraph("", &format!("{:names$}{GAP}{:states$}{GAP}USES", "CHECK", "STATE"));
        let mut group = None;
        for row in rows {
            if group.replace(row.group) != Some(row.group) {
                page.paragraph("", row.group.word());
            }
            let word = row.state.word();
            let shown = if colours { coloured(row.state) } else { word.to_owned() };
            let pad = " ".repeat(states - word.len());
            let begin = |word: &str| format!("{:names$}{GAP}{word}{pad}{GAP}", row.check);
            page.hanging(&begin(&shown), begin(word).len(), &row.uses);
            if let Some(problem) = &row.problem {
                page.paragraph(&format!("{INDENT}why: "), &problem.why);
                page.paragraph(&format!("{INDENT}fix: "), &problem.fix.text);
                if let Some(command) = &problem.fix.command {
                    page.command(&format!("{INDENT}run: "), command);
                }
            }
        }
        page.text.push('\n');
        page.paragraph("", &self.summary());
        page.text
    }

    fn summary(&self) -> String {
        let problems: Vec<&str> =
            self.rows.iter().filter(|row| row.state.is_problem()).map(|row| row.check).collect();
        let count = self.rows.len();
        match problems.len() {
            0 if count == 1 => "ok: 1 check".to_owned(),
            0 => format!("ok: {count} checks"),
            some => format!("degraded: {some} of {count} checks: {}", problems.join(", ")),
        }
    }

    /// The JSON, as one object.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "schema": SCHEMA,
            "version": self.version,
            "kernel": self.kernel,
            "uid": self.uid,
            "workers": self.workers,
            "state": if self.is_degraded() { State::Degraded } else { State::Ok }.word(),
            "checks": self.rows.iter().map(row_json).collect::<Vec<_>>(),
        })
    }
}

fn row_json(row: &Row) -> Value {
    let problem = row.problem.as_ref();
    let mut object = Map::new();
    let mut add = |name: &str, value: Value| object.insert(name.to_owned(), value);
    add("group", row.group.word().into());
    add("check", row.check.into());
    add("state", row.state.word().into());
    add("uses", row.uses.as_str().into());
    add("why", problem.map(|problem| problem.why.as_str()).into());
    add("fix", problem.map(|problem| problem.fix.text.as_str()).into());
    add("command", problem.and_then(|problem| problem.fix.command.as_deref()).into());
    let facts: Map<String, Value> =
        row.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    add("facts", Value::Object(facts));
    Value::Object(object)
}

fn coloured(state: State) -> String {
    let colour = match state {
        State::Ok => 32,
        State::Degraded | State::Unknown => 33,
        State::Missing => 31,
        State::Unused => return state.word().to_owned(),
    };
    format!("\x1b[{colour}m{}\x1b[0m", state.word())
}

/// Text in lines of limited width.
struct Page {
    width: usize,
    text: String,
}

impl Page {
    /// Words behind `first`. Further lines begin below the first word.
    fn paragraph(&mut self, first: &str, words: &str) {
        self.hanging(first, columns(first), words);
    }

    /// The same; `first` takes `indent` columns on the screen.
    fn hanging(&mut self, first: &str, indent: usize, words: &str) {
        let room = self.width.saturating_sub(indent).max(1);
        for (number, line) in wrapped(words, room).iter().enumerate() {
            let begin = if number == 0 { first.to_owned() } else { " ".repeat(indent) };
            self.line(&format!("{begin}{line}"));
        }
    }

    /// A command. A line that is continued ends with a backslash, so that it can be pasted.
    fn command(&mut self, first: &str, command: &str) {
        let indent = columns(first);
        let room = self.width.saturating_sub(indent + " \\".len()).max(1);
        let lines = if columns(command) + indent <= self.width {
            vec![command.to_owned()]
        } else {
            wrapped(command, room)
        };
        for (number, line) in lines.iter().enumerate() {
            let begin = if number == 0 { first.to_owned() } else { " ".repeat(indent) };
            let end = if number + 1 < lines.len() { " \\" } else { "" };
            self.line(&format!("{begin}{line}{end}"));
        }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// Lines of at most `room` columns. A word that is longer is divided. There is at least one line.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    // The header of the table has several spaces in a row: they stay as long as the line fits.
    if columns(text) <= room {
        return vec![printable(text)];
    }
    for word in printable(text).split(' ').filter(|word| !word.is_empty()) {
        for part in divided(word, room) {
            let Some(line) = lines.last_mut() else { break };
            let gap = usize::from(!line.is_empty());
            if columns(line) + gap + columns(&part) <= room {
                if gap > 0 {
                    line.push(' ');
                }
                line.push_str(&part);
            } else {
                lines.push(part);
            }
        }
    }
    lines
}

fn divided(word: &str, room: usize) -> Vec<String> {
    let letters: Vec<char> = word.chars().collect();
    letters.chunks(room).map(|part| part.iter().collect()).collect()
}

/// The text without characters that a terminal acts on: paths of the host are in it.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::advice::Manager;
    use super::super::row::{Fix, Group};
    use super::*;

    fn report() -> Report {
        let long = "/a/path/that/is/longer/than/any/terminal/is/wide".repeat(3);
        let rows = vec![
            Row::ok(Group::Processes, "clone3", "clone3"),
            Row::degraded(
                Group::Processes,
                "io_uring",
                "epoll",
                "io_uring_setup: Operation not permitted (os error 1); each watch costs one more system call",
                Manager::Container.allow("io_uring_setup, io_uring_enter and io_uring_register"),
            ),
            Row::missing(Group::Sharing, "seccomp", "no sharing of ports", &long, Fix::by_hand(&long)),
            Row::unused(
                Group::Sharing,
                "tcp_migrate_req",
                "not needed: eBPF moves the queues of workers that crash",
            )
            .with("enabled", false),
            Row::unknown(
                Group::Log,
                "journald",
                "a\x1b[31mb",
                Fix::command("t", format!("run {long} \u{2026}")),
            ),
        ];
        Report { version: "1.2.3", kernel: "6.18.5".into(), uid: 0, workers: 2, rows }
    }

    fn without_colours(text: &str) -> String {
        let mut plain = text.to_owned();
        for colour in [31, 32, 33, 0] {
            plain = plain.replace(&format!("\x1b[{colour}m"), "");
        }
        plain
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [40, 60, 80, 100] {
            for colours in [false, true] {
                let text = without_colours(&report().text(width, colours));
                for line in text.lines() {
                    assert!(columns(line) <= width, "{width}: {line}");
                    assert!(!line.ends_with(' ') && !line.contains('\x1b'), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn colours_are_on_the_states_alone() {
        let (plain, coloured) = (report().text(80, false), report().text(80, true));
        assert_ne!(plain, coloured);
        assert_eq!(without_colours(&coloured), plain);
        assert!(coloured.contains("\x1b[33mdegraded\x1b[0m"), "{coloured}");
    }

    #[test]
    fn each_problem_is_followed_by_what_to_do() {
        let text = report().text(80, false);
        let lines: Vec<&str> = text.lines().collect();
        for check in ["io_uring", "seccomp", "journald"] {
            let at = lines.iter().position(|line| line.starts_with(check)).expect("its row");
            let rest = &lines[at + 1..];
            let end = rest.iter().position(|line| !line.starts_with(' ')).expect("the summary");
            assert!(rest[..end].iter().any(|line| line.starts_with("    fix: ")), "{check}: {rest:?}");
        }
    }

    #[test]
    fn nothing_is_lost_in_a_narrow_terminal() {
        let words = |width| {
            let text = report().text(width, false);
            let joined: String = text.split_whitespace().filter(|word| *word != "\\").collect();
            joined
        };
        assert_eq!(words(40), words(80));
        assert_eq!(words(60), words(100));
    }

    #[test]
    fn json_has_every_row_of_the_text_with_its_facts() {
        let report = report();
        let json = report.json();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["state"], "degraded");
        let checks = json["checks"].as_array().expect("a list");
        assert_eq!(checks.len(), report.rows.len());
        for (row, check) in report.rows.iter().zip(checks) {
            assert_eq!(check["check"], row.check);
            assert_eq!(check["state"], row.state.word());
            assert_eq!(check["fix"].is_null(), row.problem.is_none());
        }
        assert_eq!(checks[3]["facts"]["enabled"], false);
        assert_eq!(checks[0]["why"], Value::Null);
    }

    #[test]
    fn the_summary_names_the_problems() {
        assert_eq!(report().summary(), "degraded: 3 of 5 checks: io_uring, seccomp, journald");
        let rows = vec![Row::ok(Group::Log, "journald", "stderr")];
        let well = Report { rows, ..report() };
        assert_eq!(well.summary(), "ok: 1 check");
        assert!(!well.is_degraded());
    }

    #[test]
    fn a_command_that_is_continued_can_be_pasted() {
        let mut page = Page { width: 40, text: String::new() };
        page.command("    run: ", "docker run --security-opt seccomp=PROFILE.json image");
        assert_eq!(page.text, "    run: docker run --security-opt \\\n         seccomp=PROFILE.json image\n");
    }
}
