//! docs/log.md lists every message that the supervisor logs, and no other.
//!
//! The messages are read from the sources: the format string of each `error!`, `warn!`, `info!` and `debug!`, and, in the
//! files that put messages together from parts, each string that reads as one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../../docs/log.md");

/// The files whose strings become messages, or parts of them.
const PARTS: [&str; 10] = [
    "report/exit_report.rs",
    "report/late.rs",
    "report/lines.rs",
    "report/writer.rs",
    "share/report.rs",
    "share/readiness.rs",
    "share/occupants/search.rs",
    "metrics/choice.rs",
    "metrics/ebpf/load_error.rs",
    "sys/control_socket.rs",
];

/// The files of the driver whose strings `doctor` prints, or the service manager gets: only what their macros log is a
/// message.
const NOT_LOGGED: [&str; 3] = ["driver/trial.rs", "driver/service_manager.rs", "driver/fd_store.rs"];

/// A string of the sources, or of the page; `level` is empty for a part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    level: String,
    text: String,
}

/// The text with each placeholder as `{}`, without the worker's name or the message that it begins with.
fn normalised(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        result.push_str(before);
        result.push_str("{}");
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    result.push_str(rest);
    let stripped = result.strip_prefix("{} ").or_else(|| result.strip_prefix("{}: "));
    stripped.unwrap_or(&result).trim().to_owned()
}

/// Whether there is anything in it but placeholders.
fn has_text(normalised: &str) -> bool {
    normalised.replace("{}", "").chars().filter(char::is_ascii_alphabetic).count() > 3
}

/// Whether it reads as a part of a message.
fn is_prose(normalised: &str) -> bool {
    has_text(normalised) && normalised.replace("{}", "").trim().contains(' ')
}

/// The string literal that begins at a quote, and how many bytes it takes.
fn literal(source: &str) -> (String, usize) {
    let mut text = String::new();
    let mut chars = source.char_indices().skip(1).peekable();
    while let Some((at, letter)) = chars.next() {
        match letter {
            '"' => return (text, at + 1),
            '\\' => match chars.next() {
                Some((_, '\n')) => while chars.next_if(|(_, next)| next.is_whitespace()).is_some() {},
                Some((_, 'n')) => text.push('\n'),
                Some((_, escaped)) => text.push(escaped),
                None => {}
            },
            other => text.push(other),
        }
    }
    (text, source.len())
}

/// A source without its tests, comments and attributes.
fn code(source: &str) -> String {
    let tested = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//") && !line.trim_start().starts_with("#[");
    tested.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// The format strings of the macro calls that log at a level.
fn logged(code: &str) -> Vec<Message> {
    let mut messages = Vec::new();
    for level in ["error", "warn", "info", "debug"] {
        // `end!` is the macro for the ends of workers: its first argument is the level.
        for call in [format!("{level}!("), format!("end!({level},")] {
            let texts = formats(code, &call).filter(|text| has_text(text));
            messages.extend(texts.map(|text| Message { level: level.to_owned(), text }));
        }
    }
    messages
}

/// The format strings of the calls of a macro.
fn formats<'a>(code: &'a str, call: &'a str) -> impl Iterator<Item = String> + 'a {
    code.match_indices(call).filter_map(move |(at, _)| {
        let is_whole_word = !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let text = first_argument(&code[at + call.len()..]).filter(|_| is_whole_word)?;
        Some(normalised(&text))
    })
}

/// The first string among the arguments of a macro that is neither a field's value nor within another call.
fn first_argument(arguments: &str) -> Option<String> {
    let (mut at, mut depth, mut follows) = (0, 1, true);
    while let Some(letter) = arguments[at..].chars().next() {
        match letter {
            '"' => {
                let (text, length) = literal(&arguments[at..]);
                if follows && depth == 1 {
                    return Some(text);
                }
                at += length;
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return None;
        }
        if !letter.is_whitespace() {
            follows = letter == ',';
        }
        at += letter.len_utf8();
    }
    None
}

/// Every string of a file that has words in it.
fn strings(code: &str) -> Vec<String> {
    let mut strings = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find('"') {
        // A character literal.
        if rest[..at].ends_with('\'') || rest[..at].ends_with('\\') {
            rest = &rest[at + 1..];
            continue;
        }
        let (text, length) = literal(&rest[at..]);
        rest = &rest[at + length..];
        if is_prose(&normalised(&text)) {
            strings.push(normalised(&text));
        }
    }
    strings
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the sources are there").filter_map(Result::ok);
    entries
        .map(|entry| entry.path())
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// What the sources log, and the parts that it is put together from.
fn in_sources() -> BTreeSet<Message> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let mut messages = BTreeSet::new();
    for path in sources(root) {
        let code = code(&fs::read_to_string(&path).expect("UTF-8"));
        let logged = logged(&code);
        let known: BTreeSet<String> = logged.iter().map(|message| message.text.clone()).collect();
        messages.extend(logged);
        let parts = if PARTS.iter().any(|part| root.join(part) == path) {
            strings(&code)
        } else if path.starts_with(root.join("driver"))
            && !NOT_LOGGED.iter().any(|file| path == root.join(file))
        {
            formats(&code, "format!(").filter(|text| is_prose(text)).collect()
        } else {
            Vec::new()
        };
        let parts = parts.into_iter().filter(|text| !known.contains(text));
        messages.extend(parts.map(|text| Message { level: String::new(), text }));
    }
    messages
}

/// The rows of the page whose second cell is a message.
fn on_page() -> BTreeSet<Message> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | `"));
    rows.filter_map(|(level, rest)| {
        let text = normalised(rest.split_once('`')?.0);
        Some(Message { level: level.to_owned(), text })
    })
    .collect()
}

#[test]
fn the_page_lists_every_message_at_its_level_and_no_other() {
    let (sources, page) = (in_sources(), on_page());
    assert!(sources.len() > 80, "the sources were not read: {sources:#?}");
    // The level of a part is that of the line that it comes in.
    let is_same = |one: &Message, other: &Message| {
        one.text == other.text && (one.level == other.level || one.level.is_empty() || other.level.is_empty())
    };
    let missing: Vec<_> =
        sources.iter().filter(|one| !page.iter().any(|other| is_same(one, other))).collect();
    assert!(missing.is_empty(), "not in docs/log.md: {missing:#?}");
    let gone: Vec<_> = page.iter().filter(|one| !sources.iter().any(|other| is_same(one, other))).collect();
    assert!(gone.is_empty(), "only in docs/log.md: {gone:#?}");
}

#[test]
fn messages_are_read_from_the_sources_as_they_are_written() {
    let code = code(
        "/// warn!(\"a comment that is no message\")\n\
         fn f() {\n    warn!(\n        worker = name(\"a nested string\"),\n        field = \"a value\",\n        \
         \"{worker} is \\\n         not ready: {}\",\n        x\n    );\n    my_info!(\"of another macro\");\n}\n\
         #[cfg(test)]\nmod tests { fn f() { warn!(\"of a test\") } }",
    );
    let found = logged(&code);
    assert_eq!(found, [Message { level: "warn".to_owned(), text: "is not ready: {}".to_owned() }]);
    assert_eq!(strings("f('\"'); g(\"two words\"); h(\"one\")"), ["two words"]);
}
