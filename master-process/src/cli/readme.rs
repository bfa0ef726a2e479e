//! The table of options in the README, written from the table that clap reads.

use super::option_table::{Kind, OPTIONS, Opt, Unset};

/// The columns of the README.
const COLUMNS: [&str; 4] = ["flag", "variables", "default", "meaning"];

/// The options as a Markdown table. The README has it between `<!-- options -->` and `<!-- /options -->`.
#[must_use]
pub fn option_table() -> String {
    let mut table = line(&COLUMNS.map(str::to_owned));
    table.push_str("|---|---|---|---|\n");
    for opt in OPTIONS {
        table.push_str(&line(&row(opt)));
    }
    table
}

fn line(cells: &[String; 4]) -> String {
    let cells = cells.each_ref().map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.join(" | "))
}

fn row(opt: &Opt) -> [String; 4] {
    [flag(opt), code_list(&opt.all_variables()), default(opt), opt.meaning.to_owned()]
}

fn flag(opt: &Opt) -> String {
    let short = opt.short.map(|short| format!("-{short}, ")).unwrap_or_default();
    let value = opt.value().map(|form| format!(" {form}")).unwrap_or_default();
    let repeatable = match opt.kind {
        Kind::Repeated(..) | Kind::List(..) => " (repeatable)",
        Kind::Value(..) | Kind::Switch | Kind::Help | Kind::Version => "",
    };
    format!("`{short}--{}{value}`{repeatable}", opt.long)
}

fn code_list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn default(opt: &Opt) -> String {
    match opt.unset {
        Unset::Default(text) => format!("`{text}`"),
        Unset::GivesWay(text) => format!("`{text}`, gives way"),
        Unset::Nothing(text) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

    /// The rows of the table between the markers, without the two lines of the header.
    fn rows(markdown: &str) -> Option<Vec<Vec<String>>> {
        let (_, from) = markdown.split_once("<!-- options -->")?;
        let (table, _) = from.split_once("<!-- /options -->")?;
        Some(table.lines().filter(|line| line.starts_with('|')).skip(2).map(cells).collect())
    }

    fn cells(line: &str) -> Vec<String> {
        // No text contains NUL: it replaces the escaped bars while the line is split at the others.
        let line = line.trim().trim_start_matches('|').replace("\\|", "\0");
        let line = line.strip_suffix('|').unwrap_or(&line);
        line.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
    }

    #[test]
    fn the_readme_has_the_options_of_the_program() {
        let readme = std::fs::read_to_string(README).unwrap_or_default();
        let expected: Vec<Vec<String>> = OPTIONS.iter().map(|opt| row(opt).to_vec()).collect();
        assert!(
            rows(&readme) == Some(expected),
            "the option table of {README} is not that of the program, which is\n\n{}",
            option_table()
        );
    }

    #[test]
    fn a_table_that_is_read_back_is_the_same() {
        let markdown =
            format!("# x\n<!-- options -->\n\n{}\n<!-- /options -->\n| no | option |", option_table());
        let expected: Vec<Vec<String>> = OPTIONS.iter().map(|opt| row(opt).to_vec()).collect();
        assert_eq!(rows(&markdown), Some(expected));
    }

    #[test]
    fn a_readme_without_markers_has_no_table() {
        assert_eq!(rows("| flag | variables | default | meaning |"), None);
    }
}
