//! A line of a client of the control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use master_process::control::{MAX_REQUEST, parse_request};

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > MAX_REQUEST {
        return;
    }
    match parse_request(bytes) {
        // What is written is read again as the same.
        Ok(request) => assert_eq!(parse_request(request.line().trim_ascii_end()), Ok(request)),
        Err(error) => {
            assert!(!error.code.is_empty());
            assert!(!error.message.is_empty());
        }
    }
});
