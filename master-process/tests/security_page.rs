//! Each rule of the security page names a test that exists.

use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../../docs/security.md");

/// The tests in the last column of the page's tables.
fn named() -> Vec<&'static str> {
    let rows = PAGE.lines().filter(|line| line.starts_with('|') && line.contains("::"));
    let tests = rows.filter_map(|row| row.trim_matches('|').rsplit('|').next());
    tests.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// Whether `module::name` is an end-to-end test, or `path::to::module::name` a unit test.
fn exists(test: &str) -> bool {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let Some((module, name)) = test.rsplit_once("::") else { return false };
    let module = module.replace("::", "/");
    let files = [
        format!("tests/tests/e2e/{module}.rs"),
        format!("master-process/src/{module}.rs"),
        format!("master-process/src/{module}/mod.rs"),
    ]
    .map(|file| root.join(file));
    let definition = format!("#[test]\nfn {name}()");
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).any(|text| {
        let unindented: Vec<&str> = text.lines().map(str::trim).collect();
        unindented.join("\n").contains(&definition)
    })
}

#[test]
fn every_test_that_the_page_names_exists() {
    let tests = named();
    assert!(tests.len() >= 10, "{tests:?}");
    for test in tests {
        assert!(exists(test), "{test} of docs/security.md is not a test");
    }
    assert!(!exists("security::no_such_test"));
}
