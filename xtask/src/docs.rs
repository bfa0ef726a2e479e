//! `cargo xtask docs`: the tables of the documentation, generated from the code that acts on them.

use std::fmt::Display;
use std::path::Path;

use anyhow::{Context, Result, bail};
use master_process::driver::{self, signals};
use master_process::{cli, client, exit_code};

/// A table of a page, between `<!-- name -->` and `<!-- /name -->`.
struct Table {
    page: &'static str,
    name: &'static str,
    text: String,
}

fn tables() -> [Table; 6] {
    [
        Table { page: "docs/options.md", name: "options", text: cli::options_as_markdown() },
        Table {
            page: "docs/options.md",
            name: "environment",
            text: as_table(("variable", "meaning"), &driver::worker_variables()),
        },
        Table {
            page: "docs/options.md",
            name: "exit codes",
            text: two_columns(("code", "meaning"), &exit_code::TABLE),
        },
        Table {
            page: "docs/signals.md",
            name: "signals",
            text: two_columns(("signal", "effect"), &signals::effects()),
        },
        Table { page: "docs/commands.md", name: "commands", text: client::commands_as_markdown() },
        Table { page: "docs/commands.md", name: "exit codes", text: client::codes_as_markdown() },
    ]
}

/// A table whose keys are code.
fn two_columns<T: Display>(heads: (&str, &str), rows: &[(T, &str)]) -> String {
    let rows: Vec<_> = rows.iter().map(|(key, meaning)| (format!("`{key}`"), *meaning)).collect();
    as_table(heads, &rows)
}

fn as_table((key, meaning): (&str, &str), rows: &[(String, &str)]) -> String {
    let rows: String = rows.iter().map(|(key, meaning)| format!("| {key} | {meaning} |\n")).collect();
    format!("| {key} | {meaning} |\n|---|---|\n{rows}")
}

/// Writes every table into its page. With `check`, writes nothing.
///
/// # Errors
/// A page that cannot be read or written or has no place for its table. With `check`, also a page that is not up to date.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the root of the repository")?;
    let mut stale = Vec::new();
    for table in tables() {
        let path = root.join(table.page);
        let page = std::fs::read_to_string(&path).with_context(|| format!("reading {}", table.page))?;
        let updated = replace(&page, table.name, &table.text)
            .with_context(|| format!("{}: no place for the table `{}`", table.page, table.name))?;
        if updated == page {
            continue;
        }
        stale.push(format!("{} ({})", table.page, table.name));
        if !check {
            std::fs::write(&path, updated).with_context(|| format!("writing {}", table.page))?;
        }
    }
    if check && !stale.is_empty() {
        bail!("not up to date: {}; run `cargo xtask docs`", stale.join(", "));
    }
    Ok(())
}

/// The page with this text between the markers of the table; `None` where it does not have them.
fn replace(page: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_replaces_what_is_between_its_markers() {
        let page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n";
        assert_eq!(replace(page, "x", "new\n").as_deref(), Some("a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"));
        assert_eq!(replace(page, "y", "new\n"), None);
        assert_eq!(replace("<!-- x -->", "x", "new\n"), None);
    }
}
