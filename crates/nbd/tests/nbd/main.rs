//! The server as its clients see it, over raw bytes. Tests named `aNN_…` show the point of that number in
//! the conformance checklist (reference/nbd.md, part A); those named after a CVE are regressions of
//! other servers that must not happen here.

mod any_bytes;
mod bounds;
mod certificates;
mod chunks;
mod extended;
mod fuzzing;
mod gated;
#[path = "../../../../fuzz/harness/mod.rs"]
mod harness;
mod lifecycle;
mod meta_context;
mod negotiation;
mod numbers;
mod running;
mod server;
mod shadow;
mod structured;
mod support;
mod tls;
mod tls_options;
mod tls_records;
mod transmission;
