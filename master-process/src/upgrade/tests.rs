//! States of earlier versions stay readable.

use super::{SCHEMA, State};

/// The state of a supervisor of version 0.1.0 in the middle of a reload: three workers on a TCP port, a Unix path and a
/// UDP port, sockets of `--listen`, and a client of the control socket that waits.
const GOLDEN: &str = include_str!("state-1.json");

#[test]
fn the_state_of_an_earlier_version_is_read() {
    let state = State::parse(GOLDEN.as_bytes()).expect("it is readable for ever");
    assert_eq!(state.schema, SCHEMA);
}

#[test]
fn unknown_fields_are_ignored_and_another_schema_is_refused() {
    let mut value: serde_json::Value = serde_json::from_str(GOLDEN).expect("JSON");
    value["of_a_later_version"] = serde_json::json!({ "a": [1] });
    value["driver"]["of_a_later_version"] = serde_json::json!(true);
    State::parse(value.to_string().as_bytes()).expect("it is readable");
    value["schema"] = serde_json::json!(2);
    let refused = State::parse(value.to_string().as_bytes()).expect_err("another form");
    assert_eq!(refused, "the state has schema 2, and this version reads schema 1");
    let cut = &GOLDEN.as_bytes()[..GOLDEN.len() / 2];
    assert!(State::parse(cut).expect_err("half of it").starts_with("the state is not readable: "));
}
