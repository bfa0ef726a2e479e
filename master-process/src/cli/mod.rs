//! From arguments and environment to [`Config`](crate::config::Config).
