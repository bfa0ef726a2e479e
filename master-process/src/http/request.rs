//! What a client asks for.

use serde::{Deserialize, Serialize};

use crate::exposition::Format;

/// The longest head of a request, in bytes. That of Prometheus has 500.
pub const MAX_HEAD: usize = 8192;

/// The most header fields.
const MAX_FIELDS: usize = 64;

/// A page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Page {
    /// `/metrics`.
    Metrics(Format),
    /// `/healthz`.
    Health,
    /// `/readyz`.
    Ready,
}

/// A request that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not HTTP/1.x.
    Garbage,
    /// Its head is longer than [`MAX_HEAD`], or has too many fields.
    TooLong,
    /// There is no such page.
    NoSuchPage,
    /// Only GET and HEAD are known.
    Method,
}

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a head.
    Partial,
    /// A request. `body`: whether the answer has one, as that to HEAD has not.
    Page {
        /// The page.
        page: Page,
        /// Whether the answer has a body.
        body: bool,
    },
    /// One that is refused.
    Refused(Refusal),
}

/// Reads the head of a request.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Refused(Refusal::TooLong);
        }
        Err(_no_http) => return Parsed::Refused(Refusal::Garbage),
    }
    let body = match request.method {
        Some("GET") => true,
        Some("HEAD") => false,
        _other => return Parsed::Refused(Refusal::Method),
    };
    let path = request.path.unwrap_or_default().split(['?', '#']).next();
    let page = match path {
        Some("/metrics") => Page::Metrics(format(request.headers)),
        Some("/healthz") => Page::Health,
        Some("/readyz") => Page::Ready,
        _other => return Parsed::Refused(Refusal::NoSuchPage),
    };
    Parsed::Page { page, body }
}

/// OpenMetrics, unless the client accepts only plain text.
fn format(fields: &[httparse::Header<'_>]) -> Format {
    let has = |field: &httparse::Header<'_>, kind: &str| {
        let value = String::from_utf8_lossy(field.value).to_ascii_lowercase();
        field.name.eq_ignore_ascii_case("accept") && value.contains(kind)
    };
    let accepts = |kind| fields.iter().any(|field| has(field, kind));
    if accepts("text/plain") && !accepts("application/openmetrics-text") {
        Format::Prometheus
    } else {
        Format::OpenMetrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n";

    fn refused(bytes: &[u8]) -> Option<Refusal> {
        match parse(bytes) {
            Parsed::Refused(refusal) => Some(refusal),
            Parsed::Partial | Parsed::Page { .. } => None,
        }
    }

    #[test]
    fn a_request_names_its_page() {
        let page = |page, body| Parsed::Page { page, body };
        assert_eq!(parse(SCRAPE), page(Page::Metrics(Format::OpenMetrics), true));
        let plain = b"GET /metrics?x=1 HTTP/1.0\r\naccept: Text/Plain\r\n\r\n";
        assert_eq!(parse(plain), page(Page::Metrics(Format::Prometheus), true));
        assert_eq!(parse(b"HEAD /healthz HTTP/1.1\r\n\r\n"), page(Page::Health, false));
        assert_eq!(parse(b"GET /readyz HTTP/1.1\n\n"), page(Page::Ready, true));
        for end in 0..SCRAPE.len() {
            assert_eq!(parse(&SCRAPE[..end]), Parsed::Partial, "{end}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert_eq!(refused(b"GET / HTTP/1.1\r\n\r\n"), Some(Refusal::NoSuchPage));
        assert_eq!(refused(b"POST /metrics HTTP/1.1\r\n\r\n"), Some(Refusal::Method));
        for garbage in [&b"\x16\x03\x01\x02\0"[..], b"GET /metrics\r\n\r\n", b"{\"command\":\"status\"}\n"] {
            assert_eq!(refused(garbage), Some(Refusal::Garbage), "{garbage:?}");
        }
        let long = [b"GET /metrics HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; MAX_HEAD]].concat();
        assert_eq!(refused(&long), Some(Refusal::TooLong));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(refused(many.as_bytes()), Some(Refusal::TooLong));
    }

    /// Random bytes, and requests with a few bytes changed: the parser answers each, and never panics. What is complete
    /// stays what it is when more follows.
    #[test]
    fn no_bytes_upset_the_parser() {
        let mut noise = Noise::new();
        let pieces: &[&[u8]] = &[
            b"GET ",
            b"/metrics",
            b" HTTP/1.1",
            b"\r\n",
            b"\n",
            b"Accept",
            b": ",
            b"\0",
            b"\xff",
            b" ",
            b"text/plain",
        ];
        for round in 0..20_000 {
            let mut bytes = match round % 3 {
                0 => SCRAPE.to_vec(),
                1 => noise.some_of(pieces, 16),
                _ => b"A: b\r\n".repeat(noise.below(200)),
            };
            noise.spoil(&mut bytes);
            let parsed = parse(&bytes);
            if let Parsed::Page { .. } = parsed {
                bytes.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
                assert_eq!(parse(&bytes), parsed);
            }
        }
    }
}
