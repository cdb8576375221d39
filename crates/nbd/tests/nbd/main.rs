//! The server as its clients see it, over raw bytes. Tests named `nbd_aNN_…` show the point of that number in
//! the conformance checklist (reference/nbd.md, part A); those named after a CVE are regressions of
//! other servers that must not happen here.

mod gated;
mod lifecycle;
mod negotiation;
mod server;
mod shadow;
mod support;
mod transmission;
