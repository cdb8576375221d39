//! AWS KMS as a provider: the official SDK behind the trait `Kms`.
//!
//! A crate, and with `main.rs` a program, of its own: only the short-lived process that makes one call links the SDK,
//! never the one that serves a volume. Calls and encryption contexts are those that EBS makes (ebs.md A.6).
#![forbid(unsafe_code)]

mod answer;
mod connect;
mod error;
mod provider;

pub use connect::open;
