//! The documentation's table of options, generated from the table that the program uses.

use super::option_table::{Kind, OPTIONS, Opt, Unset};

/// The columns.
const COLUMNS: [&str; 4] = ["flag", "variables", "default", "meaning"];

/// The options as a Markdown table, which `cargo xtask docs` writes into `docs/options.md`.
#[must_use]
pub fn options_as_markdown() -> String {
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
        Unset::Adaptive(text) => format!("`{text}`, adaptive"),
        Unset::Nothing(text) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_a_row_whose_bars_do_not_end_a_cell() {
        let table = options_as_markdown();
        assert_eq!(table.lines().count(), OPTIONS.len() + 2);
        let cells = |row: &str| row.replace("\\|", "").matches('|').count();
        assert!(table.lines().all(|row| cells(row) == 5), "{table}");
    }
}
