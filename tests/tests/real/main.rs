//! Other projects' programs, each with the traffic that it exists for: by itself, which shows that the test asks for
//! nothing impossible, and as a worker, where it must do the same.
//!
//! The name of a test is the requirement. Every test has a network of its own, so that fixed ports are its own, and
//! needs root for that.

mod built;
mod network;
mod one_worker;
mod run;

mod fastcgi;
mod ftp_client;

mod asio;
mod erlang;
mod ftp;
mod haproxy;
mod httplib;
mod main_thread;
mod memcached;
mod node;
mod php_fpm;
mod postgres;
mod puma;
mod python;
mod redis;
mod reuseport;
mod ssh;
mod udp;
mod wrappers;
