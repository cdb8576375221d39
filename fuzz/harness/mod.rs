//! What is checked of the NBD core on any bytes at all. The fuzz targets (`fuzz/targets`) call these functions, and so
//! does `cargo test` (`crates/nbd/tests/nbd/fuzzing.rs`): on the corpus, and on bytes from proptest.
//!
//! Each takes bytes and panics if a promise is broken. Readers and models in here are written from the words of the
//! protocol and share no code and no constant with the server.

pub(crate) mod answer;
mod bytes;
mod exports;
mod model;
mod options;
mod oracle;
mod requests;
mod sequence;
mod transmission;

pub(crate) use options::options;
pub(crate) use requests::requests;
pub(crate) use sequence::sequence;
pub(crate) use transmission::transmission;
