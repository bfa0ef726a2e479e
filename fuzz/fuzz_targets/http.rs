//! The head of a request to the metrics, in pieces as it comes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use master_process::http::{MAX_HEAD, Parsed, parse};

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MAX_HEAD)];
    let whole = parse(bytes);
    // As soon as it is decided it stays what it is, whatever follows.
    for length in 0..bytes.len() {
        let part = parse(&bytes[..length]);
        if matches!(part, Parsed::Page { .. }) {
            assert_eq!(part, whole);
            break;
        }
    }
    if bytes.len() == MAX_HEAD {
        assert_ne!(whole, Parsed::Partial, "a head that is too long is refused");
    }
});
