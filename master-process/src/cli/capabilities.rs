//! `--ambient CAPS`.

use super::error::{Parsed, UsageError};
use super::resolver::Resolver;
use crate::config::Capabilities;

/// Every capability that was named.
pub(super) fn ambient(from: &Resolver<'_>) -> Result<Capabilities, UsageError> {
    let named = from.list("ambient", parse)?;
    Ok(named.into_iter().fold(Capabilities::NONE, Capabilities::union))
}

fn parse(text: &str) -> Parsed<Capabilities> {
    Capabilities::named(text).ok_or_else(|| {
        "is not a capability; give names of capabilities(7), such as net_bind_service or CAP_NET_BIND_SERVICE"
            .into()
    })
}
