//! The documentation's tables of commands and exit codes, generated from those that the program uses.

use super::TABLE;
use super::exit::codes;

/// The commands as a Markdown table, which `cargo xtask docs` writes into `docs/commands.md`.
#[must_use]
pub fn commands_as_markdown() -> String {
    let mut table = "| command | what it does |\n|---|---|\n".to_owned();
    for topic in TABLE {
        let form = format!("{} {}", topic.word, topic.form);
        table.push_str(&format!(
            "| `master-process {}` | {} |\n",
            form.trim_end().replace('|', "\\|"),
            topic.about
        ));
    }
    table
}

/// The exit codes of the commands as a Markdown table.
#[must_use]
pub fn codes_as_markdown() -> String {
    let mut table = "| code | `status`, `ls` | the others |\n|---|---|---|\n".to_owned();
    let or_dash = |text: &str| if text.is_empty() { "–".to_owned() } else { text.to_owned() };
    for (code, state, other) in codes::TABLE {
        table.push_str(&format!("| {code} | {} | {} |\n", or_dash(state), or_dash(other)));
    }
    table
}
