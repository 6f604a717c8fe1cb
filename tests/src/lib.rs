//! The pair from outside: a lab of network namespaces, a client that checks every acknowledgement, the
//! demonstration, and torture.

pub mod bed;
pub mod client;
pub mod config;
pub mod demo;
pub mod hosts;
pub mod kmod;
pub mod lab;
pub mod linux;
pub mod median;
pub mod process;
pub mod random;
pub mod redis_benchmark;
pub mod side;
pub mod standin;
pub mod timeline;
pub mod torture;
