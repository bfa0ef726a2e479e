//! A small server of HTTP/1.1 for the metrics: it answers GET and HEAD of three pages, and closes the connection.

mod listener;
mod request;
mod server;

pub use listener::Listener;
pub use request::{MAX_HEAD, Page, Parsed, Refusal, parse};
pub use server::{Asked, Response, SavedServer, Server};
