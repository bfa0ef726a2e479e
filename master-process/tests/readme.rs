//! The README's tables say what the program does. (The options' table is compared beside the options.)

use std::fmt::Display;

use master_process::driver::orders;
use master_process::exit_code;

const README: &str = include_str!("../../README.md");

/// The cells of the table between `<!-- name -->` and `<!-- /name -->`, without its head.
fn table(name: &str) -> Vec<(String, String)> {
    let (_, from) = README.split_once(&format!("<!-- {name} -->")).expect("the table begins");
    let (table, _) = from.split_once(&format!("<!-- /{name} -->")).expect("the table ends");
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let mut cells = row.trim_matches('|').splitn(2, '|').map(|cell| cell.trim().to_owned());
        (cells.next().unwrap_or_default(), cells.next().unwrap_or_default())
    })
    .collect()
}

fn expected<T: Display>(rows: &[(T, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(key, meaning)| (format!("`{key}`"), (*meaning).to_owned())).collect()
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    assert_eq!(table("exit codes"), expected(&exit_code::TABLE));
}

#[test]
fn the_signals_are_those_of_the_program() {
    assert_eq!(table("signals"), expected(&orders::TABLE));
}
