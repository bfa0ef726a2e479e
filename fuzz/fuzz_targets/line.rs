//! A line of a supervisor, as the commands read it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use master_process::control::Line;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Line::Reply(reply)) = Line::parse(bytes) {
        let again = Line::parse(&reply.line()).expect("our own line");
        // An answer whose only fields are those of an event is none.
        if let Line::Reply(again) = again {
            assert_eq!(again.line(), reply.line());
        }
    }
});
